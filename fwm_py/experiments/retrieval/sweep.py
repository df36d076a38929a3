"""All the paper's runs, or some of them, side by side on all cores or on a cluster, into one folder of logs.

The workers train and return rows; only the process that called `reproduce` writes (see `manifest` for how).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fwm_py._core import build_info, map_features
from fwm_py.checks import flag, instance, integer, shown
from fwm_py.experiments.files import Refused, locked
from fwm_py.experiments.jobs import WorkerKilled, run_all
from fwm_py.experiments.retrieval.logs import log_name
from fwm_py.experiments.retrieval.manifest import Manifest, differences
from fwm_py.experiments.retrieval.paper import COMMANDS, RUNS, Command, Rows, published_losses
from fwm_py.experiments.retrieval.settings import LIMITS, Settings
from fwm_py.experiments.retrieval.train import train

if TYPE_CHECKING:
    from distributed import Client

QUICK_SECONDS = 4.0
"""`quick` takes runs whose cost is at most this, and of each command the cheapest."""


class Outcome(NamedTuple):
    """What a worker sends back: rows, or an error that says why there are none."""

    rows: Rows
    seconds: float
    variant: str
    error: str


@dataclasses.dataclass
class Run:
    """A run in a sweep.

    Attributes
    ----------
    command : Command or None
        Of which it is a run, if it is one of the paper's.
    settings : Settings
        Any.
    state : str
        `waiting`, `running`, `done`, `skipped` (made before) or `failed`.
    error : str
        Why it failed.
    steps, seconds, loss :
        Of a run that is done: its last row, if it has any, and how long it took.
    """

    command: Command | None
    settings: Settings
    state: str = "waiting"
    error: str = ""
    steps: int = 0
    seconds: float = 0.0
    loss: float = float("nan")

    @property
    def name(self) -> str:
        return log_name(self.settings)


@functools.cache
def cost(settings: Settings) -> float:
    """Seconds that a run is expected to take on one core of a server, to start the longest first.

    The number of steps of the published run that is most like it, times a model of a step: the products and Adam, which
    grow with N^2, and the tokens' features, each with what its map and its rule do to it.
    """
    N, d = settings.n_keys, settings.hidden_size
    features = map_features(settings.map, d, settings.attn_arg) if settings.map else d
    tokens = settings.resolved_batch_size * settings.seq_len
    token_features = tokens * features
    if settings.rule == "softmax":
        step = 1.1e-8 * N * N
    elif settings.rule == "fwm":
        step = 8e-9 * N * N + 1e-8 * token_features
    else:
        step = 8e-9 * N * N + (2.1e-9 if settings.attn_name == "favor" else 0.7e-9) * token_features
    return step * min(_published_steps(settings), settings.max_steps)


def _published_steps(settings: Settings) -> int:
    """Steps of the published run that has this rule, map, argument, setting and N, or most of them, in this order."""

    def distance(run: Settings) -> tuple[float, ...]:
        return (
            run.rule != settings.rule,
            run.map != settings.map,
            abs(run.attn_arg - settings.attn_arg),
            run.replace != settings.replace,
            abs(run.n_keys - settings.n_keys),
        )

    nearest = min(RUNS, key=lambda name: distance(RUNS[name]))
    return published_losses()[nearest][-1][0]


def select(
    setting: int | None = None, only: Sequence[str] = (), max_n: int | None = None, quick: bool = False
) -> list[Run]:
    """The runs that were asked for, the longest first.

    Parameters
    ----------
    setting : 1 or 2, optional
    only : sequence of str
        Patterns (`*`, `?`, `[..]`) of names of logs, or of commands as `Command.name` has them: `*dpfp1_ours*`.
    max_n : int, optional
        No run with more keys.
    quick : bool
        Whole runs that take a few seconds each, of every map and rule, enough to show the shape of both settings.

    Raises
    ------
    ValueError
        "<name>: got <value>, expected <what>", also where no run is left.
    """
    flag("quick", quick)
    if setting not in (None, 1, 2):
        raise ValueError(f"setting: got {shown(setting)}, expected 1 or 2")
    if max_n is not None:
        integer("max_n", max_n, *LIMITS["n_keys"])
    if isinstance(only, str):
        raise TypeError(f"only: got {shown(only)}, expected a list of patterns")
    runs = [(command, Run(command, settings)) for command in COMMANDS for settings in command.runs]
    for pattern in only:
        if not any(_matches(run, pattern) for _, run in runs):
            raise ValueError(
                f"only: got {shown(pattern)}, expected a pattern that fits the name of a log or a command, "
                f"such as '*dpfp1_ours*'"
            )
    cheapest = {command: min(command.runs, key=cost) for command in COMMANDS}
    chosen = [
        run
        for command, run in runs
        if setting in (None, command.setting)
        and (not only or any(_matches(run, pattern) for pattern in only))
        and (max_n is None or run.settings.n_keys <= max_n)
        and (
            not quick
            or run.settings == cheapest[command]
            or (run.settings.n_keys % 40 == 20 and cost(run.settings) <= QUICK_SECONDS)
        )
    ]
    if not chosen:
        raise ValueError("setting, only, max_n: got a choice that leaves no run, expected at least one")
    return sorted(chosen, key=lambda run: -cost(run.settings))


def _matches(run: Run, pattern: str) -> bool:
    names = [run.name] if run.command is None else [run.name, run.command.name]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def reproduce(
    folder: str | os.PathLike[str] = "logs",
    runs: Sequence[Run] | None = None,
    *,
    jobs: int | None = None,
    client: Client | None = None,
    force: bool = False,
    adopt: bool = False,
    on_change: Callable[[Run], object] | None = None,
) -> list[Run]:
    """Make the logs of the paper's runs, or of any others, those that are not there yet.

    A run that is in the folder's manifest, with its log as it was written, is skipped. What this leaves, however it
    ends, the next call goes on from. The folder holds logs only: the manifest is `<folder>.manifest.csv`.

    Parameters
    ----------
    folder : path
        Made if missing.
    runs : sequence of Run, optional
        From `select`, or `Run(None, settings)` of any settings, in this order. None: all 320.
    jobs : int, optional
        Runs side by side, each on one thread. None: as many as cores this process may use.
    client : distributed.Client, optional
        A Dask cluster to run them on. It needs fwm_py, not the folder.
    force : bool
        Make runs again whose logs the manifest does not vouch for, and overwrite these. Of a damaged manifest the rows
        before the damage count.
    adopt : bool
        Record logs in the manifest that came from elsewhere, or whose row is damaged, if they are whole. Their settings
        are taken to be those of the runs.
    on_change : callable, optional
        Called with each run whose state has changed.

    Returns
    -------
    list of Run
        All of them, with their states: some may have failed.

    Raises
    ------
    Refused
        If two runs have the same log, or the folder has logs that the manifest does not vouch for, and neither `force`
        nor `adopt` settles what becomes of them, or another sweep is writing into it. Nothing has been trained, and no
        log changed.
    ValueError
        If the manifest is damaged and neither `force` nor `adopt` is set.
    OSError
        If a log or the manifest cannot be written, or read. Those that are there are whole.
    """
    force, adopt = flag("force", force), flag("adopt", adopt)
    runs = select() if runs is None else list(runs)
    _check_names(runs)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    notify = on_change or (lambda run: None)
    with locked(path, "another sweep is writing into this folder"):
        manifest = Manifest(path, salvage=force or adopt)
        waiting = _left_to_do(manifest, runs, force, adopt)
        if waiting or force or adopt:
            manifest.write()  # rather than fail when the first run has ended, or leave a damaged one
        for run in runs:
            if run.state == "skipped":
                notify(run)
        _train_all(manifest, waiting, jobs, client, notify)
    return runs


def _check_names(runs: Sequence[Run]) -> None:
    seen: dict[str, Settings] = {}
    for run in runs:
        instance("runs", run, Run)
        if run.name in seen:
            shared = differences(seen[run.name], run.settings)
            raise Refused(f"runs: got {run.name} twice, with {shared}, expected each log once")
        seen[run.name] = run.settings


def _left_to_do(manifest: Manifest, runs: Sequence[Run], force: bool, adopt: bool) -> list[Run]:
    waiting, refused, adoptable = [], [], False
    for run in runs:
        reason = manifest.standing(run.settings)
        if reason and adopt and run.name not in manifest.rows:
            reason = manifest.adopt(run.settings)
        if reason is None:
            run.state = "skipped"
        elif reason and not force:
            refused.append(f"{run.name} {reason}")
            adoptable |= not adopt and run.name not in manifest.rows
        else:
            waiting.append(run)
    if refused:
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        way_out = "--adopt records whole logs that came from elsewhere, " if adoptable else ""
        raise Refused(f"{manifest.folder}: {'; '.join(refused[:3])}{more}: {way_out}--force makes them again")
    return waiting


def _train_all(
    manifest: Manifest, runs: Sequence[Run], jobs: int | None, client: Client | None, notify: Callable[[Run], object]
) -> None:
    def change(run: Run, state: str) -> None:
        run.state = state
        notify(run)

    with contextlib.closing(
        run_all(_train, [run.settings for run in runs], jobs, client, lambda index: change(runs[index], "running"))
    ) as outcomes:
        for index, outcome in outcomes:
            run = runs[index]
            if isinstance(outcome, WorkerKilled):
                outcome = Outcome([], 0.0, "", str(outcome))
            run.error, run.seconds = outcome.error, outcome.seconds
            if not run.error:
                manifest.record(run.settings, outcome.rows, outcome.seconds, outcome.variant)
                run.steps, run.loss = outcome.rows[-1] if outcome.rows else (0, float("nan"))
            change(run, "failed" if run.error else "done")


def _train(settings: Settings) -> Outcome:
    """In a worker: train one run to its end."""
    started = time.perf_counter()
    try:
        rows = train(settings)
    except Exception as error:
        return Outcome([], 0.0, "", f"{type(error).__name__}: {error}")
    return Outcome(rows, time.perf_counter() - started, str(build_info()["variant"]), "")
