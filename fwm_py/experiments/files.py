"""Files that a kill or a full disk leaves as they were."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file by `data`, wholly or not at all; on the disk when this returns. A device is written to as it is.

    Raises
    ------
    OSError
        With the name of the file.
    """
    target = Path(os.path.realpath(os.fsdecode(path)))  # a link stays one
    if target.exists() and not target.is_file():
        with naming(path), open(target, "wb") as file:
            file.write(data)
    else:
        with naming(path):
            publish(write_partial(target, data), target)


def write_partial(path: Path, data: bytes) -> Path:
    """Write `data` beside `path`, onto the disk."""
    temporary = path.with_name(path.name + PARTIAL)
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def publish(temporary: Path, path: Path) -> None:
    """Rename, and write the folder's entry to the disk."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors get the name of the file, which that of a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(path)
        raise
