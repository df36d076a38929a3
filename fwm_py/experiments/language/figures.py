"""The figures of a sweep of language models.

    sweep = figures.load("studies/language")
    figures.curves(sweep).savefig("curves.svg")

matplotlib is imported when a function needs it: `pip install 'fwm_py[figures]'`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fwm_py.experiments.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, grid_behind, needed
from fwm_py.experiments.language import sweeps
from fwm_py.experiments.language.data import Data
from fwm_py.experiments.run_folder import LogRow
from fwm_py.experiments.sweeps import LOGS, TEXT, slug
from fwm_py.experiments.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (BLUE, RED, GREEN, ORANGE, SKY, PINK, BLACK, GREY)
MARKERS = "osP^XDvph"


class Curve(NamedTuple):
    """What a run's log says of valid: tokens seen, and perplexity."""

    tokens: list[int]
    perplexity: list[float]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The rows of a sweep, the curves of its runs, and what counting reaches on its text.

    Attributes
    ----------
    rows : dict of list of Row
        By the names of variants.
    curves : dict of list of Curve
        Likewise.
    floors : dict of float
        Perplexities of valid, by `unigram`, `bigram` and `trigram`.
    """

    rows: dict[str, list[sweeps.Row]]
    curves: dict[str, list[Curve]]
    floors: dict[str, float]


def load(out: str | os.PathLike[str]) -> Sweep:
    """The sweep in a folder.

    Raises
    ------
    OSError, ValueError
        If a file cannot be read, is damaged, or there are no rows with numbers.
    """
    rows: dict[str, list[sweeps.Row]] = {}
    curves: dict[str, list[Curve]] = {}
    for row in sweeps.load(out):
        rows.setdefault(row.name, []).append(row)
        path = Path(out) / LOGS / f"{slug(row.name, row.seed)}.csv"
        curves.setdefault(row.name, []).append(_curve(path))
    return Sweep(rows, curves, Data.read_meta(Path(out) / TEXT)["floors"])


def _curve(path: Path) -> Curve:
    table = Table(path, LogRow._fields, "the sweep makes it again where its row of results.csv is deleted")
    found = Curve([], [])
    for number, fields in table.read():
        if fields[-1]:
            try:
                tokens, loss = int(fields[1]), float(fields[-1])
            except ValueError:
                raise table.damaged(number, ",".join(fields), "numbers") from None
            found.tokens.append(tokens)
            found.perplexity.append(math.exp(min(loss, 700.0)))
    return found


def _looks(sweep: Sweep) -> dict[str, tuple[str, str]]:
    return {name: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(sweep.rows)}


def _draw_floors(axes: Axes, floors: dict[str, float]) -> None:
    for name in ("bigram", "trigram"):
        axes.axhline(floors[name], color=GREY, linestyle="--", linewidth=1)
        axes.annotate(f"{name}s, counted", (0.99, floors[name]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", ha="right", color=GREY)  # fmt: skip


def curves(sweep: Sweep) -> Figure:
    """Perplexity of valid during training, a line for each run."""
    figure = needed("matplotlib.figure").Figure(figsize=(10, 6))
    axes = figure.subplots()
    for name, (color, marker) in _looks(sweep).items():
        label: str | None = name
        for curve in sweep.curves[name]:
            axes.plot(
                curve.tokens, curve.perplexity, color=color, marker=marker, markersize=5, linewidth=1, label=label
            )
            label = None
    _draw_floors(axes, sweep.floors)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("tokens of training", fontsize=13)
    axes.set_ylabel("perplexity of valid", fontsize=13)
    grid_behind(axes)
    axes.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


def state(sweep: Sweep) -> Figure:
    """Perplexity of valid against the numbers that the memories hold: means, and the spread over the seeds."""
    figure = needed("matplotlib.figure").Figure(figsize=(10, 6))
    axes = figure.subplots()
    for name, (color, marker) in _looks(sweep).items():
        runs = sweep.rows[name]
        valid = [row.valid_perplexity or math.nan for row in runs]
        mean = statistics.mean(valid)
        spread = [[mean - min(valid)], [max(valid) - mean]]
        axes.errorbar([runs[0].state or 0], [mean], spread, color=color, marker=marker, markersize=9, capsize=4,
                      linestyle="none", label=name)  # fmt: skip
    _draw_floors(axes, sweep.floors)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("numbers that the memories hold after a segment", fontsize=13)
    axes.set_ylabel("perplexity of valid", fontsize=13)
    grid_behind(axes)
    axes.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


FIGURES: dict[str, Callable[[Sweep], Figure]] = {"language": curves, "language_state": state}
"""The figures of a sweep by name."""
