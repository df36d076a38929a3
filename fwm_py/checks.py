"""Checks of arguments: each returns what was given, or raises "<name>: got <value>, expected <what is allowed>"."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import numpy as np


def shown(value: object) -> str:
    """`value` as an error message quotes it: on one line and short."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else text[:77] + "..."


def integer(name: str, value: Any, low: int, high: int) -> int:
    message = f"{name}: got {shown(value)}, expected an integer in {low}..{high}"
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(message)
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message) from None
    if not low <= number <= high:
        raise ValueError(message)
    return number


def positive(name: str, value: Any) -> float:
    message = f"{name}: got {shown(value)}, expected a finite number above 0"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(message)
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(message) from None
    if not 0 < number < float("inf"):
        raise ValueError(message)
    return number


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    message = f"{name}: got {shown(value)}, expected {', '.join(allowed[:-1])} or {allowed[-1]}"
    if not isinstance(value, str):
        raise TypeError(message)
    if value not in allowed:
        raise ValueError(message)
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {shown(value)}, expected True or False")
    return bool(value)


def instance(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {shown(value)}, expected {kind.__name__}")
