"""What the commands that make studies share: the flags of a sweep, and a study with its errors in one line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fwm_py.checks import shown
from fwm_py.cli.cluster import cluster
from fwm_py.cli.failure import Failure, integer
from fwm_py.experiments.jobs import MAX_JOBS


class Ended(Protocol):
    """A row."""

    @property
    def failed(self) -> bool:
        """Whether it has no numbers."""
        ...


Row = TypeVar("Row", bound=Ended)


def add_study_flags(parser: argparse.ArgumentParser, out: str, metavar: str = "FILE") -> None:
    parser.add_argument(
        "--out",
        metavar=metavar,
        help=f"a row for each run; made if missing, goes on if not (default {out})",
        default=out,
    )
    parser.add_argument("--jobs", metavar="J", help="runs side by side (default: the cores this process may use)")
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="run on a Dask cluster: its scheduler's address, or its scheduler file"
    )


def run_study_command(
    args: argparse.Namespace,
    study: Callable[..., Sequence[Row]],
    ending: Callable[[Row], str],
    print_rows: Callable[[Sequence[Row]], None],
) -> int:
    """Make a study, a line for each row as it ends, then its table; the exit status: 1 if a row failed.

    Parameters
    ----------
    args : Namespace
        With the flags of `add_study_flags`.
    study : callable
        study(jobs=.., client=.., on_row=..) -> rows.
    ending : callable
        A row's line.
    print_rows : callable
        Prints the table.

    Raises
    ------
    Failure
        For what ends the study.
    """
    jobs = None if args.jobs is None else integer(args.parser, "jobs", args.jobs, 1, MAX_JOBS)
    started, done = time.monotonic(), 0

    def report(row: Row) -> None:
        nonlocal done
        done += 1
        print(f"{ending(row)} ({done} made)", file=sys.stderr, flush=True)

    try:
        with cluster(args.dask) as client:
            rows = study(jobs=jobs, client=client, on_row=report)
    except ValueError as error:
        raise Failure(2, str(error)) from None
    except OSError as error:
        if error.filename not in (None, args.out):  # what the study reads
            raise Failure(2, f"{shown(error.filename)}: {error.strerror}") from None
        raise Failure(
            2, f"--out: got {shown(args.out)}, expected a file that can be written ({error.strerror})"
        ) from None
    except KeyboardInterrupt:
        raise Failure(130, f"interrupted; the rows of {args.out} are whole, and the same command goes on") from None
    print_rows(rows)
    seconds = time.monotonic() - started
    print(f"{args.out}: {done} rows made in {seconds:.1f} s, {len(rows) - done} made before", flush=True)
    failed = [row for row in rows if row.failed]
    for row in failed:
        print(f"{args.parser.prog}: {ending(row)}", file=sys.stderr)
    if failed:
        print(f"{args.parser.prog}: a row that failed is made again where its line is deleted", file=sys.stderr)
    return 1 if failed else 0


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
