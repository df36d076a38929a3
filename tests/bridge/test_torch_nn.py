"""FastWeightAttention against the layer written out in plain PyTorch, token by token."""

import numpy as np
import pytest
from support import oracle

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from fwm_py import _core  # noqa: E402
from fwm_py.torch.nn import FastWeightAttention  # noqa: E402

RULES = [row["function"] for row in _core.RULES] + ["softmax_attention"]
MAP_ROWS = {row["function"]: row for row in _core.MAPS}
MAPS = [None, *MAP_ROWS]
POSITIVE = [name for name, row in MAP_ROWS.items() if row["positive"]]
OF_BOTH_SIGNS = [name for name in MAPS if name not in POSITIVE]
SIZES = {"head_dim": 5, "value_dim": 6, "dtype": torch.float64}


def make(feature_map=None, rule="delta_rule", seed=0, **options):
    torch.manual_seed(seed)
    options = ({"nu": 2} if feature_map == "dpfp" else {}) | options
    return FastWeightAttention(12, 3, feature_map=feature_map, rule=rule, **SIZES | options)


def tokens(B=2, T=19, requires_grad=False):
    return torch.randn(B, T, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(
        requires_grad
    )


class Phi(torch.autograd.Function):
    """The map of oracle.py; its gradient by the complex step."""

    @staticmethod
    def forward(ctx, x, name, arguments):
        phi, x = oracle.MAPS[name], x.detach().numpy()
        steps = 1e-30j * np.eye(x.shape[-1])
        ctx.jacobian = torch.from_numpy(phi(x[..., None, :] + steps, *arguments).imag / 1e-30)  # (..., d, p)
        return torch.from_numpy(phi(x, *arguments))

    @staticmethod
    def backward(ctx, dy):
        return (ctx.jacobian @ dy[..., None])[..., 0], None, None


def phi(layer, x):
    if layer.feature_map is None:
        return x
    row = MAP_ROWS[layer.feature_map]
    if row["takes_omega"]:
        return Phi.apply(x * layer.head_dim**-0.25, row["name"], (layer.omega.numpy(),))
    return Phi.apply(x, row["name"], (layer.nu,) if row["argument"] == "nu" else ())


def normalised(x):
    """x / sum(x); nothing of no features."""
    total = x.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, x / torch.where(total == 0, 1, total))


def plain(layer, x):
    """What the layer computes, from the equations."""
    B, T, _ = x.shape
    q, k, v = (p(x).unflatten(-1, (3, -1)) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k = phi(layer, q), phi(layer, k)
    K = k.shape[-1]
    if layer.qk_norm == "l2":
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    if layer.qk_norm == "sum":
        q, k = normalised(q), normalised(k)
    if layer.rule == "softmax_attention":
        scores = torch.einsum("bthk,bshk->bhts", q, k) * K**-0.5
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        return layer.o_proj(torch.einsum("bhts,bshv->bthv", scores.softmax(-1), v).flatten(2))
    g = torch.zeros(B, T, 3, 1, dtype=x.dtype)
    if hasattr(layer, "g_proj"):
        g = -layer.A_log.exp()[:, None] * F.softplus(layer.g_proj(x) + layer.dt_bias).unflatten(-1, (3, -1))
    beta = (
        layer.beta_proj(x).sigmoid()[..., None]
        if hasattr(layer, "beta_proj")
        else torch.ones(B, T, 3, 1, dtype=x.dtype)
    )
    erase, write = beta * k, beta * v
    if hasattr(layer, "b_proj"):
        erase = layer.b_proj(x).sigmoid().unflatten(-1, (3, -1)) * k
        write = layer.w_proj(x).sigmoid().unflatten(-1, (3, -1)) * v
    if "delta" not in layer.rule and layer.rule != "fast_weight_memory":
        erase = torch.zeros_like(k)
    scale = 1.0 if layer.qk_norm == "sum" or layer.normalize else K**-0.5
    S, z, out = torch.zeros(B, 3, K, v.shape[-1], dtype=x.dtype), torch.zeros(B, 3, K, dtype=x.dtype), []
    for t in range(T):
        S = g[:, t].exp()[..., None] * S
        S = S + k[:, t, :, :, None] * (write[:, t] - torch.einsum("bhkv,bhk->bhv", S, erase[:, t]))[:, :, None]
        if layer.rule == "fast_weight_memory":
            S = S / S.square().sum((-2, -1), keepdim=True).sqrt().clamp(min=1)
        z = z + k[:, t]
        o = scale * torch.einsum("bhkv,bhk->bhv", S, q[:, t])
        out.append(o / ((z * q[:, t]).sum(-1, keepdim=True) * scale + 1e-6) if layer.normalize else o)
    return layer.o_proj(torch.stack(out, 1).flatten(2))


def assert_equal_layers(layer, x):
    y, expected = layer(x), plain(layer, x)
    assert torch.allclose(y, expected, rtol=1e-9, atol=1e-10)
    inputs = [x, *layer.parameters()]
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad((weights * y).sum(), inputs)
    theirs = torch.autograd.grad((weights * expected).sum(), inputs)
    for got, wanted in zip(ours, theirs):
        assert torch.allclose(got, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("feature_map", MAPS)
def test_any_map_and_any_rule(feature_map, rule):
    assert_equal_layers(make(feature_map, rule), tokens(requires_grad=True))


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "gated_linear_attention", "gate": "channel"},
        {"rule": "linear_attention", "feature_map": "elu1", "normalize": True},
        {"rule": "delta_rule", "qk_norm": None},
        {"rule": "delta_rule", "feature_map": "dpfp", "qk_norm": "l2"},
        {"bias": True},
        {"feature_map": "favor", "features": 8},
        {"feature_map": "dpfp", "nu": 1, "head_dim": 3},  # some tokens have no features
    ],
    ids=str,
)
def test_options(options):
    assert_equal_layers(make(**options), tokens(requires_grad=True))


@pytest.mark.parametrize(
    "options",
    [*({"rule": rule} for rule in RULES), {"rule": "linear_attention", "feature_map": "elu1", "normalize": True}],
    ids=str,
)
def test_token_by_token(options):
    layer, x = make(**options), tokens()
    whole, after = layer(x, return_state=True)
    y, state = layer(x[:, :7], return_state=True)
    parts = [y]
    for t in range(7, x.shape[1]):
        y, state = layer(x[:, t : t + 1], state, return_state=True)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole)
    pairs = zip(state, after) if isinstance(state, tuple) else [(state, after)]
    assert all(torch.allclose(a, b) for a, b in pairs)


def test_packed():
    layer, x = make(rule="gated_delta_rule"), tokens(1)
    y, state = layer(x, cu_seqlens=torch.tensor([0, 4, 19]), return_state=True)
    assert torch.allclose(y, torch.cat([layer(x[:, :4]), layer(x[:, 4:])], 1)) and state.shape[0] == 2
    with pytest.raises(ValueError, match="^cu_seqlens"):
        make(rule="softmax_attention")(x, cu_seqlens=torch.tensor([0, 19]))


def test_it_learns_associations():
    """Key, value, key, value, .., a key again: the value that followed it."""
    torch.manual_seed(0)
    embed, layer = torch.nn.Embedding(20, 32), FastWeightAttention(32, 2, feature_map="dpfp", rule="delta_rule")
    read = torch.nn.Linear(32, 10)
    optimiser = torch.optim.Adam([*embed.parameters(), *layer.parameters(), *read.parameters()], 5e-3)
    losses = []
    for _ in range(150):
        keys, values = torch.rand(64, 10).argsort(-1)[:, :4], torch.randint(10, (64, 4))
        asked = torch.randint(4, (64, 1))
        pairs = embed(keys) + embed(10 + values)
        y = read(layer(torch.cat([pairs, embed(keys.gather(1, asked))], 1))[:, -1])
        loss = F.cross_entropy(y, values.gather(1, asked)[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_initial_gates_remember():
    layer = make(rule="kimi_delta_rule")
    dt = F.softplus(layer.dt_bias)
    assert (dt > 0.9e-3).all() and (dt < 0.11).all()
    assert torch.equal(make(seed=3).q_proj.weight, make(seed=3).q_proj.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "delta"}, "^rule: got 'delta'"),
        ({"feature_map": "relu"}, "^feature_map"),
        ({"gate": "both"}, "^gate"),
        ({"qk_norm": "l3"}, "^qk_norm"),
        ({"head_dim": None}, "^heads: got 5"),
        ({"feature_map": "dpfp", "nu": 0}, "^nu: got 0"),
        ({"head_dim": 0}, "^head_dim: got 0"),
        ({"value_dim": -1}, "^value_dim: got -1"),
        ({"feature_map": "favor", "features": 0}, "^features: got 0"),
        ({"normalize": "yes"}, "^normalize: got 'yes'"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        FastWeightAttention(12, 5, **SIZES | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nu": 2}, "^nu: got 2 with None and delta_rule, expected feature_map='dpfp'"),
        ({"nu": 2, "feature_map": "favor"}, "^nu: got 2"),
        (
            {"features": 8, "feature_map": "dpfp"},
            "^features: got 8 with 'dpfp' and delta_rule, expected feature_map='favor'",
        ),
        (
            {"qk_norm": "l2", "rule": "linear_attention"},
            "^qk_norm: got 'l2' with None and linear_attention, expected a delta rule",
        ),
        ({"qk_norm": "l2", "rule": "softmax_attention"}, "^qk_norm: got 'l2'"),
        ({"gate": "scalar"}, "^gate: got 'scalar' with None and delta_rule, expected rule='gated_linear_attention'"),
        ({"gate": "channel", "rule": "kimi_delta_rule"}, "^gate: got 'channel'"),
        ({"normalize": True}, "^normalize: got True with None and delta_rule, expected rule='linear_attention'"),
        *[
            (
                {"qk_norm": "sum", "feature_map": name},
                f"^qk_norm: got 'sum' with {name!r} and delta_rule, expected a positive map: {', '.join(POSITIVE)}",
            )
            for name in OF_BOTH_SIGNS
        ],
        *[
            (
                {"normalize": True, "rule": "linear_attention", "feature_map": name},
                "^normalize: got True.* expected a positive map",
            )
            for name in OF_BOTH_SIGNS
        ],
    ],
    ids=str,
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FastWeightAttention(12, 3, **SIZES | options)


OPTIONS = "d_model heads head_dim value_dim nu features feature_map rule gate qk_norm normalize bias"


@pytest.mark.parametrize("name", OPTIONS.split())
def test_an_option_that_is_a_tensor_is_refused_in_a_line(name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got Tensor, expected ") as error:
        FastWeightAttention(**{"d_model": 12, "heads": 3} | {name: torch.arange(5000.0)})
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)
    with pytest.raises(TypeError, match="^return_state: got Tensor"):
        make()(tokens(), return_state=torch.arange(5000.0))


@pytest.mark.parametrize("feature_map", MAPS)
def test_weights_sum_to_one_where_they_can(feature_map):
    """linear_attention divides by their sum unless a map may make it anything."""
    layer = make(feature_map, "linear_attention")
    assert layer.normalize == (feature_map in POSITIVE)
    assert (
        not make(feature_map, "gated_linear_attention").normalize
        and not make(feature_map, "linear_attention", normalize=False).normalize
    )
    if layer.normalize:  # a mean of values is not larger than they are
        assert layer(tokens()).abs().max() < layer.o_proj.weight.abs().sum(1).max() * layer.v_proj(tokens()).abs().max()


@pytest.mark.parametrize("feature_map", MAPS)
@pytest.mark.parametrize("how", ["with", "device"])
def test_from_the_meta_device(feature_map, how):
    """Made without memory: then drawn, or loaded."""
    if how == "with":
        with torch.device("meta"):
            layer = make(feature_map)
    else:
        layer = make(feature_map, device="meta")
    assert all(x.is_meta for x in layer.state_dict().values())
    layer.to_empty(device="cpu")
    expected = make(feature_map)
    for drawn in (layer, expected):
        torch.manual_seed(5)
        drawn.reset_parameters()
    assert torch.equal(layer(tokens()), expected(tokens()))
    for assign in (False, True):
        with torch.device("meta"):
            other = make(feature_map)
        other = other if assign else other.to_empty(device="cpu")
        other.load_state_dict(expected.state_dict(), assign=assign)
        assert torch.equal(other(tokens()), expected(tokens()))


def test_it_says_what_it_is():
    assert "rule='delta_rule', qk_norm='sum'" in repr(make("dpfp"))
    assert set(make("favor").state_dict()) == {
        "omega",
        *(f"{x}_proj.weight" for x in ("q", "k", "v", "o", "beta")),
        "beta_proj.bias",
    }
