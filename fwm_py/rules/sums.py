"""The rules that add: linear attention, and the one that forgets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from fwm_py import _core
from fwm_py.rules.types import Method, Out, Real, Results, SumOut, SumState, SumStateLike


class LinearAttentionGradients(NamedTuple):
    """dq (B, T, HQ, K), dk (B, T, H, K), dv (B, T, HV, V); dinitial_state (n, HV, K, V), a pair with dz (n, H, K) if
    normalize, or None."""

    dq: Real
    dk: Real
    dv: Real
    dinitial_state: SumState | None


class GatedLinearAttentionGradients(NamedTuple):
    """dq (B, T, HQ, K), dk (B, T, H, K), dv (B, T, HV, V), dg of g's shape; dinitial_state (n, HV, K, V) or None."""

    dq: Real
    dk: Real
    dv: Real
    dg: Real
    dinitial_state: Real | None


def check_causal(
    causal: bool, key_lengths: npt.ArrayLike | None, method: Method, **only_causal: npt.ArrayLike | None
) -> bool:
    """`causal`, where it fits the other arguments."""
    if not isinstance(causal, bool):
        raise TypeError(f"causal: got {type(causal).__name__}, expected True or False")
    if causal and key_lengths is not None:
        raise ValueError(f"key_lengths: got {type(key_lengths).__name__}, expected None where causal is True")
    for name, given in only_causal.items():
        if not causal and given is not None and given is not False:
            raise ValueError(f"{name}: got {type(given).__name__}, expected None or False where causal is False")
    if not causal and not isinstance(method, str):
        raise TypeError(f"method: got {type(method).__name__}, expected a string")
    if not causal and method != "chunked":
        raise ValueError(f"method: got {method!r:.40}, expected 'chunked' where causal is False")
    return causal


def linear_attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    *,
    causal: bool = True,
    key_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
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
    """Linear attention: every association is added.

    S <- S + k_t v_t^T; o_t = scale S^T q_t.

    Parameters
    ----------
    causal : bool
        False: every query reads the sum of all N keys' writes, S = S_0 + sum k_j v_j^T. Then k is (B, N, H, K) and v
        (B, N, HV, V) for any N, 0 among them: T queries with an initial_state and no keys read that state, as cross
        attention does while it decodes. There are no packed sequences, no method, and no state_v_first, state_indices
        and return_states_every.
    key_lengths : array (B,), any integer dtype, optional
        Only with causal=False: how many keys of each sequence count, 0 .. N; the others are padding, whose gradients
        are 0.
    normalize : bool
        Divide by the sum of the weights: z <- z + k_t, o_t = scale S^T q_t / (scale z . q_t + eps). For positive
        features (`fwm_py.feature_maps`). States are then pairs (S, z), z (n, H, K): initial_state, final_state, the
        state in out, dfinal_state and dinitial_state. scale is 1 if not given.
    eps : float
        Keeps the division from 0. It is absolute, as the experiments need it: where the sum of weights is as small, the
        output fades to 0 instead of being a mean of values. One token of 8 `elu1` features of -10 weighs 0.016 in place
        of 1; 16 tokens of `favor` (m = 64) at |x| = 8 weigh together 0.002 on a mean of 50 draws, and mostly far less.
        A smaller eps, or smaller x, avoids it.

    References
    ----------
    Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv 2006.16236.
    """
    if not check_causal(
        causal,
        key_lengths,
        method,
        cu_seqlens=cu_seqlens,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
    ):
        return _core.noncausal_forward(
            normalize=normalize,
            q=q,
            k=k,
            v=v,
            key_lengths=key_lengths,
            initial_state=initial_state,
            scale=scale,
            eps=eps,
            output_final_state=output_final_state,
            out=out,
        )
    return _core.rule_forward(
        "linear_attention",
        normalize=normalize,
        state_v_first=state_v_first,
        q=q,
        k=k,
        v=v,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        state_indices=state_indices,
        scale=scale,
        eps=eps,
        method=method,
        output_final_state=output_final_state,
        return_states_every=return_states_every,
        out=out,
    )


def linear_attention_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    *,
    causal: bool = True,
    key_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: SumStateLike | None = None,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: SumStateLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> LinearAttentionGradients:
    """Gradients of `linear_attention`, which says what causal, key_lengths, normalize and eps are."""
    if not check_causal(causal, key_lengths, method, cu_seqlens=cu_seqlens, state_v_first=state_v_first):
        return LinearAttentionGradients(
            *_core.noncausal_backward(
                normalize=normalize,
                q=q,
                k=k,
                v=v,
                key_lengths=key_lengths,
                initial_state=initial_state,
                scale=scale,
                eps=eps,
                do=do,
                dfinal_state=dfinal_state,
                out=out,
            )
        )
    return LinearAttentionGradients(
        *_core.rule_backward(
            "linear_attention",
            normalize=normalize,
            state_v_first=state_v_first,
            q=q,
            k=k,
            v=v,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            scale=scale,
            eps=eps,
            method=method,
            do=do,
            dfinal_state=dfinal_state,
            out=out,
        )
    )


def gated_linear_attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    *,
    scale: float | None = None,
    initial_state: npt.ArrayLike | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: npt.ArrayLike | None = None,
    return_states_every: int | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> Results:
    """Linear attention that forgets: the state fades by a number or, row by row, by a vector.

    S <- diag(exp(g_t)) S + k_t v_t^T; o_t = scale S^T q_t. The rank of g decides: with (B, T, HV) a head has one gate
    (a constant in RetNet, computed from the token in Mamba-2), with (B, T, HV, K) one for each key channel (GLA).

    References
    ----------
    Sun et al. 2023, Retentive network, arXiv 2307.08621; Dao, Gu 2024, Mamba-2, arXiv 2405.21060; Yang, Wang, Shen,
    Panda, Kim 2023, Gated linear attention, arXiv 2312.06635.
    """
    return _core.rule_forward(
        "gated_linear_attention",
        state_v_first=state_v_first,
        q=q,
        k=k,
        v=v,
        g=g,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        state_indices=state_indices,
        scale=scale,
        method=method,
        output_final_state=output_final_state,
        return_states_every=return_states_every,
        out=out,
    )


def gated_linear_attention_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike,
    *,
    scale: float | None = None,
    initial_state: npt.ArrayLike | None = None,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedLinearAttentionGradients:
    """Gradients of `gated_linear_attention`."""
    return GatedLinearAttentionGradients(
        *_core.rule_backward(
            "gated_linear_attention",
            state_v_first=state_v_first,
            q=q,
            k=k,
            v=v,
            g=g,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            scale=scale,
            method=method,
            do=do,
            dfinal_state=dfinal_state,
            out=out,
        )
    )
