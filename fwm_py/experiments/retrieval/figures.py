"""The six figures of the experiments, drawn from a folder of logs.

The value of a run is its last loss. Our losses are filled markers and lines; the published ones, where they are drawn
as well, hollow markers around them.

>>> from fwm_py.experiments.retrieval import figures
>>> losses = figures.published()  # or figures.load("logs"), a folder of ours
>>> figures.setting1_scatter(losses).savefig("setting1.svg")

matplotlib and pandas are imported when a function needs them: `pip install 'fwm_py[figures]'`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fwm_py.checks import flag
from fwm_py.experiments.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    grid_behind,
    needed,
    save_figures,
)
from fwm_py.experiments.files import PARTIAL
from fwm_py.experiments.retrieval.logs import log_name, read_log
from fwm_py.experiments.retrieval.manifest import Manifest
from fwm_py.experiments.retrieval.paper import COMMANDS, RUNS, Rows, published_losses
from fwm_py.experiments.retrieval.train import has_ended

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from pandas import DataFrame

RUN = ["setting", "label", "n_keys"]
"""The columns of a table that tell runs apart."""


class Style(NamedTuple):
    """How a label looks: by marker and line alone it can be told from the others of its setting."""

    color: str
    marker: str
    line: Any


# A map keeps its colour in both settings. The four curves of Setting 2 have the lines that they have in the paper.
SETTING_1: dict[str, Style] = {
    "Softmax": Style(BLACK, "o", "-"),
    "Linear": Style(RED, "s", "--"),
    "FAVOR+ (64)": Style(ORANGE, "^", ":"),
    "FAVOR+ (128)": Style(PINK, "v", "-."),
    "FAVOR+ (512)": Style(GREY, "D", (0, (1, 3))),
    "DPFP-1": Style(SKY, "P", (0, (8, 2))),
    "DPFP-2": Style(BLUE, "X", (0, (6, 2, 1, 2, 1, 2))),
    "DPFP-3": Style(GREEN, "p", (0, (3, 1))),
}
"""The labels of Setting 1 in the order of its legends, and how they look."""

SETTING_2: dict[str, Style] = {
    "Schlag (2021)": Style(BLACK, "o", "-."),
    "Schlag (2021) with DPFP-1": Style(PINK, "s", "-"),
    "DPFP-1 delta": Style(SKY, "P", "--"),
    "DPFP-2 delta": Style(BLUE, "X", (0, (6, 2, 1, 2, 1, 2))),
    "Linear delta": Style(RED, "D", (0, (8, 2))),
    "DPFP-1 sum": Style(GREEN, "^", ":"),
}
"""The same of Setting 2. FAVOR+ with the delta rule is left out: its losses become NaN."""

SETTING_2_CURVES = {
    label: SETTING_2[label] for label in ("Schlag (2021) with DPFP-1", "DPFP-1 delta", "DPFP-1 sum", "Schlag (2021)")
}

# How our losses are drawn: as markers, as lines with a marker for each, or as lines with markers a distance apart.
MARKERS: dict[str, Any] = {"linestyle": "none", "markersize": 12, "alpha": 0.8}
LINES: dict[str, Any] = {"linewidth": 3, "markersize": 9}
CURVES: dict[str, Any] = {"linewidth": 2, "markersize": 8, "markevery": 0.03}
HOLLOW: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "none", "markeredgewidth": 1.5, "zorder": 3}


@dataclasses.dataclass(frozen=True)
class Losses:
    """Evaluation losses of some of the 320 runs.

    Attributes
    ----------
    table : DataFrame
        A row for each evaluation: setting, label, n_keys, step, loss. Runs are in the order of `COMMANDS`.
    skipped : tuple of (str, str)
        Name of each file that is no whole log of one of the runs, and why.
    """

    table: DataFrame
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def last(self) -> DataFrame:
        """The last row of each run, which holds its value, be it NaN."""
        return self.table.drop_duplicates(RUN, keep="last")

    def of(self, n_keys: int) -> DataFrame:
        """The rows of the runs with that many keys."""
        return self.table[self.table["n_keys"] == n_keys]


class NothingToDraw(ValueError):
    """No run of a figure is there."""


def load(folder: str | os.PathLike[str]) -> Losses:
    """Read the logs of a folder.

    A log counts when it has the name of one of the 320 runs, is well-formed, goes on to where its run ends, and was
    not, by the manifest, made with other settings. Everything else in the folder is skipped, and named in
    `Losses.skipped`.

    Raises
    ------
    OSError
        If `folder` cannot be read.
    ValueError
        If its manifest is malformed.
    """
    known = Manifest(folder)
    logs: dict[str, Rows] = {}
    skipped: list[tuple[str, str]] = []
    for name in sorted(os.listdir(folder)):
        try:
            rows = _read_whole_log(os.path.join(folder, name))
            if other := known.other_settings(RUNS[name]):
                raise ValueError(other)
            logs[name] = rows
        except ValueError as error:
            skipped.append((name, str(error)))
    return _losses(logs, skipped)


def published() -> Losses:
    """The published losses of all 320 runs, among them the log that was cut off (`experiments.CUT_OFF`)."""
    return _losses(published_losses())


def _read_whole_log(path: str) -> Rows:
    """The rows of a run that has ended, or a ValueError that says what the file is instead."""
    name = os.path.basename(path)
    if name.removesuffix(PARTIAL) not in RUNS:
        raise ValueError("not a log of one of the 320 runs")
    if name not in RUNS:
        raise ValueError("half-written")
    try:
        rows = read_log(path)
    except OSError as error:
        raise ValueError(error.strerror) from None
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from None
    if not rows:
        raise ValueError("no rows")
    if [step for step, _ in rows] != [100 * (i + 1) for i in range(len(rows))]:
        raise ValueError("its steps are not 100, 200, ...")
    if not has_ended(rows):
        raise ValueError(f"ends at step {rows[-1][0]}, before its run does")
    return rows


def _losses(logs: Mapping[str, Rows], skipped: Sequence[tuple[str, str]] = ()) -> Losses:
    rows = [
        (command.setting, command.label, settings.n_keys, step, loss)
        for command in COMMANDS
        for settings in command.runs
        for step, loss in logs.get(log_name(settings), ())
    ]
    table = needed("pandas").DataFrame(rows, columns=[*RUN, "step", "loss"])
    return Losses(table.astype({"setting": int, "n_keys": int, "step": int, "loss": "float32"}), tuple(skipped))


def setting1_scatter(losses: Losses, published: Losses | None = None) -> Figure:
    """Setting 1: the loss of each map against the number of keys."""
    return _setting1(MARKERS, losses, published)


def setting1_lines(losses: Losses, published: Losses | None = None) -> Figure:
    """`setting1_scatter` as lines."""
    return _setting1(LINES, losses, published)


def setting1_curves(losses: Losses, published: Losses | None = None) -> Figure:
    """Setting 1: the loss of each map during training, with 600 keys."""
    return _finished(_curves(1, 600, SETTING_1, losses, published))


def setting2_scatter(losses: Losses, published: Losses | None = None) -> Figure:
    """Setting 2: the loss of each rule against the number of keys, from 1e-4 to 1e3 as published.

    A loss below or above is written at the border.
    """
    axes = _setting2(MARKERS, losses, published)
    axes.set_ylim(1e-4, 1e3)
    _write_outside(axes, losses.last, "", 15)
    if published is not None:
        _write_outside(axes, published.last, " (published)", 30)
    return _finished(axes)


def setting2_lines(losses: Losses, published: Losses | None = None) -> Figure:
    """`setting2_scatter` as lines, without limits."""
    return _finished(_setting2(LINES, losses, published))


def setting2_curves(losses: Losses, published: Losses | None = None) -> Figure:
    """Setting 2: the loss of four rules during training, with 20 keys."""
    axes = _curves(2, 20, SETTING_2_CURVES, losses, published)
    _log_scale(axes)
    axes.set_ylim(5e-4, 1e2)
    return _finished(axes)


FIGURES: dict[str, Callable[..., Figure]] = {
    "setting1_scatter": setting1_scatter,
    "setting1_lines": setting1_lines,
    "setting1_curves": setting1_curves,
    "setting2_scatter": setting2_scatter,
    "setting2_lines": setting2_lines,
    "setting2_curves": setting2_curves,
}
"""The figures by name. Each draws `losses` and, hollow, `published`; a ValueError says that `losses` has none of its
runs."""


def save(losses: Losses, out: str | os.PathLike[str], overlay: bool = True) -> list[Path]:
    """Write `<name>.png` and `<name>.svg` of every figure that has runs to draw, the same bytes for the same losses.

    Parameters
    ----------
    losses : Losses
        What is drawn.
    out : path
        The folder of the figures; made if missing. A figure is replaced only when the new one is whole.
    overlay : bool
        Draw the published losses as well.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    OSError
        If a figure cannot be written.
    ValueError
        If there is no figure to draw.
    """
    theirs = published() if flag("overlay", overlay) else None
    figures: dict[str, Figure] = {}
    for name, figure_of in FIGURES.items():
        try:
            figures[name] = figure_of(losses, theirs)
        except NothingToDraw:
            pass
    if not figures:
        raise NothingToDraw("figures: got no whole log of a run that is drawn")
    return save_figures(figures, out)


def deviations(losses: Losses, published: Losses, setting: int | None = None) -> DataFrame:
    """The last losses of the runs that both have, the largest deviation first.

    Parameters
    ----------
    losses, published : Losses
        What is compared.
    setting : int, optional
        1 or 2: its runs only.

    Returns
    -------
    DataFrame
        label, n_keys, ours, published, and difference: ours - published, 0 where both are NaN, infinite where one is.
    """
    both = losses.last.merge(published.last, on=RUN, suffixes=("_ours", "_published"))
    if setting is not None:
        both = both[both["setting"] == setting]
    table = both.rename(columns={"loss_ours": "ours", "loss_published": "published"})
    ours, theirs = table["ours"], table["published"]
    agree = (ours == theirs) | (ours.isna() & theirs.isna())
    table["difference"] = (ours - theirs).fillna(math.inf).mask(agree, 0.0)
    table = table.sort_values("difference", key=abs, ascending=False, kind="stable", ignore_index=True)
    return table[["label", "n_keys", "ours", "published", "difference"]]


def _setting1(look: dict[str, Any], losses: Losses, published: Losses | None) -> Figure:
    axes = _axes("number of unique keys / sequence length")
    _plot(axes, SETTING_1, look, "n_keys", losses.last, None if published is None else published.last)
    _tick(axes.xaxis, 40, 20)
    if axes.get_ylim()[1] < 10:  # a run that diverged would have too many ticks
        _tick(axes.yaxis, 0.1, 0.05)
    return _finished(axes)


def _setting2(look: dict[str, Any], losses: Losses, published: Losses | None) -> Axes:
    axes = _axes("number of unique keys")
    _plot(axes, SETTING_2, look, "n_keys", losses.last, None if published is None else published.last)
    _log_scale(axes)
    _tick(axes.xaxis, 20)
    return axes


def _curves(setting: int, n_keys: int, styles: dict[str, Style], losses: Losses, published: Losses | None) -> Axes:
    axes = _axes("step")
    axes.set_title(f"Setting {setting} with {n_keys} unique keys", fontsize=18)
    theirs = None if published is None else published.of(n_keys)
    _plot(axes, styles, CURVES, "step", losses.of(n_keys), theirs)
    return axes


def _axes(x_label: str) -> Axes:
    axes: Axes = needed("matplotlib.figure").Figure(figsize=(13, 8)).add_subplot()
    axes.set_xlabel(x_label, fontsize=18)
    axes.set_ylabel("loss", fontsize=18)
    axes.tick_params(labelsize=14)
    return axes


def _tick(axis: Axis, major: float, minor: float | None = None) -> None:
    locator = needed("matplotlib.ticker").MultipleLocator
    axis.set_major_locator(locator(major))
    if minor is not None:
        axis.set_minor_locator(locator(minor))


def _plot(
    axes: Axes, styles: dict[str, Style], look: dict[str, Any], x: str, ours: DataFrame, theirs: DataFrame | None
) -> None:
    """Draw our rows and the published, a label after the other; what neither has is not in the legend."""
    if not ours["label"].isin(list(styles)).any():
        raise NothingToDraw(f"figures: got no whole log of {', '.join(styles)}")
    around = HOLLOW | {"markersize": look["markersize"] + 4, "markevery": look.get("markevery")}
    for label, (color, marker, line) in styles.items():
        legend: dict[str, Any] = {"label": label}
        for table, how in ((ours, {"linestyle": line, "markeredgewidth": 0} | look), (theirs, around)):
            rows = None if table is None else table[table["label"] == label]
            if rows is not None and len(rows):
                axes.plot(rows[x], rows["loss"], color=color, marker=marker, **legend, **how)
                legend = {}
    if theirs is not None:
        axes.plot([], [], label="published", color="black", marker="o", **around)


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")  # powers set as formulas take longer than all the rest of a figure


def _write_outside(axes: Axes, rows: DataFrame, whose: str, height: float) -> None:
    """Write the losses that lie outside the limits, NaN among them, at the border: `height` points inside."""
    low, high = axes.get_ylim()
    for label, n_keys, loss in zip(rows["label"], rows["n_keys"], rows["loss"]):
        if label in SETTING_2 and not low <= loss <= high:
            border, inwards = (low, 1) if loss < low else (high, -1)
            axes.annotate(
                f"{label} {loss:.2g}{whose}",
                (n_keys, border),
                (0, inwards * height),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=11,
            )


def _finished(axes: Axes) -> Figure:
    grid_behind(axes)
    axes.legend(title="label", fontsize=13, title_fontsize=14, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure: Figure = axes.figure  # type: ignore[assignment]
    figure.tight_layout()
    return figure
