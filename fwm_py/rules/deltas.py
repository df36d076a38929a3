"""The rules that correct: the delta rule, with and without gates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from fwm_py import _core
from fwm_py.rules.types import Method, Norm, Out, Real, Results, SumOut, SumState, SumStateLike


class DeltaRuleGradients(NamedTuple):
    """dq (B, T, HQ, K), dk (B, T, H, K), dv (B, T, HV, V), dbeta (B, T, HV); dinitial_state (n, HV, K, V), a pair
    with dz (n, H, K) if normalize, or None."""

    dq: Real
    dk: Real
    dv: Real
    dbeta: Real
    dinitial_state: SumState | None


class GatedDeltaRuleGradients(NamedTuple):
    """dq (B, T, HQ, K), dk (B, T, H, K), dv (B, T, HV, V), dg of g's shape, dbeta (B, T, HV); dinitial_state
    (n, HV, K, V) or None."""

    dq: Real
    dk: Real
    dv: Real
    dg: Real
    dbeta: Real
    dinitial_state: Real | None


class GatedDeltaRule2Gradients(NamedTuple):
    """dq (B, T, HQ, K), dk (B, T, H, K), dv (B, T, HV, V), dg (B, T, HV, K), db (B, T, HV, K), dw (B, T, HV, V);
    dinitial_state (n, HV, K, V) or None."""

    dq: Real
    dk: Real
    dv: Real
    dg: Real
    db: Real
    dw: Real
    dinitial_state: Real | None


def delta_rule(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: SumStateLike | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: npt.ArrayLike | None = None,
    return_states_every: int | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: SumOut | None = None,
) -> Results:
    """The delta rule: each write corrects what the memory holds for its key.

    S <- S + beta_t k_t (v_t - S^T k_t)^T; o_t = scale S^T q_t.

    Parameters
    ----------
    normalize : bool
        Attention normalisation: what a key erases is divided by the weight of what was written before it, and what a
        query reads by the sum of its weights. For positive features (`fwm_py.feature_maps`), and without qk_norm:

            S <- S + k_t (beta_t v_t - beta_t / (z . k_t + eps) S^T k_t)^T; z <- z + k_t
            o_t = scale S^T q_t / (scale z . q_t + eps)

        States are then pairs (S, z), z (n, H, K), as those of `linear_attention`. scale is 1 if not given.
    eps : float
        Keeps the divisions from 0. It is absolute, as in `linear_attention`.

    References
    ----------
    Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, section 4.2; Yang, Wang, Zhang, Shen, Kim 2024, arXiv 2406.06484.
    """
    return _core.rule_forward(
        "delta_rule",
        normalize=normalize,
        state_v_first=state_v_first,
        q=q,
        k=k,
        v=v,
        beta=beta,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        state_indices=state_indices,
        scale=scale,
        qk_norm=qk_norm,
        eps=eps,
        method=method,
        output_final_state=output_final_state,
        return_states_every=return_states_every,
        out=out,
    )


def delta_rule_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: SumStateLike | None = None,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: SumStateLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> DeltaRuleGradients:
    """Gradients of `delta_rule`, which says what normalize and eps are."""
    return DeltaRuleGradients(
        *_core.rule_backward(
            "delta_rule",
            normalize=normalize,
            state_v_first=state_v_first,
            q=q,
            k=k,
            v=v,
            beta=beta,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            scale=scale,
            qk_norm=qk_norm,
            eps=eps,
            method=method,
            do=do,
            dfinal_state=dfinal_state,
            out=out,
        )
    )


def gated_delta_rule(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: npt.ArrayLike | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: npt.ArrayLike | None = None,
    return_states_every: int | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> Results:
    """The delta rule on a state that fades by one number a head, g (B, T, HV): Gated DeltaNet.

    S <- exp(g_t) S; S <- S + beta_t k_t (v_t - S^T k_t)^T; o_t = scale S^T q_t.

    References
    ----------
    Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464.
    """
    return _core.rule_forward(
        "gated_delta_rule",
        state_v_first=state_v_first,
        q=q,
        k=k,
        v=v,
        g=g,
        beta=beta,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        state_indices=state_indices,
        scale=scale,
        qk_norm=qk_norm,
        method=method,
        output_final_state=output_final_state,
        return_states_every=return_states_every,
        out=out,
    )


def gated_delta_rule_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: npt.ArrayLike | None = None,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedDeltaRuleGradients:
    """Gradients of `gated_delta_rule`."""
    return GatedDeltaRuleGradients(
        *_core.rule_backward(
            "gated_delta_rule",
            state_v_first=state_v_first,
            q=q,
            k=k,
            v=v,
            g=g,
            beta=beta,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            scale=scale,
            qk_norm=qk_norm,
            method=method,
            do=do,
            dfinal_state=dfinal_state,
            out=out,
        )
    )


def kimi_delta_rule(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: npt.ArrayLike | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: npt.ArrayLike | None = None,
    return_states_every: int | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> Results:
    """The delta rule on a state that fades key channel by key channel, g (B, T, HV, K): Kimi Delta Attention.

    S <- diag(exp(g_t)) S; S <- S + beta_t k_t (v_t - S^T k_t)^T; o_t = scale S^T q_t.

    References
    ----------
    Kimi Team 2025, arXiv 2510.26692.
    """
    return _core.rule_forward(
        "kimi_delta_rule",
        state_v_first=state_v_first,
        q=q,
        k=k,
        v=v,
        g=g,
        beta=beta,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        state_indices=state_indices,
        scale=scale,
        qk_norm=qk_norm,
        method=method,
        output_final_state=output_final_state,
        return_states_every=return_states_every,
        out=out,
    )


def kimi_delta_rule_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: npt.ArrayLike | None = None,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedDeltaRuleGradients:
    """Gradients of `kimi_delta_rule`."""
    return GatedDeltaRuleGradients(
        *_core.rule_backward(
            "kimi_delta_rule",
            state_v_first=state_v_first,
            q=q,
            k=k,
            v=v,
            g=g,
            beta=beta,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            scale=scale,
            qk_norm=qk_norm,
            method=method,
            do=do,
            dfinal_state=dfinal_state,
            out=out,
        )
    )


def gated_delta_rule_2(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    b: npt.ArrayLike,
    w: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: npt.ArrayLike | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: npt.ArrayLike | None = None,
    return_states_every: int | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> Results:
    """A delta rule that erases and writes with strengths of their own, channel by channel: Gated DeltaNet-2.

    S <- diag(exp(g_t)) S; S <- S + k_t (w_t * v_t - S^T (b_t * k_t))^T; o_t = scale S^T q_t, with g (B, T, HV, K).
    Where all of b_t and w_t are beta_t it is `kimi_delta_rule`.

    Parameters
    ----------
    b : array (B, T, HV, K)
        How much of each key channel is erased.
    w : array (B, T, HV, V)
        How much of each value channel is written.

    References
    ----------
    Hatamizadeh, Choi, Kautz 2026, arXiv 2605.22791.
    """
    return _core.rule_forward(
        "gated_delta_rule_2",
        state_v_first=state_v_first,
        q=q,
        k=k,
        v=v,
        g=g,
        b=b,
        w=w,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        state_indices=state_indices,
        scale=scale,
        qk_norm=qk_norm,
        method=method,
        output_final_state=output_final_state,
        return_states_every=return_states_every,
        out=out,
    )


def gated_delta_rule_2_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    b: npt.ArrayLike,
    w: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: npt.ArrayLike | None = None,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedDeltaRule2Gradients:
    """Gradients of `gated_delta_rule_2`, which says what b and w are."""
    return GatedDeltaRule2Gradients(
        *_core.rule_backward(
            "gated_delta_rule_2",
            state_v_first=state_v_first,
            q=q,
            k=k,
            v=v,
            g=g,
            b=b,
            w=w,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            scale=scale,
            qk_norm=qk_norm,
            method=method,
            do=do,
            dfinal_state=dfinal_state,
            out=out,
        )
    )
