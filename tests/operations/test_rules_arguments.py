"""Signatures and documentation of the rules; good but unusual arguments: out, makes of arrays, nothing."""

import inspect
import re
import threading

import numpy as np
import pytest
from support import cases
from support.rule_calls import CALLS, Call, array_arguments, bits, every_call, every_forward, flat, forms

import fwm_py
from fwm_py import _core, rules

# --- as the table says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", _core.RULES, ids=lambda row: row["function"])
def test_signatures_follow_the_table(row):
    options = {"scale", "initial_state", "cu_seqlens", "method"}
    options |= {"normalize", "eps"} if row["normalizes"] else set()
    options |= {"qk_norm"} if row["has_qk_norm"] else set()
    options |= {"clamp_first"} if row["clamps"] else set()
    for backward, first, own in ((False, [], {"output_final_state", "out"}), (True, ["do"], {"dfinal_state", "out"})):
        call = Call(row, forms(row)[0][0], False, backward)
        kinds = {
            kind: [name for name, p in call.parameters.items() if p.kind == kind]
            for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        }
        assert kinds[inspect.Parameter.POSITIONAL_OR_KEYWORD] == first + call.arrays()
        assert set(kinds[inspect.Parameter.KEYWORD_ONLY]) == options | own
        assert len(call.parameters) == len(first + call.arrays()) + len(options | own)


def test_nothing_public_without_a_row():
    rows = {row["function"] + ending for row in _core.RULES for ending in ("", "_backward")}
    public = {name for name in rules.__all__ if inspect.isroutine(getattr(rules, name))}
    assert public == rows
    assert set(rules.__all__) <= set(fwm_py.__all__)


@every_call
def test_functions_are_documented(call):
    documentation = rules.__doc__ + call.function.__doc__  # what all functions take is said once
    assert all(re.search(rf"\b{name}\b", documentation) for name in call.parameters)
    assert all(p.annotation is not inspect.Parameter.empty for p in call.parameters.values())
    assert inspect.signature(call.function).return_annotation is not inspect.Signature.empty


@every_call
def test_missing_and_unknown_arguments(call):
    good = call.good()
    for name, parameter in call.parameters.items():
        if parameter.default is inspect.Parameter.empty:
            with pytest.raises(TypeError, match=name):
                call({other: value for other, value in good.items() if other != name})
    with pytest.raises(TypeError, match="surprise"):
        call({**good, "surprise": 1})


# --- out -----------------------------------------------------------------------------------------------------------


@every_forward
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_is_returned(call, dtype):
    good = call.good(dtype)
    expected = call(good)
    o, state = call.out(good)
    result = call({**good, "out": (o, state), "output_final_state": False})
    assert all(a is b for a, b in zip(flat(result), flat((o, state)), strict=True)) and bits(result) == bits(expected)
    o = np.full_like(o, 7)
    result, none = call({**good, "out": o, "output_final_state": False})
    assert result is o and none is None and bits(o) == bits(expected[0])
    result, final = call({**good, "out": o})
    assert result is o and bits(final) == bits(expected[1])


@every_forward
def test_the_state_in_place(call):
    """Decoding token by token into the state it came from equals decoding into new ones."""
    tokens = [call.good(T=1, seed=seed) for seed in range(3)]
    state = tokens[0]["initial_state"]
    kept = tuple(a.copy() for a in state) if call.normalize else state.copy()
    for token in tokens:
        o, state = call({**token, "initial_state": state})
        o_kept, returned = call({**token, "initial_state": kept, "out": (np.empty_like(o), kept)})
        assert all(a is b for a, b in zip(flat(returned), flat(kept), strict=True))
        assert bits((o, state)) == bits((o_kept, kept))


# --- unusual arrays ------------------------------------------------------------------------------------------------


@every_call
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_arrays_of_any_make(call, packed):
    good = call.good(packed=packed)
    before, expected = bits([array for _, array, _ in array_arguments(call, good)]), bits(call(good))
    for _, array, put in array_arguments(call, good):
        for make in cases.MAKES:
            given = make(array)
            inside = given.tobytes()
            assert bits(call(put(given))) == expected
            assert given.tobytes() == inside
        assert bits(call(put(array.tolist()))) == expected
    assert bits([array for _, array, _ in array_arguments(call, good)]) == before


def in_a_projection(a):
    """As queries, keys and values of one product lie: between a token and the next there are other numbers."""
    around = np.full((*a.shape[:2], a[0, 0].size + 7), np.nan, a.dtype)
    around[..., 3:-4] = a.reshape(*a.shape[:2], -1)
    return around[..., 3:-4].reshape(a.shape)


def every_other_token(a):
    around = np.full((a.shape[0], 2 * a.shape[1], *a.shape[2:]), np.nan, a.dtype)
    around[:, ::2] = a
    return around[:, ::2]


def some_of_more_tokens(a):
    """The next sequence does not begin where this one ends."""
    around = np.full((a.shape[0], a.shape[1] + 3, *a.shape[2:]), np.nan, a.dtype)
    around[:, 1:-2] = a
    return around[:, 1:-2]


def every_other_head(a):
    around = np.full((*a.shape[:2], 2 * a.shape[2], *a.shape[3:]), np.nan, a.dtype)
    around[:, :, ::2] = a
    return around[:, :, ::2]


@every_call
@pytest.mark.parametrize("method", ["chunked", "recurrent"])
@pytest.mark.parametrize("B, T", [(2, 40), (1, 40), (3, 1), (1, 1)])
def test_tokens_inside_larger_arrays(call, B, T, method):
    good = call.good(B=B, T=T) | {"method": method}
    expected = bits(call(good))
    for make in (in_a_projection, every_other_token, some_of_more_tokens, every_other_head):
        given = {name: make(value) if name in (*call.arrays(), "do") else value for name, value in good.items()}
        assert all(given[name].base is not None for name in ("q", "k", "v"))
        before = bits([given[name].base for name in ("q", "k", "v")])
        assert bits(call(given)) == expected
        assert bits([given[name].base for name in ("q", "k", "v")]) == before


@every_call
def test_cu_seqlens_of_any_integers(call):
    good = call.good(packed=True)
    expected, offsets = bits(call(good)), good["cu_seqlens"]
    for dtype in "bBhHiIqQ":
        assert bits(call({**good, "cu_seqlens": offsets.astype(dtype)})) == expected
    for given in (
        offsets.tolist(),
        cases.strided(offsets),
        cases.swapped_bytes(offsets),
        cases.read_only(offsets),
        cases.backwards(offsets),
        cases.unaligned(offsets),
    ):
        assert bits(call({**good, "cu_seqlens": given})) == expected


@every_call
def test_many_packed_sequences(call):
    """As many as do not fit into the room that a call has anyway: one token each, as rows of one token are."""
    rows = call.good(B=50, T=1)
    packed = {
        name: value.reshape(1, 50, *value.shape[2:]) if name in (*call.arrays(), "do") else value
        for name, value in rows.items()
    }
    result = flat(call({**packed, "cu_seqlens": np.arange(51)}))
    assert [a.tobytes() for a in result] == [a.tobytes() for a in flat(call(rows))]


@every_call
def test_defaults(call):
    good = call.good(K=4)
    scale = 1.0 if call.normalize else 0.5
    assert bits(call({**good, "scale": None})) == bits(call({**good, "scale": scale}))
    standard = {"qk_norm": None, "eps": 1e-6, "clamp_first": True, "cu_seqlens": None, "method": "chunked"}
    explicit = {**good, **{name: value for name, value in standard.items() if name in good}}
    assert bits(call({name: value for name, value in good.items() if name not in standard})) == bits(call(explicit))
    zeros = tuple(map(np.zeros_like, good["initial_state"])) if call.normalize else np.zeros_like(good["initial_state"])
    assert bits(call({**good, "initial_state": None}))[0] == bits(call({**good, "initial_state": zeros}))[0]


@every_forward
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}, {"B": 0, "T": 0}], ids=str)
def test_forward_of_nothing(call, sizes):
    good = call.good(**sizes)
    o, state = call(good)
    assert o.size == 0 and o.shape == (*good["v"].shape[:2], 4, 5)
    assert bits(state) == bits(good["initial_state"])
    assert not any(np.shares_memory(a, b) for a, b in zip(flat(state), flat(good["initial_state"]), strict=True))
    _, zeros = call({**good, "initial_state": None})
    assert [a.shape for a in flat(zeros)] == [a.shape for a in flat(state)] and not any(a.any() for a in flat(zeros))
    assert call({**good, "output_final_state": False})[1] is None


@pytest.mark.parametrize("call", [call for call in CALLS if call.backward], ids=str)
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}, {"B": 0, "T": 0}], ids=str)
def test_backward_of_nothing(call, sizes):
    good = call.good(**sizes)
    gradients = call(good)
    for name in call.arrays():
        assert getattr(gradients, "d" + name).shape == good[name].shape
    assert bits(gradients.dinitial_state) == bits(good["dfinal_state"])
    assert not any(a.any() for a in flat(call({**good, "dfinal_state": None}).dinitial_state))
    assert call({**good, "initial_state": None}).dinitial_state is None


@every_call
def test_no_sequences_at_all(call):
    good = call.good(B=1, T=0)
    nothing = [
        tuple(a[:0] for a in state) if call.normalize else state[:0]
        for state in (good["initial_state"], good.get("dfinal_state", good["initial_state"]))
    ]
    given = {
        **good,
        "cu_seqlens": [0],
        "initial_state": nothing[0],
        **({"dfinal_state": nothing[1]} if call.backward else {}),
    }
    assert all(a.size == 0 for a in flat(call(given)))


@pytest.mark.parametrize("call", [call for call in CALLS if call.backward], ids=str)
def test_gradients_are_named_as_the_inputs(call):
    good = call.good()
    gradients = call(good)
    assert gradients._fields == (*("d" + name for name in call.arrays()), "dinitial_state")
    assert [a.shape for a in flat(gradients)] == [good[name].shape for name in call.arrays()] + [
        a.shape for a in flat(good["initial_state"])
    ]
    assert all(a.dtype == np.float64 and a.flags.c_contiguous and a.flags.owndata for a in flat(gradients))


@every_call
def test_threads_of_python_call_at_once(call):
    good = [call.good(seed=seed, T=20) for seed in range(4)]
    expected, results = [bits(call(arguments)) for arguments in good], [[] for _ in good]

    def work(i):
        for _ in range(20):
            results[i].append(bits(call(good[i])))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(good))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(result == expected[i] for i, several in enumerate(results) for result in several)
    assert [len(several) for several in results] == [20] * len(good)
