"""Models of transformers in PyTorch's distributed tools, in one process, with the kernels."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import tiny_models  # noqa: E402
from support.tiny_models import assert_near, disabled, modelling, tokens, training_step  # noqa: E402, F401

import fwm_py.transformers as bridge  # noqa: E402

distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module  # noqa: E402

import fwm_py.torch as fwm  # noqa: E402


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


def test_a_norm_under_sequence_parallel(mesh):
    """Of a DTensor, and of a weight that is one: the original's."""
    kind, x = modelling("qwen3_next").Qwen3NextRMSNorm, torch.randn(1, 1100, 64)
    norm, parallel = kind(64), parallelize_module(kind(64), mesh, SequenceParallel())
    expected = norm(x)
    with bridge.enabled():
        y = parallel(distribute_tensor(x, mesh, [Shard(1)]))
        assert torch.equal(y.full_tensor(), expected)
        y.sum().backward()
        assert not torch.equal(norm(x), expected)  # ours, of plain tensors


def test_distributed_tensors_are_refused(mesh):
    x, weight = torch.randn(2, 6, 4), torch.ones(4)
    shared = distribute_tensor(x, mesh, [Shard(0)])
    for name, call in (
        ("x", lambda: fwm.rms_norm(shared, weight)),
        ("gate", lambda: fwm.rms_norm(x, weight, shared)),
        ("q", lambda: fwm.softmax_attention(shared[:, :, None], x[:, :, None], x[:, :, None])),
        ("x", lambda: fwm.tanh(shared)),
    ):
        with pytest.raises(TypeError, match=f"^{name}: got DTensor, expected a plain tensor"):
            call()
