"""Files that a kill or a full disk leaves as they were."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"


class Refused(ValueError):
    """A file may not be overwritten, or another process is writing it."""


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], message: str) -> Iterator[None]:
    """Hold a folder, or a file, against other processes that do; the lock ends with this process, however it ends."""
    import fcntl  # which Windows lacks

    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{os.fsdecode(path)}: {message}") from None
        yield
    finally:
        os.close(descriptor)


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


def append_line(path: Path, line: str) -> None:
    """Append a line, wholly or not at all; on the disk when this returns.

    Raises
    ------
    OSError
        With the name of the file, which is as it was.
    """
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            data = (line + "\n").encode("ascii")
            try:
                if os.write(descriptor, data) < len(data):  # the disk is full
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors get the name of the file, which that of a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(path)
        raise
