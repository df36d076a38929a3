"""Models of transformers in PyTorch's distributed tools, in one process, with the kernels."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402
import fwm_py.transformers as bridge  # noqa: E402
from test_transformers import assert_near, disabled, tokens, training_step  # noqa: E402, F401

distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    address = f"file://{tmp_path_factory.mktemp('gloo') / 'store'}"
    distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear"])
def test_fully_sharded(family, mesh):
    """FSDP frees the storages of parameters between layers, and fills them again."""
    model, sharded, ids = tiny_models.make(family), tiny_models.make(family), tokens()
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    without = model(ids).logits
    with bridge.enabled():
        expected = training_step(model, ids)
        for _ in range(2):
            logits, loss, gradients = training_step(sharded, ids)
    assert not torch.equal(logits, without)  # the kernels have been called
    assert torch.equal(logits, expected[0]) and torch.equal(loss, expected[1])
    for name, gradient in expected[2].items():
        assert_near(gradients[name].full_tensor(), gradient, 1e-5)
