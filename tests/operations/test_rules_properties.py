"""What must hold of the rules whatever the numbers: no reference is needed for it."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.rule_cases import METHODS, RULE_CASES, Sizes, assert_close

import fwm_py

every_case = pytest.mark.parametrize("case", RULE_CASES, ids=str)


@st.composite
def sizes_of_a_call(draw, B=st.integers(1, 2), T=st.integers(1, 70)):
    H, per_key_head = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    HV = H * per_key_head
    HQ = draw(st.sampled_from([H, HV, 2 * HV]))
    return Sizes(draw(B), draw(T), H, HV, HQ, draw(st.integers(1, 20)), draw(st.integers(1, 36)))


calls = {"sizes": sizes_of_a_call(), "seed": st.integers(0, 2**32 - 1), "method": st.sampled_from(METHODS)}


def quick(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, print_blob=False)


def run(case, x, sizes, method):
    """Results and gradients (named d..) in one dict."""
    gradients = case.backward(x, sizes, method=method)
    return case.forward(x, sizes, method=method) | {"d" + name: gradient for name, gradient in gradients.items()}


def of_tokens(name):
    """Whether an array, or a gradient by its name, has an axis of tokens; states have none."""
    return not name.endswith(("_state", "_sum"))


def part(x, start, end):
    """Tokens start .. end - 1 of every tensor, without states."""
    return {name: array[:, start:end] for name, array in x.items() if of_tokens(name)}


def states(x, which):
    return {name: array for name, array in x.items() if name in (f"{which}_state", f"{which}_sum")}


def heads_axis(name):
    return 2 if of_tokens(name) else 1


# --- time ----------------------------------------------------------------------------------------------------------


@every_case
@quick(8)
@given(**calls, share=st.floats(0, 1))
def test_a_sequence_in_two_parts(case, sizes, seed, method, share):
    """The state handed on, and its gradient handed back, the parts give what the whole gives."""
    x, cut = case.inputs(sizes, seed), round(share * sizes.T)
    whole = run(case, x, sizes, method)
    sizes1, sizes2 = sizes._replace(T=cut), sizes._replace(T=sizes.T - cut)
    first, second = part(x, 0, cut) | states(x, "initial"), part(x, cut, sizes.T) | states(x, "dfinal")
    if cut == 0 and case.option("clamp_first") is False:
        assume(False)  # an initial state is given below, and then the first write is clamped
    handed_on = case.forward(first, sizes1, method=method)
    second |= {name.replace("final", "initial"): array for name, array in states(handed_on, "final").items()}
    results2 = run(case, second, sizes2, method)
    first |= {name.replace("dinitial", "dfinal"): array for name, array in states(results2, "dinitial").items()}
    results1 = run(case, first, sizes1, method)
    both = {name: np.concatenate([results1[name], results2[name]], axis=1) for name in whole if of_tokens(name)}
    assert_close(both | states(results2, "final") | states(results1, "dinitial"), whole, 1e-9)


@every_case
@quick(8)
@given(
    **(calls | {"sizes": sizes_of_a_call(B=st.just(1))}),
    cuts=st.lists(st.floats(0, 1), max_size=5),
    with_states=st.booleans(),
)
def test_packed_sequences(case, sizes, seed, method, cuts, with_states):
    """Sequences in one row, empty ones too, give what they give apart."""
    cu_seqlens = (0, *sorted(round(cut * sizes.T) for cut in cuts), sizes.T)
    packed = sizes._replace(cu_seqlens=cu_seqlens)
    x = case.inputs(packed, seed, states=with_states)
    together, apart = run(case, x, packed, method), []
    for i, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
        own = {name: array[i : i + 1] for name, array in x.items() if not of_tokens(name)}
        apart.append(run(case, part(x, start, end) | own, sizes._replace(T=end - start), method))
    for name, array in together.items():
        expected = np.concatenate([results[name] for results in apart], axis=1 if of_tokens(name) else 0)
        assert_close({name: array}, {name: expected}, 1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lengths", [(1, 70), (70, 1), (1, 1, 17, 0, 1)], ids=str)
@pytest.mark.parametrize("method", METHODS)
@every_case
def test_packed_sequences_have_the_bits_that_they_have_apart(case, method, lengths, dtype):
    """Those of one token too, which the recurrence serves."""
    cu_seqlens = tuple(np.cumsum((0, *lengths)).tolist())
    for H, HV, HQ in ((1, 1, 1), (1, 3, 1), (2, 2, 4)):
        packed = Sizes(1, cu_seqlens[-1], H, HV, HQ, 9, 37, cu_seqlens)
        x = case.inputs(packed, dtype=dtype)
        together = run(case, x, packed, method)
        for i, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
            own = {name: array[i : i + 1] for name, array in x.items() if not of_tokens(name)}
            apart = run(case, part(x, start, end) | own, packed._replace(T=end - start, cu_seqlens=None), method)
            for name, array in apart.items():
                got = together[name][:, start:end] if of_tokens(name) else together[name][i : i + 1]
                assert got.tobytes() == array.tobytes(), (name, i)


@every_case
@quick(8)
@given(**calls, share=st.floats(0, 1))
def test_later_tokens_change_nothing(case, sizes, seed, method, share):
    """Causality: outputs up to a token, to the bit in the recurrence, and no gradient from outputs to later inputs."""
    x, t = case.inputs(sizes, seed), round(share * (sizes.T - 1))
    later = case.inputs(sizes, seed + 1)
    mixed = {name: array.copy() for name, array in x.items()}
    for name in case.arguments:
        mixed[name][:, t + 1 :] = later[name][:, t + 1 :]
    o, of_mixed = (case.forward(y, sizes, method=method)["o"][:, : t + 1] for y in (x, mixed))
    assert_close({"o": of_mixed}, {"o": o}, 0 if method == "recurrent" else 1e-12)
    x["do"][:, t + 1 :] = 0
    for name in states(x, "dfinal"):
        x[name][...] = 0
    gradients = case.backward(x, sizes, method=method)
    assert not any(gradients[name][:, t + 1 :].any() for name in case.arguments)


# --- heads and sequences -------------------------------------------------------------------------------------------


@every_case
@quick(6)
@given(**calls)
def test_heads_and_sequences_are_independent(case, sizes, seed, method):
    """Permuted key heads, with the value and query heads that go with them, permute the results; so do sequences."""
    sizes = sizes._replace(B=2, H=2, HV=2 * (sizes.HV // sizes.H), HQ=2 * (sizes.HQ // sizes.H))
    x = case.inputs(sizes, seed)

    def turned(name, array):
        """Both key heads, with all heads that go with them, exchanged; then both sequences."""
        axis = heads_axis(name)
        return np.roll(np.roll(array, array.shape[axis] // 2, axis=axis), 1, axis=0)

    results = run(case, x, sizes, method)
    of_turned = run(case, {name: turned(name, array) for name, array in x.items()}, sizes, method)
    assert_close(of_turned, {name: turned(name, array) for name, array in results.items()}, 1e-12)


@every_case
@quick(6)
@given(**calls)
def test_shared_heads_are_copies(case, sizes, seed, method):
    """A key or query head that serves several value heads is as good as a copy for each; gradients add up."""
    x, R = case.inputs(sizes, seed), max(sizes.HQ, sizes.HV)
    copies = {name: np.repeat(array, R // array.shape[heads_axis(name)], heads_axis(name)) for name, array in x.items()}
    for name in states(x, "dfinal"):  # of all copies together
        copies[name] /= R // x[name].shape[1]
    results, of_copies = run(case, x, sizes, method), run(case, copies, sizes._replace(H=R, HV=R, HQ=R), method)
    for name, array in results.items():
        axis = heads_axis(name)
        groups = of_copies[name].reshape(*array.shape[: axis + 1], -1, *array.shape[axis + 1 :])
        expected = groups.sum(axis + 1) if name.startswith("d") else groups.take(0, axis + 1)
        assert_close({name: array}, {name: expected}, 1e-9)


@pytest.mark.parametrize("heads", [32, 8])
@pytest.mark.parametrize("function", ["delta_rule", "gated_delta_rule", "kimi_delta_rule"])
def test_large_calls_are_many_small_ones(function, heads):
    """Values of 5 MB are gathered, those of 2.5 are read in place, and less than 1 is not prefetched: the same bits."""
    case = next(case for case in RULE_CASES if case.function == function and not case.option("normalize"))
    sizes = Sizes(1, 300, 64, 64, 64, 16, 64)
    x = case.inputs(sizes, dtype=np.float32)
    whole = case.forward(x, sizes, method="chunked")
    few = sizes._replace(H=heads, HV=heads, HQ=heads)
    for first in range(0, 64, heads):
        part_of = {name: array.take(range(first, first + heads), heads_axis(name)) for name, array in x.items()}
        for name, array in case.forward(part_of, few, method="chunked").items():
            assert np.array_equal(array, whole[name].take(range(first, first + heads), heads_axis(name))), name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("HQ", [1, 11])
@pytest.mark.parametrize("case", [case for case in RULE_CASES if not case.option("normalize")], ids=str)
def test_value_heads_add_to_a_key_in_order(case, HQ, threads):
    """Eleven value heads of a key, of which a task takes eight at a time, over three segments: each has the bits it has
    alone, and the gradients that they share are their sums from the first to the last."""
    sizes = Sizes(1, 300, 1, 11, HQ, 20, 33)
    x = case.inputs(sizes, dtype=np.float32)
    of_head = [
        {
            name: array.take([hv], heads_axis(name)) if array.shape[heads_axis(name)] == 11 else array
            for name, array in x.items()
        }
        for hv in range(11)
    ]
    fwm_py.set_num_threads(threads)
    together = case.backward(x, sizes, method="chunked")
    alone = [case.backward(inputs, sizes._replace(HV=1, HQ=1), method="chunked") for inputs in of_head]
    for name, array in together.items():
        parts = [gradients[name] for gradients in alone]
        if array.shape[heads_axis(name)] == 11:
            expected = np.concatenate(parts, heads_axis(name))
        else:
            expected = functools.reduce(np.add, parts)
        assert np.array_equal(array, expected), name


# --- the rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in RULE_CASES if case.strengths], ids=str)
@quick(5)
@given(**calls)
def test_no_strength_leaves_the_state(case, sizes, seed, method):
    """beta = 0 (b = w = 0): only the gates act."""
    x = case.inputs(sizes, seed)
    for name in case.strengths:
        x[name][...] = 0
    if case.function == "fast_weight_memory":  # a state larger than 1 would be divided
        x["initial_state"] /= 2 * np.maximum(1, np.linalg.norm(x["initial_state"], axis=(2, 3), keepdims=True))
    expected = case.turned("initial_state", x["initial_state"])
    if case.gate:
        total = np.exp(x["g"].sum(axis=1))
        expected = expected * (total[..., None] if case.gate == "channel" else total[..., None, None])
    expected = case.turned("final_state", expected)
    assert_close({"S": case.forward(x, sizes, method=method)["final_state"]}, {"S": expected}, 1e-12)


DELTA = [case for case in RULE_CASES if case.strengths and not case.options and case.function != "fast_weight_memory"]


@pytest.mark.parametrize("case", DELTA, ids=str)
@quick(8)
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(METHODS), K=st.integers(1, 20), T=st.integers(1, 60))
def test_a_key_returns_what_was_written_last(case, seed, method, K, T):
    """Orthonormal keys, written again and again with beta = 1 and no gate: a query finds the key's last value."""
    sizes, random = Sizes(1, T, 1, 1, 1, K, 3), np.random.default_rng(seed)
    x = case.inputs(sizes, seed, states=False)
    keys, which = np.linalg.qr(random.standard_normal((K, K)))[0], random.integers(0, K, T)
    asked = np.array([random.choice(which[: t + 1]) for t in range(T)])
    x["k"][0, :, 0], x["q"][0, :, 0] = keys[which], keys[asked]
    for name in case.strengths:
        x[name][...] = 1
    if case.gate:
        x["g"][...] = 0
    o = case.forward(x, sizes, method=method, scale=1.0)["o"]
    last = [max(s for s in range(t + 1) if which[s] == asked[t]) for t in range(T)]
    np.testing.assert_allclose(o, x["v"][:, last], atol=1e-11)


LINEAR = [case for case in RULE_CASES if case.function != "fast_weight_memory"]


@pytest.mark.parametrize("case", LINEAR, ids=str)
@quick(8)
@given(**calls)
def test_the_transposed_map(case, sizes, seed, method):
    """o and the final state are linear in v and the initial state, and the backward is the transposed map."""
    x, y = case.inputs(sizes, seed), case.inputs(sizes, seed + 1)
    x |= {name: y[name] * 3 for name in ("v", "initial_state")}
    results, gradients = case.forward(x, sizes, method=method), case.backward(x, sizes, method=method)
    there = (results["o"] * x["do"]).sum() + (results["final_state"] * x["dfinal_state"]).sum()
    back = (gradients["v"] * x["v"]).sum() + (gradients["initial_state"] * x["initial_state"]).sum()
    size = sum(np.linalg.norm(results[name]) * np.linalg.norm(x["d" + name]) for name in ("o", "final_state"))
    assert abs(there - back) <= 1e-11 * size
    doubled = case.forward(x | {"v": 2 * x["v"], "initial_state": 2 * x["initial_state"]}, sizes, method=method)
    assert_close(
        {n: doubled[n] for n in ("o", "final_state")}, {n: 2 * results[n] for n in ("o", "final_state")}, 1e-12
    )


@every_case
@quick(8)
@given(
    sizes=sizes_of_a_call(T=st.integers(1, 150)),
    seed=calls["seed"],
    g=st.sampled_from([(1e-4, 20), (0.01, 1), (5, 2000)]),
    repeat_keys=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_both_methods_agree(case, sizes, seed, g, repeat_keys, dtype):
    if case.options:
        assume(sizes.K > 1)  # the gradient of a normalised number cancels
    x = case.inputs(sizes, seed, dtype, g=g, repeat_keys=repeat_keys)
    chunked, recurrent = (run(case, x, sizes, m) for m in METHODS)
    assert_close(chunked, recurrent, *((1e-9,) if dtype == np.float64 else (2e-4, 0.1)))


WRONG = {
    "q": lambda x: x["q"][:, 0],
    "k": lambda x: x["k"].astype(np.float32),
    "v": lambda x: x["v"][:, :-1],
    "do": lambda x: x["do"][..., :-1],
    "initial_state": lambda x: x["initial_state"][..., :-1],
}


@pytest.mark.parametrize("name", WRONG)
@every_case
def test_both_methods_refuse(case, name):
    """The slow and the fast form take the same arguments, and say the same of those they do not take."""
    sizes = Sizes(2, 3, 1, 2, 1, 3, 4)
    x, messages = case.inputs(sizes), []
    x[name] = WRONG[name](x)
    for method in METHODS:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}(\[0\])?: got .*, expected ") as caught:
            case.backward(x, sizes, method=method)
        messages.append((caught.type, str(caught.value)))
    assert messages[0] == messages[1]


PLAIN_READING = [case for case in RULE_CASES if not case.option("normalize")]


@pytest.mark.parametrize("scale", [0.0, -3.0, 1e-170])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", PLAIN_READING, ids=str)
def test_the_gradient_of_queries_is_proportional_to_their_scale(case, method, scale):
    """Also where the scale is 0, or its square is: queries are normalised and scaled in one step."""
    sizes = Sizes(2, 37, 1, 2, 4, 5, 33)
    x = case.inputs(sizes)
    one, other = (case.backward(x, sizes, method=method, scale=by)["q"] for by in (1.0, scale))
    np.testing.assert_allclose(other, scale * one, rtol=1e-9, atol=abs(scale) * 1e-12)
