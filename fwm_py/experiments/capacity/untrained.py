"""What a memory recalls of keys that nobody has trained: random directions, against the formulas.

N = c p random unit keys in p dimensions, each written once with a one-hot value of its own, and all of them asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fwm_py
from fwm_py.checks import integer, positive

Array = npt.NDArray[Any]


class Untrained(NamedTuple):
    """A rule's mean loss over random keys, measured and by its formula."""

    rule: str
    p: int
    n_keys: int
    loss: float
    formula: float


def sum_formula(p: int, n_keys: int) -> float:
    """(N - 1) / (2 p): each of the N - 1 other keys adds (k . q)^2 / 2, which is 1 / (2 p) on average."""
    return (n_keys - 1) / (2 * p)


def delta_formula(p: int, n_keys: int) -> float:
    """(2 - e^-c) (1 - (1 - e^-c) / c) / 2, c = N / p: a mean field, derived in docs/capacity.md."""
    c = n_keys / p
    kept = math.exp(-c)
    return (2 - kept) * (1 - (1 - kept) / c) / 2


def pseudo_inverse_formula(p: int, n_keys: int) -> float:
    """max(0, 1 - p/N) / 2: what the best W leaves, the bound itself."""
    return max(0.0, 1 - p / n_keys) / 2


def _sum(k: Array, v: Array) -> Array:
    return np.asarray(fwm_py.linear_attention(k, k, v, causal=False, scale=1.0)[0])


def _delta(k: Array, v: Array) -> Array:
    beta = np.ones(k.shape[:3])
    _, S = fwm_py.delta_rule(k, k, v, beta, output_final_state=True)
    return np.asarray(k.swapaxes(1, 2) @ S).swapaxes(1, 2)


def _pseudo_inverse(k: Array, v: Array) -> Array:
    keys = k[:, :, 0]
    return np.asarray(keys @ (np.linalg.pinv(keys) @ v[:, :, 0]))[:, :, np.newaxis]


RULES: dict[str, tuple[Callable[[Array, Array], Array], Callable[[int, int], float]]] = {
    "sum": (_sum, sum_formula),
    "delta": (_delta, delta_formula),
    "pseudo-inverse": (_pseudo_inverse, pseudo_inverse_formula),
}
"""What each answers to all keys, (B, N, 1, N), and the formula of its mean loss."""


def untrained(p: int, load: float, *, sequences: int = 8, seed: int = 1) -> list[Untrained]:
    """The mean loss of each rule over random unit keys, beside its formula.

    Parameters
    ----------
    p : int
        Features of a key, 1..4096.
    load : float
        N / p; N = load p, rounded, 2..16384.
    sequences : int
        Over which the mean is taken.
    seed : int
        Of the keys.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".

    Examples
    --------
    >>> from fwm_py.experiments.capacity import untrained
    >>> for rule, p, N, loss, formula in untrained(64, 1.0):
    ...     print(f"{rule:14} {loss:.2f} {formula:.2f}")
    sum            0.49 0.49
    delta          0.30 0.30
    pseudo-inverse 0.00 0.00
    """
    p = integer("p", p, 1, 4096)
    N = integer("load p", round(positive("load", load) * p), 2, 16384)
    random = np.random.default_rng(integer("seed", seed, 0, 2**32 - 1))
    losses: dict[str, list[float]] = {rule: [] for rule in RULES}
    v = np.eye(N)[np.newaxis, :, np.newaxis]
    for _ in range(integer("sequences", sequences, 1, 10**6)):
        k = random.standard_normal((1, N, 1, p))
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
        for rule, (answer, _) in RULES.items():
            losses[rule].append(float(((answer(k, v) - v) ** 2).sum() / (2 * N)))
    return [Untrained(rule, p, N, sum(losses[rule]) / sequences, formula(p, N)) for rule, (_, formula) in RULES.items()]
