"""Twins of a run, whose initial weights are moved by one unit in the last place, and the band of their losses.

A gradient of DPFP jumps where an activation changes its sign, and sums of floats depend on their order: a last bit
parts two runs in time, and their last losses differ although nothing is wrong. How far, the twins of the run show:
their last losses make a band, in which the published one should lie. Bands take long to make, so they are
kept, in `<folder>.twins.csv` beside the folder of the logs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fwm_py.checks import integer, shown
from fwm_py.experiments.jobs import WorkerKilled, run_all
from fwm_py.experiments.retrieval.logs import format_loss, log_name
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.paper import CUT_OFF, RUNS
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.sweep import cost
from fwm_py.experiments.retrieval.train import train
from fwm_py.experiments.table import Table, beside

MAX_TWINS = 10_000
ENDING = ".twins.csv"
COLUMNS = ("name", "n_keys", "twins", "low", "high", "nan", "losses")
WAY_OUT = "delete it, and fwm-py compare --twins makes the twins again"

# ---- bands ----


@dataclasses.dataclass(frozen=True)
class Band:
    """Where the last losses of a run's twins lie.

    Attributes
    ----------
    losses : tuple of float
        Last loss of each twin, one at least.
    """

    losses: tuple[float, ...]

    @property
    def low(self) -> float:
        """The smallest number among the losses; NaN if all of them are NaN."""
        return min(self._numbers, default=math.nan)

    @property
    def high(self) -> float:
        """The largest number among the losses; NaN if all of them are NaN."""
        return max(self._numbers, default=math.nan)

    @property
    def nan(self) -> int:
        """How many of the losses are NaN."""
        return len(self.losses) - len(self._numbers)

    @property
    def _numbers(self) -> list[float]:
        return [loss for loss in self.losses if not math.isnan(loss)]

    @property
    def chance(self) -> float:
        """How often the range of so many equal draws, without ties, spans one more: 0.82 for ten."""
        return (len(self.losses) - 1) / (len(self.losses) + 1)

    def spans(self, loss: float, slack: float = 0.0) -> bool:
        """Whether a last loss lies between `low` and `high`, or at most `slack` beyond; NaN does if a twin is NaN."""
        if math.isnan(loss):
            return self.nan > 0
        return self.low - slack <= loss <= self.high + slack

    def holds(self, loss: float) -> bool:
        """Whether a published last loss agrees with the band, widened by a quarter of it and a thousandth of the loss.

        The range of a few equal draws is too narrow for one more, see `chance`.
        """
        return self.spans(loss, (self.high - self.low) / 4 + 1e-3 * abs(loss))


def read_twins(folder: str | os.PathLike[str]) -> dict[str, Band]:
    """Read the bands that `make_twins` wrote for a folder: name of the log -> band. None if there is no such file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If a line could not have been written so: "<path>: line <n>: got <line>, expected <what>; <the way out>".
    """
    table = _table(folder)
    bands: dict[str, Band] = {}
    for number, row in table.read():
        band = _band(row)
        if row[0] in bands:
            band = f"{row[0]} once"
        if isinstance(band, str):
            raise table.damaged(number, ",".join(row), band)
        bands[row[0]] = band
    return bands


def _table(folder: str | os.PathLike[str]) -> Table:
    return Table(beside(folder, ENDING), COLUMNS, WAY_OUT)


def _band(row: list[str]) -> Band | str:
    """The band of a row, all of whose fields must agree with its losses, or what was expected."""
    if row[0] not in RUNS:
        return "the name of a published log first"
    try:
        with np.errstate(over="ignore"):
            band = Band(tuple(float(np.float32(loss)) for loss in row[-1].split(" ")))
    except ValueError:
        return "losses with a space between them at its end"
    return band if row == _row(row[0], band) else shown(",".join(_row(row[0], band)))


def _row(name: str, band: Band) -> list[str]:
    losses = " ".join(map(format_loss, band.losses))
    return [
        name,
        str(RUNS[name].n_keys),
        str(len(band.losses)),
        format_loss(band.low),
        format_loss(band.high),
        str(band.nan),
        losses,
    ]


def _write_twins(folder: str | os.PathLike[str], bands: Mapping[str, Band]) -> None:
    """Write bands in the order of the commands."""
    _table(folder).write(_row(name, bands[name]) for name in RUNS if name in bands)


# ---- twins ----


def twins(settings: Settings, count: int, seed: int = 0) -> list[float]:
    """Train `count` twins of a run, whose key weights begin one unit in the last place away, up or down at random.

    Parameters
    ----------
    settings : Settings
        The run, of at least 100 steps.
    count : int
        How many twins.
    seed : int
        Of the first twin's directions; those of the others have the next seeds.

    Returns
    -------
    list of float
        Their last losses.
    """
    return [_twin((settings, seed + i)) for i in range(count)]


def _twin(task: tuple[Settings, int]) -> float:
    settings, seed = task
    model = Model(settings)
    weight = model.parameters["W_k.weight"]
    up = np.random.default_rng(seed).random(weight.shape) < 0.5
    weight[...] = np.nextafter(weight, np.where(up, np.inf, -np.inf).astype(np.float32))
    return train(settings, model=model)[-1][1]


def twin_runs(patterns: Iterable[str] = ()) -> list[Settings]:
    """The runs to make twins of.

    Parameters
    ----------
    patterns : iterable of str
        Names of logs, in which `*` and `?` stand for anything. None: the runs of the rules `sum` and `ours` with
        at most 200 keys, but for the one whose published log was cut off.

    Raises
    ------
    ValueError
        If a pattern fits no name.
    """
    names: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in RUNS if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f"got {shown(pattern)}, expected the name of a published log, or a pattern of some, "
                f"such as 'd64_dpfp1_*R1.csv'"
            )
        names.update(dict.fromkeys(found))
    if names:
        return [RUNS[name] for name in names]
    return [
        settings
        for name, settings in RUNS.items()
        if settings.rule in ("sum", "ours") and settings.n_keys <= 200 and name != CUT_OFF
    ]


def make_twins(
    folder: str | os.PathLike[str],
    runs: Sequence[Settings],
    count: int,
    jobs: int | None = None,
    on_done: Callable[[str, Band], object] | None = None,
) -> dict[str, Band]:
    """Train twins of many runs, and keep their bands in `<folder>.twins.csv`.

    Runs whose band of as many twins is there already are not made again: what was interrupted goes on with the
    runs that are left.

    Parameters
    ----------
    folder : path
        Must exist.
    runs : sequence of Settings
        Published ones.
    count : int
        Twins of each, 1 or more.
    jobs : int, optional
        As of `run_all`. Each twin is a call of its own, the longest first.
    on_done : callable, optional
        Called with the name of the log and the band of each run whose twins are all made, once they are written.

    Returns
    -------
    dict
        All bands of the file: name of the log -> band.

    Raises
    ------
    OSError
        If the file cannot be read or written; the latter is tried before any twin is trained.
    ValueError
        If it is malformed, `count` is below 1, or a run is not a published one.
    WorkerKilled
        If a twin's processes were killed.
    """
    count = integer("count", count, 1, MAX_TWINS)
    for settings in runs:
        if RUNS.get(log_name(settings)) != settings:
            raise ValueError(f"runs: got {settings}, expected a published run")
    os.listdir(folder)  # an error if it is not there
    bands = read_twins(folder)
    _write_twins(folder, bands)

    left = {log_name(settings) for settings in runs}
    left -= {name for name, band in bands.items() if len(band.losses) == count}
    names = sorted(left, key=lambda name: (-cost(RUNS[name]), name))
    tasks = [(RUNS[name], seed) for name in names for seed in range(count)]
    losses: dict[str, dict[int, float]] = {name: {} for name in names}
    with contextlib.closing(run_all(_twin, tasks, jobs)) as outcomes:
        for index, loss in outcomes:
            if isinstance(loss, WorkerKilled):
                raise loss
            settings, seed = tasks[index]
            name = log_name(settings)
            losses[name][seed] = loss
            if len(losses[name]) == count:
                bands[name] = Band(tuple(losses[name][seed] for seed in range(count)))
                _write_twins(folder, bands)
                if on_done is not None:
                    on_done(name, bands[name])
    return bands
