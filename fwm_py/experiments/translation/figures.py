"""The figures of a sweep of translation models.

    sweep = figures.load("studies/translation")
    figures.bleu(sweep).savefig("bleu.svg")

matplotlib is imported when a function needs it: `pip install 'fwm_py[figures]'`.
"""

from __future__ import annotations

import os
import statistics
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from fwm_py.experiments.drawing import grid_behind, needed
from fwm_py.experiments.sweep_figures import Sweep, draw_curves, draw_floors, load_sweep, looks
from fwm_py.experiments.translation.sweeps import TRANSLATION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOORS = {"copy": "the source as it is", "nearest": "the translation of the nearest sentence"}


def load(out: str | os.PathLike[str]) -> Sweep:
    """The sweep in a folder; raises as `load_sweep` does."""
    return load_sweep(out, TRANSLATION, "bleu")


def curves(sweep: Sweep) -> Figure:
    """Perplexity of valid during training, a line for each run."""
    return draw_curves(sweep, {})


def bleu(sweep: Sweep) -> Figure:
    """BLEU of test of each run, with the mean of each variant; dashed, what is reached without a model."""
    figure = needed("matplotlib.figure").Figure(figsize=(1.4 * len(sweep.rows) + 3, 5))
    axes = figure.subplots()
    for place, (name, look) in enumerate(looks(sweep).items()):
        found = [row.bleu for row in sweep.rows[name]]
        axes.plot([place] * len(found), found, **look, markersize=9, linestyle="none")
        axes.hlines(statistics.mean(found), place - 0.3, place + 0.3, color=look["color"], linewidth=2)
    draw_floors(axes, {text: sweep.floors[name] for name, text in FLOORS.items()})
    axes.set_xticks(range(len(sweep.rows)), [textwrap.fill(name, 16) for name in sweep.rows], fontsize=11)
    axes.set_xlim(-0.6, len(sweep.rows) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("BLEU of test", fontsize=13)
    grid_behind(axes)
    figure.tight_layout()
    return figure  # type: ignore[no-any-return]


FIGURES: dict[str, Callable[[Sweep], Figure]] = {"translation": bleu, "translation_curves": curves}
"""The figures of a sweep by name."""
