"""fwm_py.torch leaves tensors as they are, returns PyTorch's own, and takes every kind that it can read."""

import pytest

torch = pytest.importorskip("torch")

import fwm_py.torch as fwm  # noqa: E402
from kernel_cases import KERNEL_CASES, SIZES  # noqa: E402
from test_torch import OMEGA, conv_inputs, convolve, forward, norm_inputs, softmax_inputs, tensors, torch_threads  # noqa: E402, F401

PACKED = next(sizes for sizes in SIZES if sizes.cu_seqlens is not None)


def memory(case):
    def call(dtype):
        x = {name: y.clone().requires_grad_() for name, y in tensors(case.inputs(PACKED), dtype).items()}
        cu_seqlens = torch.tensor(PACKED.cu_seqlens, dtype=torch.int32)
        return [*x.values(), cu_seqlens], list(forward(case, x, PACKED, cu_seqlens=cu_seqlens).values())

    return call


def softmax(dtype):
    inputs = softmax_inputs(dtype)
    return inputs, list(fwm.softmax_attention(*inputs, return_lse=True))


def convolution(dtype):
    inputs, cu_seqlens = [x[:1] if x.dim() == 3 else x for x in conv_inputs(dtype, False)], torch.tensor([0, 7])
    inputs = [x.clone().requires_grad_() for x in inputs]
    return [*inputs, cu_seqlens], list(convolve(*inputs, cu_seqlens=cu_seqlens))


def norm(dtype):
    inputs = norm_inputs(dtype)
    return inputs, [fwm.rms_norm(*inputs)]


def feature_map(function, *arguments):
    def call(dtype):
        x, others = torch.randn(2, 3, 5).to(dtype).requires_grad_(), [y.clone() if isinstance(y, torch.Tensor) else y for y in arguments]
        return [x, *(y for y in others if isinstance(y, torch.Tensor))], [function(x, *others)]

    return call


CALLS = {case.function: memory(case) for case in KERNEL_CASES} | {
    "softmax_attention": softmax, "causal_conv1d": convolution, "rms_norm": norm, "elu1": feature_map(fwm.elu1),
    "tanh": feature_map(fwm.tanh), "dpfp": feature_map(fwm.dpfp, 2), "favor": feature_map(fwm.favor, OMEGA)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_every_storage_can_still_be_resized(name, dtype):
    """As FSDP resizes those of parameters; Tensor.numpy() and torch.from_numpy would end it for good."""
    inputs, results = CALLS[name](dtype)
    sum(y.float().sum() for y in results if y.requires_grad).backward()
    gradients = [x.grad for x in inputs if x.grad is not None]
    assert gradients
    assert all(x.untyped_storage().resizable() for x in (*inputs, *results, *gradients))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint64], ids=str)
def test_offsets_of_any_integers_and_strides(dtype):
    x, weight = conv_inputs(requires_grad=False)[:2]
    expected = fwm.causal_conv1d(x[:1], weight, cu_seqlens=torch.tensor([0, 3, 7]))[0]
    cu_seqlens = torch.stack([torch.tensor([0, 3, 7]), torch.zeros(3, dtype=torch.int64)], 1).to(dtype)[:, 0]
    assert torch.equal(fwm.causal_conv1d(x[:1], weight, cu_seqlens=cu_seqlens)[0], expected)


def test_numbers_that_are_read_from_elsewhere():
    """Negated by a bit, broadcast, turned, and of no memory at all."""
    x, weight = torch.randn(3, 5), torch.ones(5)
    expected = fwm.rms_norm(x, weight)
    assert torch.equal(fwm.rms_norm(torch._neg_view(-x), weight), expected)
    assert torch.equal(fwm.rms_norm(x.t().contiguous().t(), torch.ones(1).expand(5)), expected)
    assert torch.equal(fwm.rms_norm(torch.view_as_complex(torch.stack([x, -x], -1)).conj().imag, weight), expected)
    assert fwm.rms_norm(x[:0], weight).shape == (0, 5)


def test_a_storage_without_its_numbers_is_refused():
    x = torch.ones(5)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="^got a tensor whose storage is empty"):
        fwm.rms_norm(torch.ones(2, 5), x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_numbers_of_axes_are_refused(device):
    x = torch.ones(2, 3, 4, 5, device=device)
    for call, name in (
        (lambda: fwm.delta_rule(x[0], x, x, x[..., 0]), "q"), (lambda: fwm.linear_attention(x, x[0], x), "k"),
        (lambda: fwm.softmax_attention(x, x, x[0]), "v"), (lambda: fwm.causal_conv1d(x, x[0, 0]), "x"),
        (lambda: fwm.causal_conv1d(x[0], x[0]), "weight"), (lambda: fwm.favor(x, x[0]), "omega"),
        (lambda: fwm.delta_rule(x[:1], x[:1], x[:1], x[:1, ..., 0], cu_seqlens=torch.zeros(0, dtype=torch.int64, device=device)), "cu_seqlens"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: got shape .*, expected "):
            call()


@pytest.mark.parametrize("nu", [0, -1, 2**62])
def test_a_map_of_too_many_features_is_refused(nu):
    with pytest.raises(ValueError, match="^nu "):
        fwm.dpfp(torch.ones(2, 5), nu)
