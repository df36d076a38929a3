"""Bad arguments of the rules: each raises an exception that begins with the argument's name.

Everything follows from the rows of `_core.RULES` and the signatures of fwm_py.rules: a new row is tested here as it
comes. Every other argument of a call is good.
"""

import numpy as np
import pytest
from support import cases
from support.rule_calls import array_arguments, bits, every_call, every_forward, flat
from test_bad_input import assert_refused, bad_array, bad_shapes

# --- what may be given instead -------------------------------------------------------------------------------------

NUMBERS = [
    *((given, TypeError) for given in ("1", [1.0], 1j, object(), np.ones(2))),
    *((given, ValueError) for given in (float("nan"), float("inf"), -float("inf"), np.float64("nan"), 10**400)),
]
FLAGS = [(given, TypeError) for given in (None, 0, 1, "True", 1.0, [], np.True_)]
WORDS = [
    *((given, TypeError) for given in (1, True, b"l2", ["l2"])),
    *((given, ValueError) for given in ("", "L2", "l2 ", "l2\0", "chunk", "é", "\udc80", "x" * 1000)),
]
OPTIONS = {
    "scale": NUMBERS,
    "eps": [(None, TypeError), *NUMBERS],
    "normalize": FLAGS,
    "clamp_first": FLAGS,
    "output_final_state": FLAGS,
    "qk_norm": WORDS,
    "method": [(None, TypeError), *WORDS],
}

# The axes that this array alone gives the size of: another array would be blamed.
FREE_AXES = {"k": (2,), "v": (2, 3)}


def bad_values(name, array):
    """(given, exception) for an array."""
    yield array.astype(np.float32), TypeError  # the others are float64
    yield [[1.0], [1.0, 2.0]], ValueError
    free = {doubled.shape for axis in FREE_AXES.get(name, ()) for doubled in [np.concatenate([array] * 2, axis=axis)]}
    for given, exception in bad_array(array):
        may_be_none = given is None and name in ("initial_state", "dfinal_state")
        if not may_be_none and getattr(given, "shape", None) not in free:
            yield given, exception


@every_call
def test_bad_arrays(call):
    good = call.good()
    call(good)
    for name, array, put in array_arguments(call, good):
        if name == "q":
            continue  # gives the dtype and most sizes
        for given, exception in bad_values(name, array):
            assert_refused(lambda: call(put(given)), name, exception)


@every_call
def test_bad_queries(call):
    good = call.good()
    for given, exception in bad_array(good["q"]):
        if exception is TypeError or np.ndim(given) != 4:
            assert_refused(lambda: call({**good, "q": given}), "q", exception)
    with pytest.raises(TypeError, match=r"^k: got float64, expected float32, as q has"):
        call({**good, "q": good["q"].astype(np.float32)})


@every_call
def test_bad_pairs(call):
    good = call.good()
    for name in {"initial_state", "dfinal_state"} & good.keys():
        if call.normalize:
            S, z = good[name]
            for given, exception in (
                (S, TypeError),
                ([S, z], TypeError),
                ((S,), ValueError),
                ((S, z, z), ValueError),
                ((), ValueError),
                ((S, None), TypeError),
                ((z, S), ValueError),
            ):
                assert_refused(lambda: call({**good, name: given}), name, exception)
        else:
            assert_refused(lambda: call({**good, name: (good[name],)}), name, ValueError)  # an array of one axis more


@every_call
def test_bad_options(call):
    good = call.good()
    for name in OPTIONS.keys() & good.keys():
        for given, exception in OPTIONS[name]:
            assert_refused(lambda: call({**good, name: given}), name, exception)
    call({**good, "scale": 1e39})
    assert_refused(lambda: call({**call.good(np.float32), "scale": 1e39}), "scale", ValueError)


@every_call
def test_empty_sizes_and_heads(call):
    good = call.good()
    for name in ("q", "k", "v"):
        for axis in (2, 3):
            empty = np.take(good[name], [], axis=axis)
            assert_refused(lambda: call({**good, name: empty}), name, ValueError)
    three = {name: np.concatenate([good[name], good[name]], axis=2)[:, :, :3] for name in ("q", "k", "v")}
    three["v"] = good["v"][:, :, :3]
    for name in three:  # HQ, H, HV are 2, 2, 4
        assert_refused(lambda: call({**good, name: three[name]}), "v" if name == "k" else name, ValueError)
    for HQ, H, HV in ((1, 1, 1), (2, 2, 6), (3, 1, 3), (6, 1, 3), (8, 2, 4), (4, 2, 4)):
        heads = flat(call(call.good(HQ=HQ, H=H, HV=HV)))[0].shape[2]
        assert heads == (HQ if call.backward else max(HQ, HV))
    for HQ, H, HV in ((1, 2, 4), (3, 2, 4), (6, 2, 4), (2, 4, 2), (2, 1, 4)):
        with pytest.raises(ValueError, match=r"^[qv]: got \d heads"):
            call(call.good(HQ=HQ, H=H, HV=HV))


@every_call
def test_bad_cu_seqlens(call):
    good = call.good(packed=True)  # [0, 4, 4, 6]
    call(good)
    offsets = good["cu_seqlens"]
    for given in (
        offsets.astype(float),
        offsets.astype(bool),
        offsets.astype(object),
        "text",
        offsets.astype("m8[s]"),
        [0.0, 6.0],
        [],
    ):
        assert_refused(lambda: call({**good, "cu_seqlens": given}), "cu_seqlens", TypeError)
    for given in (
        [0, 4, 2, 6],
        [1, 4, 4, 6],
        [0, 4, 4, 5],
        [0, 4, 4, 7],
        [0, 9, 4, 6],
        [-1, 0, 4, 6],
        [0, -2, 4, 6],
        [0],
        [6],
        6,
        [[0, 4, 4, 6]],
        [[0], [4, 6]],
        np.zeros(0, int),
        np.array([0, 4, 2**64 - 1, 6], np.uint64),
        np.array([2**63, 4, 4, 6], np.uint64),
        [-(2**63), 4, 4, 6],
    ):
        assert_refused(lambda: call({**good, "cu_seqlens": given}), "cu_seqlens", ValueError)
    assert_refused(lambda: call({**good, "cu_seqlens": [0, 4, 6]}), "initial_state", ValueError)
    two_rows = call.good(B=2, T=3)
    assert_refused(lambda: call({**two_rows, "cu_seqlens": [0, 2, 3]}), "cu_seqlens", ValueError)


@every_call
def test_results_beyond_all_memory(call):
    for sizes in ({"B": 2**40}, {"T": 2**41}, {"K": 2**45, "T": 0}, {"V": 2**58, "T": 0}, {"HV": 2**50, "T": 0}):
        good = call.good(B=1, T=1, HQ=1, H=1, HV=1, K=1, V=1)
        letters = {
            "q": "BTHK",
            "k": "BTHK",
            "v": "BTGV",
            "g": "BTGK"[: 3 if call.gate == "scalar" else 4],
            "beta": "BTG",
            "b": "BTGK",
            "w": "BTGV",
            "do": "BTGV",
        }
        large = {"B": 1, "T": 1, "H": 1, "G": sizes.get("HV", 1), "K": 1, "V": 1, **sizes}
        arguments = {
            name: np.broadcast_to(value.ravel()[0], [large[letter] for letter in letters[name]])
            if name in letters
            else value
            for name, value in good.items()
        }
        arguments["initial_state"] = None
        if call.backward:
            arguments["dfinal_state"] = None
            if large["T"] == 0:
                continue  # no gradients, no memory
        with pytest.raises((MemoryError, ValueError)):
            call(arguments)


# --- out -----------------------------------------------------------------------------------------------------------


def out_arrays(call, out):
    """(array, function that puts another in its place in (o, state))."""
    o, state = out
    yield o, lambda given: (given, state)
    if call.normalize:
        yield state[0], lambda given: (o, (given, state[1]))
        yield state[1], lambda given: (o, (state[0], given))
    else:
        yield state, lambda given: (o, given)


@every_forward
def test_bad_out(call):
    good = call.good()
    o, state = call.out(good)

    def refused(out, exception):
        assert_refused(lambda: call({**good, "out": out}), "out", exception)

    for given in ([o, state], 1, "text", object(), (o, None), (None, state), (o, [1.0])):
        refused(given, TypeError)
    for given in ((), (o,), (o, state, state)):
        refused(given, ValueError)
    for array, put in out_arrays(call, (o, state)):
        for dtype in (np.float32, np.int64, np.complex128, object, array.dtype.newbyteorder()):
            refused(put(array.astype(dtype)), TypeError)
        for given, exception in bad_shapes(array):
            refused(put(given), exception)
        for make in (cases.strided, cases.backwards, cases.read_only, cases.unaligned, cases.column_major):
            refused(put(make(array)), ValueError)
    refused(good["v"], ValueError)


def overlapping(a, b, offset):
    """Copies of two arrays in one memory: b begins `offset` numbers behind a's end."""
    memory = np.zeros(a.size + b.size + abs(offset), a.dtype)
    first, second = memory[: a.size].reshape(a.shape), memory[a.size + offset :][: b.size].reshape(b.shape)
    first[...] = a
    return first, second


@every_forward
def test_out_shares_no_memory(call):
    good = call.good()
    expected, out = bits(call(good)), call.out(good)
    for _, array, put in array_arguments(call, good):
        for target, put_out in out_arrays(call, out):
            beside, free = overlapping(array, target, 0)
            assert bits(call({**put(beside), "out": put_out(free)})) == expected
            over, taken = overlapping(array, target, -1)
            assert_refused(lambda: call({**put(over), "out": put_out(taken)}), "out", ValueError)
            assert over.tobytes() == array.tobytes()
    arrays = list(out_arrays(call, out))
    for i, (a, _) in enumerate(arrays):
        for b, _ in arrays[i + 1 :]:
            first, second = overlapping(a, b, -1)
            shared = [first if x is a else second if x is b else x for x, _ in arrays]
            assert_refused(
                lambda: call({**good, "out": (shared[0], tuple(shared[1:]) if call.normalize else shared[1])}),
                "out",
                ValueError,
            )


@every_forward
def test_out_in_the_gaps_of_a_strided_input(call):
    good = call.good(B=2, T=1)
    q, o = good["q"], call.out(good)[0]
    memory = np.zeros((2, 200))
    memory[:, : q[0].size] = q.reshape(2, -1)
    strided = memory[:, : q[0].size].reshape(q.shape)
    assert np.shares_memory(strided, memory)
    gap = memory.ravel()[100 : 100 + o.size].reshape(o.shape)
    result, _ = call({**good, "q": strided, "out": gap})
    assert result is gap and bits(result) == bits(call(good)[0])
    touching = memory.ravel()[201 - o.size : 201].reshape(o.shape)
    assert_refused(lambda: call({**good, "q": strided, "out": touching}), "out", ValueError)


@every_forward
def test_a_state_backwards_is_not_in_place(call):
    good = call.good()
    o, state = call.out(good)
    given = (state[0][::-1], state[1]) if call.normalize else state[::-1]
    assert_refused(lambda: call({**good, "initial_state": given, "out": (o, state)}), "out", ValueError)
