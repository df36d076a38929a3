"""What the layers check of their arguments, and the tables that say what fits what."""

from __future__ import annotations

import sys
from numbers import Integral, Real
from typing import Any

from fwm_py import _core
from fwm_py.torch._arrays import shown
from fwm_py.torch.nn.state import AttentionState, KeyCache

RULES = {row["function"]: row for row in _core.RULES}
MAPS = {row["function"]: row for row in _core.MAPS}
POSITIVE_MAPS = tuple(name for name, row in MAPS.items() if row["positive"])  # a sum of features is a sum of weights
NONCAUSAL = ("linear_attention", "softmax_attention")
WIDTHS = range(1, 17)  # of the convolution
POSITIVE = f"a positive map: {', '.join(POSITIVE_MAPS)}"


def maps_of(argument: str) -> str:
    """As a message says which maps take it."""
    return "feature_map=" + " or ".join(repr(name) for name, row in MAPS.items() if row["argument"] == argument)


def check_sizes(needed: dict[str, Any], **optional: Any) -> None:
    for name, size in {**needed, **optional}.items():
        if size is None and name in optional:
            continue
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise TypeError(f"{name}: got {shown(size)}, expected an integer")
        if size < 1:
            raise ValueError(f"{name}: got {size}, expected at least 1")


def check_word(name: str, got: Any, words: tuple[Any, ...]) -> None:
    if not (got is None or isinstance(got, str)) or got not in words:
        raise ValueError(f"{name}: got {shown(got)}, expected one of {', '.join(map(repr, words))}")


def check_number(name: str, got: Any, low: float, high: float, expected: str) -> None:
    if isinstance(got, bool) or not isinstance(got, Real):
        raise TypeError(f"{name}: got {shown(got)}, expected a number")
    if not low <= float(got) <= high:
        raise ValueError(f"{name}: got {got}, expected {expected}")


def check_heads(d_model: int, heads: int, kv_heads: int | None, head_dim: int | None, value_dim: int | None) -> None:
    if (head_dim is None or value_dim is None) and d_model % heads:
        raise ValueError(f"heads: got {heads}, expected a divisor of d_model = {d_model}, or head_dim and value_dim")
    if kv_heads is not None and heads % kv_heads:
        raise ValueError(f"kv_heads: got {kv_heads}, expected a divisor of heads = {heads}")


def check_time_constants(given: Any) -> tuple[float, float]:
    if given is None:
        return 1e-3, 1e-1
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(f"time_constants: got {shown(given)}, expected a pair of numbers")
    for number in given:
        check_number("time_constants", number, sys.float_info.min, sys.float_info.max, "finite numbers above 0")
    return float(given[0]), float(given[1])


def check_state(layer: Any, state: Any, n: int) -> None:
    """Whether an earlier call of such a layer, with n rows or sequences, may have returned it."""
    if not isinstance(state, AttentionState):
        raise TypeError(f"state: got {shown(state)}, expected an AttentionState")
    heads, p, V = layer.kv_heads, layer.features, layer.value_dim
    memory = state.memory
    if isinstance(memory, KeyCache):
        got = [tuple(memory.keys.shape), tuple(memory.values.shape)]
        expected: list[tuple[int, ...]] = [(n, memory.length, heads, p), (n, memory.length, heads, V)]
    else:
        got = [tuple(x.shape) for x in (memory if isinstance(memory, tuple) else (memory,))]
        expected = [(n, heads, p, V)]
        expected += [(n, heads, p)] if layer.normalize else []
    if isinstance(memory, KeyCache) != (layer.rule == "softmax_attention") or got != expected:
        raise ValueError(f"state: got a memory of shapes {got}, expected one of this layer, of {n} rows")
    if layer.conv_size is not None:
        channels = [layer.q_proj.out_features, layer.k_proj.out_features, layer.v_proj.out_features]
        wanted = [(n, layer.conv_size - 1, size) for size in channels]
        there = [tuple(x.shape) for x in state.convolution or ()]
        if there != wanted:
            raise ValueError(f"state: got convolutions of shapes {there}, expected {wanted}")
