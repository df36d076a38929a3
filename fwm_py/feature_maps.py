"""Feature maps phi: each takes keys and queries from d to p features, so that a linear memory can tell them apart.

Every map is a pair of functions: `<name>(x, ...)` and `<name>_backward(dy, x, ...)`, the gradient of
sum(dy * <name>(x, ...)) with respect to x.

Common to all of them: x has shape (..., d) with any leading axes, d >= 1, and is float32 or float64; strides, byte
order and alignment may be any. The result has x's dtype. Values that are not finite propagate. Inputs are never
changed. Errors: TypeError for a dtype that is not float32 or float64, or for arguments whose dtypes differ; ValueError
for shapes that do not fit, an empty feature axis, or an argument out of its range; MemoryError.

>>> import numpy as np
>>> from fwm_py import feature_maps
>>> x = np.array([[1.0, -2.0]])
>>> feature_maps.dpfp(x, nu=1)
array([[2., 0., 0., 0.]])
>>> feature_maps.dpfp_backward(np.ones((1, 4)), x, nu=1)
array([[ 2., -1.]])
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fwm_py import _core

__all__ = [
    "dpfp",
    "dpfp_backward",
    "draw_omega",
    "elu1",
    "elu1_backward",
    "favor",
    "favor_backward",
    "tanh",
    "tanh_backward",
]

Real = npt.NDArray[np.floating[Any]]


def elu1(x: npt.ArrayLike) -> Real:
    """elu(x) + 1: x + 1 where x > 0, exp(x) elsewhere.

    Parameters
    ----------
    x : array (..., d)

    Returns
    -------
    array (..., d)

    References
    ----------
    Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv 2006.16236.
    """
    return _core.map_forward("elu1", x=x)


def elu1_backward(dy: npt.ArrayLike, x: npt.ArrayLike) -> Real:
    """Gradient of `elu1`: dy where x > 0, dy exp(x) elsewhere.

    Parameters
    ----------
    dy, x : array (..., d)

    Returns
    -------
    dx : array (..., d)
    """
    return _core.map_backward("elu1", x=x, dy=dy)[0]


def tanh(x: npt.ArrayLike) -> Real:
    """tanh(x), the map of the original fast weight memory.

    Parameters
    ----------
    x : array (..., d)

    Returns
    -------
    array (..., d)

    References
    ----------
    Schlag, Munkhdalai, Schmidhuber 2021, arXiv 2011.07831.
    """
    return _core.map_forward("tanh", x=x)


def tanh_backward(dy: npt.ArrayLike, x: npt.ArrayLike) -> Real:
    """Gradient of `tanh`: dy (1 - tanh(x)**2).

    Parameters
    ----------
    dy, x : array (..., d)

    Returns
    -------
    dx : array (..., d)
    """
    return _core.map_backward("tanh", x=x, dy=dy)[0]


def dpfp(x: npt.ArrayLike, nu: int = 1) -> Real:
    """Deterministic parameter-free projection, DPFP-nu.

    With r = [relu(x); relu(-x)], of 2 d elements, block j = 1..nu of the result holds r[i] r[i - j], the index i - j
    taken modulo 2 d.

    Parameters
    ----------
    x : array (..., d)
    nu : int
        Number of blocks, at least 1.

    Returns
    -------
    array (..., 2 d nu)

    References
    ----------
    Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Section 5.3.
    """
    return _core.map_forward("dpfp", x=x, argument=nu)


def dpfp_backward(dy: npt.ArrayLike, x: npt.ArrayLike, nu: int = 1) -> Real:
    """Gradient of `dpfp`; that of relu at 0 is 0.

    Parameters
    ----------
    dy : array (..., 2 d nu)
    x : array (..., d)
    nu : int

    Returns
    -------
    dx : array (..., d)
    """
    return _core.map_backward("dpfp", x=x, argument=nu, dy=dy)[0]


def favor(x: npt.ArrayLike, omega: npt.ArrayLike) -> Real:
    """FAVOR+, positive random features: [exp(u - o); exp(-u - o)].

    u = x omega and o = |x|**2 / 2 + log(2 m) / 2. Unlike in the paper, x is not scaled by d**-1/4: the published
    program of arXiv 2102.11174 leaves it as it is.

    Features shrink with |x|**2, and a product of two of them twice as fast. Where they are divided by their sum, as in
    `fwm_py.linear_attention(normalize=True)`, its eps of 1e-6 then outweighs them: at |x| = 8 the weights sum to 0.002
    in place of 1 (16 tokens, m = 64, a mean of 50 draws; mostly far less). Scale x down, or take a smaller eps.

    Parameters
    ----------
    x : array (..., d)
    omega : array (d, m)
        Random directions, see `draw_omega`. Converted to x's dtype.

    Returns
    -------
    array (..., 2 m)

    References
    ----------
    Choromanski et al. 2021, arXiv 2009.14794.
    """
    return _core.map_forward("favor", x=x, omega=omega)


def favor_backward(dy: npt.ArrayLike, x: npt.ArrayLike, omega: npt.ArrayLike) -> Real:
    """Gradient of `favor` with respect to x; omega counts as a constant.

    Parameters
    ----------
    dy : array (..., 2 m)
    x : array (..., d)
    omega : array (d, m)

    Returns
    -------
    dx : array (..., d)
    """
    return _core.map_backward("favor", x=x, omega=omega, dy=dy)[0]


def draw_omega(d: int, m: int, generator: _core.Philox | _core.MT19937) -> npt.NDArray[np.float32]:
    """Draw the random directions of `favor`: orthogonal within each block of d, as long as normal vectors.

    For each d columns a d x d matrix A of standard normals is drawn, a whole one even when fewer columns are still
    needed. With A = Q R as Householder's reflections give it, column c of the block is Q[:, c] |A[c, :]|.

    Parameters
    ----------
    d, m : int
        Rows and columns, at least 1.
    generator : fwm_py.random.Philox or fwm_py.random.MT19937
        Drawn from, and advanced.

    Returns
    -------
    array (d, m), float32

    References
    ----------
    Choromanski et al. 2021, arXiv 2009.14794.
    """
    return _core.draw_omega(d=d, m=m, generator=generator)
