"""The names of the Triton package: fwm_py.torch.fla."""

import pytest

torch = pytest.importorskip("torch")

from support.torch_cases import gated_inputs, torch_threads  # noqa: E402, F401

import fwm_py.torch as fwm  # noqa: E402
from fwm_py.torch import fla  # noqa: E402


def test_names_of_the_triton_package():
    q, k, v, g, beta = gated_inputs()
    channel = g[..., None].expand(*g.shape, k.shape[-1])
    same = torch.equal
    for prefix in ("chunk_", "fused_recurrent_"):
        assert same(
            getattr(fla, prefix + "delta_rule")(q, k, v, beta, use_qk_l2norm_in_kernel=True)[0],
            fwm.delta_rule(q, k, v, beta, qk_norm="l2")[0],
        )
        assert same(
            getattr(fla, prefix + "gated_delta_rule")(q, k, v, g=g, beta=beta, scale=0.3)[0],
            fwm.gated_delta_rule(q, k, v, g, beta, scale=0.3)[0],
        )
        assert same(
            getattr(fla, prefix + "kda")(q, k, v, channel, beta)[0], fwm.kimi_delta_rule(q, k, v, channel, beta)[0]
        )
        assert same(getattr(fla, prefix + "linear_attn")(q, k, v, normalize=False)[0], fwm.linear_attention(q, k, v)[0])
    assert same(
        fla.fused_recurrent_gated_delta_rule(q, k, v, gk=channel, beta=beta)[0],
        fwm.kimi_delta_rule(q, k, v, channel, beta)[0],
    )
    assert same(fla.fused_recurrent_gated_delta_rule(q, k, v)[0], fwm.delta_rule(q, k, v, torch.ones_like(beta))[0])
    cu_seqlens = torch.tensor([0, 9, 33])
    o, state = fla.chunk_gated_delta_rule(q, k, v, g, beta, cu_seqlens=cu_seqlens, output_final_state=True)
    assert same(o, fwm.gated_delta_rule(q, k, v, g, beta, cu_seqlens=cu_seqlens)[0]) and state.shape[0] == 2


def test_normalised_reading_of_the_triton_package():
    q, k, v = (x.abs() + 0.1 for x in gated_inputs()[:3])
    q = q[:, :, :1].expand_as(k) if q.shape[2] != k.shape[2] else q
    K = k.shape[-1]
    weights = torch.einsum("bthk,bshk->bhts", q * K**-0.5, k).tril()
    v_ = v[:, :, ::2] if v.shape[2] != k.shape[2] else v
    expected = torch.einsum("bhts,bshv->bthv", weights / (weights.sum(-1, keepdim=True) + 1e-10), v_)
    o, (S, z) = fla.chunk_linear_attn(q, k, v_, output_final_state=True)
    assert torch.allclose(o, expected, atol=1e-5)
    assert z.shape == (1, 1, k.shape[2], K) and torch.allclose(z[:, 0], k.sum(1), rtol=1e-5)
    half = 16
    first, state = fla.chunk_linear_attn(q[:, :half], k[:, :half], v_[:, :half], output_final_state=True)
    rest, _ = fla.chunk_linear_attn(q[:, half:], k[:, half:], v_[:, half:], initial_state=state)
    assert torch.allclose(torch.cat([first, rest], 1), expected, atol=1e-5)
    zeros = torch.zeros_like(S)
    assert all(
        torch.equal(fla.chunk_linear_attn(q, k, v_, initial_state=start)[0], o) for start in (zeros, (zeros, None))
    )


@pytest.mark.parametrize("name", fla.__all__)
def test_options_that_are_not_there_are_refused(name):
    q, k, v, g, beta = gated_inputs()
    rest = {"delta_rule": {"beta": beta}, "gated_delta_rule": {"g": g, "beta": beta}, "kda": {"g": g, "beta": beta}}
    arguments = next((value for ending, value in sorted(rest.items(), reverse=True) if name.endswith(ending)), {})
    for option in ("state_v_first", "head_first", "cp_context"):
        with pytest.raises(NotImplementedError, match=f"^{option}: got True"):
            getattr(fla, name)(q, k, v, **arguments, **{option: True})
