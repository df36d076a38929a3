"""Read-outs, the rules as the retrieval experiments use them: one query is answered after a sequence of writes.

A sequence writes L associations of a key k_t and a one-hot value v_t; then the memory is read with a query q. Values
are given by their indices. Every read-out is a pair of functions: `<name>(...)` and `<name>_backward(dy, ...)`, the
gradient of sum(dy * <name>(...)) with respect to keys, beta and query.

Common to all of them, for a batch of B sequences, L pairs each, p features and N values:

keys : array (B, L, p), float32 or float64
    Mapped keys phi(k), except for `softmax_rule`, which takes them as they are.
values : array (B, L), any integer dtype
    Indices 0..N-1.
beta : array (B, L), of keys' dtype
    Write strengths, for the read-outs that have them.
query : array (B, p), of keys' dtype
n_values : int
    N, at least 1.
dy : array (B, N), of keys' dtype
    Gradient with respect to the result.

Results have keys' dtype; a batch of no sequences gives an empty result. Values that are not finite propagate. Inputs
are never changed. Errors: TypeError for a dtype that is not as above; ValueError for shapes that do not fit or an
empty feature axis, or a value outside 0..N-1; MemoryError.

Source: Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, and its published program, whose epsilons these are.

>>> import numpy as np
>>> from fwm_py import readouts
>>> keys = np.eye(3)[np.newaxis]  # one sequence of 3 pairs, whose keys are orthogonal
>>> values, beta = np.array([[2, 0, 1]]), np.ones((1, 3))
>>> readouts.delta_rule(keys, values, beta, query=keys[:, 0], n_values=4).round(3)  # of the first key: value 2
array([[0., 0., 1., 0.]])
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core

__all__ = [
    "GatedGradients",
    "Gradients",
    "delta_rule",
    "delta_rule_backward",
    "fwm_rule",
    "fwm_rule_backward",
    "softmax_rule",
    "softmax_rule_backward",
    "sum_rule",
    "sum_rule_backward",
]

Real = npt.NDArray[np.floating[Any]]


class Gradients(NamedTuple):
    """Gradients of a rule without write strengths: dkeys (B, L, p) and dquery (B, p)."""

    dkeys: Real
    dquery: Real


class GatedGradients(NamedTuple):
    """Gradients of a rule with write strengths: dkeys (B, L, p), dbeta (B, L) and dquery (B, p)."""

    dkeys: Real
    dbeta: Real
    dquery: Real


def sum_rule(keys: npt.ArrayLike, values: npt.ArrayLike, query: npt.ArrayLike, n_values: int) -> Real:
    """Linear attention: all associations are summed, and the read-out is normalised.

    W = sum_t v_t k_t^T, z = sum_t k_t, y = W q / (z . q + 1e-6).

    Returns
    -------
    y : array (B, N)

    References
    ----------
    Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv 2006.16236.
    """
    return _core.readout_forward("sum_rule", n_values=n_values, keys=keys, values=values, query=query)


def sum_rule_backward(
    dy: npt.ArrayLike, keys: npt.ArrayLike, values: npt.ArrayLike, query: npt.ArrayLike, n_values: int
) -> Gradients:
    """Gradients of `sum_rule`."""
    return Gradients(
        *_core.readout_backward("sum_rule", n_values=n_values, keys=keys, values=values, query=query, dy=dy)
    )


def delta_rule(
    keys: npt.ArrayLike, values: npt.ArrayLike, beta: npt.ArrayLike, query: npt.ArrayLike, n_values: int
) -> Real:
    """The delta rule: each write corrects what the memory holds for its key (the paper's own rule).

    W_0 = 0; for t = 1..L, with k = k_t / sum(k_t): W <- W + beta_t (v_t - W k) k^T. y = W q / (sum(q) + 1e-6).
    A key whose features sum to 0 gives NaN.

    Returns
    -------
    y : array (B, N)

    References
    ----------
    Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174; Widrow, Hoff 1960, Adaptive switching circuits.
    """
    return _core.readout_forward("delta_rule", n_values=n_values, keys=keys, values=values, beta=beta, query=query)


def delta_rule_backward(
    dy: npt.ArrayLike,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    beta: npt.ArrayLike,
    query: npt.ArrayLike,
    n_values: int,
) -> GatedGradients:
    """Gradients of `delta_rule`."""
    return GatedGradients(
        *_core.readout_backward(
            "delta_rule", n_values=n_values, keys=keys, values=values, beta=beta, query=query, dy=dy
        )
    )


def fwm_rule(
    keys: npt.ArrayLike, values: npt.ArrayLike, beta: npt.ArrayLike, query: npt.ArrayLike, n_values: int
) -> Real:
    """The fast weight memory: delta writes, a memory of bounded norm, a normalised read-out.

    W_1 = beta_1 v_1 k_1^T; for t = 2..L: W <- W + beta_t (v_t - W k_t) k_t^T, then W <- W / (relu(|W| - 1) + 1) with
    the Frobenius norm, through which the gradient flows. y is the layer norm of W q over the N values: biased
    variance, epsilon 1e-5, no affine part.

    Returns
    -------
    y : array (B, N)

    References
    ----------
    Schlag, Munkhdalai, Schmidhuber 2021, arXiv 2011.07831.
    """
    return _core.readout_forward("fwm_rule", n_values=n_values, keys=keys, values=values, beta=beta, query=query)


def fwm_rule_backward(
    dy: npt.ArrayLike,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    beta: npt.ArrayLike,
    query: npt.ArrayLike,
    n_values: int,
) -> GatedGradients:
    """Gradients of `fwm_rule`."""
    return GatedGradients(
        *_core.readout_backward("fwm_rule", n_values=n_values, keys=keys, values=values, beta=beta, query=query, dy=dy)
    )


def softmax_rule(keys: npt.ArrayLike, values: npt.ArrayLike, query: npt.ArrayLike, n_values: int) -> Real:
    """Softmax attention over the sequence, on keys and queries that no map was applied to.

    y = sum_t v_t softmax_t(k_t . q / sqrt(p)).

    Returns
    -------
    y : array (B, N)

    References
    ----------
    Vaswani et al. 2017, arXiv 1706.03762.
    """
    return _core.readout_forward("softmax_rule", n_values=n_values, keys=keys, values=values, query=query)


def softmax_rule_backward(
    dy: npt.ArrayLike, keys: npt.ArrayLike, values: npt.ArrayLike, query: npt.ArrayLike, n_values: int
) -> Gradients:
    """Gradients of `softmax_rule`."""
    return Gradients(
        *_core.readout_backward("softmax_rule", n_values=n_values, keys=keys, values=values, query=query, dy=dy)
    )
