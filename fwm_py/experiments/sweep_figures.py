"""What the figures of all sweeps of trained models share: the sweep in a folder, and its curves."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fwm_py.experiments.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, grid_behind, needed
from fwm_py.experiments.run_folder import LogRow
from fwm_py.experiments.sweeps import LOGS, TEXT, Kind, load_rows, slug
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
    """The rows of a sweep, the curves of its runs, and what is reached on its text without a model.

    Attributes
    ----------
    rows : dict of list of rows
        By the names of variants.
    curves : dict of list of Curve
        Likewise.
    floors : dict of float
        As of the data.
    """

    rows: dict[str, list[Any]]
    curves: dict[str, list[Curve]]
    floors: dict[str, float]


def load_sweep(out: str | os.PathLike[str], kind: Kind, column: str) -> Sweep:
    """The sweep in a folder: its runs with a number in `column`.

    Raises
    ------
    OSError, ValueError
        If a file cannot be read, is damaged, or there are no rows with numbers.
    """
    rows: dict[str, list[Any]] = {}
    curves: dict[str, list[Curve]] = {}
    for row in load_rows(out, kind.row, column):
        rows.setdefault(row.name, []).append(row)
        curves.setdefault(row.name, []).append(_curve(Path(out) / LOGS / f"{slug(row.name, row.seed)}.csv"))
    return Sweep(rows, curves, kind.data.read_meta(Path(out) / TEXT)["floors"])


def _curve(path: Path) -> Curve:
    table = Table(path, LogRow._fields, "the sweep makes it again where its row of results.csv is deleted")
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
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


def looks(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """How each variant is drawn, as options of a line; where colors come again, markers are hollow."""
    return {
        name: {
            "color": COLORS[i % len(COLORS)],
            "marker": MARKERS[i % len(MARKERS)],
            "markerfacecolor": COLORS[i] if i < len(COLORS) else "white",
        }
        for i, name in enumerate(sweep.rows)
    }


def draw_floors(axes: Axes, floors: dict[str, float]) -> None:
    """Dashed lines at heights, by their names."""
    for name, height in floors.items():
        axes.axhline(height, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(name, (0.99, height), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", ha="right", color=GREY)  # fmt: skip


def draw_curves(sweep: Sweep, floors: dict[str, float]) -> Figure:
    """Perplexity of valid during training, a line for each run; dashed, perplexities by their names."""
    figure = needed("matplotlib.figure").Figure(figsize=(10, 6))
    axes = figure.subplots()
    for name, look in looks(sweep).items():
        label: str | None = name
        for curve in sweep.curves[name]:
            axes.plot(curve.tokens, curve.perplexity, **look, markersize=5, linewidth=1, label=label)
            label = None
    if floors:
        draw_floors(axes, floors)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("tokens of training", fontsize=13)
    axes.set_ylabel("perplexity of valid", fontsize=13)
    grid_behind(axes)
    axes.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]
