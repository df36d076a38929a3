"""FastWeightAttention against the layer written out in plain PyTorch, token by token."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from support.plain_layer import MAP_ROWS, plain  # noqa: E402

from fwm_py import _core  # noqa: E402
from fwm_py.torch.nn import AttentionState, FastWeightAttention, KeyCache  # noqa: E402

RULES = [row["function"] for row in _core.RULES] + ["softmax_attention"]
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


def lively(layer):
    """Parameters that begin as constants, drawn: a gate whose projection is zero hides mistakes."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in ("g_proj.weight", "A_log", "o_norm.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    return layer


def assert_equal_layers(layer, x, **others):
    layer = lively(layer)
    y, expected = layer(x, **others), plain(layer, x, **others)
    assert torch.allclose(y, expected, rtol=1e-9, atol=1e-10)
    inputs = [x, *layer.parameters(), *(given for given in others.values() if given.requires_grad)]
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad((weights * y).sum(), inputs)
    theirs = torch.autograd.grad((weights * expected).sum(), inputs)
    for got, wanted in zip(ours, theirs):
        assert torch.allclose(got, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("feature_map", MAPS)
def test_any_map_and_any_rule(feature_map, rule):
    assert_equal_layers(make(feature_map, rule), tokens(requires_grad=True))


CAUSAL = [
    {"rule": "gated_linear_attention", "gate": "channel"},
    {"rule": "linear_attention", "feature_map": "elu1", "normalize": True, "eps": 0.1},
    {"rule": "delta_rule", "qk_norm": None, "scale": 0.3},
    {"rule": "delta_rule", "feature_map": "dpfp", "qk_norm": "l2"},
    {"rule": "delta_rule", "feature_map": "elu1", "normalize": True},
    {"bias": True, "conv_size": 4, "output_norm": True},
    {"feature_map": "favor", "features": 8},
    {"feature_map": "dpfp", "nu": 1, "head_dim": 3},  # some tokens have no features
    {"rule": "gated_delta_rule", "kv_heads": 1, "conv_size": 2, "output_norm": True, "output_gate": True},
    {"rule": "kimi_delta_rule", "conv_size": 3, "output_norm": True, "norm_eps": 0.5, "time_constants": (0.1, 0.9)},
    {"rule": "gated_delta_rule_2", "kv_heads": 3, "output_norm": True},
    {"rule": "softmax_attention", "conv_size": 4, "output_norm": True, "output_gate": True, "scale": 0.7},
    {"rule": "softmax_attention", "kv_heads": 1, "bias": True},
    {"rule": "linear_attention", "feature_map": "elu1", "kv_heads": 1},
]


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_options(options):
    assert_equal_layers(make(**options), tokens(requires_grad=True))


NOT_CAUSAL = [
    {"rule": "linear_attention", "feature_map": "elu1", "eps": 0.2},
    {"rule": "linear_attention", "feature_map": "dpfp", "normalize": False, "output_norm": True, "output_gate": True},
    {"rule": "linear_attention", "kv_heads": 1},
    {"rule": "softmax_attention", "kv_heads": 1, "output_norm": True},
]


@pytest.mark.parametrize("options", NOT_CAUSAL, ids=str)
def test_not_causal(options):
    """On itself, on a second input of any length, and on padded ones; of nothing, 0 is read."""
    layer, x, context = make(causal=False, **options), tokens(3, requires_grad=True), tokens(3, 7, requires_grad=True)
    assert_equal_layers(layer, x)
    assert_equal_layers(layer, x, key_lengths=torch.tensor([19, 4, 0]))
    assert_equal_layers(layer, x, context=context)
    assert_equal_layers(layer, x, context=context, key_lengths=torch.tensor([2, 7, 0], dtype=torch.int32))
    y, state = layer(x, context=context, key_lengths=torch.tensor([2, 7, 0]), return_state=True)
    parts = [layer(x[:, t : t + 1], state) for t in range(x.shape[1])]  # cross attention while decoding
    assert torch.allclose(torch.cat(parts, 1), y, rtol=0, atol=1e-12)


def test_softmax_with_padded_keys():
    assert_equal_layers(
        make(rule="softmax_attention"), tokens(3, requires_grad=True), key_lengths=torch.tensor([19, 4, 0])
    )


def memories(state):
    memory = state.memory
    parts = (memory.keys, memory.values) if isinstance(memory, KeyCache) else memory
    return [*(parts if isinstance(parts, tuple) else (parts,)), *(state.convolution or ())]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", [*({"rule": rule} for rule in RULES), *CAUSAL], ids=str)
def test_token_by_token(options, grad):
    layer, x = lively(make(**options)), tokens(requires_grad=grad)
    with torch.set_grad_enabled(grad):
        whole, after = layer(x, return_state=True)
        y, state = layer(x[:, :7], return_state=True)
        parts, states = [y], [state]
        for t in (*range(7, 12), 14, *range(17, x.shape[1])):  # some tokens at once, too
            end = {12: 14, 14: 17}.get(t, t + 1) if t != 11 else 14
            y, state = layer(x[:, t:end], state, return_state=True)
            parts, states = [*parts, y], [*states, state]
    assert torch.allclose(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(memories(state), memories(after), strict=True))
    again, _ = layer(x[:, 7:8], states[0], return_state=True)  # a state stays what it was
    assert torch.allclose(again, whole[:, 7:8], rtol=0, atol=1e-12)
    if grad:
        weights = torch.randn(whole.shape, dtype=whole.dtype, generator=torch.Generator().manual_seed(2))
        inputs = [x, *layer.parameters()]
        for got, wanted in zip(
            torch.autograd.grad((weights * torch.cat(parts, 1)).sum(), inputs, retain_graph=True),
            torch.autograd.grad((weights * whole).sum(), inputs),
        ):
            assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", CAUSAL, ids=str)
def test_states_of_some_rows(options):
    """Rows selected as often as a search wants them, and states without their history."""
    layer, x = lively(make(**options)), tokens(3)
    _, state = layer(x[:, :7], return_state=True)
    rows = torch.tensor([2, 0, 0, 1])
    expected = layer(x[rows])[:, 7:]
    with torch.no_grad():
        y, chosen = layer(x[rows, 7:9], state.select(rows), return_state=True)
        rest = layer(x[rows, 9:], chosen)
    assert torch.allclose(torch.cat([y, rest], 1), expected, rtol=0, atol=1e-12)
    assert all(m.requires_grad for m in memories(state)[:2]) and not any(
        m.requires_grad for m in memories(state.detach())
    )


def test_the_cache_of_softmax_grows_where_it_is():
    layer, x = make(rule="softmax_attention"), tokens(2, 40)
    with torch.no_grad():
        _, state = layer(x[:, :4], return_state=True)
        places, first = [], state
        for t in range(4, 40):
            _, state = layer(x[:, t : t + 1], state, return_state=True)
            places.append(state.memory.keys.data_ptr())
        one, _ = layer(x[:, 4:5], first, return_state=True)
        other, branch = layer(x[:, 9:10], first, return_state=True)  # from the same state, another way
        assert torch.allclose(layer(x[:, 5:6], branch), layer(torch.cat([x[:, :4], x[:, 9:10], x[:, 5:6]], 1))[:, -1:])
        assert torch.allclose(layer(x[:, 39:], state), layer(torch.cat([x, x[:, 39:]], 1))[:, -1:])
    assert len(set(places)) <= 4  # copied when it has doubled
    assert torch.allclose(
        torch.cat([one, other]), torch.cat([layer(x[:, :5])[:, 4:], layer(torch.cat([x[:, :4], x[:, 9:10]], 1))[:, 4:]])
    )


def test_the_cache_of_softmax_where_only_queries_learn():
    """Each step's backward finds the keys that it has read."""
    layer, x = make(rule="softmax_attention"), tokens()
    for projection in (layer.k_proj, layer.v_proj):
        projection.weight.requires_grad_(False)
    y, state = layer(x[:, :3], return_state=True)
    parts = [y]
    for t in range(3, x.shape[1]):
        y, state = layer(x[:, t : t + 1], state, return_state=True)
        parts.append(y)
    weights = torch.randn(layer(x).shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    got, wanted = (
        torch.autograd.grad((weights * y).sum(), layer.q_proj.weight)[0] for y in (torch.cat(parts, 1), layer(x))
    )
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)


def test_a_cache_of_inference_mode_goes_on_outside():
    layer, x = make(rule="softmax_attention"), tokens()
    with torch.inference_mode():
        _, state = layer(x[:, :3], return_state=True)
        _, state = layer(x[:, 3:4], state, return_state=True)
    with torch.no_grad():
        y, state = layer(x[:, 4:5], state, return_state=True)
        assert torch.allclose(y, layer(x[:, :5])[:, -1:])
        assert torch.allclose(layer(x[:, 5:6], state), layer(x[:, :6])[:, -1:])


def test_dropout_and_redrawn_features():
    layer, x = make("favor", dropout=0.5, redraw=True), tokens()
    assert not torch.equal(layer(x), layer(x))
    before = layer.omega
    dropped = make(dropout=0.5)(x)
    assert 0.3 < (dropped == 0).double().mean() < 0.7
    layer.eval()
    assert torch.equal(layer(x), layer(x)) and layer.omega is before
    layer.train()
    _, state = layer(x[:, :5], return_state=True)
    before = layer.omega
    layer(x[:, 5:], state)
    assert layer.omega is before  # what a state was made with
    (layer(x).sum() + layer(x).sum()).backward()  # each with its own


def test_packed():
    layer, x = make(rule="gated_delta_rule"), tokens(1)
    y, state = layer(x, cu_seqlens=torch.tensor([0, 4, 19]), return_state=True)
    assert torch.allclose(y, torch.cat([layer(x[:, :4]), layer(x[:, 4:])], 1)) and state.memory.shape[0] == 2
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


@pytest.mark.parametrize("rule", [row["function"] for row in _core.RULES if row["scalar_gate"] or row["channel_gate"]])
def test_initial_gates_remember(rule):
    """Whatever the token, heads forget from 0.001 to 0.1 in it, evenly in the logarithm; one head 0.01."""
    layer = make(rule=rule)
    forgotten = (
        [-layer._strengths(tokens())[0].detach().flatten(3)[..., i, :] for i in range(3)]
        if layer.channel_gate
        else [-layer._strengths(tokens())[0].detach()[..., i] for i in range(3)]
    )
    for got, expected in zip(forgotten, (1e-3, 1e-2, 1e-1)):
        assert torch.allclose(got, torch.full_like(got, expected))
    one = FastWeightAttention(12, 1, rule=rule, time_constants=(1e-4, 1e-2), dtype=torch.float64)
    assert torch.allclose(F.softplus(one.dt_bias), torch.full_like(one.dt_bias, 1e-3))
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
        ({"kv_heads": 2}, "^kv_heads: got 2, expected a divisor of heads = 5"),
        ({"conv_size": 17}, "^conv_size: got 17, expected 1 to 16"),
        ({"conv_size": 0}, "^conv_size: got 0, expected at least 1"),
        ({"dropout": 1.5}, "^dropout: got 1.5, expected 0 to 1"),
        ({"dropout": float("nan")}, "^dropout: got nan"),
        ({"scale": float("inf")}, "^scale: got inf"),
        ({"eps": -1.0, "feature_map": "elu1", "rule": "linear_attention"}, "^eps: got -1.0, expected .* at least 0"),
        ({"eps": float("inf"), "feature_map": "elu1", "rule": "linear_attention"}, "^eps: got inf"),
        ({"norm_eps": float("inf"), "output_norm": True}, "^norm_eps: got inf"),
        ({"time_constants": (0.0, 1.0), "rule": "gated_delta_rule"}, "^time_constants: got 0.0"),
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
        ({"normalize": True, "feature_map": "elu1", "qk_norm": "sum"}, "^qk_norm: got 'sum'.* None where normalize is"),
        (
            {"normalize": True, "feature_map": "elu1", "rule": "gated_delta_rule"},
            "^normalize: got True.* expected rule=",
        ),
        ({"eps": 1e-3}, "^eps: got 0.001 .* expected None where normalize is not True"),
        ({"causal": False}, "^causal: got False, expected rule=linear_attention or softmax_attention"),
        (
            {"causal": False, "rule": "linear_attention", "conv_size": 4},
            "^conv_size: got 4, expected None where causal",
        ),
        ({"output_gate": True}, "^output_gate: got True, expected False where output_norm is False"),
        ({"norm_eps": 1e-3}, "^norm_eps: got 0.001, expected None where output_norm is False"),
        ({"redraw": True}, "^redraw: got True, expected feature_map='favor'"),
        ({"time_constants": (0.1, 0.2)}, "^time_constants: got tuple, expected None with a rule that has no gate"),
        ({"normalize": True}, "^normalize: got True with None and delta_rule, expected a positive map"),
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


OPTIONS = "d_model heads kv_heads head_dim value_dim nu features feature_map redraw rule gate qk_norm normalize eps"
OPTIONS += " scale causal conv_size output_norm output_gate norm_eps time_constants dropout bias"


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


STATE = AttentionState(torch.zeros(2, 3, 5, 6, dtype=torch.float64))
CROSS = {"rule": "linear_attention", "feature_map": "elu1", "causal": False}


@pytest.mark.parametrize(
    ("options", "call", "exception", "message"),
    [
        ({}, {"context": tokens()}, ValueError, "^context: got a tensor, expected None where causal is True"),
        (CROSS, {"context": [1]}, TypeError, "^context: got list, expected a tensor"),
        (CROSS, {"key_lengths": [1, 2]}, TypeError, "^key_lengths: got list, expected a tensor or None"),
        ({}, {"cu_seqlens": [0, 19]}, TypeError, "^cu_seqlens: got list, expected a tensor or None"),
        ({}, {"cu_seqlens": torch.tensor(0), "state": STATE}, ValueError, r"^cu_seqlens: got shape \(\), expected"),
        (CROSS, {"context": tokens()[0]}, ValueError, r"^context: got shape \(19, 12\), expected \(B, T, 12\)"),
        (CROSS, {"context": tokens(3)}, ValueError, "^context: got 3 rows, expected 2, as x has"),
        (
            {},
            {"key_lengths": torch.tensor([1, 2])},
            ValueError,
            "^key_lengths: got a tensor, expected None with a causal",
        ),
        (CROSS, {"key_lengths": torch.tensor([1, 20])}, ValueError, "^key_lengths: got 20, expected integers in 0..19"),
        (CROSS, {"key_lengths": torch.tensor([-1, 1])}, ValueError, "^key_lengths: got -1"),
        (
            CROSS,
            {"key_lengths": torch.tensor([1.0, 2.0])},
            TypeError,
            "^key_lengths: got torch.float32, expected integers",
        ),
        (CROSS, {"key_lengths": torch.tensor([1])}, ValueError, "^key_lengths: got shape"),
        (CROSS, {"cu_seqlens": torch.tensor([0, 19])}, ValueError, "^cu_seqlens"),
        ({}, {"state": torch.zeros(2, 3, 5, 6)}, TypeError, "^state: got Tensor, expected an AttentionState"),
        ({}, {"state": AttentionState(torch.zeros(2, 3, 5, 5))}, ValueError, "^state: got a memory of shapes"),
        ({}, {"state": AttentionState(torch.zeros(1, 3, 5, 6))}, ValueError, "^state: got .*, of 2 rows"),
        ({"conv_size": 4}, {"state": AttentionState(torch.zeros(2, 3, 5, 6))}, ValueError, "^state: got convolutions"),
        ({"rule": "softmax_attention"}, {"state": AttentionState(torch.zeros(2, 3, 5, 6))}, ValueError, "^state: got"),
    ],
)
def test_bad_calls(options, call, exception, message):
    with pytest.raises(exception, match=message):
        make(**options)(tokens(), **call)


def test_x_is_a_tensor():
    with pytest.raises(TypeError, match="^x: got list, expected a tensor"):
        make()([1])
