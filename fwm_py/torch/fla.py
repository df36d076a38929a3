"""The names of the Triton package flash-linear-attention, for code that was written against it.

>>> from fwm_py.torch.fla import chunk_gated_delta_rule, chunk_kda  # was: from fla.ops...

`chunk_` and `fused_recurrent_` compute the same and are the same here. Arguments have the package's order and defaults;
an option that `fwm_py` does not have is refused by its name (NotImplementedError), never ignored.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fwm_py.torch import SumState, delta_rule, gated_delta_rule, kimi_delta_rule, linear_attention
from fwm_py.torch._arrays import shown

__all__ = [
    "chunk_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_kda",
    "chunk_linear_attn",
    "fused_recurrent_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_kda",
    "fused_recurrent_linear_attn",
]


def _refuse(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: got {shown(value)}, which fwm_py does not have; expected None or False")


def _common(
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    use_qk_l2norm_in_kernel: bool,
    cu_seqlens: Tensor | None,
    cu_seqlens_cpu: Tensor | None = None,
) -> dict[str, Any]:
    return {
        "scale": scale,
        "qk_norm": "l2" if use_qk_l2norm_in_kernel else None,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "cu_seqlens": cu_seqlens if cu_seqlens is not None else cu_seqlens_cpu,
    }


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, SumState | None]:
    """`fwm_py.torch.delta_rule`; without beta it is 1."""
    _refuse(options)
    common = _common(scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens, cu_seqlens_cpu)
    return delta_rule(q, k, v, v.new_ones(v.shape[:3]) if beta is None else beta, **common)


fused_recurrent_delta_rule = chunk_delta_rule


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.gated_delta_rule`."""
    _refuse(
        {
            "use_beta_sigmoid_in_kernel": use_beta_sigmoid_in_kernel,
            "allow_neg_eigval": allow_neg_eigval,
            "state_v_first": state_v_first,
            **options,
        }
    )
    common = _common(scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens, cu_seqlens_cpu)
    return gated_delta_rule(q, k, v, g, beta, **common)


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, SumState | None]:
    """`fwm_py.torch.gated_delta_rule`; with gk (B, T, HV, K), gates of key channels, `fwm_py.torch.kimi_delta_rule`."""
    _refuse(
        {
            "gv": gv,
            "use_gate_in_kernel": use_gate_in_kernel,
            "A_log": A_log,
            "dt_bias": dt_bias,
            "use_beta_sigmoid_in_kernel": use_beta_sigmoid_in_kernel,
            "allow_neg_eigval": allow_neg_eigval,
            "state_v_first": state_v_first,
            **options,
        }
    )
    common = _common(scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens)
    beta = v.new_ones(v.shape[:3]) if beta is None else beta
    if gk is not None:
        return kimi_delta_rule(q, k, v, gk if g is None else gk + g.unsqueeze(-1), beta, **common)
    return delta_rule(q, k, v, beta, **common) if g is None else gated_delta_rule(q, k, v, g, beta, **common)


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.kimi_delta_rule`."""
    _refuse(
        {
            "use_gate_in_kernel": use_gate_in_kernel,
            "use_beta_sigmoid_in_kernel": use_beta_sigmoid_in_kernel,
            "allow_neg_eigval": allow_neg_eigval,
            "safe_gate": safe_gate,
            "lower_bound": lower_bound,
            "disable_recompute": disable_recompute,
            "return_intermediate_states": return_intermediate_states,
            "state_v_first": state_v_first,
            **options,
        }
    )
    common = _common(scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens, cu_seqlens_cpu)
    return kimi_delta_rule(q, k, v, g, beta, **common)


def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.kimi_delta_rule`."""
    return chunk_kda(
        q,
        k,
        v,
        g,
        beta,
        scale,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        use_gate_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
        lower_bound=lower_bound,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        A_log=A_log,
        dt_bias=dt_bias,
        **options,
    )


def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, SumState | None]:
    """`fwm_py.torch.linear_attention`; the sum of keys in a state is (n, 1, H, K)."""
    _refuse(options)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    if normalize and initial_state is not None:
        S, z = initial_state if isinstance(initial_state, tuple) else (initial_state, None)
        initial_state = S, S.new_zeros(S.shape[0], *k.shape[2:]) if z is None else z.squeeze(1)
    o, state = linear_attention(
        q,
        k,
        v,
        scale=scale,
        normalize=normalize,
        eps=1e-10,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )
    return o, (state[0], state[1].unsqueeze(1)) if isinstance(state, tuple) else state


def fused_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, SumState | None]:
    """`fwm_py.torch.linear_attention`; the sum of keys in a state is (n, 1, H, K)."""
    return chunk_linear_attn(
        q, k, v, scale, initial_state, output_final_state, normalize, cu_seqlens, reverse=reverse, **options
    )
