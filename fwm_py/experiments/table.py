"""What is kept of a folder of logs: tables of comma-separated values, which lie beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fwm_py.checks import shown
from fwm_py.experiments.files import append_line, write_file


def beside(folder: str | os.PathLike[str], ending: str) -> Path:
    """`<folder><ending>`, next to the folder, because a folder of logs holds logs only."""
    path = Path(os.path.realpath(folder))
    return path.with_name(path.name + ending)


class Table:
    """A file with a header, a line for each row, and no quotes.

    Parameters
    ----------
    path : Path
    columns : sequence of str
    way_out : str
        What to do about a damaged file.
    """

    def __init__(self, path: Path, columns: Sequence[str], way_out: str) -> None:
        self.path = path
        self.columns = columns
        self.way_out = way_out

    def read(self) -> Iterator[tuple[int, list[str]]]:
        """The rows, each with the number of its line; none if there is no file.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            At the first damaged line: another header, more or fewer fields, a last line that is cut off.
        """
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return
        *lines, rest = text.replace("\r\n", "\n").split("\n")
        header = ",".join(self.columns)
        if not lines or lines[0] != header:
            raise self.damaged(1, (lines or [rest])[0], header)
        for number, line in enumerate(lines[1:], start=2):
            if line.count(",") != len(self.columns) - 1:
                raise self.damaged(number, line, f"{len(self.columns)} fields")
            yield number, line.split(",")
        if rest:
            raise self.damaged(len(lines) + 1, rest, "a line that ends")

    def damaged(self, number: int, line: str, expected: str) -> ValueError:
        return ValueError(f"{self.path}: line {number}: got {shown(line)}, expected {expected}; {self.way_out}")

    def append(self, row: Sequence[str]) -> None:
        """Write a row behind the others, wholly or not at all."""
        append_line(self.path, ",".join(row))

    def write(self, rows: Iterable[Sequence[str]]) -> None:
        """Replace the file; a program that is killed leaves the old one or the new one."""
        write_file(self.path, "".join(",".join(row) + "\n" for row in (self.columns, *rows)).encode("ascii"))
