"""What the commands that make studies share: the flags of a sweep, and a study with its errors in one line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fwm_py.checks import shown
from fwm_py.cli.cluster import cluster
from fwm_py.cli.failure import Failure, integer
from fwm_py.experiments.jobs import MAX_JOBS

if TYPE_CHECKING:
    from distributed import Client

Row = TypeVar("Row")


def add_study_flags(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"a row for each run; made if missing, goes on if not (default {out})",
        default=out,
    )
    parser.add_argument("--jobs", metavar="J", help="runs side by side (default: the cores this process may use)")
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="run on a Dask cluster: its scheduler's address, or its scheduler file"
    )


def make_study(
    args: argparse.Namespace, study: Callable[[int | None, Client | None], Sequence[Row]]
) -> tuple[Sequence[Row], float]:
    """The rows of a study, and how long it took; its errors end the program."""
    jobs = None if args.jobs is None else integer(args.parser, "jobs", args.jobs, 1, MAX_JOBS)
    started = time.monotonic()
    try:
        with cluster(args.dask) as client:
            return study(jobs, client), time.monotonic() - started
    except ValueError as error:
        raise Failure(2, str(error)) from None
    except OSError as error:
        raise Failure(
            2, f"--out: got {shown(args.out)}, expected a file that can be written ({error.strerror})"
        ) from None
    except KeyboardInterrupt:
        raise Failure(130, f"interrupted; the rows of {args.out} are whole, and the same command goes on") from None


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table whose columns of numbers are set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for i, heading in enumerate(headings):
        text = all(isinstance(row[i], str) and not row[i][:1].isdigit() for row in rows)
        table.add_column(heading, justify="left" if text else "right")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(table)
