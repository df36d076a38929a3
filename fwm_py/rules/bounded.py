"""The rule whose state keeps a bounded norm: the fast weight memory."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fwm_py import _core
from fwm_py.rules.deltas import DeltaRuleGradients
from fwm_py.rules.types import Method, Norm, Out, Results


def fast_weight_memory(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    clamp_first: bool = True,
    initial_state: npt.ArrayLike | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: npt.ArrayLike | None = None,
    return_states_every: int | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> Results:
    """The fast weight memory: delta writes into a memory of bounded norm.

    S <- S + beta_t k_t (v_t - S^T k_t)^T; S <- S / max(1, |S|) with the Frobenius norm, through which the gradient
    flows; o_t = scale S^T q_t.

    Parameters
    ----------
    clamp_first : bool
        Bound the norm after the first write of a sequence, too; False leaves that write as it is, as the paper does.
        Without effect where an initial_state is given: it stands for earlier writes, and every write here is bounded.

    References
    ----------
    Schlag, Munkhdalai, Schmidhuber 2021, arXiv 2011.07831.
    """
    return _core.rule_forward(
        "fast_weight_memory",
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
        clamp_first=clamp_first,
        method=method,
        output_final_state=output_final_state,
        return_states_every=return_states_every,
        out=out,
    )


def fast_weight_memory_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    beta: npt.ArrayLike,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    clamp_first: bool = True,
    initial_state: npt.ArrayLike | None = None,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> DeltaRuleGradients:
    """Gradients of `fast_weight_memory`, which says what clamp_first is."""
    return DeltaRuleGradients(
        *_core.rule_backward(
            "fast_weight_memory",
            state_v_first=state_v_first,
            q=q,
            k=k,
            v=v,
            beta=beta,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            scale=scale,
            qk_norm=qk_norm,
            clamp_first=clamp_first,
            method=method,
            do=do,
            dfinal_state=dfinal_state,
            out=out,
        )
    )
