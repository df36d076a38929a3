"""fwm_py.torch.fla.enable(): without flash-linear-attention, with a small package of that name, with the real one."""

import importlib
import importlib.util
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")

from support import fla_oracle  # noqa: E402
from support.fla_core import naive, naive_gate  # noqa: E402
from support.torch_cases import torch_threads  # noqa: E402, F401

from fwm_py.torch import fla as ours  # noqa: E402
from fwm_py.torch.fla import enabling  # noqa: E402


@pytest.fixture
def unloaded(monkeypatch):
    """No module of fla before, and none after."""

    def loaded():
        return [name for name in sys.modules if name.partition(".")[0] == "fla"]

    for name in loaded():
        monkeypatch.delitem(sys.modules, name)
    yield
    ours.disable()
    assert enabling._FINDER not in sys.meta_path
    for name in loaded():
        del sys.modules[name]


def inputs(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes]


def delta_inputs():
    return inputs((2, 9, 2, 4), (2, 9, 2, 4), (2, 9, 2, 3), (2, 9, 2))


# --- where the package is not installed ----------------------------------------------------------------------------


@pytest.fixture
def not_installed(unloaded, monkeypatch):
    monkeypatch.setattr(enabling, "_is_installed", lambda: False)


def test_names_of_a_package_that_is_not_there(not_installed):
    changed = ours.enable()
    import fla.modules
    import fla.ops
    from fla.modules import FusedRMSNormGated, FusedRMSNormSwishGate, RMSNorm, ShortConvolution
    from fla.modules.convolution import causal_conv1d
    from fla.ops.gla import chunk_gla, fused_chunk_gla, fused_recurrent_gla

    assert (chunk_gla, fused_chunk_gla, fused_recurrent_gla) == (
        ours.chunk_gla,
        ours.fused_chunk_gla,
        ours.fused_recurrent_gla,
    )
    assert (ShortConvolution, causal_conv1d, RMSNorm) == (ours.ShortConvolution, ours.causal_conv1d, ours.RMSNorm)
    assert (FusedRMSNormGated, FusedRMSNormSwishGate) == (ours.FusedRMSNormGated, ours.FusedRMSNormSwishGate)
    switches = {"enable", "disable", "enabled"}
    served = {name for names in changed.values() for name in names}
    assert set(ours.__all__) - switches <= served
    for module, names in changed.items():
        there = importlib.import_module(module)
        assert set(names) == set(there.__all__) and all(hasattr(there, name) for name in names)
        for name in set(names) & set(ours.__all__):
            assert getattr(there, name) is getattr(ours, name)
    assert set(fla.ops.__all__) == {name for name in ours.__all__ if name.startswith(("chunk", "fused_", "parallel"))}


def missing(name):
    return pytest.raises(ImportError, match=rf"^{name}: flash-linear-attention is not installed, and fwm_py.torch.fla")


def test_what_is_not_provided(not_installed):
    with ours.enabled():
        with missing("fla.layers"):
            from fla.layers import DeltaNet  # noqa: F401
        with missing("fla.models"):
            importlib.import_module("fla.models.delta_net")
        with missing("fla.ops.chunk_rwkv7"):
            from fla.ops import chunk_rwkv7  # noqa: F401
        with missing("fla.ops.gla.naive"):
            from fla.ops.gla.naive import naive_recurrent_gla  # noqa: F401
        with missing("fla.modules.RotaryEmbedding"):
            from fla.modules import RotaryEmbedding  # noqa: F401
        import fla.ops

        assert not hasattr(fla.ops, "chunk_rwkv7")
        assert importlib.util.find_spec("flair_that_is_not_there") is None


def test_they_go_again(not_installed, monkeypatch):
    monkeypatch.setattr(sys, "path", [])  # not even one that cannot be imported
    assert ours.disable() == {}
    first = ours.enable()
    assert first and ours.enable() == {}  # there already
    import fla.ops

    with ours.enabled() as changed:
        assert changed == {}
    import fla.modules

    kept = fla.ops.chunk_gla
    assert ours.disable() == first and ours.disable() == {}
    assert kept is ours.chunk_gla
    for name in ("fla", "fla.ops", "fla.modules"):
        assert name not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="No module named 'fla'"):
        import fla.ops
    with ours.enabled():
        ours.enable()
        ours.disable()
        import fla.ops  # the with statement still holds it
    assert enabling._FINDER not in sys.meta_path


# --- a small package of that name ----------------------------------------------------------------------------------

NO_GPU = 'def {name}(*args, **options):\n    raise RuntimeError("{name} without a GPU")\n'
KIND = """
import torch

class {name}(torch.nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.weight, self.bias, self.eps = torch.nn.Parameter(torch.full((size,), 2.0)), None, 0.0
        self.activation = "sigmoid"

    def forward(self, *args, **options):
        raise RuntimeError("{name} without a GPU")
"""
CONVOLUTION = """
import torch

class ShortConvolution(torch.nn.Conv1d):
    activation = None

    def forward(self, x, **options):
        raise RuntimeError("ShortConvolution without a GPU")

    def step(self, *args, **options):
        raise RuntimeError("ShortConvolution.step without a GPU")
"""
LAYER = """
from fla.modules import RMSNorm
from fla.modules.activations import ACT2FN
from fla.ops.delta_rule import chunk_delta_rule as rule

def layer(q, k, v, beta):
    return ACT2FN["swish"](rule(q, k, v, beta)[0])
"""


@pytest.fixture
def package(unloaded, tmp_path, monkeypatch):
    """A package whose functions fail on a CPU, as the real one's do."""
    files = {"triton/__init__.py": "", "fla/__init__.py": "", "fla/layers/__init__.py": "", "fla/layers/net.py": LAYER}
    files["fla/ops/__init__.py"] = "from fla.ops.delta_rule import chunk_delta_rule\n"
    for module, names in enabling.OPERATIONS.items():
        files[module.replace(".", "/") + "/__init__.py"] = "".join(NO_GPU.format(name=name) for name in names)
    files["fla/modules/__init__.py"] = (
        "from fla.modules.layernorm import RMSNorm\nfrom fla.modules.fused_norm_gate import FusedRMSNormGated\n"
    )
    files["fla/modules/layernorm.py"] = KIND.format(name="RMSNorm")
    files["fla/modules/fused_norm_gate.py"] = KIND.format(name="FusedRMSNormGated")
    files["fla/modules/convolution.py"] = CONVOLUTION + NO_GPU.format(name="causal_conv1d")
    names = ("sigmoid", "swish", "elu_p1", "other")
    files["fla/modules/activations.py"] = "".join(NO_GPU.format(name=name) for name in names) + (
        'ACT2FN = {"swish": swish, "other": other}\n'
    )
    files["fla/modules/rotary.py"] = NO_GPU.format(name="rotary_embedding")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    if "triton" not in sys.modules:
        importlib.import_module("triton")
        monkeypatch.setitem(sys.modules, "triton", sys.modules.pop("triton"))  # gone again after the test


def fails(call):
    with pytest.raises(RuntimeError, match="without a GPU"):
        call()


@pytest.mark.parametrize("loaded", ["before", "after"])
def test_ours_in_a_package_that_is_there(package, loaded):
    q, k, v, beta = delta_inputs()
    if loaded == "before":
        net = importlib.import_module("fla.layers.net")
        fails(lambda: net.layer(q, k, v, beta))
    changed = ours.enable()
    net = importlib.import_module("fla.layers.net")
    import fla.ops
    from fla.modules.activations import ACT2FN

    expected = ours.chunk_delta_rule(q, k, v, beta)[0]
    assert torch.equal(net.layer(q, k, v, beta), torch.nn.functional.silu(expected))
    assert torch.equal(fla.ops.chunk_delta_rule(q, k, v, beta)[0], expected)
    fails(lambda: ACT2FN["other"](q))
    places = {module: set(names) for module, names in changed.items()}
    assert places["fla.ops"] == {"chunk_delta_rule"} and "chunk_delta_rule" in places["fla.ops.delta_rule"]
    assert {"ShortConvolution.forward", "ShortConvolution.step", "causal_conv1d"} == places["fla.modules.convolution"]
    assert places.get("fla.layers.net", set()) == ({"rule", "ACT2FN"} if loaded == "before" else set())
    assert {"swish", "sigmoid", "elu_p1", "ACT2FN"} == places["fla.modules.activations"]

    fails(lambda: fla.ops.chunk_delta_rule(*(x.to("meta") for x in (q, k, v, beta))))
    fails(lambda: torch.func.vmap(fla.ops.chunk_delta_rule)(*(x[None] for x in (q, k, v, beta))))
    assert ours.enable() == {}
    assert ours.disable() == changed
    fails(lambda: net.layer(q, k, v, beta))
    fails(lambda: fla.ops.chunk_delta_rule(q, k, v, beta))
    assert fla.ops.chunk_delta_rule.__module__ == "fla.ops.delta_rule"
    with ours.enabled():
        assert torch.equal(net.layer(q, k, v, beta), torch.nn.functional.silu(expected))
    fails(lambda: net.layer(q, k, v, beta))


def test_every_name_of_the_package_is_replaced(package):
    ours.enable()
    for module, names in enabling.OPERATIONS.items():
        for name in names:
            assert getattr(importlib.import_module(module), name).__wrapped__.__module__ == module


def test_modules_keep_their_class_and_parameters(package):
    from fla.modules import FusedRMSNormGated, RMSNorm
    from fla.modules.convolution import ShortConvolution, causal_conv1d

    (x, gate) = inputs((2, 3, 4), (2, 3, 4))
    norm, gated, conv = RMSNorm(), FusedRMSNormGated(), ShortConvolution(4, 4, 3, groups=4)
    fails(lambda: norm(x))
    with ours.enabled():
        y = fla_oracle.rms_norm(x, norm.weight, eps=0)
        assert torch.allclose(norm(x), y, atol=1e-6)
        assert torch.allclose(gated(x, gate), y * torch.sigmoid(gate), atol=1e-6)
        expected = [fla_oracle.convolve(row, conv.weight.squeeze(1), conv.bias, None, None)[0] for row in x]
        assert torch.allclose(conv(x)[0], torch.stack(expected), atol=1e-6)
        with torch.no_grad():
            assert torch.allclose(conv(x[:, :1])[0], torch.stack(expected)[:, :1], atol=1e-6)
        fails(lambda: causal_conv1d(x, conv.weight.squeeze(1)))  # this module's, from before
    for call in (lambda: norm(x), lambda: gated(x, gate), lambda: conv(x), lambda: conv.step(x)):
        fails(call)


def test_without_triton_the_package_counts_as_missing(package, monkeypatch):
    """It cannot be imported then."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    with ours.enabled():
        from fla.ops.delta_rule import chunk_delta_rule

        assert chunk_delta_rule is ours.chunk_delta_rule


# --- the real one --------------------------------------------------------------------------------------------------


@pytest.fixture
def layers():
    pytest.importorskip("triton")
    pytest.importorskip("transformers")
    if importlib.util.find_spec("fla") is None or importlib.util.find_spec("fla.layers") is None:
        pytest.skip("flash-linear-attention is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("fla.layers")


LAYERS = [
    ("DeltaNet", {"num_heads": 2}),
    ("DeltaNet", {"num_heads": 2, "use_gate": True, "qk_activation": "elu", "qk_norm": "sum"}),
    ("GatedDeltaNet", {"num_heads": 2, "num_v_heads": 4, "head_dim": 8, "allow_neg_eigval": True}),
    ("KimiDeltaAttention", {"num_heads": 2, "num_v_heads": 4, "head_dim": 8}),
    ("KimiDeltaAttention", {"num_heads": 2, "head_dim": 8, "safe_gate": True, "lower_bound": -5.0}),
    ("GatedLinearAttention", {"num_heads": 2}),
    ("GatedLinearAttention", {"num_heads": 2, "fuse_norm": False}),
    ("MultiScaleRetention", {"num_heads": 2}),
    ("MultiScaleRetention", {"num_heads": 2, "fuse_norm": False, "use_short_conv": True}),
]


def reference_rule(name):
    """An operation of the layers, by the package's own reference."""

    def rule(
        q,
        k,
        v,
        g=None,
        gk=None,
        beta=None,
        A_log=None,
        dt_bias=None,
        lower_bound=None,
        use_gate_in_kernel=False,
        use_qk_l2norm_in_kernel=False,
        use_beta_sigmoid_in_kernel=False,
        allow_neg_eigval=False,
        **options,
    ):
        assert options.get("initial_state") is None and not options.get("output_final_state")
        if use_qk_l2norm_in_kernel:
            q, k = fla_oracle.l2(q), fla_oracle.l2(k)
        if use_beta_sigmoid_in_kernel:
            beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
        if name.endswith("gated_delta_rule"):
            g = naive_gate("gated_delta_rule", "naive_gdn_gate")(g, A_log, dt_bias)
            q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
            return naive("gated_delta_rule", "naive_recurrent_gated_delta_rule")(q, k, v, beta, g)[0], None
        if name.endswith("kda"):
            if lower_bound is None:
                g = naive_gate("kda", "naive_kda_gate")(g, A_log, dt_bias)
            else:
                g = naive_gate("kda", "naive_kda_lowerbound_gate")(g, A_log, dt_bias, lower_bound)
            return naive("kda", "naive_recurrent_kda")(q, k, v, g, beta)[0], None
        if name.endswith("gla"):
            return naive("gla", "naive_recurrent_gla")(q, k, v, g if gk is None else gk)[0], None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if name.endswith("retention"):
            return naive("retention", "naive_retention")(q, k, v).transpose(1, 2), None
        o, _ = naive("delta_rule", "delta_rule_recurrence")(q, k, v, beta.transpose(1, 2))
        return o.transpose(1, 2), None

    return rule


def plain_convolution(x, weight, bias=None, activation=None, **options):
    return torch.stack([fla_oracle.convolve(row, weight, bias, None, activation)[0] for row in x]), None


def with_references(layer, monkeypatch):
    """The layer without our kernels and without theirs."""
    module = sys.modules[type(layer).__module__]
    for name in vars(module):
        if name.startswith(("chunk_", "fused_recurrent_")):
            monkeypatch.setattr(module, name, reference_rule(name))
    if hasattr(module, "causal_conv1d"):
        monkeypatch.setattr(module, "causal_conv1d", plain_convolution)
    modules, rotary = importlib.import_module("fla.modules"), importlib.import_module("fla.modules.rotary")
    activation = importlib.import_module("fla.modules.activations")
    silu = torch.nn.functional.silu
    monkeypatch.setattr(
        modules.ShortConvolution,
        "forward",
        lambda self, x, **_: plain_convolution(x, self.weight.squeeze(1), self.bias, self.activation),
    )
    monkeypatch.setattr(
        modules.RMSNorm, "forward", lambda self, x: fla_oracle.rms_norm(x, self.weight, self.bias, eps=self.eps)
    )
    monkeypatch.setattr(
        modules.FusedRMSNormGated,
        "forward",
        lambda self, x, g: fla_oracle.rms_norm(x, self.weight, self.bias, g, self.activation, self.eps),
    )
    monkeypatch.setattr(
        rotary.RotaryEmbedding,
        "forward",
        lambda self, q, k, max_seqlen, **_: (
            self._update_cos_sin_cache(max_seqlen, q.device, q.dtype),
            *(rotary.rotary_embedding_ref(x, self._cos_cached, self._sin_cached) for x in (q, k)),
        )[1:],
    )
    monkeypatch.setitem(activation.ACT2FN, "swish", silu)
    if hasattr(module, "elu_p1"):
        monkeypatch.setattr(module, "elu_p1", lambda x: torch.nn.functional.elu(x) + 1)
    if not isinstance(getattr(layer, "gate_fn", torch.nn.SiLU()), torch.nn.SiLU):
        layer.gate_fn = silu


@pytest.mark.parametrize("T", [7, 70])
@pytest.mark.parametrize("name, options", LAYERS)
def test_layers_of_the_package_have_its_references_numbers(layers, name, options, T, monkeypatch):
    torch.manual_seed(0)
    with ours.enabled():  # where a layer takes an activation at its making
        layer = getattr(layers, name)(hidden_size=32, **options)
        x = torch.randn(2, T, 32, requires_grad=True)
        leaves = [x, *layer.parameters()]
        y = layer(x)[0]
        given = torch.autograd.grad(y.square().sum(), leaves)
        with torch.no_grad():
            layer.eval()
            assert torch.allclose(layer(x)[0], y, atol=1e-6)
            layer.train()
    with_references(layer, monkeypatch)
    expected = layer(x)[0]
    assert torch.allclose(y, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(given, torch.autograd.grad(expected.square().sum(), leaves)):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name, options", LAYERS)
def test_layers_of_the_package_decode(layers, name, options):
    """Prefill, then token by token from their cache, as all at once."""
    torch.manual_seed(0)
    with ours.enabled():
        layer = getattr(layers, name)(hidden_size=32, layer_idx=0, **options).eval()
        utils = importlib.import_module("fla.models.utils")
        x, cache = torch.randn(2, 12, 32), utils.Cache()
        expected = layer(x)[0]
        pieces = [layer(piece, past_key_values=cache, use_cache=True)[0] for piece in x.split([8, 1, 1, 2], 1)]
        assert torch.allclose(torch.cat(pieces, 1), expected, atol=1e-5)
        mask = torch.ones(2, 12, dtype=torch.int64)
        mask[0, :5] = 0
        padded = layer(x, attention_mask=mask)[0]
        assert torch.allclose(padded[1], expected[1], atol=1e-5)
        assert torch.allclose(padded[0, 5:], layer(x[:1, 5:])[0][0], atol=1e-5)
