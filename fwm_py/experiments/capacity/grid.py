"""The settings of a capacity study, and the study itself."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fwm_py import _core
from fwm_py.checks import flag, positive, shown
from fwm_py.experiments.capacity.measure import MAP_WORDS, RULE_WORDS, Row, features_of, measure, row_of
from fwm_py.experiments.retrieval.settings import LIMITS, Settings
from fwm_py.experiments.study import run_study
from fwm_py.experiments.words import feature_map as map_of

if TYPE_CHECKING:
    from distributed import Client

FEATURE_MAPS = ("elu1", "dpfp1", "dpfp2", "dpfp3")
RULES = ("sum", "delta")
HIDDEN_SIZES = (8, 16)
LOADS = (0.5, 1.0, 2.0, 4.0)
SEEDS = (1, 2, 3)

_NAMES = {word: name for name, word in MAP_WORDS.items()}
_RULES = {word: name for name, word in RULE_WORDS.items()}
WITHOUT_MAP = tuple(row["function"].removesuffix("_rule") for row in _core.READOUTS if not row["uses_map"])
"""The rules that have no map, and so no p: softmax."""


def grid(
    feature_map: Sequence[str] | None = None,
    rule: Sequence[str] = RULES,
    hidden_size: Sequence[int] = HIDDEN_SIZES,
    load: Sequence[float] | None = None,
    n_keys: Sequence[int] | None = None,
    seed: Sequence[int] = SEEDS,
    replace: bool = False,
    redraw: str | None = None,
    max_steps: int = Settings.max_steps,
) -> list[Settings]:
    """All combinations, the costliest first.

    Parameters
    ----------
    feature_map : sequence of str, optional
        `elu1`, `tanh`, `dpfp1`, `favor64`, ..; `none` for softmax. elu1, dpfp1, dpfp2, dpfp3 if not given, and none for
        softmax.
    rule : sequence of str
        `sum`, `delta`, `fwm`, `softmax`.
    hidden_size : sequence of int
        Sizes d of a key before the map.
    load : sequence of float, optional
        Keys for each of the p features: N = load p, rounded. 0.5, 1, 2, 4 if neither this nor n_keys is given.
    n_keys : sequence of int, optional
        N itself, for softmax, which has no p, or for all.
    seed : sequence of int
    replace : bool
        Draw keys and values with replacement, in sequences of 2 N.
    redraw : str, optional
        `pass` or `never`, for FAVOR+: `pass` if not given.
    max_steps : int
        As of `retrieval.Settings`.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """
    replace = flag("replace", replace)
    if load is not None and n_keys is not None:
        raise ValueError("load: got loads and n_keys, expected one of them")
    found: dict[Settings, None] = {}
    for one_rule in _listed("rule", rule):
        if one_rule not in _RULES:
            raise ValueError(f"rule: got {shown(one_rule)}, expected {', '.join(_RULES)}")
        for word, d, s in itertools.product(_maps(one_rule, feature_map), hidden_size, seed):
            first = _settings(one_rule, word, d, s, replace, redraw, max_steps)
            for N in _numbers_of_keys(first, load, n_keys):
                found[_settings(one_rule, word, d, s, replace, redraw, max_steps, N)] = None
    if not found:
        raise ValueError("feature_map, rule, hidden_size, load, seed: got an empty list, expected values")
    return sorted(found, key=cost, reverse=True)


def _listed(name: str, words: Sequence[str]) -> Sequence[str]:
    if isinstance(words, str):
        raise TypeError(f"{name}: got {shown(words)}, expected a list of words")
    return words


def _maps(rule: str, feature_map: Sequence[str] | None) -> Sequence[str]:
    if rule not in WITHOUT_MAP:
        words = FEATURE_MAPS if feature_map is None else _listed("feature_map", feature_map)
        if "none" in words:
            raise ValueError(f"feature_map: got 'none', expected a map with the rule {rule}")
        return words
    if feature_map is not None and list(feature_map) != ["none"]:
        raise ValueError(f"feature_map: got {', '.join(feature_map)}, expected none with {rule}")
    return ("none",)


def _settings(
    rule: str, word: str, d: int, seed: int, replace: bool, redraw: str | None, max_steps: int, n_keys: int = 2
) -> Settings:
    chosen = map_of(word)
    return Settings(
        n_keys=n_keys,
        attn_name=_RULES[rule] if chosen is None else _NAMES[chosen.function],
        attn_arg=chosen.argument if chosen else 0,
        update_rule=Settings.update_rule if chosen is None else _RULES[rule],
        replace=replace,
        seed=seed,
        hidden_size=d,
        max_steps=max_steps,
        redraw=Settings.redraw if redraw is None else redraw,
    )


def _numbers_of_keys(settings: Settings, load: Sequence[float] | None, n_keys: Sequence[int] | None) -> Sequence[int]:
    if n_keys is not None:
        return n_keys
    p = features_of(settings)
    if p is None:
        raise ValueError(f"n_keys: got none, expected numbers of keys with {settings.rule}, which has no p")
    low, high = LIMITS["n_keys"]
    numbers = []
    for one in LOADS if load is None else load:
        N = round(positive("load", one) * p)
        if not low <= N <= high:
            raise ValueError(f"load: got {shown(one)}, expected {low}..{high} keys, not {N}, where p is {p}")
        numbers.append(N)
    return numbers


def cost(settings: Settings) -> float:
    """What a step takes, but for a factor: the features of all its tokens."""
    width = features_of(settings) or settings.n_keys
    return settings.resolved_batch_size * settings.seq_len * width


def study(
    grid: Sequence[Settings],
    path: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    client: Client | None = None,
    on_row: Callable[[Row], object] | None = None,
) -> list[Row]:
    """Measure every one of the settings that has no row in the file yet.

    Parameters
    ----------
    grid : sequence of retrieval.Settings
        As `grid` makes them, or any.
    path : path
        A CSV file, made if missing, whose columns are the fields of `Row`. Rows are appended whole as they are made.
    jobs : int, optional
        Runs side by side, each on one thread. None: as many as cores this process may use.
    client : distributed.Client, optional
        A Dask cluster to run them on. It needs fwm_py, not the file.
    on_row : callable, optional
        Called with each row that has been made.

    Returns
    -------
    list of Row
        One for each of the settings, made now or before.

    Raises
    ------
    Refused
        If another study is writing into the file.
    OSError
        If it cannot be written; the rows that are there are whole.
    ValueError
        If it is damaged: "<path>: line <n>: got <line>, expected <what>; <the way out>".
    """
    return run_study(measure, list(grid), row_of, path, Row, jobs=jobs, client=client, on_row=on_row)
