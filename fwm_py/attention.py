"""Softmax attention, causal or not, with many heads: forward and gradient, in tiles.

No matrix of all queries against all keys is ever made: beyond inputs and results a call takes a few megabytes for each
thread, in the backward two numbers a query, and with one token and a cache about a hundredth of the cache.

Common to both functions, for B sequences, T queries, S keys, HQ query heads and H key heads:

q : array (B, T, HQ, K), float32 or float64
    HQ is a multiple of H: query head hq reads key head hq // (HQ // H).
k : array (B, S, H, K), of q's dtype
v : array (B, S, H, V), of q's dtype
causal : bool
    Query t sees keys 0 .. S - T + t: its triangle stands at the bottom right, so that the last query sees every key,
    as in decoding with a cache; S is at least T. Otherwise every query sees every key.
key_lengths : array (B,), any integer dtype, optional
    How many keys of each sequence there are, 0 .. S; the others, padding, are not seen, and their gradients are 0. A
    query that sees no key gives 0, and lse -inf.
scale : float or None
    Multiplies the scores; None stands for K**-0.5.

Any strides, byte order and read-only inputs work. Inputs are never changed. B = 0 or T = 0 gives empty results, and
gradients of zero. Values that are not finite propagate to the queries that see them; a score of -inf counts for
nothing. Results are the same to the bit for every number of threads. Inside a call, numbers below the smallest normal
one may count as 0.

Errors: TypeError for a dtype that is not as above; ValueError for shapes that do not fit, K, V, H or HQ = 0, no keys
for some queries, or a scale that is not finite in q's dtype; MemoryError. The message begins with the argument's name.

Sources: Vaswani et al. 2017, arXiv 1706.03762; the softmax in tiles: Milakov, Gimelshein 2018, arXiv 1805.02867; Dao et
al. 2022, arXiv 2205.14135.

>>> import numpy as np
>>> from fwm_py import softmax_attention, softmax_attention_backward
>>> random = np.random.default_rng(0)
>>> q, k, v = (random.standard_normal((1, 9, 2, 16)) for _ in range(3))  # 9 tokens, 2 heads of 16
>>> o, lse = softmax_attention(q, k, v, return_lse=True)
>>> gradients = softmax_attention_backward(np.ones_like(o), q, k, v, o=o, lse=lse)
>>> bool(np.allclose(gradients.dv[0].sum(), o.size))  # the weights of each query add up to 1
True
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from fwm_py import _core

__all__ = ["SoftmaxGradients", "softmax_attention", "softmax_attention_backward"]

Real = npt.NDArray[np.floating[Any]]


class SoftmaxGradients(NamedTuple):
    """Gradients of `softmax_attention`: dq (B, T, HQ, K), dk (B, S, H, K) and dv (B, S, H, V)."""

    dq: Real
    dk: Real
    dv: Real


@overload
def softmax_attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    *,
    causal: bool = True,
    key_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    out: Real | None = None,
) -> Real: ...
@overload
def softmax_attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    *,
    causal: bool = True,
    key_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
    out: Real | None = None,
) -> tuple[Real, Real]: ...
def softmax_attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    *,
    causal: bool = True,
    key_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: Real | None = None,
) -> Real | tuple[Real, Real]:
    """Every query reads a mean of the values, weighted by the softmax of its scores.

    s_tj = scale q_t . k_j, o_t = sum_j exp(s_tj) v_j / sum_j exp(s_tj) over the keys j that query t sees.

    Parameters
    ----------
    q, k, v, causal, key_lengths, scale
        As above.
    return_lse : bool
        Also return the logarithms of the denominators, which `softmax_attention_backward` can use.
    out : array (B, T, HQ, V), of q's dtype, or None
        Is written and returned as o. Native byte order, writable, contiguous, aligned, and without memory in common
        with an input.

    Returns
    -------
    o : array (B, T, HQ, V)
    lse : array (B, T, HQ), only with return_lse
        log sum_j exp(s_tj).
    """
    return _core.attention_forward(
        q=q, k=k, v=v, causal=causal, key_lengths=key_lengths, scale=scale, return_lse=return_lse, out=out
    )


def softmax_attention_backward(
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    *,
    causal: bool = True,
    key_lengths: npt.ArrayLike | None = None,
    scale: float | None = None,
    o: npt.ArrayLike | None = None,
    lse: npt.ArrayLike | None = None,
    out: tuple[Real, Real, Real] | None = None,
) -> SoftmaxGradients:
    """The gradient of sum(do * softmax_attention(q, k, v)).

    Parameters
    ----------
    do : array (B, T, HQ, V), of q's dtype
        Gradient with respect to o.
    q, k, v, causal, key_lengths, scale
        As in the forward call.
    o : array (B, T, HQ, V), of q's dtype, or None
    lse : array (B, T, HQ), of q's dtype, or None
        What the forward call returned, both or neither (else ValueError): without them they are computed again, to the
        same bits.
    out : tuple (dq, dk, dv) of arrays of q's dtype, or None
        Are written and returned, as out of the forward call is.

    Returns
    -------
    SoftmaxGradients
    """
    return SoftmaxGradients(
        *_core.attention_backward(
            q=q, k=k, v=v, causal=causal, key_lengths=key_lengths, scale=scale, do=do, o=o, lse=lse, out=out
        )
    )
