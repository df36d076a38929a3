"""The figures of a sweep of language models.

    sweep = figures.load("studies/language")
    figures.curves(sweep).savefig("curves.svg")

matplotlib is imported when a function needs it: `pip install 'fwm_py[figures]'`.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from fwm_py.experiments.drawing import grid_behind, needed
from fwm_py.experiments.language.sweeps import LANGUAGE
from fwm_py.experiments.sweep_figures import Sweep, draw_curves, draw_floors, load_sweep, looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def load(out: str | os.PathLike[str]) -> Sweep:
    """The sweep in a folder; raises as `load_sweep` does."""
    return load_sweep(out, LANGUAGE, "valid_perplexity")


def counted(sweep: Sweep) -> dict[str, float]:
    """The perplexities of n-gram models on valid."""
    return {f"{name}s, counted": sweep.floors[name] for name in ("bigram", "trigram")}


def curves(sweep: Sweep) -> Figure:
    """Perplexity of valid during training, a line for each run; dashed, what counting reaches."""
    return draw_curves(sweep, counted(sweep))


def state(sweep: Sweep) -> Figure:
    """Perplexity of valid against the numbers that the memories hold: means, and the spread over the seeds."""
    figure = needed("matplotlib.figure").Figure(figsize=(10, 6))
    axes = figure.subplots()
    for name, look in looks(sweep).items():
        runs = sweep.rows[name]
        valid = [row.valid_perplexity or math.nan for row in runs]
        mean = statistics.mean(valid)
        spread = [[mean - min(valid)], [max(valid) - mean]]
        axes.errorbar(
            [runs[0].state or 0], [mean], spread, **look, markersize=9, capsize=4, linestyle="none", label=name
        )
    draw_floors(axes, counted(sweep))
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
