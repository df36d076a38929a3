"""The words by which commands name feature maps and rules: `elu1`, `dpfp3`, `favor64`; `sum`, `gated_delta`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from fwm_py import _core
from fwm_py.checks import choice, shown

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


def memory_options(rule: str, word: str, normalize: bool, redraw: bool = False) -> dict[str, Any]:
    """The options of `fwm_py.torch.nn.FastWeightAttention` that a rule's and a map's words stand for.

    Parameters
    ----------
    rule : str
        One of `RULES`.
    word : str
        A map's, as of `feature_map`.
    normalize, redraw : bool
        As of the layer.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>", also where the rule or the map has no such option.
    """
    function = RULES[choice("rule", rule, tuple(RULES))]
    chosen = feature_map(word)
    of_map: Any = MAPS[chosen.function] if chosen else {}
    of_rule: Any = next((row for row in _core.RULES if row["function"] == function), {})
    able = " or ".join(name for name, of in RULES.items() if _normalizes(of))
    for name, fits, message in (
        ("feature_map", chosen is None or of_rule, f"{shown(word)}, expected none with {rule}"),
        ("normalize", not normalize or _normalizes(function), f"True with {rule}, expected {able}"),
        (
            "normalize",
            not normalize or of_map.get("positive"),
            f"True with the map {word}, expected one that is positive",
        ),
        ("redraw", not redraw or of_map.get("takes_omega"), f"True with the map {word}, expected favorN"),
    ):
        if not fits:
            raise ValueError(f"{name}: got {message}")
    options: dict[str, Any] = {"rule": function}
    if chosen is not None:
        options["feature_map"] = chosen.function
        if chosen.argument:
            options["nu" if of_map["argument"] == "nu" else "features"] = chosen.argument
    if _normalizes(function):
        options["normalize"] = normalize
    return options | ({"redraw": True} if redraw else {})


def _normalizes(function: str) -> bool:
    return any(row["normalizes"] for row in _core.RULES if row["function"] == function)
