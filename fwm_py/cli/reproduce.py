"""`fwm-py reproduce`: the logs of the paper's runs, side by side."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fwm_py.checks import shown
from fwm_py.cli.cluster import cluster
from fwm_py.cli.failure import Failure, integer
from fwm_py.experiments.jobs import MAX_JOBS
from fwm_py.experiments.retrieval.logs import format_loss
from fwm_py.experiments.retrieval.paper import COMMANDS
from fwm_py.experiments.retrieval.settings import LIMITS
from fwm_py.experiments.retrieval.sweep import Run, cost, reproduce, select

if TYPE_CHECKING:
    from distributed import Client

RECENT = 5


def add_reproduce_flags(parser: argparse.ArgumentParser) -> None:
    def add(name: str, metavar: str, text: str, **more: Any) -> None:
        parser.add_argument("--" + name, metavar=metavar, help=text, **more)

    add("setting", "S", "only Setting 1 (capacity) or 2 (update rule)")
    add(
        "only",
        "PATTERN",
        "only runs whose log, or command, has a name that fits one of these (*, ?, [..]): '*dpfp1_ours*'",
        nargs="+",
        default=[],
    )
    add("max-n", "N", "only runs with at most so many keys")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="whole runs of a few seconds each, of every map and rule: two minutes on two cores",
    )
    add("jobs", "J", "runs side by side, each on one thread (default: the cores this process may use)")
    add("log_folder", "FOLDER", "made if missing (default logs)", default="logs")
    parser.add_argument(
        "--force", action="store_true", help="make runs again whose logs the manifest does not vouch for"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="record whole logs in the manifest that came from elsewhere"
    )
    add("dask", "ADDRESS", "run on a Dask cluster: its scheduler's address, or its scheduler file")


def run_reproduce(args: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = args.parser
    setting = None if args.setting is None else integer(parser, "setting", args.setting, 1, 2)
    max_n = None if args.max_n is None else integer(parser, "max-n", args.max_n, *LIMITS["n_keys"])
    jobs = None if args.jobs is None else integer(parser, "jobs", args.jobs, 1, MAX_JOBS)
    if not args.log_folder:
        parser.error("--log_folder: got '', expected a folder")
    try:
        runs = select(setting, args.only, max_n, args.quick)
    except ValueError as error:
        parser.error(f"--{error}")
    started = time.monotonic()
    with cluster(args.dask) as client, make_progress(runs) as progress:
        sweep(args, runs, jobs, client, progress)
    print_summary(runs, time.monotonic() - started)
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        print(f"{parser.prog}: {run.name} failed: {run.error}", file=sys.stderr)
    return 1 if failed else 0


def sweep(
    args: argparse.Namespace, runs: Sequence[Run], jobs: int | None, client: Client | None, progress: Progress
) -> None:
    """`reproduce`, with its errors in one line."""
    try:
        reproduce(
            args.log_folder,
            runs,
            jobs=jobs,
            client=client,
            force=args.force,
            adopt=args.adopt,
            on_change=progress.update,
        )
    except ValueError as error:
        raise Failure(2, str(error)) from None
    except OSError as error:
        if all(run.state in ("waiting", "skipped") for run in runs):
            raise Failure(
                2,
                f"--log_folder: got {shown(args.log_folder)}, expected a folder that can be written "
                f"({error.strerror}: {error.filename})",
            ) from None
        raise Failure(
            1,
            f"{error.filename}: {error.strerror}; the logs that are there are whole, and the same command "
            f"goes on from them",
        ) from None
    except KeyboardInterrupt:
        done = sum(run.state in ("done", "skipped") for run in runs)
        raise Failure(
            130, f"interrupted; {done} of {len(runs)} logs are there, and the same command goes on from them"
        ) from None


def print_summary(runs: Sequence[Run], seconds: float) -> None:
    """A table with a line for each command: runs, steps, time on a core and its share, and how the largest N ended."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "runs", box=box.SIMPLE)
    for heading in ("done", "made before", "failed", "steps", "core seconds", "share", "last loss at the largest N"):
        table.add_column(heading, justify="right")
    total = sum(run.seconds for run in runs)
    for command in COMMANDS:
        mine = [run for run in runs if run.command is command]
        if not mine:
            continue
        spent = sum(run.seconds for run in mine)
        last = max((run for run in mine if run.state == "done"), key=lambda run: run.settings.n_keys, default=None)
        table.add_row(
            str(command.setting),
            command.label,
            *(str(sum(run.state == state for run in mine)) for state in ("done", "skipped", "failed")),
            str(sum(run.steps for run in mine)),
            f"{spent:.1f}",
            f"{spent / total:.1%}" if total else "-",
            f"{format_loss(last.loss)} (N = {last.settings.n_keys})" if last else "-",
        )
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(table)
    counts = {state: sum(run.state == state for run in runs) for state in ("done", "skipped", "failed")}
    print(
        f"{counts['done']} runs made, {counts['skipped']} made before, {counts['failed']} failed; "
        f"{sum(run.steps for run in runs)} steps in {seconds:.1f} s, {total:.1f} s of cores",
        flush=True,
    )


# ---- progress ----


class Progress:
    """What is known while the runs go on: how many are done, which are running, and how long the rest may take."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.started = time.monotonic()
        self.recent: list[Run] = []

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, run: Run) -> None:
        if run.state in ("done", "failed"):
            self.recent = [*self.recent, run][-RECENT:]

    def summary(self) -> str:
        ended = sum(run.state in ("done", "failed", "skipped") for run in self.runs)
        return f"{ended} of {len(self.runs)} runs{self.time_left()}"

    def time_left(self) -> str:
        """By the costs, at the pace so far; nothing before there is a pace."""
        made = sum(cost(run.settings) for run in self.runs if run.state == "done")
        left = sum(cost(run.settings) for run in self.runs if run.state in ("waiting", "running"))
        if not made or not left:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - self.started) * left / made), 60)
        return f", about {minutes}:{seconds:02} left"


def ending(run: Run) -> str:
    if run.state == "failed":
        return f"{run.name}: failed: {run.error}"
    return f"{run.name}: loss {format_loss(run.loss)} at step {run.steps}, {run.seconds:.1f} s"


class PlainProgress(Progress):
    """A line when a run ends."""

    def update(self, run: Run) -> None:
        super().update(run)
        if run.state in ("done", "failed"):
            print(f"{ending(run)} ({self.summary()})", file=sys.stderr, flush=True)


class LiveProgress(Progress):
    """A few lines of a terminal, drawn anew twice a second and gone at the end."""

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.live import Live

        self.live = Live(
            get_renderable=self.lines,
            console=Console(stderr=True, highlight=False),
            refresh_per_second=2,
            transient=True,
        )
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def lines(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar

        total = sum(cost(run.settings) for run in self.runs)
        made = sum(cost(run.settings) for run in self.runs if run.state in ("done", "failed", "skipped"))
        running = ", ".join(run.name.removesuffix(".csv") for run in self.runs if run.state == "running")
        return Group(
            *map(ending, self.recent), f"running {running}", ProgressBar(total, made, width=60), self.summary()
        )


def make_progress(runs: Sequence[Run]) -> Progress:
    return LiveProgress(runs) if sys.stderr.isatty() else PlainProgress(runs)
