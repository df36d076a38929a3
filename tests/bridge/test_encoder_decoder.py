"""EncoderDecoder: against the model written out in plain PyTorch, token by token, padding, and what it refuses."""

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from support.plain_layer import plain  # noqa: E402

from fwm_py.torch.nn import EncoderDecoder, FastWeightAttention  # noqa: E402

V, D = 11, 8
SUM = dict(rule="linear_attention", feature_map="elu1")
MEMORIES = {  # of the encoder, the decoder and the source
    "softmax": [dict(rule="softmax_attention")] * 3,
    "sum": [SUM] * 3,
    "sum, delta in the decoder": [SUM, dict(rule="delta_rule", feature_map="elu1"), SUM],
    "mixed": [
        dict(rule="linear_attention", feature_map="dpfp", nu=1),
        dict(rule="gated_delta_rule", conv_size=3),
        dict(rule="softmax_attention"),
    ],
}
LENGTHS = torch.tensor([6, 1, 4])


def memories(kind):
    return [
        lambda options=options, causal=causal: FastWeightAttention(D, 2, causal=causal, **options)
        for options, causal in zip(MEMORIES[kind], (False, True, False))
    ]


def make(kind, **options):
    torch.manual_seed(0)
    model = EncoderDecoder(V, D, 2, 2, *memories(kind), d_ff=12, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def texts():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(V, (3, 6), generator=generator), torch.randint(V, (3, 5), generator=generator)


def plain_logits(model, source, lengths, target, positions=True):
    def embedded(tokens):
        x = model.embed.weight[tokens] * math.sqrt(D)
        place, i = torch.arange(x.shape[1], dtype=torch.float64)[:, None], torch.arange(D // 2, dtype=torch.float64)
        angles = place / 10000.0 ** (2 * i / D)
        return x + torch.cat([angles.sin(), angles.cos()], 1) if positions else x

    def norm(x, layer):
        return F.layer_norm(x, (D,), layer.weight, layer.bias)

    def part(layer, x, name, function):
        its_norm = getattr(layer, f"{name}_norm")
        return x + function(norm(x, its_norm)) if layer.pre else norm(x + function(x), its_norm)

    def network(layer):
        ff = layer.ff
        return lambda x: (x @ ff[0].weight.mT + ff[0].bias).clamp(min=0) @ ff[3].weight.mT + ff[3].bias

    x, y, pre = embedded(source), embedded(target), model.encoder[0].pre
    for layer in model.encoder:
        x = part(layer, x, "memory", lambda z, layer=layer: plain(layer.memory, z, key_lengths=lengths))
        x = part(layer, x, "ff", network(layer))
    x = norm(x, model.encoder_norm) if pre else x
    for layer in model.decoder:
        y = part(layer, y, "memory", lambda z, layer=layer: plain(layer.memory, z))
        y = part(layer, y, "cross", lambda z, layer=layer: plain(layer.cross, z, x, lengths))
        y = part(layer, y, "ff", network(layer))
    return (norm(y, model.decoder_norm) if pre else y) @ model.embed.weight.mT


@pytest.mark.parametrize("options", [{}, dict(norm="post", std=0.3), dict(positions=None)], ids=str)
@pytest.mark.parametrize("kind", MEMORIES)
def test_logits_and_gradients_of_plain_torch(kind, options):
    model = make(kind, **options)
    source, target = texts()
    found = []
    for logits in (
        model(source, LENGTHS, target),
        plain_logits(model, source, LENGTHS, target, options.get("positions", True) is not None),
    ):
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        found.append((logits, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)))
    for ours, theirs in zip(*found):
        if ours is None or theirs is None:
            assert ours is theirs is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", MEMORIES)
@torch.no_grad()
def test_token_by_token_and_rows(kind):
    model = make(kind)
    source, target = texts()
    whole, state, parts = model(source, LENGTHS, target), model.encode(source, LENGTHS), []
    for i in range(target.shape[1]):
        logits, state = model.decode(target[:, i : i + 1], state, return_state=True)
        parts.append(logits)
        if i == 2:
            rows = torch.tensor([2, 0, 2, 1])
            chosen = model.decode(target[rows, 3:], state.select(rows))
            torch.testing.assert_close(chosen, whole[rows, 3:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)
    assert state.tokens == 5
    rows = torch.tensor([1, 1, 0])
    chosen = model.decode(target[rows], model.encode(source, LENGTHS).select(rows))  # before the first token
    torch.testing.assert_close(chosen, whole[rows], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MEMORIES)
@torch.no_grad()
def test_padding_changes_no_bit(kind, dtype):
    model = make(kind).to(dtype)
    source, target = texts()
    logits = model(source, LENGTHS, target)
    for token in range(V):
        padded = torch.where(torch.arange(6) < LENGTHS[:, None], source, token)
        assert torch.equal(model(padded, LENGTHS, target), logits)
    alone = model(source[1:2, :1], torch.tensor([1]), target[1:2])
    torch.testing.assert_close(alone, logits[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(encoder_layers=0), ValueError, "encoder_layers: got 0, expected at least 1"),
        (dict(decoder_layers="2"), TypeError, "decoder_layers: got '2', expected an integer"),
        (dict(d_ff=-1), ValueError, "d_ff: got -1, expected at least 1"),
        (dict(positions="rotary"), ValueError, "positions: got 'rotary', expected one of 'sinusoidal', None"),
        (dict(norm="none"), ValueError, "norm: got 'none', expected one of 'pre', 'post'"),
        (dict(dropout=-1), ValueError, "dropout: got -1, expected 0 to 1"),
        (dict(cross=None), TypeError, "cross: got None, expected a function that makes a module"),
    ],
)
def test_bad_input(wrong, error, message):
    options = dict(encoder_layers=1, decoder_layers=1, **dict(zip(("encoder", "decoder", "cross"), memories("sum"))))
    with pytest.raises(error, match=message):
        EncoderDecoder(V, D, **(options | wrong))


def test_bad_states():
    model = make("sum")
    source, target = texts()
    with pytest.raises(TypeError, match="state: got None, expected what encode or decode returns"):
        model.decode(target, None)
    state = model.encode(source, LENGTHS)
    with pytest.raises(TypeError, match="return_state: got 1, expected True or False"):
        model.decode(target, state, return_state=1)
    del model.decoder[1]
    with pytest.raises(ValueError, match="state: got one of 2 layers, expected 1"):
        model.decode(target, state)
