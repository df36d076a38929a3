"""The words by which commands name feature maps and rules: `elu1`, `dpfp3`, `favor64`; `sum`, `gated_delta`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from fwm_py import _core
from fwm_py.checks import shown

NONE = "none"
MAPS: dict[str, Any] = {row["function"]: row for row in _core.MAPS}
"""The tables' rows by the names of their functions."""

_RULE_WORDS = {
    "softmax_attention": "softmax",
    "linear_attention": "sum",
    "gated_linear_attention": "gated_sum",
    "fast_weight_memory": "fwm",
}

RULES: dict[str, str] = {
    _RULE_WORDS.get(function, function.replace("_rule", "")): function
    for function in ("softmax_attention", *(row["function"] for row in _core.RULES))
}
"""The words of rules, and their functions in `fwm_py.rules` and `fwm_py.attention`: `gated_delta` is
`gated_delta_rule`."""

_ARGUMENTS = {function: row["argument"] for function, row in MAPS.items()}


class FeatureMap(NamedTuple):
    """A function of `fwm_py.feature_maps` and its argument, 0 where it has none."""

    function: str
    argument: int


def feature_map(word: str) -> FeatureMap | None:
    """The map that a word names, None for `none`.

    Raises
    ------
    TypeError, ValueError
        "feature_map: got <word>, expected <words>".
    """
    expected = "expected none, " + ", ".join(name + "N" * bool(argument) for name, argument in _ARGUMENTS.items())
    if not isinstance(word, str):
        raise TypeError(f"feature_map: got {shown(word)}, {expected}")
    if word == NONE:
        return None
    if word in _ARGUMENTS and not _ARGUMENTS[word]:
        return FeatureMap(word, 0)
    found = re.fullmatch(r"([a-z]+)([1-9][0-9]{0,5})", word, re.ASCII)
    if found and _ARGUMENTS.get(found[1]):
        return FeatureMap(found[1], int(found[2]))
    raise ValueError(f"feature_map: got {shown(word)}, {expected} (N a number from 1)")
