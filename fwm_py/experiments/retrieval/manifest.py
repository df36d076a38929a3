"""`<folder>.manifest.csv`, beside a folder of logs: how each of them came about.

A log that is in the manifest, with the settings that are wanted and unchanged since, is a run that need not be made
again. Both are written to a temporary file and renamed, the manifest's row first, so that a sweep that is killed at any
instant leaves whole logs, and a row without its log means that the run is yet to be made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fwm_py import __version__
from fwm_py.experiments.files import publish, write_partial
from fwm_py.experiments.retrieval.logs import format_log, log_name, read_log
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.train import has_ended
from fwm_py.experiments.table import Table, beside

ENDING = ".manifest.csv"
WAY_OUT = "fwm-py reproduce --adopt records the whole logs again, --force makes them again"
SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))
COLUMNS = ("log", *SETTINGS, "version", "variant", "seconds", "sha256")
_SETTING_TYPES: dict[str, Callable[[str], Any]] = {
    "attn_name": str,
    "update_rule": str,
    "favor_generator": str,
    "redraw": str,
    "lr": float,
    "replace": {"0": False, "1": True}.get,
}  # the others are integers
_OTHERS = {
    "log": r"[\w.+-]+\.csv",
    "version": r"[\w.+-]*",
    "variant": r"\w*",
    "seconds": r"([0-9]+\.[0-9]+)?",
    "sha256": r"[0-9a-f]{64}",
}


def settings_columns(settings: Settings) -> dict[str, str]:
    """The settings of a run as the manifest has them, defaults of batch_size and lr resolved."""
    values = dataclasses.asdict(settings)
    values.update(batch_size=settings.resolved_batch_size, lr=settings.resolved_lr, replace=int(settings.replace))
    return {name: str(value) for name, value in values.items()}


def differences(one: Settings, other: Settings) -> str:
    """What two runs do not share: `max_steps 300 and 100000`."""
    theirs = settings_columns(other)
    found = [
        f"{name} {value} and {theirs[name]}" for name, value in settings_columns(one).items() if value != theirs[name]
    ]
    return ", ".join(found) or "the same settings"


def _fault(row: dict[str, str]) -> str | None:
    """What a row should have been, None if it could have been written so."""
    for column, pattern in _OTHERS.items():
        if not re.fullmatch(pattern, row[column], re.ASCII):
            return f"another {column}"
    texts = {name: row[name] for name in SETTINGS}
    try:
        settings = Settings(**{name: _SETTING_TYPES.get(name, int)(text) for name, text in texts.items()})
    except (TypeError, ValueError):
        return "settings of a run"
    return None if settings_columns(settings) == texts else "settings of a run"


class Manifest:
    """The manifest of a folder, read when made; a missing one has no rows.

    Parameters
    ----------
    folder : path
    salvage : bool
        Of a damaged file, take the rows before the damage.

    Raises
    ------
    ValueError
        "<path>: line <n>: got <line>, expected <what>; <the way out>".
    """

    def __init__(self, folder: str | os.PathLike[str], salvage: bool = False) -> None:
        self.folder = Path(folder)
        self.path = beside(folder, ENDING)
        self.rows: dict[str, dict[str, str]] = {}
        self._table = Table(self.path, COLUMNS, WAY_OUT)
        try:
            self._read()
        except ValueError:
            if not salvage:
                raise

    def _read(self) -> None:
        for number, fields in self._table.read():
            row = dict(zip(COLUMNS, fields, strict=True))
            expected = f"{row['log']} once" if row["log"] in self.rows else _fault(row)
            if expected:
                raise self._table.damaged(number, ",".join(fields), expected)
            self.rows[row["log"]] = row

    def write(self) -> None:
        """Write the file; OSError if that fails."""
        self._table.write([row[column] for column in COLUMNS] for row in self.rows.values())

    def standing(self, settings: Settings) -> str | None:
        """Why a run's log cannot count as made: "" if there is none, None if it can.

        Otherwise the reason for which it may not be overwritten either.
        """
        name = log_name(settings)
        try:
            data = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return ""
        if name not in self.rows:
            return f"is not in {self.path.name}"
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
        path = self.folder / log_name(settings)
        data = format_log(rows)
        temporary = write_partial(path, data)
        try:
            self._add(settings, data, f"{seconds:.3f}", variant)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        publish(temporary, path)

    def adopt(self, settings: Settings) -> str | None:
        """Record a log that was made elsewhere; None, or why not."""
        path = self.folder / log_name(settings)
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
        self.rows[name] = {
            "log": name,
            **settings_columns(settings),
            "version": version,
            "variant": variant,
            "seconds": seconds,
            "sha256": hashlib.sha256(log).hexdigest(),
        }
        try:
            self.write()
        except OSError:
            if before is None:
                del self.rows[name]
            else:
                self.rows[name] = before
            raise
