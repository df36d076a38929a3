"""A study: many settings, each measured once, and a row for each in a file that grows by whole rows.

What this leaves, however it ends, the next call goes on from: a row is known by its settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from fwm_py._core import build_info
from fwm_py.experiments.files import locked, naming
from fwm_py.experiments.jobs import WorkerKilled, run_all
from fwm_py.experiments.table import Table

if TYPE_CHECKING:
    from distributed import Client

WAY_OUT = "delete this line, and the same command makes its row again"


class RowKind(Protocol):
    """A dataclass whose fields are columns: str, int, float or bool, or one of these or None."""

    KEYS: ClassVar[tuple[str, ...]]
    """The columns that tell rows apart."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Row = TypeVar("Row", bound=RowKind)
Task = TypeVar("Task")


class Results(Generic[Row]):
    """The rows of a study in a file, read when made; a missing file has none.

    Parameters
    ----------
    path : path
    kind : type
        Of a row, a dataclass.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged: "<path>: line <n>: got <line>, expected <what>; <the way out>".
    """

    def __init__(self, path: Path, kind: type[Row]) -> None:
        self.path = path
        self.kind = kind
        self.rows: dict[tuple[str, ...], Row] = {}
        hints = typing.get_type_hints(kind)
        self._readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
        self._table = Table(path, tuple(self._readers), WAY_OUT)
        if path.is_file() and path.stat().st_size == 0:  # of a study that was killed before its first line
            return
        for number, fields in self._table.read():
            try:
                row = kind(**{name: read(text) for (name, read), text in zip(self._readers.items(), fields)})
                whole = [*texts_of(row)] == fields
            except (KeyError, TypeError, ValueError):
                whole = False
            if not whole:
                raise self._table.damaged(number, ",".join(fields), "a row of a study")
            self.rows[self.key(row)] = row

    def key(self, row: Row) -> tuple[str, ...]:
        texts = dict(zip(self._readers, texts_of(row)))
        return tuple(texts[name] for name in self.kind.KEYS)

    def append(self, row: Row) -> None:
        """Write a row behind the others, wholly or not at all."""
        self._table.append(texts_of(row))
        self.rows[self.key(row)] = row

    def begin(self) -> None:
        """Write the header of an empty file."""
        if self.path.stat().st_size == 0:
            self._table.append(tuple(self._readers))


def rows_with(path: str | os.PathLike[str], kind: type[Row], column: str) -> list[Row]:
    """The rows of a study's file that have a number in this column.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, or has no such rows.
    """
    path = Path(path)
    with naming(path):
        path.stat()
    rows = [row for row in Results(path, kind).rows.values() if getattr(row, column) is not None]
    if not rows:
        raise ValueError(f"{path}: got no rows with {column}, expected a study that has some")
    return rows


def header_of(kind: type[RowKind]) -> str:
    """The first line of a study's file."""
    return ",".join(field.name for field in dataclasses.fields(kind))


def texts_of(row: RowKind) -> list[str]:
    """The fields of a row as its line has them: floats whole, bools as 0 and 1, nothing for None."""
    return [_text(getattr(row, field.name)) for field in dataclasses.fields(row)]


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _reader(hint: Any) -> Callable[[str], Any]:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    read: Callable[[str], Any] = {"0": False, "1": True}.__getitem__ if kinds[0] is bool else kinds[0]
    if len(typing.get_args(hint)) < 2:
        return read
    return lambda text: read(text) if text else None


@dataclasses.dataclass(frozen=True)
class Failed:
    """What a worker sends back in place of a row."""

    error: str


def run_study(
    measure: Callable[[Task], Row],
    tasks: Sequence[Task],
    row_of: Callable[[Task], Row],
    path: str | os.PathLike[str],
    kind: type[Row],
    *,
    jobs: int | None = None,
    client: Client | None = None,
    on_row: Callable[[Row], object] | None = None,
) -> list[Row]:
    """Measure the tasks that have no row yet, side by side, and append a row for each as it ends.

    Parameters
    ----------
    measure : callable
        Importable.
    tasks : sequence
        Started in this order.
    row_of : callable
        The row of a task that has not been measured: its settings, and a field `error`.
    path : path
        The file; made if missing.
    kind : type
        Of a row.
    jobs, client
        As of `jobs.run_all`.
    on_row : callable, optional
        Called with each row that has been made.

    Returns
    -------
    list
        A row for each task, made now or before. One that failed has an `error`.

    Raises
    ------
    Refused
        If another study is writing into the file.
    OSError
        If it cannot be written; the rows that are there are whole.
    ValueError
        If it is damaged.
    """
    path = Path(path)
    with naming(path):
        path.touch()
    with locked(path, "another study is writing into this file"):
        results = Results(path, kind)
        results.begin()
        wanted = {results.key(row_of(task)): task for task in tasks}
        waiting = [task for key, task in wanted.items() if key not in results.rows]
        with contextlib.closing(run_all(functools.partial(_attempt, measure), waiting, jobs, client)) as outcomes:
            for index, outcome in outcomes:
                if isinstance(outcome, WorkerKilled):
                    outcome = Failed(str(outcome))
                if isinstance(outcome, Failed):
                    outcome = dataclasses.replace(row_of(waiting[index]), error=outcome.error)
                results.append(outcome)
                if on_row is not None:
                    on_row(outcome)
    return [results.rows[key] for key in wanted]


def _attempt(measure: Callable[[Task], Row], task: Task) -> Row | Failed:
    try:
        return measure(task)
    except Exception as error:
        return Failed(one_field(f"{type(error).__name__}: {error}"))


def one_field(text: str) -> str:
    """A text without what ends a field or a line."""
    return " ".join(text.replace(",", ";").split()).encode("ascii", "replace").decode()


def variant() -> str:
    """The compiled code that a row was made with."""
    return str(build_info()["variant"])
