"""How the logs of a folder agree with the published ones, run by run: `fwm-py compare`."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from typing import IO

from fwm_py.checks import shown
from fwm_py.experiments.files import PARTIAL
from fwm_py.experiments.retrieval.logs import log_name, read_log
from fwm_py.experiments.retrieval.manifest import Manifest
from fwm_py.experiments.retrieval.paper import COMMANDS, CUT_OFF, RUNS, Command, Rows, published_losses
from fwm_py.experiments.retrieval.train import has_ended
from fwm_py.experiments.retrieval.twins import ENDING as TWINS
from fwm_py.experiments.retrieval.twins import Band, read_twins
from fwm_py.experiments.table import beside

FIRST_ROWS_FLOOR = 312
"""Of the 320 first rows, so many agree to 1e-3."""

NAN_FLOOR = 17
"""Of the 18 published runs that end in NaN, so many do so here."""

BAND_PERCENT = 90
"""Of the published last losses with a band, so many lie in it."""


def _agree(ours: float, published: float, relative: float = 0.0, absolute: float = 0.0) -> bool:
    if math.isnan(published):
        return math.isnan(ours)
    return abs(ours - published) <= relative * abs(published) + absolute


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the 320 runs: its log in the folder, the published one, and the band of its twins.

    Attributes
    ----------
    name : str
        The name of the log.
    published : list of (int, float)
        The published rows.
    ours : list of (int, float)
        The rows of the folder's log; none if there is a problem.
    problem : str
        Why the log is not compared: `missing`, `partial` (still being written), `damaged` (no log, or its last row
        is not whole), `empty`, `not ended` or `other settings` (by the manifest). "" if it is compared.
    detail : str
        More about the problem.
    band : Band, optional
        Of its twins.
    """

    name: str
    published: Rows
    ours: Rows
    problem: str = ""
    detail: str = ""
    band: Band | None = None

    @property
    def compared(self) -> bool:
        return not self.problem

    @property
    def last_compared(self) -> bool:
        """Whether the last rows, and how many there are, can be compared: not so in the log that was cut off."""
        return self.compared and self.name != CUT_OFF

    @property
    def ends_in_nan(self) -> bool:
        return self.compared and math.isnan(self.ours[-1][1])

    def first_row_agrees(self, within: float) -> bool:
        """Whether the first rows differ by at most `within`, relative to the published."""
        if not self.compared:
            return False
        (step, ours), (published_step, published) = self.ours[0], self.published[0]
        return step == published_step and _agree(ours, published, relative=within)

    @property
    def same_rows(self) -> bool:
        return self.last_compared and len(self.ours) == len(self.published)

    @property
    def last_loss_agrees(self) -> bool:
        """Whether the last losses, of whichever steps, differ by at most 1e-4."""
        return self.last_compared and _agree(self.ours[-1][1], self.published[-1][1], absolute=1e-4)


@dataclasses.dataclass(frozen=True)
class Tally:
    """Counts over some runs.

    Attributes
    ----------
    compared, last_compared : int
        Runs, and those of them whose last rows can be compared.
    first_1e5, first_1e3 : int
        First rows that agree to 1e-5 and 1e-3, relative to the published.
    same_rows, last_losses : int
        Runs with as many rows as the published, and with a last loss within 1e-4 of the published.
    ours, published : float
        Median of the last losses that are compared; NaN counts as larger than any number. NaN if there are none.
    bands, in_band, unwidened : int
        Published last losses with a band, those within it, and within it as it is, not widened; whether or not the
        run's own log is there.
    """

    compared: int
    last_compared: int
    first_1e5: int
    first_1e3: int
    same_rows: int
    last_losses: int
    ours: float
    published: float
    bands: int
    in_band: int
    unwidened: int


def _tally(runs: Sequence[Run]) -> Tally:
    last = [run for run in runs if run.last_compared]
    bands = [(run.band, run.published[-1][1]) for run in runs if run.band is not None and run.name != CUT_OFF]
    return Tally(
        compared=sum(run.compared for run in runs),
        last_compared=len(last),
        first_1e5=sum(run.first_row_agrees(1e-5) for run in runs),
        first_1e3=sum(run.first_row_agrees(1e-3) for run in runs),
        same_rows=sum(run.same_rows for run in runs),
        last_losses=sum(run.last_loss_agrees for run in runs),
        ours=_median(run.ours[-1][1] for run in last),
        published=_median(run.published[-1][1] for run in last),
        bands=len(bands),
        in_band=sum(band.holds(loss) for band, loss in bands),
        unwidened=sum(band.spans(loss) for band, loss in bands),
    )


def _median(losses: Iterable[float]) -> float:
    numbers = [math.inf if math.isnan(loss) else loss for loss in losses]
    median = statistics.median(numbers) if numbers else math.inf
    return math.nan if math.isinf(median) else median


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The logs of a folder beside the published ones.

    Attributes
    ----------
    folder : str
        The folder.
    runs : dict
        All 320, in the order of the commands: name of the log -> run.
    others : list of str
        Files and folders that are no logs of theirs, in order.
    """

    folder: str
    runs: dict[str, Run]
    others: list[str]

    def tally(self, command: Command) -> Tally:
        """The counts of one command."""
        return _tally([self.runs[log_name(settings)] for settings in command.runs])

    @functools.cached_property
    def total(self) -> Tally:
        """The counts of all runs."""
        return _tally(list(self.runs.values()))

    @property
    def problems(self) -> dict[str, list[Run]]:
        """The runs that are not compared, by their problem."""
        problems: dict[str, list[Run]] = {}
        for run in self.runs.values():
            if run.problem:
                problems.setdefault(run.problem, []).append(run)
        return problems

    @property
    def neighbours(self) -> tuple[int, int]:
        """What else the widened bands hold: published last losses of the next smaller and larger N, and of how many."""
        found = [
            run.band.holds(loss)
            for run in self.runs.values()
            if run.band is not None and run.name != CUT_OFF
            for loss in _neighbouring_losses(run.name)
        ]
        return sum(found), len(found)

    @property
    def floors(self) -> list[tuple[str, bool]]:
        """What is asked of a whole folder, and whether it is met; a run that is not compared does not agree."""
        total = self.total
        nan = [run for run in self.runs.values() if math.isnan(run.published[-1][1])]
        ending = sum(run.ends_in_nan for run in nan)
        floors = [
            (
                f"first rows that agree to 1e-3: {total.first_1e3} of {len(self.runs)}, "
                f"at least {FIRST_ROWS_FLOOR} expected",
                total.first_1e3 >= FIRST_ROWS_FLOOR,
            ),
            (
                f"published NaN runs that end in NaN: {ending} of {len(nan)}, at least {NAN_FLOOR} expected",
                ending >= NAN_FLOOR,
            ),
        ]
        if total.bands:
            floors.append(
                (
                    f"published last losses within their twins' bands: {total.in_band} of {total.bands}, "
                    f"at least {BAND_PERCENT} % expected",
                    100 * total.in_band >= BAND_PERCENT * total.bands,
                )
            )
        return floors

    @property
    def failures(self) -> list[str]:
        """The floors that are missed."""
        return [text for text, met in self.floors if not met]


def _neighbouring_losses(name: str) -> list[float]:
    """The published last losses of the run with 20 keys less and that with 20 more, where they are numbers."""
    n_keys = RUNS[name].n_keys
    names = [log_name(dataclasses.replace(RUNS[name], n_keys=n)) for n in (n_keys - 20, n_keys + 20) if n >= 20]
    losses = [published_losses()[name][-1][1] for name in names if name in RUNS and name != CUT_OFF]
    return [loss for loss in losses if not math.isnan(loss)]


def compare(folder: str | os.PathLike[str]) -> Comparison:
    """Compare the logs of a folder with the published ones; nothing is trained.

    Raises
    ------
    OSError
        If the folder, its manifest or its twins cannot be read.
    ValueError
        If its manifest or its twins are damaged, see `Manifest` and `read_twins`.
    """
    files = set(os.listdir(folder))
    bands = read_twins(folder)
    manifest = Manifest(folder)
    runs = {name: _compare_log(manifest, name, files, bands.get(name)) for name in RUNS}
    known = {*runs, *(name + PARTIAL for name in runs)}
    return Comparison(os.fspath(folder), runs, sorted(files - known))


def _compare_log(manifest: Manifest, name: str, files: set[str], band: Band | None) -> Run:
    make = functools.partial(Run, name, published_losses()[name], band=band)
    if name not in files:
        return make([], "partial" if name + PARTIAL in files else "missing")
    if other := manifest.other_settings(RUNS[name]):
        return make([], "other settings", other)
    path = os.path.join(manifest.folder, name)
    try:
        rows = read_log(path)
    except OSError as error:
        return make([], "damaged", str(error.strerror))
    except ValueError as error:
        return make([], "damaged" if os.path.getsize(path) else "empty", str(error).removeprefix(f"{path}: "))
    if not rows:
        return make([], "empty")
    return make(rows) if has_ended(rows) else make([], "not ended", f"{len(rows)} rows")


# ---- output ----


def print_comparison(comparison: Comparison, file: IO[str] | None = None) -> None:
    """Print a table of the commands, what is not compared, and the floors, to `file` (default: stdout)."""
    from rich.console import Console

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    console.print(_table(comparison))
    for line in _lines(comparison):
        console.print(line, soft_wrap=True)


def _table(comparison: Comparison) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("command", no_wrap=True)
    for header in (
        "runs",
        "first\n1e-5",
        "first\n1e-3",
        "same\nrows",
        "last\n1e-4",
        "our\nmedian",
        "published\nmedian",
        "in\nband",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for command in COMMANDS:
        tally = comparison.tally(command)
        table.add_row(command.name, *_cells(tally, f"{tally.ours:.3g}", f"{tally.published:.3g}"))
    table.add_section()
    table.add_row("all", *_cells(comparison.total, "", ""))
    return table


def _cells(tally: Tally, ours: str, published: str) -> list[str]:
    counts = (tally.compared, tally.first_1e5, tally.first_1e3, tally.same_rows, tally.last_losses)
    return [*map(str, counts), ours, published, f"{tally.in_band}/{tally.bands}" if tally.bands else "-"]


def _lines(comparison: Comparison) -> list[str]:
    total = comparison.total
    lines = [
        f"{total.compared} of {len(comparison.runs)} runs compared, the last rows of {total.last_compared}",
        f"cut off in publishing, only its first row counts: {CUT_OFF}",
    ]
    for problem, runs in comparison.problems.items():
        lines.append(_some(problem, [run.name + (f" ({run.detail})" if run.detail else "") for run in runs]))
    if comparison.problems.keys() & {"damaged", "empty", "not ended", "other settings"}:
        lines.append("fwm-py reproduce --force makes the logs again that are not as they should be")
    if comparison.others:
        lines.append(_some("other files", [shown(name) for name in comparison.others]))
    if total.bands:
        lines += _about_bands(comparison)
    else:
        lines.append(f"no bands of twins: {beside(comparison.folder, TWINS)} has none")
    return lines + [f"{'ok' if met else 'FAILED'}: {text}" for text, met in comparison.floors]


def _about_bands(comparison: Comparison) -> list[str]:
    """What the widening of the bands does, and how much a band tells one run from another."""
    total, (neighbours, of) = comparison.total, comparison.neighbours
    chance = statistics.mean(run.band.chance for run in comparison.runs.values() if run.band is not None)
    return [
        f"published last losses within the bands as they are, not widened: {total.unwidened} of {total.bands} "
        f"({total.unwidened / total.bands:.0%}; of equal draws without ties {chance:.0%} would be)",
        f"published last losses of the next smaller and larger N within the widened bands: {neighbours} of {of}"
        + (f" ({neighbours / of:.0%})" if of else ""),
    ]


def _some(title: str, names: Sequence[str], most: int = 20) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{title} ({len(names)}): {', '.join(names[:most])}{more}"
