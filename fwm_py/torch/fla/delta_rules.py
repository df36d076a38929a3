"""The delta rules of flash-linear-attention: delta_rule, gated_delta_rule, kda, gdn2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fwm_py.torch import delta_rule, gated_delta_rule, gated_delta_rule_2, kimi_delta_rule
from fwm_py.torch.fla.arguments import Result, call, gate, norm_of, refuse, strength


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
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.delta_rule`; without beta it is 1."""
    return call(
        delta_rule,
        q,
        k,
        v,
        strength(v, beta, False, False),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        cu_seqlens_cpu=cu_seqlens_cpu,
        qk_norm=norm_of(use_qk_l2norm_in_kernel),
        options=options,
    )


fused_chunk_delta_rule = fused_recurrent_delta_rule = chunk_delta_rule


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
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.gated_delta_rule`; with gk (B, T, HV, K), gates of key channels, `fwm_py.torch.kimi_delta_rule`.

    With use_gate_in_kernel the gate is -exp(A_log) softplus(g + dt_bias), A_log and dt_bias (HV,). Without beta it is
    1 (after the sigmoid).
    """
    beta = strength(v, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    g = gate(g, use_gate_in_kernel, A_log, dt_bias)
    rule: Callable[..., Result] = delta_rule if g is None else gated_delta_rule
    gates = () if g is None else (g,)
    if gk is not None:
        rule, gates = kimi_delta_rule, (gk if g is None else gk + g.unsqueeze(-1),)
    return call(
        rule,
        q,
        k,
        v,
        *gates,
        beta,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        qk_norm=norm_of(use_qk_l2norm_in_kernel),
        options={"gv": gv, **options},
    )


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
    *,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.gated_delta_rule`; with use_gate_in_kernel as `fused_recurrent_gated_delta_rule`."""
    return call(
        gated_delta_rule,
        q,
        k,
        v,
        gate(g, use_gate_in_kernel, A_log, dt_bias),
        strength(v, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        cu_seqlens_cpu=cu_seqlens_cpu,
        qk_norm=norm_of(use_qk_l2norm_in_kernel),
        options=options,
    )


chunk_gdn, fused_recurrent_gdn = chunk_gated_delta_rule, fused_recurrent_gated_delta_rule


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
    *,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    **options: Any,
) -> Result:
    """`fwm_py.torch.kimi_delta_rule`.

    With use_gate_in_kernel the gate is -exp(A_log) softplus(g + dt_bias), A_log (HV,) and dt_bias (HV * K,); with
    lower_bound it is lower_bound sigmoid(exp(A_log) (g + dt_bias)), and A_log may be None, for 0.

    With return_intermediate_states the result is (o, final_state, h): h (B, N, HV, K, V), of k's dtype, are the states
    before each chunk of chunk_size tokens (64 if not given), the last of which may be shorter; of packed sequences
    (1, N, HV, K, V), those of one behind those of the other. There is no gradient; where one is wanted this is a
    ValueError.
    """
    return call(
        kimi_delta_rule,
        q,
        k,
        v,
        gate(g, use_gate_in_kernel, A_log, dt_bias, lower_bound, safe_gate),
        strength(v, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        cu_seqlens_cpu=cu_seqlens_cpu,
        qk_norm=norm_of(use_qk_l2norm_in_kernel),
        chunk_sizes=(32, 64),
        return_intermediate_states=return_intermediate_states,
        options={"disable_recompute": disable_recompute, **options},
    )


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
    """`chunk_kda`, its arguments in another order, without states before chunks."""
    refuse({"return_intermediate_states": options.pop("return_intermediate_states", None)})
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


def chunk_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    *,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    **options: Any,
) -> Result:
    """`fwm_py.torch.gated_delta_rule_2`; with use_gate_in_kernel or return_intermediate_states as `chunk_kda`."""
    return call(
        gated_delta_rule_2,
        q,
        k,
        v,
        gate(g, use_gate_in_kernel, A_log, dt_bias, lower_bound, safe_gate),
        b,
        w,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        cu_seqlens_cpu=cu_seqlens_cpu,
        qk_norm=norm_of(use_qk_l2norm_in_kernel),
        chunk_sizes=(64,),
        return_intermediate_states=return_intermediate_states,
        options={"disable_recompute": disable_recompute, **options},
    )


def fused_recurrent_gdn2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gdn2`, its arguments in another order, without states before chunks."""
    refuse({"return_intermediate_states": options.pop("return_intermediate_states", None)})
    return chunk_gdn2(
        q,
        k,
        v,
        g,
        b,
        w,
        scale,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        use_gate_in_kernel,
        cu_seqlens,
        lower_bound=lower_bound,
        state_v_first=state_v_first,
        A_log=A_log,
        dt_bias=dt_bias,
        **options,
    )
