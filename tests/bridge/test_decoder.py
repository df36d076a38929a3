"""Decoder: against the model written out in plain PyTorch, token by token from its states, and what it refuses."""

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from support.plain_layer import plain  # noqa: E402

from fwm_py.torch.nn import AttentionState, Decoder, DecoderState, FastWeightAttention  # noqa: E402

V, D = 11, 8
KINDS = {
    "softmax": dict(rule="softmax_attention"),
    "softmax, rotary": dict(rule="softmax_attention", rotary=True),
    "sum": dict(rule="linear_attention", feature_map="elu1"),
    "delta, rotary": dict(rule="delta_rule", feature_map="dpfp", rotary=True),
    "delta, normalised": dict(rule="delta_rule", feature_map="elu1", normalize=True),
    "gated delta, convolved": dict(rule="gated_delta_rule", conv_size=3, rotary=True, kv_heads=1),
    "fwm": dict(rule="fast_weight_memory", feature_map="tanh"),
}


def make(kind, **options):
    torch.manual_seed(0)
    model = Decoder(V, D, 2, lambda: FastWeightAttention(D, 2, **KINDS[kind]), d_ff=12, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def plain_logits(model, tokens, positions=True):
    T = tokens.shape[1]
    x = model.embed.weight[tokens] * math.sqrt(D)
    if positions:
        place, i = torch.arange(T, dtype=torch.float64)[:, None], torch.arange(D // 2, dtype=torch.float64)
        angles = place / 10000.0 ** (2 * i / D)
        x = x + torch.cat([angles.sin(), angles.cos()], 1)

    def norm(x, layer):
        return F.layer_norm(x, (D,), layer.weight, layer.bias)

    def network(ff, x):
        return (x @ ff[0].weight.mT + ff[0].bias).clamp(min=0) @ ff[3].weight.mT + ff[3].bias

    for layer in model.layers:
        if layer.pre:
            x = x + plain(layer.memory, norm(x, layer.memory_norm))
            x = x + network(layer.ff, norm(x, layer.ff_norm))
        else:
            x = norm(x + plain(layer.memory, x), layer.memory_norm)
            x = norm(x + network(layer.ff, x), layer.ff_norm)
    return (norm(x, model.norm) if model.layers[0].pre else x) @ model.embed.weight.mT


@pytest.mark.parametrize("options", [{}, dict(norm="post", std=0.3), dict(positions=None)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_of_plain_torch(kind, options):
    model = make(kind, **options)
    tokens, following = torch.randint(V, (2, 2, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for logits in (model(tokens), plain_logits(model, tokens, options.get("positions", True) is not None)):
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten())
        found.append((logits, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    for ours, theirs in zip(*found):
        if ours is None or theirs is None:
            assert ours is theirs is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token(kind):
    model = make(kind)
    tokens = torch.randint(V, (3, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole, state, parts = model(tokens), None, []
        for i in range(7):
            logits, state = model(tokens[:, i : i + 1], state, return_state=True)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)
        assert state.tokens == 7
        _, before = model(tokens[:, :4], return_state=True)
        again = DecoderState.of(before.tensors(), before.tokens)  # by names, as a checkpoint has it
        torch.testing.assert_close(model(tokens[:, 4:], again), whole[:, 4:], rtol=1e-10, atol=1e-10)
        rows = torch.tensor([2, 0])
        chosen = model(tokens[rows, 4:], before.select(rows))
        torch.testing.assert_close(chosen, whole[rows, 4:], rtol=1e-10, atol=1e-10)
        assert not any(x.requires_grad for x in before.detach().tensors().values())


def test_a_memory_of_anyones():
    """Any module with (x, state, return_state): here a mean of all tokens so far."""

    class Mean(torch.nn.Module):
        def forward(self, x, state=None, return_state=False):
            total, n = state or (0, 0)
            sums = total + x.cumsum(1)
            y = sums / (n + torch.arange(1, x.shape[1] + 1)[:, None])
            return (y, (sums[:, -1:], n + x.shape[1])) if return_state else y

    model = Decoder(V, D, 2, Mean).double()
    tokens = torch.randint(V, (1, 6))
    first, state = model(tokens[:, :2], return_state=True)
    last, _ = model(tokens[:, 2:], state, return_state=True)
    torch.testing.assert_close(torch.cat([first, last], 1), model(tokens))


def test_numbers_of_state():
    assert make("sum").numbers_of_state(9) == 2 * (2 * 4 * 4 + 2 * 4)
    assert make("softmax").numbers_of_state(9) == 2 * 2 * 9 * 8
    assert make("gated delta, convolved").numbers_of_state(9) == 2 * (4 * 4 + 2 * (8 + 4 + 4))
    assert AttentionState(torch.zeros(1, 2)).tensors().keys() == {"S"}


def test_begins_near_the_mean():
    """Of the default: a loss of about log V, whatever the width."""
    torch.manual_seed(0)
    model = Decoder(1000, 64, 2, lambda: FastWeightAttention(64, 4, rule="delta_rule", feature_map="elu1"))
    tokens = torch.randint(1000, (2, 50))
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(1000)) < 1.5


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(d_ff=0), ValueError, "d_ff: got 0, expected at least 1"),
        (dict(layers=0), ValueError, "layers: got 0, expected at least 1"),
        (dict(layers=None), TypeError, "layers: got None, expected an integer"),
        (dict(positions="rotary"), ValueError, "positions: got 'rotary', expected one of 'sinusoidal', None"),
        (dict(norm="none"), ValueError, "norm: got 'none', expected one of 'pre', 'post'"),
        (dict(dropout=2), ValueError, "dropout: got 2, expected 0 to 1"),
        (dict(memory=3), TypeError, "memory: got 3, expected a function that makes a module"),
    ],
)
def test_bad_input(wrong, error, message):
    options = dict(memory=lambda: FastWeightAttention(D, 2), layers=1) | wrong
    with pytest.raises(error, match=message):
        Decoder(V, D, **options)


def test_bad_states_and_rotary():
    model = make("sum")
    with pytest.raises(ValueError, match="state: got one of 1 layers, expected 2"):
        model(torch.zeros(1, 1, dtype=torch.int64), DecoderState(1, (None,)))
    with pytest.raises(ValueError, match="rotary: got True with head_dim 3, expected an even head_dim"):
        FastWeightAttention(6, 2, rotary=True)
    with pytest.raises(TypeError, match="rotary: got 1"):
        FastWeightAttention(8, 2, rotary=1)
    layer = FastWeightAttention(8, 2, rotary=True)
    with pytest.raises(ValueError, match="cu_seqlens: got a tensor, expected None with rotary positions"):
        layer(torch.zeros(1, 4, 8), cu_seqlens=torch.tensor([0, 2, 4]))
