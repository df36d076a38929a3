"""Models of transformers under torch.compile and with checkpoints of activations, with the kernels."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import tiny_models  # noqa: E402
from support.tiny_models import Compiled, assert_near, disabled, linear_layer, operators_of, tokens, training_step  # noqa: E402, F401

import fwm_py.transformers as bridge  # noqa: E402


@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear"])
def test_compiled(family):
    """A layer under torch.compile, without graph breaks."""
    layer = linear_layer(family)
    x = torch.randn(1, 19, 32, generator=torch.Generator().manual_seed(3))
    with bridge.enabled():
        expected = layer(x)
        got = (compiled := Compiled(layer, fullgraph=True))(x)
        got.sum().backward()
    assert compiled.operators == {"rule", "causal_conv1d", "rms_norm"}
    assert_near(got, expected, 1e-5)


@pytest.mark.parametrize("family", [family for family in tiny_models.MODELS if family != "inkling2"])  # half a minute
def test_a_compiled_model(family):
    """transformers makes masks for softmax layers where it compiles, so that these are left to the original."""
    model, ids = tiny_models.make(family), tokens()
    with bridge.enabled(), torch.no_grad():
        expected = model(ids, use_cache=False).logits
        got = (compiled := Compiled(model))(ids, use_cache=False).logits
    assert compiled.operators >= operators_of(family)
    assert_near(got, expected)


def test_gradient_checkpointing():
    model, ids = tiny_models.make("qwen3_next"), tokens()
    model.train()
    with bridge.enabled():
        _, _, expected = training_step(model, ids)
        model.activation_checkpointing_enable()
        _, _, got = training_step(model, ids)
    for name, gradient in expected.items():
        assert_near(got[name], gradient, 1e-5)
