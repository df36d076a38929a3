"""Norms and softmax attention in models of transformers, by themselves, with and without the kernels."""

import copy
import functools
import inspect
import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import tiny_models  # noqa: E402
from support.tiny_models import GATED_NORMS, Compiled, Subclass, assert_near, disabled, every_family, modelling  # noqa: E402, F401

import fwm_py.transformers as bridge  # noqa: E402
from fwm_py.transformers.functions import FUNCTIONS  # noqa: E402


def values_and_gradients(function, *inputs):
    y = function()
    return y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), inputs)


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family, norm in GATED_NORMS.items() if norm == "norm_then_gate"])
def test_gated_norm(family):
    norm = next(
        module for module in tiny_models.make(family).modules() if type(module).__name__.endswith("RMSNormGated")
    )
    D = len(norm.weight)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(3))
    x, gate = (
        torch.randn(2, 7, 50, D, generator=torch.Generator().manual_seed(4)).requires_grad_(),
        torch.randn(2, 7, 50, D, requires_grad=True),
    )
    expected = values_and_gradients(lambda: norm(x, gate), x, gate, norm.weight)
    with bridge.enabled() as changed:
        assert f"{type(norm).__name__}.forward" in changed[family]
        got = values_and_gradients(lambda: norm(x, gate), x, gate, norm.weight)
        half = norm(x.bfloat16(), gate.bfloat16())
        y = norm(x, gate[:, :1])  # a gate that is broadcast goes to the original
        norm.activation = "relu"
        relu = norm(x, gate)
    assert not torch.equal(got[0], expected[0])
    for ours, theirs in zip(got, expected):
        assert_near(ours, theirs, 1e-5)
    assert half.dtype == torch.bfloat16
    assert_near(half, expected[0], 0.02)
    assert torch.equal(relu, norm(x, gate))
    norm.activation = type(norm)(D).activation
    assert torch.equal(y, norm(x, gate[:, :1]))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    "family, changed",
    [(family, {}) for family, norm in GATED_NORMS.items() if norm == "gate_then_norm"]
    + [("falcon_h1", {"norm_before_gate": False})],
)
def test_gated_norm_of_groups(family, changed, groups):
    kind = next(kind for name, kind in vars(modelling(family)).items() if name.endswith("RMSNormGated"))
    norm = kind(60, **changed, **({"n_groups": groups} if family == "falcon_h1" else {"group_size": 60 // groups}))
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(3))
    x, gate = torch.randn(2, 3, 50, 60, generator=torch.Generator().manual_seed(4)).requires_grad_()
    expected = values_and_gradients(lambda: norm(x, gate), x, gate, norm.weight)
    ungated, theirs = norm(x), {}
    for weights, dtype in itertools.product((torch.float32, torch.bfloat16), repeat=2):
        theirs[weights, dtype] = copy.deepcopy(norm).to(weights)(x.to(dtype), gate.to(dtype))
    with bridge.enabled() as changed:
        assert f"{kind.__name__}.forward" in changed[family]
        got = values_and_gradients(lambda: norm(x, gate), x, gate, norm.weight)
        assert torch.equal(norm(x), ungated)  # goes to the original
        for (weights, dtype), y in theirs.items():
            ours = copy.deepcopy(norm).to(weights)(x.to(dtype), gate.to(dtype))
            assert ours.dtype == y.dtype
            assert_near(ours, y, 0.02)
    assert not torch.equal(got[0], expected[0])
    for ours, theirs in zip(got, expected):
        assert_near(ours, theirs, 1e-5)


def norms_of(family):
    """One of each class that a model has and that has a weight, which is made not constant."""
    modules = [module for module in tiny_models.make(family).modules() if type(module).__name__.endswith("RMSNorm")]
    norms = {type(module): module for module in modules if hasattr(module, "weight")}
    for norm in norms.values():
        for weight in norm.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(3))
    assert norms
    return norms.values()


def rows_for(norm):
    return torch.randn(
        65536 // 7 // len(norm.weight) + 1, 7, len(norm.weight), generator=torch.Generator().manual_seed(4)
    )


@every_family
def test_norms(family):
    for norm in norms_of(family):
        x = rows_for(norm).requires_grad_()
        expected = values_and_gradients(lambda: norm(x), x, *norm.parameters())
        with bridge.enabled() as changed:
            assert f"{type(norm).__name__}.forward" in changed[family]
            got = values_and_gradients(lambda: norm(x), x, *norm.parameters())
            by_name = norm(**{next(iter(inspect.signature(norm.forward).parameters)): x})
        assert torch.equal(got[0], expected[0]) == (getattr(norm, "group_size", None) is not None)
        assert torch.equal(by_name, got[0])
        for ours, theirs in zip(got, expected):
            assert_near(ours, theirs, 1e-5)
        with bridge.enabled():
            assert torch.equal(norm(x[:1, :1]), expected[0][:1, :1])  # a few tokens are left to the original


def test_other_norms_get_the_original():
    """A weight of one number, and a class made from theirs that norms otherwise."""
    module = modelling("qwen3_next")

    class Scaled(module.Qwen3NextRMSNorm):
        def _norm(self, x):
            return 2 * x

    x = torch.randn(40, 60, 64)
    for norm in (module.Qwen3NextRMSNorm(1), Scaled(64)):
        expected = norm(x)
        with bridge.enabled():
            assert torch.equal(norm(x), expected)
    gated = module.Qwen3NextRMSNormGated(1)
    expected = gated(x, x)
    with bridge.enabled():
        assert torch.equal(gated(x, x), expected)
        with pytest.raises(TypeError, match="surprise"):
            gated(x, x, surprise=1)
        with pytest.raises(TypeError, match="positional"):
            module.Qwen3NextRMSNorm(64)(x, x)


@pytest.mark.parametrize("where", ["input", "weight"])
def test_subclasses_get_the_original(where):
    """Of inputs and of weights, in norms and in softmax attention."""
    module = modelling("qwen3_next")
    for kind, n in ((module.Qwen3NextRMSNorm, 1), (module.Qwen3NextRMSNormGated, 2)):
        norm, x = kind(64), torch.randn(40, 60, 64)
        given = [x] * n
        if where == "input":
            given[-1] = x.as_subclass(Subclass)
        else:
            norm.weight = torch.nn.Parameter(norm.weight.data.as_subclass(Subclass))
        expected = norm(*given)
        with bridge.enabled():
            assert torch.equal(norm(*given), expected)
    layer, x = Layer(), torch.randn(1, 2, 17, 8)
    layer.num_key_value_groups = 1
    given = [x, x.as_subclass(Subclass) if where == "input" else x, x.as_subclass(Subclass)]
    expected = attention_functions()["sdpa"](layer, *given, None)[0]
    with bridge.enabled():
        assert torch.equal(attention_functions()["sdpa"](layer, *given, None)[0], expected)


class Hook:
    """What accelerate's hooks do to a module, where it is not installed."""

    def add(self, module):
        module._old_forward = module.forward
        module.forward = functools.update_wrapper(
            functools.partial(lambda module, *args: module._old_forward(*args), module), module.forward
        )

    def remove(self, module):
        module.forward = module._old_forward
        del module._old_forward


class AccelerateHook(Hook):
    def __init__(self):
        self.hooks = pytest.importorskip("accelerate.hooks")

    def add(self, module):
        self.hooks.add_hook_to_module(module, self.hooks.ModelHook())

    def remove(self, module):
        self.hooks.remove_hook_from_module(module)


@pytest.mark.parametrize("hook", [Hook, AccelerateHook])
@pytest.mark.parametrize("kind, n", [("Qwen3NextRMSNorm", 1), ("Qwen3NextRMSNormGated", 2)])
def test_hooks_of_accelerate(kind, n, hook):
    """They keep a forward in the module: ours is called while enabled, and only then."""
    hook, norm, x = hook(), getattr(modelling("qwen3_next"), kind)(64), [torch.randn(40, 60, 64)] * n
    theirs = norm(*x)
    with bridge.enabled():
        ours = norm(*x)
    assert not torch.equal(ours, theirs)
    hook.add(norm)
    with bridge.enabled():
        assert torch.equal(norm(*x), ours)  # put on before
        assert torch.equal(copy.deepcopy(norm)(*x), ours)
        hook.remove(norm)
        assert torch.equal(norm(*x), ours)
        assert not hasattr(norm, "_old_forward")
        hook.add(norm)
        assert torch.equal(norm(*x), ours)
    assert torch.equal(norm(*x), theirs)  # put on while enabled
    with bridge.enabled():
        assert torch.equal(norm(*x), ours)
    hook.remove(norm)
    assert torch.equal(norm(*x), theirs)
    norm._old_forward = None
    del norm._old_forward
    with bridge.enabled(), pytest.raises(AttributeError):
        del norm._old_forward
    hook.add(norm)
    norm._old_forward = lambda *args: args[0]  # somebody's own
    with bridge.enabled():
        assert norm(*x) is x[0]


@every_family
def test_norms_in_half_precision(family):
    """Weights in it too, and weights in float32: the reference's dtype, and at least as near to what float64 gives."""
    for norm in norms_of(family):
        x = rows_for(norm).bfloat16()
        for weights in (torch.bfloat16, torch.float32):
            norm.to(weights)
            exact = norm(x.float()) if weights == torch.float32 else copy.deepcopy(norm).float()(x.float())
            theirs = norm(x)
            with bridge.enabled():
                ours = norm(x)
            assert ours.dtype == theirs.dtype
            assert (ours - exact).abs().max() <= 1.01 * (theirs - exact).abs().max() + 1e-5 * exact.abs().max()


@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear"])
def test_norms_exported_for_every_length(family):
    """How few numbers there are is not asked in a graph."""
    for norm in norms_of(family):
        x = rows_for(norm)
        with bridge.enabled():
            exported = torch.export.export(
                norm, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=4096)},)
            ).module()
            assert torch.equal(exported(x[:3]), exported(x)[:3])


# --- softmax attention ------------------------------------------------------------------------------------------------


def attention_functions():
    return modelling("qwen3_next").ALL_ATTENTION_FUNCTIONS


class Layer(torch.nn.Module):
    num_key_value_groups = 2


# T, S, is_causal of the layer, options: prefill, the room of a static cache, no order, a scale
ATTENTIONS = [
    (17, 17, True, {}),
    (2, 40, True, {}),
    (17, 40, True, {}),
    (17, 17, False, {}),
    (17, 40, False, {}),
    (17, 9, False, {}),
    (17, 17, True, {"is_causal": False}),
    (17, 17, False, {"is_causal": True}),
    (17, 17, True, {"scaling": 0.3}),
    (17, 17, True, {"softcap": None, "output_attentions": False, "sliding_window": 5}),
]


@pytest.mark.parametrize("T, S, causal, options", ATTENTIONS, ids=str)
def test_softmax_attention(T, S, causal, options):
    layer, generator = Layer(), torch.Generator().manual_seed(5)
    layer.is_causal = causal
    q, k, v = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 4, T, 8), (3, 2, S, 8), (3, 2, S, 6))
    )
    expected = values_and_gradients(lambda: attention_functions()["sdpa"](layer, q, k, v, None, **options)[0], q, k, v)
    with bridge.enabled():
        function = attention_functions().get_interface("sdpa", None)
        got = values_and_gradients(lambda: function(layer, q, k, v, None, **options)[0], q, k, v)
    assert got[0].shape == (3, T, 4, 6) and got[0].is_contiguous() and not torch.equal(got[0], expected[0])
    for ours, theirs in zip(got, expected):
        assert_near(ours, theirs, 1e-5)
    assert function(layer, q, q, q, None, **options)[
        0
    ].is_contiguous()  # without groups it is a view of what ours returns


@pytest.mark.parametrize(
    "options",
    [
        {"attention_mask": torch.ones(1, 1, 17, 17, dtype=torch.bool).tril(-3)},
        {"dropout": 0.5},
        {"position_bias": torch.ones(1, 4, 17, 17)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_softmax_attention_gets_the_original(options):
    layer, q, (k, v) = Layer(), torch.randn(3, 4, 17, 8), torch.randn(2, 3, 2, 17, 8)
    options = {"attention_mask": None} | options

    def attention():
        torch.manual_seed(1)
        return attention_functions()["sdpa"](layer, q, k, v, **options)[0]

    expected = attention()
    with bridge.enabled():
        assert torch.equal(attention(), expected)
        with pytest.raises(ValueError, match="softcap"):
            attention_functions()["sdpa"](layer, q, k, v, None, softcap=30.0)


# B, HQ, H, T, S, heads of the values, sequences of the values
SHAPES = [(2, 4, 2, 1, 40, 2, 2), (2, 4, 4, 17, 9, 4, 2), (2, 4, 4, 17, 17, 4, 1), (2, 1, 4, 17, 17, 4, 2)]


@pytest.mark.parametrize("B, HQ, H, T, S, HV, BV", SHAPES)
def test_softmax_attention_of_other_shapes_gets_the_original(B, HQ, H, T, S, HV, BV):
    """A token with a cache, more queries than keys, values and queries that are broadcast."""
    layer = Layer()
    layer.num_key_value_groups = max(1, HQ // H)
    q, k, v = torch.randn(B, HQ, T, 8), torch.randn(B, H, S, 8), torch.randn(BV, HV, S, 8)
    expected = attention_functions()["sdpa"](layer, q, k, v, None)[0]
    with bridge.enabled():
        assert torch.equal(
            attention_functions()["sdpa"](module=layer, query=q, key=k, value=v, attention_mask=None)[0], expected
        )


def test_no_keys():
    q, k = torch.randn(2, 4, 3, 8), torch.empty(2, 4, 0, 8)
    layer = Layer()
    layer.num_key_value_groups, layer.is_causal = 1, False
    expected = attention_functions()["sdpa"](layer, q, k, k, None)[0]
    with bridge.enabled():
        assert torch.equal(attention_functions()["sdpa"](layer, q, k, k, None)[0], expected)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("where", ["_global_mapping", "_local_mapping"])
def test_attention_functions_of_a_user(where, later, monkeypatch):
    """Registered for all, or in one interface, before or after `enable`."""

    def register():
        for name in ("sdpa", "mine"):
            monkeypatch.setitem(getattr(functions, where), name, f"the user's {name}")

    functions = attention_functions()
    if not later:
        register()
    with bridge.enabled():
        if later:
            register()
        assert attention_functions().get_interface("mine", None) == "the user's mine"
        assert attention_functions()["sdpa"] == "the user's sdpa"
        attention_functions()["another"] = "set while ours are there"
    assert functions["another"] == "set while ours are there"
    del functions["another"]


def test_compiled_softmax_attention():
    layer, (q, k, v) = Layer(), torch.randn(3, 2, 4, 17, 8, generator=torch.Generator().manual_seed(5)).requires_grad_()

    def attention(q, k, v):
        return functions.get_interface("sdpa", None)(layer, q, k, v, None, scaling=0.3)[0]

    layer.is_causal = True
    with bridge.enabled():
        functions = attention_functions()
        expected = values_and_gradients(lambda: attention(q, k, v), q, k, v)
        compiled = Compiled(attention, fullgraph=True)
        got = values_and_gradients(lambda: compiled(q, k, v), q, k, v)
    assert compiled.operators == {"softmax_attention"}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected))


# --- the update of a convolution's states -----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize("gradients", [False, True])
def test_states_of_a_convolution(activation, gradients):
    """One token of each row, after seven; in the models' order of axes, with and without gradients."""
    weight, bias, tokens = torch.randn(5, 4), torch.randn(5), torch.randn(2, 5, 8)
    act = {None: lambda y: y, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}[activation]
    whole = torch.nn.functional.conv1d(torch.nn.functional.pad(tokens, (3, 0)), weight[:, None], bias, groups=5)
    state = tokens[..., 3:7].clone()  # W of them, as models keep them
    with torch.set_grad_enabled(gradients):
        y = FUNCTIONS["causal_conv1d_update"](tokens[..., 7:], state, weight, bias, activation)
    torch.testing.assert_close(y, act(whole[..., 7:]))
    assert torch.equal(state, tokens[..., 4:])


def test_states_of_a_pool_and_of_a_ring():
    weight, tokens = torch.randn(5, 4), torch.randn(2, 5, 8)
    expected = torch.nn.functional.conv1d(tokens[..., 4:], weight[:, None], groups=5)[..., -1:]
    pool, ring = torch.zeros(3, 5, 6), torch.zeros(2, 5, 6)
    pool[[2, 0], :, -3:] = tokens[..., 4:7]
    ring[..., [4, 5, 0]] = tokens[..., 4:7]
    with torch.no_grad():
        in_pool = FUNCTIONS["causal_conv1d_update"](
            tokens[..., 7:], pool, weight, conv_state_indices=torch.tensor([2, 0])
        )
        in_ring = FUNCTIONS["causal_conv1d_update"](tokens[..., 7:], ring, weight, cache_seqlens=torch.tensor([7, 7]))
    torch.testing.assert_close(in_pool, expected)
    torch.testing.assert_close(in_ring, expected)
    assert torch.equal(pool[[2, 0], :, -4:], tokens[..., 4:]) and not pool[1].any()
    assert torch.equal(ring[..., [4, 5, 0, 1]], tokens[..., 4:])
