"""`fwm-py compare`: how the logs of a folder agree with the published ones."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure, integer
from fwm_py.experiments.jobs import MAX_JOBS, WorkerKilled
from fwm_py.experiments.retrieval.compare import compare, print_comparison
from fwm_py.experiments.retrieval.logs import format_loss
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.twins import MAX_TWINS, Band, make_twins, twin_runs


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="the logs")
    parser.add_argument(
        "--twins",
        metavar="K",
        help="first train K copies of runs, whose initial weights are moved by one unit in "
        "the last place, and keep the band of their last losses in FOLDER.twins.csv",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        default=[],
        help="with --twins: of the logs that fit one of these (default: N <= 200 with the rules sum and ours)",
    )
    parser.add_argument(
        "--jobs", metavar="J", help="with --twins: twins side by side (default: the cores this process may use)"
    )


def run_compare(args: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = args.parser
    jobs = None if args.jobs is None else integer(parser, "jobs", args.jobs, 1, MAX_JOBS)
    if args.twins is None and (args.only or jobs):
        parser.error(f"--{'only' if args.only else 'jobs'}: goes with --twins")
    try:
        if args.twins is not None:
            train_twins(args.folder, integer(parser, "twins", args.twins, 1, MAX_TWINS), chosen_twins(args), jobs)
        comparison = compare(args.folder)
    except ValueError as error:
        raise Failure(2, str(error)) from None
    except OSError as error:
        raise Failure(
            2, f"FOLDER: got {shown(args.folder)}, expected a folder of logs ({error.strerror}: {error.filename})"
        ) from None
    print_comparison(comparison)
    return 1 if comparison.failures else 0


def chosen_twins(args: argparse.Namespace) -> list[Settings]:
    try:
        return twin_runs(args.only)
    except ValueError as error:
        parser: argparse.ArgumentParser = args.parser
        parser.error(f"--only: {error}")


def train_twins(folder: str, count: int, runs: Sequence[Settings], jobs: int | None) -> None:
    started = time.monotonic()

    def show(name: str, band: Band) -> None:
        print(
            f"{name}: {count} twins, {format_loss(band.low)} to {format_loss(band.high)} "
            f"({time.monotonic() - started:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    try:
        make_twins(folder, runs, count, jobs, show)
    except KeyboardInterrupt:
        raise Failure(
            130, "interrupted; the bands that are there are kept, and the same command goes on from them"
        ) from None
    except WorkerKilled as error:
        raise Failure(1, str(error)) from None
    except OSError as error:
        if not Path(folder).is_dir():
            raise
        raise Failure(
            1,
            f"{error.filename}: {error.strerror}; the bands that are there are whole, and the same command goes "
            f"on from them",
        ) from None
