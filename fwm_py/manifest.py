"""What a folder of logs holds: the logs, and `manifest.csv`, which says how each of them came about.

A log that is in the manifest, with the settings that are wanted and unchanged since, is a run that need not be made
again. Both are written to a temporary file and renamed, the manifest's row first, so that a sweep that is killed at any
instant leaves whole logs, and a row without its log means that the run is yet to be made.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
from pathlib import Path

from fwm_py import __version__
from fwm_py.logs import format_log, has_ended, log_name, read_log
from fwm_py.retrieval import Settings, shown

NAME = "manifest.csv"
PARTIAL = ".partial"
SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))
COLUMNS = ("log", *SETTINGS, "version", "variant", "seconds", "sha256")


def settings_columns(settings: Settings) -> dict[str, str]:
    """The settings of a run as the manifest has them, defaults of batch_size and lr resolved."""
    values = dataclasses.asdict(settings)
    values.update(batch_size=settings.resolved_batch_size, lr=settings.resolved_lr, replace=int(settings.replace))
    return {name: str(value) for name, value in values.items()}


def differences(one: Settings, other: Settings) -> str:
    """What two runs do not share: `max_steps 300 and 100000`."""
    theirs = settings_columns(other)
    found = [f"{name} {value} and {theirs[name]}" for name, value in settings_columns(one).items() if value != theirs[name]]
    return ", ".join(found) or "the same settings"


def write_file(path: Path, data: bytes) -> None:
    """Replace a file by `data`, wholly or not at all; on the disk when this returns."""
    _publish(_write_partial(path, data), path)


def _write_partial(path: Path, data: bytes) -> Path:
    """Write `data` beside `path`, onto the disk."""
    temporary = path.with_name(path.name + PARTIAL)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _publish(temporary: Path, path: Path) -> None:
    """Rename, and write the folder's entry to the disk."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Manifest:
    """`manifest.csv` of a folder, read when made; a missing one has no rows.

    Raises
    ------
    ValueError
        "<path>: line <n>: got <line>, expected <what>".
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / NAME
        self.rows: dict[str, dict[str, str]] = {}
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return
        lines = list(csv.reader(io.StringIO(text)))
        if not lines or tuple(lines[0]) != COLUMNS:
            raise ValueError(f"{self.path}: line 1: got {shown(','.join(lines[0]) if lines else '')}, "
                             f"expected {','.join(COLUMNS)}")
        for number, line in enumerate(lines[1:], start=2):
            if len(line) != len(COLUMNS):
                raise ValueError(f"{self.path}: line {number}: got {shown(','.join(line))}, expected {len(COLUMNS)} fields")
            row = dict(zip(COLUMNS, line, strict=True))
            self.rows[row["log"]] = row

    def standing(self, settings: Settings) -> str | None:
        """Why a run's log cannot count as made: "" if there is none, None if it can.

        Otherwise the reason for which it may not be overwritten either.
        """
        name = log_name(settings)
        try:
            data = (self.path.parent / name).read_bytes()
        except FileNotFoundError:
            return ""
        if name not in self.rows:
            return f"is not in {NAME}"
        if self.rows[name]["sha256"] != hashlib.sha256(data).hexdigest():
            return "has been changed since it was made"
        return self.other_settings(settings)

    def other_settings(self, settings: Settings) -> str | None:
        """Which other setting the log of this name was made with, None as far as is known."""
        row, wanted = self.rows.get(log_name(settings)), settings_columns(settings)
        for column in SETTINGS:
            if row and row[column] != wanted[column]:
                return f"was made with {column} {row[column]}, not {wanted[column]}"
        return None

    def record(self, settings: Settings, rows: list[tuple[int, float]], seconds: float, variant: str) -> None:
        """Write the log of a run that has ended, and its row.

        Raises
        ------
        OSError
            If that fails; the log then is the one before, or none.
        """
        path = self.path.parent / log_name(settings)
        data = format_log(rows)
        temporary = _write_partial(path, data)
        try:
            self._add(settings, data, f"{seconds:.3f}", variant)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _publish(temporary, path)

    def adopt(self, settings: Settings) -> str | None:
        """Record a log that was made elsewhere; None, or why not."""
        path = self.path.parent / log_name(settings)
        try:
            if not has_ended(read_log(path), settings.max_steps):
                return "has not come to its end"
        except ValueError as error:
            return str(error).removeprefix(f"{path}: ")
        self._add(settings, path.read_bytes(), "", "")
        return None

    def _add(self, settings: Settings, log: bytes, seconds: str, variant: str) -> None:
        name = log_name(settings)
        version = __version__ if variant else ""
        before = self.rows.get(name)
        self.rows[name] = {"log": name, **settings_columns(settings), "version": version, "variant": variant,
                           "seconds": seconds, "sha256": hashlib.sha256(log).hexdigest()}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        try:
            write_file(self.path, text.getvalue().encode())
        except OSError:
            if before is None:
                del self.rows[name]
            else:
                self.rows[name] = before
            raise
