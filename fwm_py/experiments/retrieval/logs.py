"""Logs of runs: their names, and reading and writing them in the published format.

A log is a CSV file with the header `step,eval-loss`, one row for each evaluation, and lines that end in CR LF.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Iterable
from types import TracebackType

import numpy as np

from fwm_py.checks import instance, shown
from fwm_py.experiments.files import naming
from fwm_py.experiments.retrieval.settings import MAP_ARGUMENTS, Settings

HEADER = "step,eval-loss"
_ROW = re.compile(r"([0-9]+),(nan|-?inf|-?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?)")


def log_name(settings: Settings) -> str:
    """The name of a run's log, such as `d64_dpfp1_sum_AssocSeq80N40R1.csv`.

    A published name says nothing of the seed, the step size, the batch size and FAVOR+'s draws. Those that are not the
    published ones stand behind it, in this order: `.._seed2_lr0.0003_B64_mt19937_redrawnever.csv`. Where a run is cut
    off (`max_steps`) is no part of a name.
    """
    instance("settings", settings, Settings)
    if settings.map is None:
        memory = f"{settings.rule}_cat"
    else:
        argument = settings.attn_arg if MAP_ARGUMENTS[settings.map] else ""
        memory = f"{settings.map}{argument}_{settings.rule}"
    size = f"AssocSeq{settings.seq_len}N{settings.n_keys}R{int(settings.replace)}"
    return "_".join([f"d{settings.hidden_size}", memory, size, *_unpublished(settings)]) + ".csv"


def _unpublished(settings: Settings) -> list[str]:
    """What differs from the published runs and is not in their names."""
    published = dataclasses.replace(
        settings,
        seed=Settings.seed,
        lr=None,
        batch_size=None,
        favor_generator=Settings.favor_generator,
        redraw=Settings.redraw,
    )
    parts = {
        "seed": f"seed{settings.seed}",
        "resolved_lr": f"lr{settings.resolved_lr}",
        "resolved_batch_size": f"B{settings.resolved_batch_size}",
        "favor_generator": settings.favor_generator,
        "redraw": f"redraw{settings.redraw}",
    }
    return [part for name, part in parts.items() if getattr(settings, name) != getattr(published, name)]


def format_loss(loss: float) -> str:
    """A loss as the published logs write it.

    Parameters
    ----------
    loss : float
        A float32 value.

    Returns
    -------
    str
        The shortest decimal that gives the float32 back, positional for 1e-4 <= loss < 1e16 (`0.5`), otherwise like
        `8.620099e-05`; `nan`.
    """
    value = np.float32(loss)
    if not np.isfinite(value) or value == 0 or 1e-4 <= abs(float(value)) < 1e16:
        return np.format_float_positional(value, trim="0")
    return np.format_float_scientific(value, trim="-", exp_digits=2)


def format_log(rows: Iterable[tuple[int, float]]) -> bytes:
    """The whole log of these evaluations, (step, loss)."""
    lines = [HEADER, *(f"{step},{format_loss(loss)}" for step, loss in rows)]
    return "".join(line + "\r\n" for line in lines).encode("ascii")


class LogWriter:
    """Writes the log of one run; a context manager.

    Every row is one write of the whole row, so that a killed run leaves whole rows only. A log of the same name is
    overwritten. A missing folder is made.

    Parameters
    ----------
    path : path
        The log.

    Raises
    ------
    OSError
        If the folder cannot be made or the log not be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = os.path.dirname(path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        self._file = open(path, "wb", buffering=0)
        self.rows = 0
        try:
            self._write_line(HEADER)
        except OSError:
            self._file.close()
            raise

    def write(self, step: int, loss: float) -> None:
        """Append the row of one evaluation."""
        self._write_line(f"{step},{format_loss(loss)}")
        self.rows += 1

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_line(self, line: str) -> None:
        data = line.encode("ascii") + b"\r\n"
        with naming(self._file.name):
            start = self._file.tell()
            written = self._file.write(data)
            if written != len(data):  # a full disk: take the half row away again
                self._file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_log(path: str | os.PathLike[str]) -> list[tuple[int, float]]:
    """Read a log.

    Returns
    -------
    list of (int, float)
        Step and evaluation loss (a float32 value) of every row.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no log, or its last row is not whole: "<path>: line <n>: got <line>, expected <what>".
    """
    with open(path, "rb") as file:
        lines = file.read().decode("latin-1").split("\r\n")

    def fail(number: int, expected: str) -> ValueError:
        return ValueError(f"{os.fspath(path)}: line {number}: got {shown(lines[number - 1])}, expected {expected}")

    if lines[0] != HEADER or len(lines) == 1:
        raise fail(1, f"{HEADER!r} and CR LF")
    if lines[-1]:
        raise fail(len(lines), "a row that ends in CR LF")
    rows: list[tuple[int, float]] = []
    for number, line in enumerate(lines[1:-1], start=2):
        match = _ROW.fullmatch(line)
        if match is None:
            raise fail(number, "'<step>,<loss>'")
        step = int(match[1])
        if rows and step <= rows[-1][0]:
            raise fail(number, f"a step above {rows[-1][0]}")
        rows.append((step, float(np.float32(match[2]))))
    return rows
