"""The modules of flash-linear-attention: fwm_py.torch.fla, against plain float64."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from support import fla_oracle  # noqa: E402
from support.refusals import assert_refused  # noqa: E402
from support.torch_cases import torch_threads  # noqa: E402, F401

from fwm_py.torch import fla  # noqa: E402
from fwm_py.torch.fla import activations  # noqa: E402

D, W = 6, 4
BOUNDS = [0, 2, 2, 9]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same(given, expected, leaves=()):
    """Results, and their gradients by the leaves."""
    assert len(given) == len(expected)
    for a, b in zip(given, expected):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    if leaves:
        weights = [torch.randn_like(a) for a in given]
        a, b = (
            torch.autograd.grad(sum((x * w).sum() for x, w in zip(results, weights)), leaves)
            for results in (given, expected)
        )
        assert_same(a, b)


# --- the convolution -----------------------------------------------------------------------------------------------


def convolution(bias=True, activation="silu", width=W):
    module = fla.ShortConvolution(D, width, bias=bias, activation=activation, dtype=torch.float64)
    assert {name: tuple(x.shape) for name, x in module.state_dict().items()} == {"weight": (D, 1, width)} | (
        {"bias": (D,)} if bias else {}
    )
    assert module.state_size == D * width
    return module


def plain(module, x, cache=None, bounds=None):
    """y and caches, sequence by sequence."""
    rows = [(b, 0, x.shape[1]) for b in range(len(x))] if bounds is None else [(0, a, b) for a, b in bounds]
    weight = module.weight.squeeze(1)
    made = [
        fla_oracle.convolve(
            x[b, start:end], weight, module.bias, None if cache is None else cache[i], module.activation
        )
        if end > start
        else (x[b, :0], cache[i] if cache is not None else x.new_zeros(D, weight.shape[1]))
        for i, (b, start, end) in enumerate(rows)
    ]
    y = torch.cat([y for y, _ in made]).reshape(x.shape)
    return y, torch.stack([c for _, c in made])


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize("bias, activation, width", [(True, "silu", 4), (False, None, 3), (True, "swish", 7)])
def test_the_convolution(tokens, with_cache, bias, activation, width):
    module, x = convolution(bias, activation, width), random(2, tokens, D)
    cache = random(2, D, width) if with_cache else None
    leaves = [x, *module.parameters(), *([cache] if with_cache else [])]
    assert_same(module(x, cache=cache, output_final_state=True), plain(module, x, cache), leaves)
    residual = random(2, tokens, D)
    y, nothing = module(x, residual, cache=cache)
    assert nothing is None and torch.allclose(y, plain(module, x, cache)[0] + residual)


@pytest.mark.parametrize("with_cache", [False, True])
def test_packed_sequences_in_the_convolution(with_cache):
    module, x, pairs = convolution(), random(1, BOUNDS[-1], D), list(itertools.pairwise(BOUNDS))
    cache = random(3, D, W) if with_cache else None
    given = module(x, cache=cache, output_final_state=True, cu_seqlens=torch.tensor(BOUNDS))
    assert_same(given, plain(module, x, cache, pairs), [x, *module.parameters(), *([cache] if with_cache else [])])


def test_padding_in_the_convolution():
    module, x, mask = convolution(), random(2, 5, D), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    kept = x.detach().clone()
    y, _ = module(x, mask=mask)
    assert torch.allclose(y, plain(module, x * mask[..., None])[0]) and torch.equal(x, kept)
    assert_refused(lambda: module(x, mask=mask, cu_seqlens=torch.tensor([0, 5])), "mask", ValueError)


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_decoding_with_the_convolution(packed):
    """Token by token, in a cache that is changed in place."""
    module, x = convolution(), random(2, 9, D)
    expected, states = plain(module, x)
    y, cache = module(x[:, :3], output_final_state=True)
    ys, cu_seqlens = [y], torch.tensor([0, 1, 2]) if packed else None
    for t in range(3, 9):
        token = x[:, t].reshape(1, 2, D) if packed else x[:, t : t + 1]
        y, same = module(token, cache=cache, output_final_state=True, cu_seqlens=cu_seqlens)
        assert same is cache
        ys.append(y.reshape(2, 1, D))
    assert_same((torch.cat(ys, 1), cache), (expected, states))
    assert module(x[:, :1])[1] is None


def test_the_function_of_the_convolution():
    module, x = convolution(), random(2, 5, 2, D // 2)
    y, _ = fla.causal_conv1d(x, module.weight.squeeze(1), module.bias, activation="silu", backend="cuda")
    assert torch.allclose(y.flatten(2), plain(module, x.flatten(2))[0]) and y.shape == x.shape


def test_what_the_convolution_refuses():
    module, x = convolution(), random(2, 5, D)
    weight = module.weight.squeeze(1)
    assert_refused(lambda: module(x, cache=random(2, D, W - 1)), "initial_state", ValueError)
    assert_refused(lambda: fla.causal_conv1d_update(x[:, 0], random(1, D, W), weight=weight), "cache", ValueError)
    assert_refused(lambda: fla.causal_conv1d_update(x[:, 0], random(2, D, W)), "weight", TypeError)
    assert_refused(lambda: module(x, seq_idx=x), "seq_idx", NotImplementedError)
    assert_refused(lambda: fla.causal_conv1d(x, weight, backend="x"), "backend", ValueError)
    assert_refused(lambda: fla.causal_conv1d(x, weight, cp_context=x), "cp_context", NotImplementedError)
    assert_refused(lambda: fla.ShortConvolution(D, W, backend="mix"), "backend", ValueError)
    assert_refused(lambda: fla.ShortConvolution(D, W, activation="relu"), "activation", ValueError)
    assert_refused(lambda: fla.ShortConvolution(D, W, dilation=2), "dilation", NotImplementedError)


# --- norms ---------------------------------------------------------------------------------------------------------


def randomised(module):
    with torch.no_grad():
        for x in module.parameters():
            x.copy_(random(len(x)))
    return module.double()


@pytest.mark.parametrize("affine, bias", [(True, False), (True, True), (False, False)])
def test_the_norm(affine, bias):
    module, x, residual = randomised(fla.RMSNorm(D, affine, bias, eps=1e-3)), random(2, 3, D), random(2, 3, D)
    assert list(module.state_dict()) == ["weight", "bias"][: affine + bias]

    def expected(x):
        return fla_oracle.rms_norm(x, module.weight, module.bias, eps=1e-3)

    assert_same([module(x)], [expected(x)], [x, *module.parameters()])
    assert_same(module(x, residual, prenorm=True), (expected(x + residual), x + residual), [x, residual])
    assert_same([module(x, residual)], [expected(x + residual)])


@pytest.mark.parametrize("kind, activation", [("Gated", "swish"), ("Gated", "sigmoid"), ("SwishGate", "swish")])
def test_the_gated_norm(kind, activation):
    options = {"activation": activation} if kind == "Gated" else {}
    module = randomised(getattr(fla, f"FusedRMSNorm{kind}")(D, eps=1e-3, **options))
    x, gate, residual = random(2, 3, D), random(2, 3, D), random(2, 3, D)
    assert list(module.state_dict()) == ["weight"]

    def expected(x):
        return fla_oracle.rms_norm(x, module.weight, None, gate, activation, eps=1e-3)

    assert_same([module(x, gate)], [expected(x)], [x, gate, module.weight])
    assert_same(module(x, gate, residual, True), (expected(x + residual), x + residual), [x, gate, residual])


def test_dtypes_of_norms():
    """Half precision stays; with residual_in_fp32 the sum is float32."""
    module, x = fla.RMSNorm(D), random(2, 3, D).detach().bfloat16()
    y, total = module(x, prenorm=True, residual_in_fp32=True)
    assert y.dtype == torch.bfloat16 and total.dtype == torch.float32
    y, total = module(x, total, prenorm=True)
    assert y.dtype == torch.bfloat16 and total.dtype == torch.float32
    assert_refused(lambda: fla.FusedRMSNormGated(D, activation="relu"), "activation", ValueError)


# --- what surrounds them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_positions(interleaved):
    """As complex numbers, which a position turns."""
    x, R = random(2, 9, 3, 7), 2
    angles = torch.arange(20, dtype=torch.float64)[:, None] * torch.tensor([0.5, 0.1])
    cos, sin = angles.cos(), angles.sin()

    def expected(x, positions):
        pairs = x[..., : 2 * R].unflatten(-1, (R, 2) if interleaved else (2, R))
        if not interleaved:
            pairs = pairs.transpose(-1, -2)
        turn = torch.polar(torch.ones(()).double(), angles[positions])[..., None, :]
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
        turned = turned if interleaved else turned.transpose(-1, -2)
        return torch.cat([turned.flatten(-2), x[..., 2 * R :]], -1)

    rotary, tokens = activations.rotary_embedding, torch.arange(9)
    assert_same([rotary(x, cos, sin, interleaved)], [expected(x, tokens.expand(2, 9))], [x])
    offsets = torch.tensor([3, 11])
    for offset, positions in ((4, tokens.expand(2, 9) + 4), (offsets, tokens + offsets[:, None])):
        assert_same([rotary(x, cos, sin, interleaved, seqlen_offsets=offset)], [expected(x, positions)])
    packed, positions = torch.tensor(BOUNDS), torch.tensor([[0, 1, 0, 1, 2, 3, 4, 5, 6]])
    given = rotary(x[:1], cos, sin, interleaved, cu_seqlens=packed)
    assert_same([given], [expected(x[:1], positions)])
    offsets = torch.tensor([1, 5, 7])
    given = rotary(x[:1], cos, sin, interleaved, seqlen_offsets=offsets, cu_seqlens=packed)
    assert_same([given], [expected(x[:1], positions + torch.tensor([[1, 1, *[7] * 7]]))])
    assert rotary(x, cos, sin, inplace=True) is NotImplemented


def test_activations():
    x, y, weight, sigmoid = random(3, 4), random(3, 5)[:, :4], random(2, 4), torch.sigmoid
    assert_same([activations.swiglu(x, y)], [x * sigmoid(x) * y], [x])
    assert_same([activations.swiglu_linear(x, y, weight, None)], [(x * sigmoid(x) * y) @ weight.T], [x, weight])
    assert_same([activations.elu_p1(x)], [torch.where(x > 0, x + 1, x.exp())])
    assert_same([activations.logsigmoid(x, 2.0)], [sigmoid(x).log() / 2])
    expected = {"relu": x.clamp_min(0), "sigmoid": sigmoid(x), "logsigmoid": sigmoid(x).log()}
    expected |= {"silu": x * sigmoid(x), "swish": x * sigmoid(x)}
    assert activations.ACT2FN.keys() == expected.keys()
    assert_same([f(x) for f in activations.ACT2FN.values()], [expected[name] for name in activations.ACT2FN])
