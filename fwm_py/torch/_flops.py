"""What torch.utils.flop_counter counts for the operators.

As in PyTorch, products of matrices and vectors alone, two FLOP for a multiplication and an addition.

- A rule: those of the recurrence with its state, token by token, in whatever form the kernel computes them. A write
  k v^T and what a delta rule reads before it, S^T k, are 2 K V each for a value head, a read S^T q is 2 K V for a query
  head (or value head, where those are more).
- Linear attention without a causal mask: the same write for a key, and read for a query.
- Softmax attention: as scaled_dot_product_attention, of all keys, causal or not; its backward makes the scores again.
- The convolution, and its update: 2 W a number. FAVOR+: x omega. Norms and the other maps: none.
- A backward: two products for each of the forward's, but for omega, of which there is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from fwm_py import _core
from fwm_py.torch import _operators, _rules  # noqa: F401  whose operators are counted here

Shape = tuple[int, ...]

CORRECTS = {row["function"]: bool(row["strength"]) for row in _core.RULES}  # a delta rule reads before it writes


def rule(function: str, q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    (B, T, HQ, K), (HV, V) = q, v[2:]
    return B * T * 2 * K * V * (HV * (2 if CORRECTS[function] else 1) + max(HQ, HV))


def noncausal(q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    (B, T, HQ, K), (N, HV, V) = q, v[1:]
    return 2 * B * K * V * (N * HV + T * max(HQ, HV))


def softmax(q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    (B, T, HQ, K), (S, _, V) = q, v[1:]
    return 2 * B * HQ * T * S * (K + V)


def softmax_backward(do: Shape, q: Shape, k: Shape, v: Shape, *args: Any, **kwargs: Any) -> int:
    (B, T, HQ, K), (S, _, V) = q, v[1:]
    return 2 * B * HQ * T * S * (3 * K + 2 * V)


def convolution(x: Shape, weight: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(x) * weight[1]


def feature_map(function: str, x: Shape, nu: int | None, omega: Shape | None, **kwargs: Any) -> int:
    return 0 if omega is None else 2 * prod(x) * omega[1]


FORMULAS: dict[str, Callable[..., int]] = {
    "rule": rule,
    "rule_backward": lambda function, do, dstate, dtotal, *args, **kwargs: 2 * rule(function, *args),
    "rule_in_place": rule,
    "noncausal": noncausal,
    "noncausal_backward": lambda do, dstate, dtotal, *args, **kwargs: 2 * noncausal(*args),
    "softmax_attention": softmax,
    "softmax_attention_backward": softmax_backward,
    "causal_conv1d": convolution,
    "causal_conv1d_update": lambda x, state, *args, **kwargs: convolution(x, *args),
    "causal_conv1d_backward": lambda dy, dstate, *args, **kwargs: 2 * convolution(*args),
    "rms_norm": lambda *args, **kwargs: 0,
    "rms_norm_backward": lambda *args, **kwargs: 0,
    "feature_map": feature_map,
    "feature_map_backward": lambda function, dy, *args, **kwargs: feature_map(function, *args),
}

for name, formula in FORMULAS.items():
    register_flop_formula(getattr(torch.ops.fwm_py, name))(formula)
