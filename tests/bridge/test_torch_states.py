"""What servers ask of states, on tensors: pools, states on the way, the update of a convolution's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.halves import reads_a_rounded_state  # noqa: E402
from support.refusals import assert_refused  # noqa: E402
from support.rule_cases import RULE_CASES, Sizes  # noqa: E402
from support.torch_cases import options_of, tensors, torch_threads  # noqa: E402, F401

import fwm_py  # noqa: E402
import fwm_py.torch as fwm  # noqa: E402

every_case = pytest.mark.parametrize("case", RULE_CASES, ids=str)
SIZES = Sizes(2, 35, 1, 2, 1, 5, 7)


def of_arrays(case, x, **options):
    return getattr(fwm_py, case.function)(*(x[name] for name in case.arguments), **dict(case.options) | options)


def of_tensors(case, x, **options):
    return getattr(fwm, case.function)(*(x[name] for name in case.arguments), **dict(case.options) | options)


def flat(state):
    return state if isinstance(state, tuple) else (state,)


@every_case
def test_a_pool(case):
    """The bits of the functions on arrays; the state that comes back is the pool."""
    arrays = case.inputs(SIZES)
    names = [name for name in arrays if name.startswith("initial")]
    pools = [np.random.default_rng(2).uniform(0.1, 1, (6, *arrays[name].shape[1:])) for name in names]
    tensor_pools = [torch.from_numpy(pool.copy()) for pool in pools]
    state, tensor_state = (tuple(p) if case.option("normalize") else p[0] for p in (pools, tensor_pools))
    out = np.empty((2, 35, 2, 7)), state
    o, _ = of_arrays(case, arrays, initial_state=state, state_indices=[4, 1], out=out)
    versions = [pool._version for pool in tensor_pools]
    got, returned = of_tensors(
        case,
        tensors(arrays),
        initial_state=tensor_state,
        inplace_final_state=True,
        state_indices=torch.tensor([4, 1], dtype=torch.int32),
    )
    assert returned is tensor_state
    np.testing.assert_array_equal(got, o)
    for pool, tensor_pool, version in zip(pools, tensor_pools, versions, strict=True):
        np.testing.assert_array_equal(tensor_pool, pool)
        assert tensor_pool._version > version


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_on_the_way(case, dtype):
    arrays = case.inputs(SIZES)
    x = {name: y.to(dtype) for name, y in tensors(arrays).items()}
    arrays = {name: y.float().numpy() for name, y in x.items()}
    options = {"output_final_state": True, "return_states_every": 16}
    o, state, kept = of_tensors(case, x, **options_of(case, x, SIZES) | options)
    initial = tuple(arrays[name] for name in x if name.startswith("initial"))
    initial = initial if case.option("normalize") else initial[0]
    expected = of_arrays(case, arrays, initial_state=initial, **options)
    assert o.dtype is dtype and flat(kept)[0].shape[:2] == (2, 2)
    rounds = dtype is torch.bfloat16 and reads_a_rounded_state(case.function)
    for ours, theirs in zip((o, *flat(state), *flat(kept)), (*expected[:1], *flat(expected[1]), *flat(expected[2]))):
        theirs = torch.from_numpy(theirs).to(ours.dtype).float()
        off = (ours.float() - theirs).abs().max()
        assert off <= 0.02 * theirs.abs().max() if rounds else off == 0


def test_refusals():
    x = torch.ones(2, 1, 1, 4)
    state = torch.zeros(5, 1, 4, 4)
    with pytest.raises(ValueError, match="state_indices: got a tensor, expected None unless inplace_final_state is"):
        fwm.linear_attention(x, x, x, initial_state=state, state_indices=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"state_indices: got 5, expected integers in 0\.\.4"):
        fwm.linear_attention(x, x, x, initial_state=state, state_indices=torch.tensor([0, 5]), inplace_final_state=True)
    with pytest.raises(ValueError, match="return_states_every: got a number, expected None where inplace_final_state"):
        fwm.linear_attention(x, x, x, initial_state=state[:2], inplace_final_state=True, return_states_every=16)
    with pytest.raises(ValueError, match="return_states_every: got a number, expected None where a gradient"):
        fwm.linear_attention(x.clone().requires_grad_(), x, x, return_states_every=16)
    for wrong in (True, 16.0):
        with pytest.raises(TypeError, match="return_states_every: got (bool|float), expected an integer"):
            fwm.linear_attention(x, x, x, return_states_every=wrong)
    with pytest.raises(TypeError, match="state_v_first: got 1, expected True or False"):
        fwm.linear_attention(x, x, x, state_v_first=1)
    with pytest.raises(ValueError, match="state_v_first: got bool, expected None or False where causal is False"):
        fwm.linear_attention(x, x, x, causal=False, state_v_first=True)


NO_TENSORS = [(name, None) for name in ("q", "k", "v")]
for name in ("q", "k", "v", "beta", "initial_state", "cu_seqlens"):
    NO_TENSORS += [(name, "text"), (name, np.ones((2, 1, 1, 4), np.float32))]


@pytest.mark.parametrize("name, wrong", NO_TENSORS)
@pytest.mark.parametrize(
    "way", [{"return_states_every": 16}, {"inplace_final_state": True}], ids=["states", "in place"]
)
def test_what_is_no_tensor_is_refused(way, name, wrong):
    given = {"q": torch.ones(2, 1, 1, 4), "k": torch.ones(2, 1, 1, 4), "v": torch.ones(2, 1, 1, 4)}
    given |= {"beta": torch.ones(2, 1, 1), "initial_state": torch.zeros(2, 1, 4, 4)}
    assert_refused(lambda: fwm.delta_rule(**given | way | {name: wrong}), name, TypeError)


# --- the convolution --------------------------------------------------------------------------------------------------


def updated(dtype, layout, numbers, lengths):
    """An update by the arrays' function, and by tensors of another dtype or with their axes in another order."""
    random = np.random.default_rng(3)
    B, T, D, W, L, P = 3, 2, 9, 4, 6, 5 if numbers else 3
    state = torch.from_numpy(random.standard_normal((P, L, D))).to(dtype)
    x, weight, bias = (torch.from_numpy(random.standard_normal(shape)).to(dtype) for shape in ((B, T, D), (D, W), (D,)))
    given = state.clone() if layout == "tokens first" else state.transpose(1, 2).contiguous().transpose(1, 2)
    y = fwm.causal_conv1d_update(
        x,
        given,
        weight,
        bias,
        activation="silu",
        conv_state_indices=numbers and torch.tensor(numbers),
        cache_seqlens=lengths and torch.tensor(lengths, dtype=torch.int32),
    )
    arrays = [z.to(torch.promote_types(dtype, torch.float32)).numpy().copy() for z in (x, state, weight, bias)]
    expected = fwm_py.causal_conv1d_update(
        *arrays, activation="silu", conv_state_indices=numbers, cache_seqlens=lengths
    )
    return y, given, torch.from_numpy(expected).to(dtype), torch.from_numpy(arrays[1]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["tokens first", "channels first"])
@pytest.mark.parametrize("numbers", [None, [4, -1, 0]])
@pytest.mark.parametrize("lengths", [None, [6, 0, 11]])
def test_the_update(dtype, layout, numbers, lengths):
    y, state, expected, expected_state = updated(dtype, layout, numbers, lengths)
    assert torch.equal(y, expected) and torch.equal(state, expected_state)


def test_an_update_is_compiled():
    x, weight = torch.randn(2, 1, 8), torch.randn(8, 4)
    states = [torch.zeros(2, 3, 8) for _ in range(2)]
    compiled = torch.compile(fwm.causal_conv1d_update, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        results = [call(x, state, weight) for call, state in zip((fwm.causal_conv1d_update, compiled), states)]
    assert torch.equal(*results) and torch.equal(*states) and states[0].any()


@pytest.mark.parametrize(
    "change, kind, message",
    [
        (
            {"conv_state_indices": torch.tensor([0, 3])},
            ValueError,
            r"conv_state_indices: got 3, expected integers in -1",
        ),
        ({"conv_state_indices": torch.tensor([0, -2])}, ValueError, r"conv_state_indices: got -2, expected integers"),
        ({"conv_state_indices": torch.tensor([1, 1])}, ValueError, r"conv_state_indices.*: got 1 (again|twice), ex"),
        (
            {"conv_state_indices": torch.tensor([0.0, 1])},
            TypeError,
            "conv_state_indices: got torch.float32, expected i",
        ),
        ({"cache_seqlens": torch.tensor([0, -1])}, ValueError, "cache_seqlens: got -1, expected integers in 0"),
        ({"x": torch.ones(2, 4)}, ValueError, r"x: got shape \(2, 4\), expected \(B, T, D\)"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_that_are_refused(change, kind, message, dtype):
    given = {"x": torch.ones(2, 1, 4), "conv_state": torch.ones(3, 3, 4, dtype=dtype), "weight": torch.ones(4, 4)}
    with pytest.raises(kind, match=message):
        fwm.causal_conv1d_update(**given | {"conv_state_indices": torch.tensor([0, 1])} | change)
    assert torch.equal(given["conv_state"], torch.ones(3, 3, 4, dtype=dtype))


def test_an_update_has_no_gradient():
    state = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match="conv_state: got a tensor to be changed, expected none where a gradient is"):
        fwm.causal_conv1d_update(torch.ones(2, 1, 4, requires_grad=True), state, torch.ones(4, 4))
    with torch.no_grad():
        fwm.causal_conv1d_update(torch.ones(2, 1, 4, requires_grad=True), state, torch.ones(4, 4))
