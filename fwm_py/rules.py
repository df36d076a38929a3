"""Rules: causal memories of many heads, an output for every token, states in and out.

Each head holds a state S (K x V), a memory that keys write values into and queries read. For every token a rule gates
the state, writes into it, and the query reads it: o_t = scale S_t^T q_t, after the write of token t. Every rule is a
pair of functions: `<name>(...)` and `<name>_backward(do, ...)`, the gradients of sum(do * o) + sum(dfinal_state *
final_state) with respect to every input of numbers. Below, an equation is that of one value head; k and q are those of
its key and query head.

Common to all of them, for B sequences of T tokens, keys of size K and values of size V:

q : array (B, T, HQ, K), float32 or float64
    Queries. HQ is H, or a multiple of HV: then several query heads read one state.
k : array (B, T, H, K), of q's dtype
    Keys. Key head h serves the value heads h HV/H .. (h + 1) HV/H - 1.
v : array (B, T, HV, V), of q's dtype
    Values. HV is a multiple of H; each value head has a state.
g : array (B, T, HV) or (B, T, HV, K), of q's dtype
    Gates as natural logarithms: the state, or each of its K rows, is multiplied by exp(g). At most 0 as a rule.
beta : array (B, T, HV), of q's dtype
    Write strengths: 0 writes nothing, 1 replaces what a key of norm 1 holds. Up to 2 makes sense.
scale : float, optional
    Multiplies the queries, K**-0.5 if not given.
qk_norm : None, "l2" or "sum"
    Keys and queries are taken as they are, as x / sqrt(|x|^2 + 1e-6), or as x / sum(x), which is the delta rule's own
    for positive features. x / sum(x) of zeros is zeros, and its gradient 0: a key without features (a padding token's,
    or one that a map has let underflow) writes nothing, a query without features reads 0. Where x has both signs and
    sums to 0, the result is not finite.
initial_state : array (n, HV, K, V), of q's dtype, optional
    Where the states start: n is B, or the number of packed sequences. Zeros if not given.
output_final_state : bool
    Return the states after the last token, too.
cu_seqlens : array (n + 1,), any integer dtype, optional
    Packs n sequences into one row (B must be 1): sequence i is the tokens cu_seqlens[i] .. cu_seqlens[i + 1] - 1.
    Non-decreasing, from 0 to T; a sequence without tokens keeps its state.
method : "chunked" or "recurrent"
    The fast form, or token by token as the equation stands. The numbers are the same but for rounding.
out : array o, or tuple (o, state), optional
    Arrays to write into, which are returned: of the results' shape and dtype, C-contiguous, and sharing no memory with
    an input or with each other; only state may be the array given as initial_state (decoding in place). With a state
    in out it is returned whatever output_final_state says.
    Of a backward function: a tuple of arrays as the result is, in whose order and with whose Nones.
do : array (B, T, max(HQ, HV), V), of q's dtype
    Gradient with respect to o.
dfinal_state : array, of the state's shape and dtype, optional
    Gradient with respect to the final state. Zeros if not given.

Every forward function returns (o, final_state): o (B, T, max(HQ, HV), V) and final_state (n, HV, K, V), or None unless
it was asked for. Every backward function returns a named tuple of gradients with the shapes of the inputs;
dinitial_state is None where no initial_state was given. It computes again what it needs of the forward.

Results have q's dtype and do not depend on the number of threads, to the bit. Empty B or T give an empty o, and states
as they were. Values that are not finite propagate. Inside a call, numbers below the smallest normal one may count as 0:
q = 1, k = 1e30, v = 1e-39 gives 0 in float32. Inputs are never changed, unless one is named in out. Several Python
threads may call at once; they run side by side.

Errors: TypeError for an argument of another type or dtype than said here; ValueError for shapes that do not fit, no
heads, K = 0 or V = 0, numbers of heads that do not divide, a scale or eps that is not finite, words other than those
listed, bad cu_seqlens, and an out that cannot be written to or overlaps; MemoryError.

With one token a call and `out=(o, state)`, `initial_state=state`, these functions decode:

>>> import numpy as np
>>> from fwm_py import gated_delta_rule, gated_delta_rule_backward
>>> random = np.random.default_rng(0)
>>> q, k, v = (random.standard_normal((1, 9, 2, 16)) for _ in range(3))  # 9 tokens, 2 heads of 16
>>> g, beta = -random.random((1, 9, 2)), random.random((1, 9, 2))
>>> inputs = (q, k, v, g, beta)
>>> o, state = gated_delta_rule(*(x[:, :8] for x in inputs), qk_norm="l2", output_final_state=True)  # a prompt
>>> out = (np.empty((1, 1, 2, 16)), state)
>>> o, state = gated_delta_rule(*(x[:, 8:] for x in inputs), qk_norm="l2", initial_state=state, out=out)  # the next
>>> whole, _ = gated_delta_rule(*inputs, qk_norm="l2")
>>> bool(np.allclose(o, whole[:, 8:]))
True

and these are the gradients of whole.sum():

>>> gradients = gated_delta_rule_backward(np.ones_like(whole), *inputs, qk_norm="l2")
>>> gradients.dg.shape
(1, 9, 2)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core

__all__ = [
    "DeltaRuleGradients",
    "GatedDeltaRule2Gradients",
    "GatedDeltaRuleGradients",
    "GatedLinearAttentionGradients",
    "LinearAttentionGradients",
    "delta_rule",
    "delta_rule_backward",
    "fast_weight_memory",
    "fast_weight_memory_backward",
    "gated_delta_rule",
    "gated_delta_rule_2",
    "gated_delta_rule_2_backward",
    "gated_delta_rule_backward",
    "gated_linear_attention",
    "gated_linear_attention_backward",
    "kimi_delta_rule",
    "kimi_delta_rule_backward",
    "linear_attention",
    "linear_attention_backward",
]

Real = npt.NDArray[np.floating[Any]]
Out = Real | tuple[Real, Real]
Norm = Literal["l2", "sum"]
Method = Literal["chunked", "recurrent"]

# The state of a rule that normalizes: S, or with normalize (S, z).
SumStateLike = npt.ArrayLike | tuple[npt.ArrayLike, npt.ArrayLike]
SumState = Real | tuple[Real, Real]
SumOut = Real | tuple[Real, SumState]


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


def check_causal(
    causal: bool, key_lengths: npt.ArrayLike | None, cu_seqlens: npt.ArrayLike | None, method: Method
) -> bool:
    """`causal`, where it fits the other arguments."""
    if not isinstance(causal, bool):
        raise TypeError(f"causal: got {type(causal).__name__}, expected True or False")
    if causal and key_lengths is not None:
        raise ValueError(f"key_lengths: got {type(key_lengths).__name__}, expected None where causal is True")
    if not causal and cu_seqlens is not None:
        raise ValueError(f"cu_seqlens: got {type(cu_seqlens).__name__}, expected None where causal is False")
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: SumOut | None = None,
) -> tuple[Real, SumState | None]:
    """Linear attention: every association is added.

    S <- S + k_t v_t^T; o_t = scale S^T q_t.

    Parameters
    ----------
    causal : bool
        False: every query reads the sum of all N keys' writes, S = S_0 + sum k_j v_j^T. Then k is (B, N, H, K) and v
        (B, N, HV, V) for any N, 0 among them: T queries with an initial_state and no keys read that state, as cross
        attention does while it decodes. There are no packed sequences and no method.
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
    if not check_causal(causal, key_lengths, cu_seqlens, method):
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
        q=q,
        k=k,
        v=v,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        scale=scale,
        eps=eps,
        method=method,
        output_final_state=output_final_state,
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: SumStateLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> LinearAttentionGradients:
    """Gradients of `linear_attention`, which says what causal, key_lengths, normalize and eps are."""
    if not check_causal(causal, key_lengths, cu_seqlens, method):
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> tuple[Real, Real | None]:
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
        q=q,
        k=k,
        v=v,
        g=g,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        scale=scale,
        method=method,
        output_final_state=output_final_state,
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedLinearAttentionGradients:
    """Gradients of `gated_linear_attention`."""
    return GatedLinearAttentionGradients(
        *_core.rule_backward(
            "gated_linear_attention",
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: SumOut | None = None,
) -> tuple[Real, SumState | None]:
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
        output_final_state=output_final_state,
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> tuple[Real, Real | None]:
    """The delta rule on a state that fades by one number a head, g (B, T, HV): Gated DeltaNet.

    S <- exp(g_t) S; S <- S + beta_t k_t (v_t - S^T k_t)^T; o_t = scale S^T q_t.

    References
    ----------
    Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464.
    """
    return _core.rule_forward(
        "gated_delta_rule",
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
        output_final_state=output_final_state,
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedDeltaRuleGradients:
    """Gradients of `gated_delta_rule`."""
    return GatedDeltaRuleGradients(
        *_core.rule_backward(
            "gated_delta_rule",
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> tuple[Real, Real | None]:
    """The delta rule on a state that fades key channel by key channel, g (B, T, HV, K): Kimi Delta Attention.

    S <- diag(exp(g_t)) S; S <- S + beta_t k_t (v_t - S^T k_t)^T; o_t = scale S^T q_t.

    References
    ----------
    Kimi Team 2025, arXiv 2510.26692.
    """
    return _core.rule_forward(
        "kimi_delta_rule",
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
        output_final_state=output_final_state,
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedDeltaRuleGradients:
    """Gradients of `kimi_delta_rule`."""
    return GatedDeltaRuleGradients(
        *_core.rule_backward(
            "kimi_delta_rule",
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> tuple[Real, Real | None]:
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
        output_final_state=output_final_state,
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> GatedDeltaRule2Gradients:
    """Gradients of `gated_delta_rule_2`, which says what b and w are."""
    return GatedDeltaRule2Gradients(
        *_core.rule_backward(
            "gated_delta_rule_2",
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    out: Out | None = None,
) -> tuple[Real, Real | None]:
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
        output_final_state=output_final_state,
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
    cu_seqlens: npt.ArrayLike | None = None,
    method: Method = "chunked",
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> DeltaRuleGradients:
    """Gradients of `fast_weight_memory`, which says what clamp_first is."""
    return DeltaRuleGradients(
        *_core.rule_backward(
            "fast_weight_memory",
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
