"""RMS norm, with a gate or without: forward and gradient.

Delta-rule layers norm and gate what they read before they project it. For each
number of a row of x, with its weight, and with its gate z if there is one:

    y = weight x / sqrt(mean(x^2) + eps) a,   a = 1, or z / (1 + exp(-z)) (SiLU), or 1 / (1 + exp(-z)) (sigmoid)

The norm is that of Zhang and Sennrich, Root Mean Square Layer Normalization (2019, equation 4); Gated DeltaNet and
Qwen3-Next gate it by SiLU, Kimi Linear by sigmoid.

Common to both functions:

x : array (..., D), float32 or float64
    As a rule (B, T, HV, V): a norm for each head.
weight : array (D,), of x's dtype
gate : array (..., D), of x's shape and dtype, optional
activation : "silu", "swish" or "sigmoid"
    Of the gate. The first two are the same.
eps : float
    Added to the mean of the squares; finite and not negative.

Any strides, byte order and read-only inputs work. Inputs are never changed. Results have x's dtype and are the same to
the bit for every number of threads. Without rows y is empty and the gradient of weight zero. Values that are not finite
propagate through their row, and into the gradient of weight. Inside a call, numbers below the smallest normal one may
count as 0. Several Python threads may call at once; they run side by side.

Errors: TypeError for an argument of another type or dtype than said here; ValueError for shapes that do not fit, D = 0,
an activation not listed, a bad eps, and an out that cannot be written to or overlaps; MemoryError. The message begins
with the argument's name.

>>> import numpy as np
>>> from fwm_py import rms_norm, rms_norm_backward
>>> x = np.array([[3.0, 4.0], [6.0, 8.0]])
>>> rms_norm(x, np.ones(2)).round(3)
array([[0.849, 1.131],
       [0.849, 1.131]])
>>> rms_norm_backward(np.ones_like(x), x, np.ones(2)).dweight.round(3)
array([1.697, 2.263])
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core

__all__ = ["RmsNormGradients", "rms_norm", "rms_norm_backward"]

Real = npt.NDArray[np.floating[Any]]
Activation = Literal["silu", "swish", "sigmoid"]


class RmsNormGradients(NamedTuple):
    """Gradients of `rms_norm`: dx (..., D), dweight (D,); dgate (..., D), or None without a gate."""

    dx: Real
    dweight: Real
    dgate: Real | None


def rms_norm(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    *,
    activation: Activation = "silu",
    eps: float = 1e-6,
    out: Real | None = None,
) -> Real:
    """Every row is brought to a root mean square of 1, weighted, and gated if there is a gate.

    y = weight x / sqrt(mean(x^2) + eps) a(gate).

    Parameters
    ----------
    x, weight, gate, activation, eps
        As above.
    out : array (..., D), optional
        Is written and returned: of y's shape and dtype, C-contiguous, and sharing no memory with an input.

    Returns
    -------
    y : array (..., D)
    """
    return _core.norm_forward(x=x, weight=weight, gate=gate, activation=activation, eps=eps, out=out)


def rms_norm_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    *,
    activation: Activation = "silu",
    eps: float = 1e-6,
    out: tuple[Real | None, ...] | None = None,
) -> RmsNormGradients:
    """The gradient of sum(dy * y), for what `rms_norm` returns.

    Parameters
    ----------
    dy : array (..., D), of x's shape and dtype
        Gradient with respect to y.
    x, weight, gate, activation, eps
        As in the forward call.
    out : tuple (dx, dweight, dgate) of arrays, with None where the result has it, optional
        Are written and returned, as out of the forward call is; they share no memory with each other either.

    Returns
    -------
    RmsNormGradients
    """
    return RmsNormGradients(
        *_core.norm_backward(x=x, weight=weight, gate=gate, activation=activation, eps=eps, dy=dy, out=out)
    )
