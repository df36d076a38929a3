"""The figures of a capacity study.

    rows = figures.load("studies/capacity.csv")
    figures.law(rows).savefig("law.svg")

matplotlib and pandas are imported when a function needs them: `pip install 'fwm_py[figures]'`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fwm_py.experiments.capacity.measure import Row
from fwm_py.experiments.drawing import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY, grid_behind, needed
from fwm_py.experiments.retrieval import figures as retrieval_figures
from fwm_py.experiments.study import rows_with

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAPS = {"elu1": (RED, "s"), "dpfp1": (SKY, "P"), "dpfp2": (BLUE, "X"), "dpfp3": (GREEN, "p")}
"""Colour and marker of each map: those of the paper's figures here."""

FAVOR = {"favor16": (ORANGE, "^"), "favor64": (PINK, "v")}
"""The same of FAVOR+."""

OF_FWM = {"tanh": (ORANGE, "D")} | MAPS
"""The same of fwm's panel, with the map that the paper has for it."""

NAMES = {"tanh": "tanh", "elu1": "elu + 1", "dpfp1": "DPFP-1", "dpfp2": "DPFP-2", "dpfp3": "DPFP-3"}
PUBLISHED = {"Linear": ("elu1", 64), "DPFP-1": ("dpfp1", 128), "DPFP-2": ("dpfp2", 256), "DPFP-3": ("dpfp3", 384)}
"""The paper's labels of Setting 1 that have a map of their own here, and its p at d = 64."""


def load(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a study that have numbers; raises as `study.rows_with` does."""
    return rows_with(path, Row, "loss")


def law(rows: Sequence[Row]) -> Figure:
    """The paper's own runs on the bound, and what trained memories store against their number of features."""
    figure = needed("matplotlib.figure").Figure(figsize=(13, 5.6))
    left, right = figure.subplots(1, 2)
    _published(left)
    _stored(right, rows)
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


def _published(axes: Axes) -> None:
    last = retrieval_figures.published().last
    for label, (word, p) in PUBLISHED.items():
        runs = last[(last["setting"] == 1) & (last["label"] == label)]
        axes.plot(p / runs["n_keys"], 2 * runs["loss"], **_marks(word), label=f"{label}, p = {p}")
    axes.plot([0, 1, 4], [1, 0, 0], color=BLACK, zorder=1, label="the bound: 1 - p / N")
    axes.set_xlim(0, 2.5)
    axes.set_ylim(-0.03, 1)
    axes.set_xlabel("features for each key, p / N", fontsize=13)
    axes.set_ylabel("share of keys lost, 2 loss", fontsize=13)
    axes.set_title("The paper's runs of Setting 1 (d = 64, 20 to 600 keys)", fontsize=13)
    _finish(axes)


def _stored(axes: Axes, rows: Sequence[Row]) -> None:
    overloaded = [row for row in rows if row.load == 2 and not row.replace and row.rule in ("sum", "delta")]
    for word in MAPS:
        for rule, how in (("sum", {}), ("delta", {"markerfacecolor": "none"})):
            found = [row for row in overloaded if (row.feature_map, row.rule) == (word, rule)]
            points = _medians(found, lambda row: row.p, lambda row: row.stored)
            if points:
                axes.plot(*zip(*points), **_marks(word) | how, label=f"{NAMES[word]}, {rule}")
    axes.plot([6, 500], [6, 500], color=BLACK, zorder=1, label="K = p")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("features p", fontsize=13)
    axes.set_ylabel("associations stored, K = N (1 - 2 loss)", fontsize=13)
    axes.set_title("Trained with twice as many keys as features, N = 2 p", fontsize=13)
    _finish(axes)


def against_load(rows: Sequence[Row]) -> Figure:
    """What is stored of p against the load N / p: sum, delta, and delta with replacement."""
    figure = needed("matplotlib.figure").Figure(figsize=(14, 5))
    panels = (("sum", False), ("delta", False), ("delta", True))
    every = figure.subplots(1, len(panels), sharey=True)
    for axes, (rule, replace) in zip(every, panels):
        for word in MAPS:
            found = [row for row in rows if (row.feature_map, row.rule, row.replace) == (word, rule, replace)]
            for p in sorted({row.p or 0 for row in found}):
                points = _medians([row for row in found if row.p == p], lambda row: row.load, lambda row: row.stored)
                size = 3 + p**0.5 / 2
                axes.plot(
                    [load for load, _ in points],
                    [stored / p for _, stored in points],
                    **_marks(word) | {"linestyle": "-", "linewidth": 0.7, "markersize": size},
                )
            axes.plot([], [], **_marks(word), label=NAMES[word])
        axes.plot([0, 1, 4], [0, 1, 1], color=BLACK, zorder=1, label="all keys, then p of them")
        axes.set_xlim(0, 4.15)
        axes.set_ylim(0, 1.1)
        axes.set_xlabel("keys for each feature, N / p", fontsize=13)
        axes.set_title(rule + (", with replacement" if replace else ""), fontsize=13)
        grid_behind(axes)
    every[0].set_ylabel("stored of p, K / p", fontsize=13)
    every[0].legend(fontsize=10, loc="lower right")
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


def others(rows: Sequence[Row]) -> Figure:
    """What has no place on the line, a panel for each of these that the study has: FAVOR+, softmax, fwm."""
    panels = {
        _favor: [row for row in rows if row.feature_map in FAVOR and row.rule == "sum"],
        _softmax: [row for row in rows if row.rule == "softmax"],
        _fwm: [row for row in rows if row.rule == "fwm"],
    }
    drawn = {draw: found for draw, found in panels.items() if found} or panels
    figure = needed("matplotlib.figure").Figure(figsize=(4.7 * len(drawn), 5))
    for axes, (draw, found) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items()):
        draw(axes, found)
        axes.set_ylim(0)
        _finish(axes)
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


def _favor(axes: Axes, rows: Sequence[Row]) -> None:
    for word, (color, marker) in FAVOR.items():
        for redraw, line, how in (("pass", ":", "drawn for each pass"), ("never", "-", "drawn once")):
            found = [row for row in rows if (row.feature_map, row.redraw) == (word, redraw)]
            points = _medians(found, lambda row: row.load, lambda row: row.stored)
            if points:
                p = found[0].p or 0
                loads, stored = zip(*points)
                shares = [K / p for K in stored]
                axes.plot(loads, shares, color=color, marker=marker, linestyle=line, label=f"p = {p}, {how}")
    axes.plot([0, 1, 2], [0, 1, 1], color=BLACK, zorder=1, label="all keys, then p of them")
    axes.set_ylim(0, 1.5)
    axes.set_title("FAVOR+, sum, d = 16", fontsize=13)
    axes.set_ylabel("stored of p, K / p", fontsize=13)
    axes.set_xlabel("keys for each feature, N / p", fontsize=13)


def _softmax(axes: Axes, rows: Sequence[Row]) -> None:
    for d, marker, size in ((4, "o", 7), (8, "s", 12), (16, "^", 6)):
        found = [row for row in rows if row.hidden_size == d]
        points = _medians(found, lambda row: row.n_keys, lambda row: row.stored)
        if points:
            filled = "none" if d == 8 else BLACK
            axes.plot(*zip(*points), color=BLACK, marker=marker, linestyle=":", markersize=size,
                      markerfacecolor=filled, label=f"d = {d}")  # fmt: skip
    axes.axline((0, 0), slope=1, color=BLACK, linewidth=1, label="all keys")
    axes.set_title("Softmax: no p, no bound", fontsize=13)
    axes.set_ylabel("stored, K", fontsize=13)
    axes.set_xlabel("keys N", fontsize=13)


def _fwm(axes: Axes, rows: Sequence[Row]) -> None:
    for word in OF_FWM:
        found = [row for row in rows if row.feature_map == word]
        points = _medians(found, lambda row: row.load, lambda row: row.right)
        if points:
            axes.plot(*zip(*points), **_marks(word) | {"linestyle": "-"}, label=f"{NAMES[word]}, p = {found[0].p}")
    loads = [1 + i / 20 for i in range(31)]
    axes.plot([0, *loads], [1, *(1 / load for load in loads)], color=BLACK, zorder=1, label="p keys of N")
    axes.set_title("fwm, d = 16", fontsize=13)
    axes.set_ylabel("share of right answers", fontsize=13)
    axes.set_xlabel("keys for each feature, N / p", fontsize=13)


FIGURES: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "capacity": law,
    "capacity_load": against_load,
    "capacity_others": others,
}
"""The figures of a study by name."""


def _marks(word: str) -> dict[str, Any]:
    color, marker = OF_FWM[word]
    return {"color": color, "marker": marker, "linestyle": "none", "markersize": 8, "alpha": 0.85}


def _medians(
    rows: Iterable[Row], x: Callable[[Row], float | None], y: Callable[[Row], float | None]
) -> list[tuple[float, float]]:
    """(x, the median of y) of the rows that have both, by x."""
    groups: dict[float, list[float]] = {}
    for row in rows:
        at, value = x(row), y(row)
        if at is not None and value is not None:
            groups.setdefault(at, []).append(value)
    return [(at, statistics.median(values)) for at, values in sorted(groups.items())]


def _finish(axes: Axes) -> None:
    grid_behind(axes)
    axes.legend(fontsize=10)
