"""The figures of a recall study.

    rows = figures.load("studies/recall.csv")
    figures.accuracy(rows).savefig("recall.svg")

matplotlib is imported when a function needs it: `pip install 'fwm_py[figures]'`.
"""

from __future__ import annotations

import collections
import os
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fwm_py.experiments.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, grid_behind, needed
from fwm_py.experiments.recall.grid import but_for_rate_and_seed
from fwm_py.experiments.recall.rows import Row
from fwm_py.experiments.recall.settings import Settings
from fwm_py.experiments.study import rows_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNED = 0.9
"""An accuracy from which a rate counts as one that learns."""


class Look(NamedTuple):
    """A memory's name, colour, marker and line; the line is whole where there is no map."""

    name: str
    color: str
    marker: str
    line: str


MEMORIES: dict[tuple[str, str, bool], Look] = {
    ("softmax", "none", False): Look("softmax", BLACK, "o", "-"),
    ("delta", "none", False): Look("delta", BLUE, "s", "-"),
    ("gated_delta", "none", False): Look("gated delta", SKY, "P", "-"),
    ("kimi_delta", "none", False): Look("Kimi delta", GREEN, "X", "-"),
    ("sum", "none", False): Look("sum", RED, "^", "-"),
    ("gated_sum", "none", False): Look("gated sum", ORANGE, "v", "-"),
    ("delta", "dpfp1", False): Look("delta, DPFP-1", BLUE, "p", "--"),
    ("delta", "elu1", False): Look("delta, elu + 1", PINK, "D", ":"),
    ("sum", "elu1", True): Look("sum, elu + 1, normalised", GREY, "h", ":"),
}
"""Rule, map and normalisation, in the order of legends."""


def load(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a study that have numbers; raises as `study.rows_with` does."""
    return rows_with(path, Row, "accuracy")


def memory_of(row: Row) -> tuple[str, str, bool]:
    return row.rule, row.feature_map, row.normalize


def of_grid(rows: Sequence[Row]) -> list[Row]:
    """The rows with sequences of four times the pairs, and the default number of steps, that compare memories: those
    with so many pairs are of more than one."""
    found = [row for row in rows if row.seq_len == 4 * row.num_kv_pairs and row.max_steps == Settings.max_steps]
    memories = collections.defaultdict(set)
    for row in found:
        memories[row.num_kv_pairs].add(memory_of(row))
    return [row for row in found if len(memories[row.num_kv_pairs]) > 1]


def at_settled_rates(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """By what runs share but lr and seed: the runs of the rate that has most seeds, which is where the study went on;
    of equals the most accurate."""
    groups: dict[tuple[Any, ...], dict[float, list[Row]]] = {}
    for row in rows:
        groups.setdefault(but_for_rate_and_seed(row), {}).setdefault(row.lr, []).append(row)
    return {
        same: max(rates.values(), key=lambda runs: (len(runs), middle(runs, "accuracy")))
        for same, rates in groups.items()
    }


def middle(rows: Sequence[Row], name: str) -> float:
    """The median of a column."""
    return float(statistics.median(getattr(row, name) or 0.0 for row in rows))


def accuracy(rows: Sequence[Row]) -> Figure:
    """The accuracy against the width of the model, a panel for each number of pairs."""
    runs = list(at_settled_rates(of_grid(rows)).values())
    pairs = sorted({group[0].num_kv_pairs for group in runs if memory_of(group[0]) in MEMORIES})
    pairs = [D for D in pairs if len({group[0].d_model for group in runs if group[0].num_kv_pairs == D}) > 1] or pairs
    figure = needed("matplotlib.figure").Figure(figsize=(3.3 * len(pairs) + 2.6, 4.6))
    every = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, D in zip(every, pairs):
        for kind, look in MEMORIES.items():
            groups = [group for group in runs if memory_of(group[0]) == kind and group[0].num_kv_pairs == D]
            points = sorted((group[0].d_model, middle(group, "accuracy")) for group in groups)
            if points:
                axes.plot(*zip(*points), color=look.color, marker=look.marker, linestyle=look.line, markersize=7,
                          alpha=0.9, label=look.name)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({group[0].d_model for group in runs}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("width of the model", fontsize=12)
        axes.set_title(f"{D} pairs, {4 * D} tokens", fontsize=12)
        axes.set_ylim(-0.02, 1.03)
        grid_behind(axes)
    every[0].set_ylabel("share of right answers", fontsize=12)
    fullest = max(every, key=lambda axes: len(axes.get_lines()))  # a study that goes on may lack some in the others
    every[-1].legend(handles=fullest.get_lines(), fontsize=10, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


def state(rows: Sequence[Row]) -> Figure:
    """The accuracy against the numbers that the memory holds, for each number of pairs."""
    runs = list(at_settled_rates(of_grid(rows)).values())
    pairs = sorted({group[0].num_kv_pairs for group in runs})
    figure = needed("matplotlib.figure").Figure(figsize=(9, 5.6))
    axes = figure.subplots()
    for kind, look in MEMORIES.items():
        label: str | None = look.name
        for D in pairs:
            groups = [group for group in runs if memory_of(group[0]) == kind and group[0].num_kv_pairs == D]
            points = sorted((group[0].state or 0, middle(group, "accuracy")) for group in groups)
            if points:
                size = 3 + 1.5 * D**0.5
                axes.plot(*zip(*points), color=look.color, marker=look.marker, linestyle=look.line, linewidth=0.6,
                          markersize=size, alpha=0.8, label=label)  # fmt: skip
                label = None
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("numbers that the memory holds", fontsize=12)
    axes.set_ylabel("share of right answers", fontsize=12)
    axes.set_title(f"{', '.join(map(str, pairs))} pairs: the larger the marker, the more", fontsize=12)
    grid_behind(axes)
    axes.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


def rates(rows: Sequence[Row]) -> Figure:
    """The share of learning rates, of those tried with each width, that come to 90 %, by memory and number of pairs."""
    tried: dict[tuple[Any, int], list[bool]] = collections.defaultdict(list)
    for row in of_grid(rows):
        if row.seed == 1:
            tried[memory_of(row), row.num_kv_pairs].append((row.accuracy or 0.0) >= LEARNED)
    kinds = [kind for kind in MEMORIES if any(of == kind for of, _ in tried)]
    pairs = sorted({D for _, D in tried})
    figure = needed("matplotlib.figure").Figure(figsize=(1.2 * len(pairs) + 4, 0.45 * len(kinds) + 1.6))
    axes = figure.subplots()
    shares = [[statistics.mean(tried.get((kind, D), [False])) for D in pairs] for kind in kinds]
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1.2, aspect="auto")
    for i, kind in enumerate(kinds):
        for j, D in enumerate(pairs):
            runs = tried.get((kind, D), [])
            axes.text(j, i, f"{sum(runs)} of {len(runs)}" if runs else "-", ha="center", va="center", fontsize=11)
    axes.set_xticks(range(len(pairs)), [f"{D} pairs" for D in pairs])
    axes.set_yticks(range(len(kinds)), [MEMORIES[kind].name for kind in kinds])
    axes.set_title("Runs that learn, of all rates and widths (seed 1)", fontsize=12)
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


FIGURES: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "recall": accuracy,
    "recall_state": state,
    "recall_rates": rates,
}
"""The figures of a study by name."""
