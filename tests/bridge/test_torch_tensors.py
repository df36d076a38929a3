"""fwm_py.torch leaves tensors as they are, returns PyTorch's own, and takes every kind that it can read."""

import pytest

torch = pytest.importorskip("torch")

from support.rule_cases import RULE_CASES, SIZES  # noqa: E402
from support.torch_cases import (  # noqa: E402, F401
    MAPS,
    conv_inputs,
    convolve,
    forward,
    map_arguments,
    norm_inputs,
    softmax_inputs,
    tensors,
    torch_threads,
)

import fwm_py.torch as fwm  # noqa: E402
from fwm_py.torch import _arrays, _operators, fla  # noqa: E402

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


def feature_map(name):
    def call(dtype):
        x, (nu, omega) = torch.randn(2, 3, 5).to(dtype).requires_grad_(), map_arguments(MAPS[name])
        inputs = [x] if omega is None else [x, omega.clone()]
        return inputs, [_operators.feature_map(name, x, nu, *inputs[1:] or [None])]

    return call


CALLS = {case.function: memory(case) for case in RULE_CASES}
CALLS |= {"softmax_attention": softmax, "causal_conv1d": convolution, "rms_norm": norm}
CALLS |= {name: feature_map(name) for name in MAPS}


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
    """Negated by a bit, broadcast, turned, of no memory at all, and beside the places for numbers."""
    x, weight = torch.randn(3, 5), torch.ones(5)
    expected = fwm.rms_norm(x, weight)
    assert torch.equal(fwm.rms_norm(torch._neg_view(-x), weight), expected)
    assert torch.equal(fwm.rms_norm(x.t().contiguous().t(), torch.ones(1).expand(5)), expected)
    assert torch.equal(fwm.rms_norm(torch.view_as_complex(torch.stack([x, -x], -1)).conj().imag, weight), expected)
    assert fwm.rms_norm(x[:0], weight).shape == (0, 5)
    odd = torch.frombuffer(bytearray(b"." + x.numpy().tobytes()), dtype=torch.float32, offset=1).view(3, 5)
    assert odd.data_ptr() % 4 and not _arrays.to_array(odd, odd.dtype).flags.aligned
    assert torch.equal(fwm.rms_norm(odd, weight), expected)


def test_a_storage_without_its_numbers_is_refused():
    x = torch.ones(5)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="^got a tensor whose storage is empty"):
        fwm.rms_norm(torch.ones(2, 5), x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_numbers_of_axes_are_refused(device):
    x = torch.ones(2, 3, 4, 5, device=device)
    for call, name in (
        (lambda: fwm.delta_rule(x[0], x, x, x[..., 0]), "q"),
        (lambda: fwm.linear_attention(x, x[0], x), "k"),
        (lambda: fwm.softmax_attention(x, x, x[0]), "v"),
        (lambda: fwm.causal_conv1d(x, x[0, 0]), "x"),
        (lambda: fwm.causal_conv1d(x[0], x[0]), "weight"),
        (lambda: fwm.favor(x, x[0]), "omega"),
        (
            lambda: fwm.delta_rule(
                x[:1], x[:1], x[:1], x[:1, ..., 0], cu_seqlens=torch.zeros(0, dtype=torch.int64, device=device)
            ),
            "cu_seqlens",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{name}: got shape .*, expected "):
            call()


@pytest.mark.parametrize("nu", [0, -1, 2**62])
def test_a_map_of_too_many_features_is_refused(nu):
    with pytest.raises(ValueError, match="^nu: "):
        fwm.dpfp(torch.ones(2, 5), nu)


class Renamed(torch.Tensor):
    """A subclass that leaves all operators as they are."""


class Wrapped(torch.Tensor):
    """One that says itself what they do."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


def test_subclasses():
    x, weight = torch.randn(3, 5), torch.ones(5)
    assert torch.equal(fwm.rms_norm(x.as_subclass(Renamed), weight), fwm.rms_norm(x, weight))
    assert torch.equal(fwm.rms_norm(torch.nn.Parameter(x), weight), fwm.rms_norm(x, weight))
    with pytest.raises(TypeError, match="^weight: got Wrapped, expected a plain tensor"):
        fwm.rms_norm(x, torch.Tensor._make_subclass(Wrapped, weight))


MANY = torch.arange(5000.0)


def rule(**options):
    x = torch.ones(1, 3, 2, 4)
    return fwm.fast_weight_memory(x, x, x, x[..., 0], **options)


def refused_options():
    x = torch.ones(1, 3, 2, 4)
    flags = {
        "output_final_state": rule,
        "clamp_first": rule,
        "normalize": lambda **option: fwm.linear_attention(x, x, x, **option),
        "causal": lambda **option: fwm.softmax_attention(x, x, x, **option),
        "return_lse": lambda **option: fwm.softmax_attention(x, x, x, **option),
    }
    for name, call in flags.items():
        for value in (MANY, "no", 3):
            yield call, {name: value}, "expected True or False"
    yield rule, {"scale": MANY}, "expected a number or None"
    yield rule, {"qk_norm": MANY}, "expected a string or None"
    yield rule, {"method": MANY}, "expected a string"
    yield rule, {"cu_seqlens": [0, 3]}, "expected a tensor or None"
    yield rule, {"initial_state": (MANY, MANY)}, "expected a tensor where normalize is False"
    yield lambda **option: fwm.linear_attention(x, x, x, normalize=True, **option), {"eps": MANY}, "expected a number"
    yield (
        lambda **option: fwm.causal_conv1d(x[0], x[0, 0].t(), **option),
        {"activation": MANY},
        "expected a string or None",
    )
    yield (
        lambda **option: fwm.causal_conv1d(x[0], x[0, 0].t(), **option),
        {"output_final_state": MANY},
        "expected True or False",
    )
    yield lambda **option: fwm.rms_norm(x, x[0, 0, 0], **option), {"eps": MANY}, "expected a number"
    yield lambda **option: fwm.rms_norm(x, x[0, 0, 0], x, **option), {"activation": MANY}, "expected a string"
    yield lambda **option: fwm.dpfp(x, **option), {"nu": MANY}, "expected an integer or None"
    yield lambda **option: fwm.tanh(**option), {"x": MANY.numpy()}, "expected a tensor"


@pytest.mark.parametrize(
    "call, option, expected", list(refused_options()), ids=lambda x: next(iter(x)) if isinstance(x, dict) else ""
)
def test_an_option_of_another_type_is_refused_in_a_line(call, option, expected):
    (name,) = option
    with pytest.raises(TypeError, match=f"^{name}: got ('no'|3|Tensor|list|a tuple|ndarray), {expected}") as error:
        call(**option)
    assert len(str(error.value)) < 100 and (error.value.__context__ is None or error.value.__suppress_context__)


def test_an_option_of_the_triton_package_is_refused_in_a_line():
    x = torch.ones(1, 3, 2, 4)
    with pytest.raises(NotImplementedError, match="^cp_context: got a tensor, which fwm_py does not have"):
        fla.chunk_kda(x, x, x, -x, x[..., 0], cp_context=MANY)
