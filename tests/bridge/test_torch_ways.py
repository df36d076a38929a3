"""The two ways of a call, round PyTorch's dispatcher and through it; states in place; what has no causal mask."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.attention_cases import PaddedCase  # noqa: E402
from support.contract import without  # noqa: E402
from support.noncausal_cases import NoncausalCase  # noqa: E402
from support.rule_cases import RULE_CASES, Sizes  # noqa: E402
from support.torch_cases import (  # noqa: E402  # noqa: E402
    MAPS,
    conv_inputs,
    forward,
    gated_inputs,
    gradients,
    map_arguments,
    norm_inputs,
    options_of,
    softmax_inputs,
    tensors,
    torch_threads,  # noqa: F401
)

import fwm_py.torch as fwm  # noqa: E402
from fwm_py.torch import _library, _operators  # noqa: E402

SIZES = Sizes(2, 20, 1, 2, 1, 5, 7)


class Seeing(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


CALLS = {
    "rule": lambda: fwm.gated_delta_rule(*gated_inputs())[0],
    "softmax_attention": lambda: fwm.softmax_attention(*softmax_inputs()),
    "causal_conv1d": lambda: fwm.causal_conv1d(*conv_inputs()[:3])[0],
    "rms_norm": lambda: fwm.rms_norm(*norm_inputs()),
    "feature_map": lambda: fwm.elu1(norm_inputs()[0]),
    "noncausal": lambda: fwm.linear_attention(*softmax_inputs(), causal=False)[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_who_watches_sees_the_operator(name):
    """A dispatch mode and the profiler; the bits are the same."""
    call = CALLS[name]
    y = call()
    with Seeing() as mode:
        assert torch.equal(call(), y)
    assert f"fwm_py.{name}.default" in mode.seen
    with torch.profiler.profile() as profile:
        assert torch.equal(call(), y)
    assert f"fwm_py::{name}" in {event.key for event in profile.key_averages()}
    assert _library.is_unseen()


@pytest.mark.parametrize("name", CALLS)
def test_both_ways_have_the_same_bits(name, monkeypatch):
    direct = CALLS[name]()
    monkeypatch.setattr(_library, "is_unseen", lambda: False)
    seen = CALLS[name]()
    assert torch.equal(direct, seen) and direct.requires_grad == seen.requires_grad


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_gradients_of_both_ways(case, monkeypatch):
    x, again = (tensors(case.inputs(SIZES, dtype=np.float32), requires_grad=True) for _ in range(2))
    direct = gradients(case, x, SIZES)
    monkeypatch.setattr(_library, "is_unseen", lambda: False)
    seen = gradients(case, again, SIZES)
    assert all(torch.equal(direct[name], seen[name]) for name in direct)


@pytest.mark.parametrize("name", MAPS)
def test_gradients_of_maps_both_ways(name, monkeypatch):
    results = []
    for unseen in (True, False):
        monkeypatch.setattr(_library, "is_unseen", lambda unseen=unseen: unseen)
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = _operators.feature_map(name, x, *map_arguments(MAPS[name]))
        results += [y, *torch.autograd.grad(y.square().sum(), x)]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_tensors_that_are_not_plain_go_to_the_operator():
    q, k, v = (x.detach() for x in softmax_inputs(torch.float32))
    expected = fwm.softmax_attention(-q, k, v)
    assert torch.equal(fwm.softmax_attention(torch._neg_view(q), k, v), expected)
    with pytest.raises(NotImplementedError):
        fwm.elu1(torch.ones(3, 3).to_sparse())
    assert fwm.elu1(torch.ones(3, 3, device="meta")).is_meta


def test_tensors_without_memory_go_to_the_operator():
    """Batched gradients, and the zeros that some backward functions hand over."""
    x = torch.randn(4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian
    assert torch.equal(jacobian(fwm.elu1, x, vectorize=True), jacobian(fwm.elu1, x))
    q, k, v = (y.detach().requires_grad_() for y in softmax_inputs())
    for call in (fwm.softmax_attention, lambda *y: fwm.linear_attention(*y, causal=False)[0]):
        rows = torch.eye(call(q, k, v).numel(), dtype=q.dtype).reshape(-1, *call(q, k, v).shape)[:3]
        batched = torch.autograd.grad(call(q, k, v), (q, k, v), rows, is_grads_batched=True)
        for i, row in enumerate(rows):
            expected = torch.autograd.grad(call(q, k, v), (q, k, v), row)
            assert all(torch.equal(got[i], wanted) for got, wanted in zip(batched, expected))
    for call, given in ((fwm.elu1, (x,)), (fwm.softmax_attention, (q, k, v))):
        gradients = torch.autograd.grad(call(*given).sgn().sum(), given)
        assert not any(gradient.any() for gradient in gradients)


# --- states in place -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_the_state_in_place(case, monkeypatch):
    for unseen in (True, False):
        monkeypatch.setattr(_library, "is_unseen", lambda unseen=unseen: unseen)
        x = tensors(case.inputs(SIZES, dtype=np.float32))
        expected = forward(case, x, SIZES)
        options = options_of(case, x, SIZES) | {"inplace_final_state": True}
        o, state = getattr(fwm, case.function)(*(x[name] for name in case.arguments), **options)
        assert state is options["initial_state"] and torch.equal(o, expected["o"])
        states = state if isinstance(state, tuple) else (state,)
        assert all(torch.equal(a, b) for a, b in zip(states, list(expected.values())[1:], strict=True))


def test_the_state_in_place_compiled():
    inputs = [x.detach() for x in gated_inputs()]
    B, HV, K, V = inputs[0].shape[0], inputs[2].shape[2], inputs[1].shape[3], inputs[2].shape[3]
    first = torch.randn(B, HV, K, V, dtype=inputs[0].dtype)

    def step(state):
        return fwm.gated_delta_rule(*inputs, initial_state=state, inplace_final_state=True)[0]

    ours, theirs = first.clone(), first.clone()
    with torch.no_grad():
        assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(theirs), step(ours))
    assert torch.equal(ours, theirs) and not torch.equal(ours, first)


@pytest.mark.parametrize("unseen", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_state_is_not_changed_silently(normalize, unseen, monkeypatch):
    monkeypatch.setattr(_library, "is_unseen", lambda: unseen)
    x = torch.rand(1, 3, 2, 4, requires_grad=True)
    S, z = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4)
    options = {"normalize": normalize, "initial_state": (S, z) if normalize else S}
    o, _ = fwm.linear_attention(x, x, x, **options)
    with torch.no_grad():
        fwm.linear_attention(x, x, x, inplace_final_state=True, **options)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()
    assert S._version == 1 and z._version == normalize
    with torch.inference_mode():  # such tensors count no versions
        state, y = torch.rand(1, 2, 4, 4), x.detach().clone()
        assert fwm.linear_attention(y, y, y, initial_state=state, inplace_final_state=True)[1] is state


def test_what_cannot_be_in_place():
    inputs = [x.detach() for x in gated_inputs()]
    state = fwm.gated_delta_rule(*inputs, output_final_state=True)[1]
    for given, options, message in (
        (inputs, {"initial_state": None}, "there is no initial_state"),
        ([inputs[0].clone().requires_grad_(), *inputs[1:]], {}, "a gradient is wanted"),
        (inputs, {"initial_state": state.half()}, "^initial_state: got torch.float16, expected a contiguous"),
        (inputs, {"initial_state": torch.stack([state, state], -1)[..., 0]}, "^initial_state: got a tensor with gaps"),
    ):
        with pytest.raises(ValueError, match=message):
            fwm.gated_delta_rule(*given, **{"initial_state": state, "inplace_final_state": True} | options)
    with pytest.raises(TypeError, match="^inplace_final_state: got 1, expected True or False"):
        fwm.gated_delta_rule(*inputs, initial_state=state, inplace_final_state=1)


# --- without a causal mask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", NoncausalCase.sizes[1:-1], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_not_causal(normalize, size, dtype):
    """The bits of the function on arrays, and its gradients."""
    case = NoncausalCase(normalize=normalize)
    x = case.inputs(size, dtype)
    lengths, given = x["key_lengths"], tensors(without(x, "key_lengths"), requires_grad=True)
    names = [name for name in ("initial_state", "initial_sum") if name in given]
    state = tuple(given[name] for name in names) if normalize else given.get("initial_state")
    o, final = fwm.linear_attention(
        *(given[name] for name in "qkv"),
        causal=False,
        key_lengths=None if lengths is None else torch.tensor(lengths),
        normalize=normalize,
        initial_state=state or None if isinstance(state, tuple) else state,
        output_final_state=True,
    )
    results = dict(zip(("o", "final_state", "final_sum"), (o, *(final if normalize else (final,)))))
    assert {name: y.detach().numpy().tobytes() for name, y in results.items()} == {
        name: y.tobytes() for name, y in case.forward(x).items()
    }
    sum((given["d" + name] * y).sum() for name, y in results.items() if "d" + name in given).backward()
    for name, gradient in case.backward(x).items():
        assert np.array_equal(given[name].grad.numpy(), gradient)


@pytest.mark.parametrize("causal", [True, False])
def test_padded_attention(causal):
    case = PaddedCase(causal)
    x = case.inputs((3, 17, 33, 4, 2, 16, 5), np.float32)
    given = tensors(without(x, "key_lengths"), requires_grad=True)
    o = fwm.softmax_attention(*(given[n] for n in "qkv"), causal=causal, key_lengths=torch.tensor(x["key_lengths"]))
    assert np.array_equal(o.detach().numpy(), case.forward(x)["o"])
    (o * given["do"]).sum().backward()
    for name, gradient in case.backward(x).items():
        assert np.array_equal(given[name].grad.numpy(), gradient)


def test_lengths_of_padded_keys_are_checked():
    q, k, v = (x.detach() for x in softmax_inputs())
    for call in (fwm.softmax_attention, lambda *x, **o: fwm.linear_attention(*x, causal=False, **o)):
        for lengths, exception in (
            ([1, 10], ValueError),
            ([-1, 1], ValueError),
            ([1], ValueError),
            ([1.0, 2.0], TypeError),
        ):
            with pytest.raises(exception, match="^key_lengths: got "):
                call(q, k, v, key_lengths=torch.tensor(lengths))
    with pytest.raises(ValueError, match="^key_lengths: got Tensor, expected None where causal is True"):
        fwm.linear_attention(q, k[:, :7], v[:, :7], key_lengths=torch.tensor([1, 1]))
