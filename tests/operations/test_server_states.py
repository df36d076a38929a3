"""What servers ask of states: those of a pool by number, states on the way, rings of a convolution's tokens."""

import itertools

import numpy as np
import pytest
from support.rule_cases import METHODS, RULE_CASES, Sizes

import fwm_py
from fwm_py import rules

every_case = pytest.mark.parametrize("case", RULE_CASES, ids=str)
every_method = pytest.mark.parametrize("method", METHODS)
SIZES = (Sizes(3, 1, 2, 4, 2, 16, 20), Sizes(2, 19, 1, 2, 4, 9, 5), Sizes(1, 40, 1, 2, 1, 17, 33, (0, 1, 1, 20, 40)))
POOL = 7


def call(case, x, **options):
    """The rule on the arrays of x, with its states as the function takes them."""
    if "initial_state" in options and case.option("normalize"):
        options["initial_state"] = options["initial_state"], options["initial_sum"]
    options.pop("initial_sum", None)
    return getattr(rules, case.function)(*(x[name] for name in case.arguments), **dict(case.options), **options)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def pool_of(case, sizes, x):
    """A pool of states, and the numbers that the sequences have in it."""
    random = np.random.default_rng(1)
    states = {name: random.uniform(0.1, 1, (POOL, *x[name].shape[1:])) for name in x if name.startswith("initial")}
    return states, random.permutation(POOL)[: sizes.sequences]


@every_case
@every_method
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_states_of_a_pool_are_those_of_calls_without_one(case, method, sizes):
    x = case.inputs(sizes)
    packed = None if sizes.cu_seqlens is None else np.array(sizes.cu_seqlens)
    states, numbers = pool_of(case, sizes, x)
    before = {name: pool.copy() for name, pool in states.items()}
    options = {"method": method, "cu_seqlens": packed}
    o, expected = call(
        case, x, output_final_state=True, **options, **{name: pool[numbers] for name, pool in states.items()}
    )
    out = np.full_like(o, np.nan), tuple(states.values()) if case.option("normalize") else states["initial_state"]
    got, state = call(case, x, state_indices=numbers.astype(np.uint8), out=out, **states, **options)
    assert got is out[0] and parts(state)[0] is states["initial_state"]
    np.testing.assert_array_equal(got, o)
    others = np.setdiff1d(np.arange(POOL), numbers)
    for pool, old, new in zip(states.values(), before.values(), parts(expected), strict=True):
        np.testing.assert_array_equal(pool[numbers], new)
        np.testing.assert_array_equal(pool[others], old[others])


@every_case
@every_method
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("every", [32, 48])  # a divisor of a run of 64 tokens, and none
def test_states_on_the_way_are_final_states_of_shorter_calls(case, method, dtype, every):
    sizes = Sizes(2, 99, 2, 4, 4, 9, 37)
    x = case.inputs(sizes, dtype=dtype)
    states = {name: x[name] for name in x if name.startswith("initial")}
    kept = call(case, x, method=method, return_states_every=every, **states)
    assert len(kept) == 3 and kept[1] is None
    plain = call(case, x, method=method, **states)
    np.testing.assert_array_equal(kept[0], plain[0])
    for i in range(99 // every):
        until = {name: x[name][:, : every * (i + 1)] for name in case.arguments}
        _, state = call(case, until, method=method, output_final_state=True, **states)
        for on_the_way, final in zip(parts(kept[2]), parts(state), strict=True):
            assert on_the_way.shape == (2, 99 // every, *final.shape[1:])
            np.testing.assert_allclose(on_the_way[:, i], final, rtol=0, atol=1e-14 if dtype is np.float64 else 1e-5)


@every_case
@every_method
def test_states_on_the_way_of_packed_sequences(case, method):
    """Those of a sequence stand behind those of the sequences before it; short ones have none."""
    ends = (0, 15, 48, 48, 49, 120)
    sizes = Sizes(1, 120, 1, 2, 1, 20, 33, ends)
    x = case.inputs(sizes)
    states = {name: x[name] for name in x if name.startswith("initial")}
    options = {"method": method, "return_states_every": 16}
    _, _, kept = call(case, x, cu_seqlens=np.array(ends), **options, **states)
    at = 0
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        own = {name: x[name][:, start:end] for name in case.arguments}
        _, _, alone = call(case, own, **options, **{name: state[i : i + 1] for name, state in states.items()})
        n = (end - start) // 16
        for all_of_them, of_one in zip(parts(kept), parts(alone), strict=True):
            np.testing.assert_allclose(all_of_them[:, at : at + n], of_one, rtol=0, atol=1e-13)
        at += n
    assert at == 6 == parts(kept)[0].shape[1]


GOOD = {"q": np.ones((2, 1, 1, 4)), "k": np.ones((2, 1, 1, 4)), "v": np.ones((2, 1, 1, 3)), "beta": np.ones((2, 1, 1))}


@pytest.mark.parametrize(
    "numbers, message",
    [
        ([1, 5], r"state_indices: got 5, expected integers in 0\.\.4"),
        ([-1, 1], r"state_indices: got -1, expected integers in 0\.\.4"),
        ([2, 2], r"state_indices\[1\]: got 2 again, expected each number once"),
        ([2], r"state_indices: got shape \(1,\), expected \(n,\), here \(2,\)"),
    ],
)
def test_numbers_that_are_refused(numbers, message):
    pool = np.ones((5, 1, 4, 3))
    out = np.empty((2, 1, 1, 3)), pool
    with pytest.raises(ValueError, match=message):
        rules.delta_rule(**GOOD, initial_state=pool, state_indices=numbers, out=out)
    np.testing.assert_array_equal(pool, 1)


def test_a_pool_is_changed_in_place_or_refused():
    pool = np.ones((5, 1, 4, 3))
    o = np.empty((2, 1, 1, 3))
    for options in ({}, {"output_final_state": True}, {"out": o}, {"out": (o, np.ones((5, 1, 4, 3)))}):
        with pytest.raises(ValueError, match="state_indices: got an array, expected None unless out has initial_state"):
            rules.delta_rule(**GOOD, initial_state=pool, state_indices=[0, 1], **options)
    with pytest.raises(ValueError, match="state_indices: got list, expected None without initial_state"):
        rules.delta_rule(**GOOD, state_indices=[0, 1], out=(o, pool))
    with pytest.raises(ValueError, match=r"initial_state: got shape \(5, 1, 4, 3\), expected \(P, HV, V, K\), here"):
        rules.delta_rule(**GOOD, initial_state=pool, state_indices=[0, 1], out=(o, pool), state_v_first=True)
    with pytest.raises(TypeError, match="state_indices: got a value, expected no such argument of rule"):
        fwm_py._core.rule_backward(
            "delta_rule", **GOOD, do=o, initial_state=pool, state_indices=[0, 1], method="chunked"
        )


@pytest.mark.parametrize("every, kind", [(24, ValueError), (0, ValueError), (-16, ValueError), (16.0, TypeError)])
def test_distances_that_are_refused(every, kind):
    with pytest.raises(kind, match="return_states_every: got"):
        rules.delta_rule(**GOOD, return_states_every=every)


@pytest.mark.parametrize("name, given", [("state_v_first", True), ("state_indices", [0]), ("return_states_every", 16)])
def test_without_a_causal_mask_there_is_nothing_of_this(name, given):
    arrays = {name: GOOD[name] for name in "qkv"}
    with pytest.raises(ValueError, match=f"{name}: got {type(given).__name__}, expected None or False where causal"):
        fwm_py.linear_attention(**arrays, causal=False, **{name: given})


# --- the convolution --------------------------------------------------------------------------------------------------


def windows(before, x, weight, bias, activation):
    """The oracle: sums over the tokens before (B, any, D) and x (B, T, D), token by token."""
    W = weight.shape[1]
    tokens = np.concatenate([np.zeros((len(x), W, x.shape[2])), before, x], axis=1)
    first = tokens.shape[1] - x.shape[1]
    z = np.stack([(tokens[:, t - W + 1 : t + 1] * weight.T).sum(1) for t in range(first, tokens.shape[1])], axis=1)
    z = z if bias is None else z + bias
    return z / (1 + np.exp(-z)) if activation else z


UPDATES = [(W, L, T) for W in (1, 2, 4, 7, 16) for L in (W - 1, W, W + 5) for T in (1, 3, 20) if L]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("W, L, T", UPDATES)
def test_the_update_of_a_convolution(W, L, T, ring, dtype):
    """Two calls, one behind the other, on states of a pool, with a row of padding."""
    random = np.random.default_rng(W + 17 * L + 1000 * T)
    D, numbers, near = 700 if T == 1 else 19, [4, -1, 0], 1e-12 if dtype is np.float64 else 1e-5
    weight, bias = random.standard_normal((D, W)).astype(dtype), random.standard_normal(D).astype(dtype)
    seen = random.standard_normal((3, L, D)).astype(dtype)  # the tokens before, the oldest first
    lengths = np.array([L, 0, L + 3])
    state = random.standard_normal((5, L, D)).astype(dtype)
    for i in (0, 2):  # token p of a sequence is in row p mod L
        rows = (lengths[i] - L + np.arange(L)) % L if ring else np.arange(L)
        state[numbers[i], rows] = seen[i]
    others = state[[1, 2, 3]].copy()
    for _ in range(2):
        x = random.standard_normal((3, T, D)).astype(dtype)
        y = fwm_py.causal_conv1d_update(
            x,
            state,
            weight,
            bias,
            activation="silu",
            conv_state_indices=numbers,
            cache_seqlens=lengths if ring else None,
        )
        expected = windows(seen, x, weight, bias, "silu")
        np.testing.assert_allclose(y[[0, 2]], expected[[0, 2]], rtol=near, atol=near)
        np.testing.assert_array_equal(y[1], 0)
        seen, lengths = np.concatenate([seen, x], axis=1), lengths + T
    for i in (0, 2):
        rows = (lengths[i] - L + np.arange(L)) % L if ring else np.arange(L)
        np.testing.assert_array_equal(state[numbers[i], rows], seen[i, -L:])
    np.testing.assert_array_equal(state[[1, 2, 3]], others)


def test_tokens_are_taken_back_in_a_ring():
    """As after speculative decoding: with a smaller length the tokens behind it are as if they had not been."""
    random = np.random.default_rng(0)
    x, weight, state = random.standard_normal((1, 5, 8)), random.standard_normal((8, 4)), np.zeros((1, 9, 8))
    fwm_py.causal_conv1d_update(x, state, weight, cache_seqlens=[0])
    y = fwm_py.causal_conv1d_update(x[:, 2:3], state, weight, cache_seqlens=[2])  # tokens 2 to 4 are taken back
    np.testing.assert_allclose(y, windows(x[:, :2], x[:, 2:3], weight, None, None), rtol=1e-13)


def test_an_update_without_tokens_or_sequences():
    state, weight = np.ones((2, 3, 4)), np.ones((4, 4))
    assert fwm_py.causal_conv1d_update(np.ones((2, 0, 4)), state, weight).shape == (2, 0, 4)
    assert fwm_py.causal_conv1d_update(np.ones((0, 1, 4)), state, weight, conv_state_indices=[]).shape == (0, 1, 4)
    np.testing.assert_array_equal(state, 1)
    no_rows = np.ones((2, 0, 4))
    np.testing.assert_array_equal(fwm_py.causal_conv1d_update(np.ones((2, 1, 4)), no_rows, np.ones((4, 1))), 1)


UPDATE = {
    "x": np.ones((2, 1, 4)),
    "conv_state": np.ones((3, 3, 4)),
    "weight": np.ones((4, 4)),
    "conv_state_indices": [0, 1],
}
READ_ONLY = np.ones((3, 3, 4))
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"conv_state": np.ones((3, 2, 4))}, ValueError, "conv_state: got L = 2, expected at least 3, for W = 4"),
        ({"conv_state": np.ones((3, 3, 4), "f")}, TypeError, "conv_state: got float32, expected float64"),
        ({"conv_state": np.ones((3, 4, 3)).swapaxes(1, 2)}, ValueError, "conv_state: got an array that is not C-cont"),
        ({"conv_state": READ_ONLY}, ValueError, "conv_state: got a read-only array"),
        ({"conv_state": [[[1.0]]]}, TypeError, "conv_state: got list, expected an array"),
        ({"conv_state_indices": None}, ValueError, r"conv_state: got shape \(3, 3, 4\), expected \(P, L, D\), here"),
        ({"conv_state_indices": [1, 1]}, ValueError, r"conv_state_indices\[1\]: got 1 again, expected each"),
        ({"conv_state_indices": [0, 3]}, ValueError, r"conv_state_indices: got 3, expected integers in -1\.\.2"),
        ({"conv_state_indices": [0, -2]}, ValueError, r"conv_state_indices: got -2, expected integers in -1\.\.2"),
        ({"conv_state_indices": [0.0, 1.0]}, TypeError, "conv_state_indices: got float64, expected integers"),
        ({"cache_seqlens": [0, -1]}, ValueError, "cache_seqlens: got -1, expected integers in 0"),
        ({"cache_seqlens": [0]}, ValueError, r"cache_seqlens: got shape \(1,\), expected \(B,\), here \(2,\)"),
        ({"activation": "relu"}, ValueError, "activation: got 'relu'"),
        ({"weight": np.ones((4, 17))}, ValueError, "weight: got W = 17, expected 1 to 16"),
    ],
)
def test_updates_that_are_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        fwm_py.causal_conv1d_update(**(UPDATE | change))


@pytest.mark.parametrize("name", ["x", "weight", "bias", "out"])
def test_states_share_no_memory_with_what_is_read_or_written(name):
    """Each of the others, as a part of the states' own memory that would do by itself."""
    memory = np.ones(64)
    good = {"x": np.ones((1, 1, 4)), "weight": np.ones((4, 4)), "bias": np.ones(4), "out": np.empty((1, 1, 4))}
    state = memory[:12].reshape(1, 3, 4)
    good[name] = memory[11 : 11 + good[name].size].reshape(good[name].shape)
    owner, other = ("out", "conv_state") if name == "out" else ("conv_state", name)
    with pytest.raises(ValueError, match=f"{owner}: got memory of {other}, expected memory of its own"):
        fwm_py.causal_conv1d_update(conv_state=state, **good)
    good[name] = memory[12 : 12 + good[name].size].reshape(good[name].shape)  # beside them
    fwm_py.causal_conv1d_update(conv_state=state, **good)


def test_a_ring_needs_a_row():
    with pytest.raises(ValueError, match="conv_state: got L = 0, expected at least 1, for W = 1"):
        fwm_py.causal_conv1d_update(np.ones((1, 1, 2)), np.ones((1, 0, 2)), np.ones((2, 1)), cache_seqlens=[0])


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_cases():
    """The 13 cases of the operator itself, without those of its expansion."""
    node = pytest.importorskip("onnx.backend.test.case.node", reason="onnx is not installed")
    name = f"{node.__name__}.causal_conv_with_state"
    pytest.importorskip(name, reason="this onnx has no CausalConvWithState")  # whose cases join the list
    return [case for case in node._NodeTestCases if "causal_conv" in case.name and "expanded" not in case.name]


def of_onnx(node, arrays):
    """The operator by our functions: its arrays are (B, D, T), its weight (D, 1, W)."""
    import torch

    import fwm_py.torch as fwm

    given = dict(zip((name for name in node.input if name), map(torch.from_numpy, arrays), strict=True))
    activation = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "activation"), "none")
    past, half = given.get("past_state"), given["input"].dtype
    y, state = fwm.causal_conv1d(
        given["input"].transpose(1, 2),
        given["weight"].squeeze(1),
        given.get("bias"),
        activation=None if activation == "none" else activation,
        initial_state=None if past is None else past.transpose(1, 2),
        output_final_state=True,
    )
    return y.transpose(1, 2).numpy(), state.to(half).transpose(1, 2).numpy()


def test_the_node_tests_of_onnx():
    pytest.importorskip("torch", reason="torch is not installed")
    cases = onnx_cases()
    assert len(cases) == 13
    for case in cases:
        (node,) = case.model.graph.node
        for inputs, outputs in case.data_sets:
            for got, expected in zip(of_onnx(node, inputs), outputs, strict=True):
                np.testing.assert_allclose(got, expected, rtol=case.rtol, atol=case.atol, err_msg=case.name)
