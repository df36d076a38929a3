"""What torch.utils.flop_counter says of the operators, against what it counts of the same written in PyTorch."""

import pytest

torch = pytest.importorskip("torch")

from support.rule_cases import RULE_CASES, SIZES  # noqa: E402
from support.torch_cases import MAPS, OMEGA, forward, map_arguments, tensors, torch_threads  # noqa: E402, F401
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import fwm_py.torch as fwm  # noqa: E402
from fwm_py.torch import _operators  # noqa: E402


def count(function, *inputs):
    """Forward, and backward."""
    inputs = [x.requires_grad_() for x in inputs]
    with FlopCounterMode(display=False) as counter:
        y = function(*inputs)
    with FlopCounterMode(display=False) as again:
        torch.autograd.grad(y.sum(), inputs)
    return counter.get_total_flops(), again.get_total_flops()


def recurrence(S, q, k, v, corrects):
    """One head's token by token; strengths, gates and norms are products of numbers, which PyTorch does not count."""
    out = []
    for q_t, k_t, v_t in zip(q, k, v):
        if corrects:
            v_t = v_t - S.t() @ k_t
        S = S + k_t @ v_t.t()
        out.append(S.t() @ q_t)
    return torch.stack(out)


@pytest.mark.parametrize("sizes", [SIZES[3], next(sizes for sizes in SIZES if sizes.HQ > sizes.HV)], ids=str)
@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_rules(case, sizes):
    x = tensors(case.inputs(sizes))
    names = case.differentiable(x)
    ours = count(lambda *inputs: forward(case, x | dict(zip(names, inputs)), sizes)["o"], *(x[name] for name in names))
    (T, K), V = (5, x["q"].shape[-1]), x["v"].shape[-1]
    S, q, k, v = torch.ones(K, V), torch.ones(T, K, 1), torch.ones(T, K, 1), torch.ones(T, V, 1)
    one = count(lambda *inputs: recurrence(*inputs, "delta" in case.function or "fast" in case.function), S, q, k, v)
    assert one[1] == 2 * one[0]
    tokens, heads, reads = x["q"].shape[0] * x["q"].shape[1], x["v"].shape[2], max(x["q"].shape[2], x["v"].shape[2])
    expected = tokens * (heads * one[0] // T + (reads - heads) * 2 * K * V)
    assert ours == (expected, 2 * expected)


def test_softmax_attention():
    def theirs(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def inputs(H=4):
        return torch.randn(2, 9, 4, 8), torch.randn(2, 9, H, 8), torch.randn(2, 9, H, 8)

    assert count(fwm.softmax_attention, *inputs()) == (2 * 2 * 4 * 9 * 9 * 16, 2 * 2 * 4 * 9 * 9 * 40)
    assert count(fwm.softmax_attention, *inputs(2)) == count(fwm.softmax_attention, *inputs())
    if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in torch.utils.flop_counter.flop_registry:
        assert count(theirs, *inputs()) == count(fwm.softmax_attention, *inputs())
    with FlopCounterMode(display=False) as counter:
        fwm.softmax_attention(*inputs())
    assert counter.get_total_flops() == torch.utils.flop_counter.sdpa_flop_count(
        (2, 4, 9, 8), (2, 4, 9, 8), (2, 4, 9, 8)
    )


def test_the_others():
    x, weight = torch.randn(2, 9, 6), torch.randn(6, 4)
    convolution = torch.nn.functional.conv1d
    theirs = count(
        lambda x, weight: convolution(x.transpose(1, 2), weight[:, None], groups=6), torch.randn(2, 12, 6), weight
    )
    assert count(lambda x, weight: fwm.causal_conv1d(x, weight, activation="silu")[0], x, weight) == (
        theirs[0],
        2 * theirs[0],
    )
    x = torch.randn(2, 9, 5)
    assert count(lambda x: fwm.favor(x, OMEGA), x) == count(lambda x: (x @ OMEGA).exp(), x)
    assert count(lambda x: fwm.rms_norm(x, torch.ones(5), x), x) == (0, 0)
    for name, row in MAPS.items():
        if not row["takes_omega"]:
            assert count(lambda x: _operators.feature_map(name, x, *map_arguments(row)), x) == (0, 0)


def test_every_operator_is_counted():
    operators = {
        name
        for name in torch.ops.fwm_py.__dict__
        if isinstance(getattr(torch.ops.fwm_py, name), torch._ops.OpOverloadPacket)
    }
    assert {"rule", "rule_backward"} < operators
    assert all(getattr(torch.ops.fwm_py, name) in torch.utils.flop_counter.flop_registry for name in operators)


def test_shapes_are_enough():
    x = torch.ones(2, 9, 3, 4, device="meta")
    with FlopCounterMode(display=False) as counter:
        fwm.delta_rule(x, x, x, x[..., 0])
    assert counter.get_total_flops() == 2 * 9 * 3 * 6 * 16
