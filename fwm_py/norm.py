"""Gated RMS norm, what a delta-rule layer does to its outputs before they are projected: forward and gradient.

For each number of a row of x, with its gate z and its weight:

    y = weight x / sqrt(mean(x^2) + eps) a(z),   a(z) = z / (1 + exp(-z)) (SiLU) or 1 / (1 + exp(-z)) (sigmoid)

The norm is that of Zhang and Sennrich, Root Mean Square Layer Normalization (2019, equation 4); Gated DeltaNet and Qwen3-Next gate
it by SiLU, Kimi Linear by sigmoid.

Common to both functions:

x : array (..., D), float32 or float64
    As a rule (B, T, HV, V): a norm for each head.
gate : array (..., D), of x's shape and dtype
weight : array (D,), of x's dtype
activation : "silu", "swish" or "sigmoid"
    The first two are the same.
eps : float
    Added to the mean of the squares; finite and not negative.

Any strides, byte order and read-only inputs work. Inputs are never changed. Results have x's dtype and are the same to the
bit for every number of threads. Without rows y is empty and the gradient of weight zero. Values that are not finite propagate
through their row, and into the gradient of weight. Inside a call, numbers below the smallest normal one may count as 0. Several
Python threads may call at once; they run side by side.

Errors: TypeError for an argument of another type or dtype than said here; ValueError for shapes that do not fit, D = 0, an
activation not listed, a bad eps, and an out that cannot be written to or overlaps; MemoryError. The message begins with the
argument's name.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core

__all__ = ["RmsNormGatedGradients", "rms_norm_gated", "rms_norm_gated_backward"]

Real = npt.NDArray[np.floating[Any]]
Activation = Literal["silu", "swish", "sigmoid"]


class RmsNormGatedGradients(NamedTuple):
    """Gradients of `rms_norm_gated`: dx and dgate (..., D), dweight (D,)."""

    dx: Real
    dgate: Real
    dweight: Real


def rms_norm_gated(
    x: npt.ArrayLike, gate: npt.ArrayLike, weight: npt.ArrayLike, *, activation: Activation = "silu", eps: float = 1e-6,
    out: Real | None = None,
) -> Real:
    """Every row is brought to a root mean square of 1, weighted, and gated.

    y = weight x / sqrt(mean(x^2) + eps) a(gate).

    Parameters
    ----------
    x, gate, weight, activation, eps
        As above.
    out : array (..., D), optional
        Is written and returned: of y's shape and dtype, C-contiguous, and sharing no memory with an input.

    Returns
    -------
    y : array (..., D)
    """
    return _core.norm_forward(x, gate, weight, activation, eps, out)


def rms_norm_gated_backward(
    dy: npt.ArrayLike, x: npt.ArrayLike, gate: npt.ArrayLike, weight: npt.ArrayLike, *, activation: Activation = "silu",
    eps: float = 1e-6, out: tuple[Real, Real, Real] | None = None,
) -> RmsNormGatedGradients:
    """The gradient of sum(dy * y), for what `rms_norm_gated` returns.

    Parameters
    ----------
    dy : array (..., D), of x's shape and dtype
        Gradient with respect to y.
    x, gate, weight, activation, eps
        As in the forward call.
    out : tuple (dx, dgate, dweight) of arrays, optional
        Are written and returned, as out of the forward call is; they share no memory with each other either.

    Returns
    -------
    RmsNormGatedGradients
    """
    return RmsNormGatedGradients(*_core.norm_backward(dy, x, gate, weight, activation, eps, out))
