"""Documents from files, folders, .gz, .jsonl and Python's own sources; what is no text is skipped, by name.

>>> from fwm_py.experiments.language.corpus import read_corpus
>>> documents, skipped = read_corpus(["stdlib"])
>>> "def fnmatch(name, pat):" in next(text for name, text in documents if name.endswith("fnmatch.py"))
True
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import sysconfig
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fwm_py.checks import shown

STDLIB = "stdlib"
"""The source that every Python brings along; a file or folder of this name is ./stdlib."""

STDLIB_WITHOUT = {
    **dict.fromkeys(("site-packages", "dist-packages"), "not of the standard library"),
    **dict.fromkeys(("test", "tests"), "a third of all, with data and sources that are broken on purpose"),
    **dict.fromkeys(("encodings", "pydoc_data"), "generated tables"),
    **dict.fromkeys(
        ("distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"),
        "missing in newer Pythons, or a package of its own in many distributions",
    ),
}
"""The folders of the standard library that are left out, and why: installations then have much the same corpus."""

_OF_THE_MACHINE = ("_sysconfigdata", "config-")  # what names a file or folder that describes how Python was built

EXPECTED = f"files, folders, .gz, .jsonl or {STDLIB}"


class Document(NamedTuple):
    """A text and where it is from: `<path>`, or `<path>: line <n>` of a .jsonl."""

    name: str
    text: str


class Skipped(NamedTuple):
    """What was left out, named as a Document is, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Corpus(NamedTuple):
    documents: list[Document]
    skipped: list[Skipped]


def read_corpus(sources: Sequence[str | os.PathLike[str]]) -> Corpus:
    """The documents of all sources, in their order and sorted by name in folders.

    A file is a document; `.gz` is unpacked first. `.jsonl`, or `.jsonl.gz`, has one in the field `text` of each line. A
    folder is read with all that is below it. Links are followed, and what is reached twice counts once. `stdlib` stands
    for the .py files of the running Python's standard library without `STDLIB_WITHOUT`.

    Skipped is what is not UTF-8, has a NUL, is a damaged .gz, or is a line without such a field; and in folders what is
    hidden (its name begins with a dot), no file, a link to nothing, or may not be read. What is empty is no document.

    Parameters
    ----------
    sources : sequence of path

    Returns
    -------
    Corpus
        At least one document, none of them empty; documents of the same text are all there.

    Raises
    ------
    OSError
        If a source is missing or cannot be read.
    TypeError, ValueError
        "sources: got <what>, expected <what>": for a source that is neither file nor folder, or if nothing is left.
    """
    if isinstance(sources, (str, bytes, os.PathLike)):
        raise TypeError(f"sources: got {shown(sources)}, expected a list of {EXPECTED}")
    reader = _Reader()
    for source in sources:
        reader.read_source(os.fsdecode(source))
    if not reader.documents:
        first = f", but {reader.skipped[0]}" if reader.skipped else ""
        others = f" and {len(reader.skipped) - 1} more" if len(reader.skipped) > 1 else ""
        raise ValueError(f"sources: got no text{first}{others}, expected {EXPECTED}")
    return Corpus(reader.documents, reader.skipped)


def _of_stdlib(name: str, is_folder: bool) -> bool:
    if name.startswith(_OF_THE_MACHINE):
        return False
    return name not in STDLIB_WITHOUT if is_folder else name.endswith(".py")


class _Reader:
    """Documents as they are found.

    Attributes
    ----------
    documents, skipped : list
    seen : set of str
        The real paths of files and folders that have been read.
    """

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.skipped: list[Skipped] = []
        self.seen: set[str] = set()

    def read_source(self, source: str) -> None:
        if source == STDLIB:
            self._read_folder(sysconfig.get_paths()["stdlib"], _of_stdlib)
            return
        mode = os.stat(source).st_mode
        if stat.S_ISDIR(mode):
            os.scandir(source).close()  # an OSError, which inside a folder is a reason to skip
            self._read_folder(source)
        elif stat.S_ISREG(mode):
            open(source, "rb").close()
            self._read_file(source)
        else:
            raise ValueError(f"sources: got {shown(source)}, expected {EXPECTED}")

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))

    def _is_new(self, path: str) -> bool:
        real = os.path.realpath(path)
        new = real not in self.seen
        self.seen.add(real)
        return new

    def _read_folder(self, root: str, wanted: Callable[[str, bool], bool] | None = None) -> None:
        """Read the files below `root` whose names, and those of their folders, are wanted; all if None."""
        if not self._is_new(root):
            return

        def skip(error: OSError) -> None:
            self._skip(str(error.filename), str(error.strerror))

        for here, folders, files in os.walk(root, onerror=skip, followlinks=True):
            for is_folder, names in ((True, folders), (False, files)):
                if wanted is not None:
                    names[:] = [name for name in names if wanted(name, is_folder)]
                names.sort()
                for name in names:
                    if name.startswith("."):
                        self._skip(os.path.join(here, name), "hidden")
                names[:] = [name for name in names if not name.startswith(".")]
            for name in files:
                self._read_file(os.path.join(here, name))
            folders[:] = [name for name in folders if self._is_new(os.path.join(here, name))]

    def _read_file(self, path: str) -> None:
        if not os.path.isfile(path):
            self._skip(path, "a device or a pipe" if os.path.exists(path) else "a link to nothing")
        elif self._is_new(path):
            try:
                with open(path, "rb") as file:
                    self._read_bytes(path, file.read())
            except OSError as error:
                self._skip(path, str(error.strerror))

    def _read_bytes(self, path: str, data: bytes) -> None:
        kind = path.lower()
        if kind.endswith(".gz"):
            kind = kind.removesuffix(".gz")
            try:
                data = gzip.decompress(data)
            except (gzip.BadGzipFile, EOFError, zlib.error):
                self._skip(path, "a damaged .gz")
                return
        if kind.endswith(".jsonl"):
            for number, line in enumerate(data.split(b"\n"), start=1):
                if line.strip():
                    self._read_line(f"{path}: line {number}", line)
        else:
            self._add(path, data)

    def _read_line(self, name: str, line: bytes) -> None:
        try:
            text = json.loads(line.decode("utf-8-sig"))["text"]
            if not isinstance(text, str):
                raise TypeError
            data = text.encode()
        except (KeyError, TypeError, ValueError, RecursionError):
            self._skip(name, "no JSON with a text in the field text")
        else:
            self._add(name, data)

    def _add(self, name: str, data: bytes) -> None:
        if b"\0" in data:
            self._skip(name, "not text: it has a NUL")
        elif data:
            try:
                self.documents.append(Document(name, data.decode("utf-8")))
            except UnicodeDecodeError as error:
                self._skip(name, f"not text: no UTF-8 at byte {error.start}")
