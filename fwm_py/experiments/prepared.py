"""A folder of prepared texts: a tokenizer, tokens, and meta.json with checksums; it is there whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fwm_py import __version__
from fwm_py.checks import shown
from fwm_py.experiments.bpe import load_bpe
from fwm_py.experiments.files import PARTIAL, locked, publish, write_file

TOKENIZER, META = "tokenizer.json", "meta.json"
WAY_OUT = "delete this folder, and prepare it again"

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = TypeVar("Kind", bound="Prepared")


class FileFacts(NamedTuple):
    """The size of a file in bytes, and the sha256 of what it holds."""

    size: int
    sha256: str


# ---- making ----


@contextlib.contextmanager
def new_folder(out: str | os.PathLike[str], names: Sequence[str]) -> Iterator[Path]:
    """A folder beside `out` that becomes it when the block ends, and is gone if the block fails.

    A kill leaves `<out>.partial` at most, which the next call for this folder begins anew.

    Parameters
    ----------
    out : path
        Made, with those above it; it may be there if it is empty.
    names : sequence of str
        Of the files that the block may write.

    Raises
    ------
    Refused
        If another process prepares this folder.
    FileExistsError
        If `out` has files.
    OSError
        If the folder cannot be written.
    """
    out = Path(os.path.realpath(out))
    _refuse_files(out)
    partial = out.with_name(out.name + PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, "another process prepares this folder"):
        _clear(partial, names)
        try:
            yield partial
            _refuse_files(out)  # of another process, which was faster
            publish(partial, out)
        except BaseException:
            with contextlib.suppress(OSError):
                _clear(partial, names)
                partial.rmdir()
            raise


def _refuse_files(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise FileExistsError(f"{out}: got a folder with files, expected a new or an empty one")
    elif out.exists():
        raise FileExistsError(f"{out}: got a file, expected a folder, new or empty")


def _clear(partial: Path, names: Sequence[str]) -> None:
    """Delete what a kill has left, and nothing else."""
    for path in sorted(partial.iterdir()):
        if path.name.removesuffix(PARTIAL) not in names:
            raise FileExistsError(f"{path}: got a file that no prepare has written, expected to use its folder")
        path.unlink()


def write_prepared(
    folder: Path, kind: type[Prepared], files: dict[str, bytes], facts: dict[str, Any], made_by: dict[str, str]
) -> None:
    """Write files and their meta.json.

    Parameters
    ----------
    folder : Path
    kind : type
        Whose `open` will read it.
    files : dict of bytes
        By name.
    facts : dict
        What else meta.json is to hold.
    made_by : dict of str
        Versions of the libraries that it depends on.
    """
    of_files = {name: FileFacts(len(data), hashlib.sha256(data).hexdigest())._asdict() for name, data in files.items()}
    versions = {"fwm_py": __version__, **made_by, "python": platform.python_version()}
    meta = {"kind": kind.KIND, "format": kind.FORMAT, **facts, "files": of_files, "made_by": versions}
    meta["sha256"] = sha256_of(meta)
    for name, data in (files | {META: (json.dumps(meta, indent=1) + "\n").encode()}).items():
        write_file(folder / name, data)


def sha256_of(facts: Any) -> str:
    """Of what JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# ---- reading ----


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a prepare has written.

    Attributes
    ----------
    folder : Path
    files : dict of FileFacts
        By name, all but meta.json.
    facts : dict
        meta.json.
    """

    folder: Path
    files: dict[str, FileFacts]
    facts: dict[str, Any]

    KIND: ClassVar[str]
    """What the data are for."""
    FORMAT: ClassVar[int]

    @classmethod
    def open(cls: type[Kind], folder: str | os.PathLike[str], *, verify: bool = False) -> Kind:
        """Read meta.json, and see that the other files have its sizes, and with `verify` its sha256.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            "<path>: got <what>, expected <what>; <the way out>": for one that is missing or damaged.
        """
        path = Path(folder)
        meta = cls.read_meta(path / META)
        data = cls(path, {name: FileFacts(**facts) for name, facts in meta["files"].items()}, meta)
        for name in data.files:
            data.check_size(name)
            if verify:
                data.check_contents(name, np.memmap(path / name, np.uint8, "r"))
        return data

    @classmethod
    def read_meta(cls, path: Path) -> dict[str, Any]:
        """What a meta.json, or a copy of it, holds; raises as `open` does."""
        with missing(path):
            data = path.read_bytes()
        try:
            meta: dict[str, Any] = json.loads(data)
            kind = meta["kind"], meta["format"]
            whole = meta.pop("sha256") == sha256_of(meta)
        except (KeyError, TypeError, ValueError, RecursionError):
            raise damaged(path, "a damaged file", "what prepare writes") from None
        if kind[0] != cls.KIND:
            raise ValueError(f"{path}: got data of {shown(kind[0])}, expected {cls.KIND}")
        if kind[1] != cls.FORMAT:
            raise damaged(path, f"the format {shown(kind[1])}", f"{cls.FORMAT}, that of fwm_py {__version__}")
        if not whole:
            raise damaged(path, "a damaged file", "what prepare writes")
        return meta

    @property
    def identity(self) -> str:
        """A sha256 of all files: the same for data from copies of the sources elsewhere."""
        return sha256_of({name: facts.sha256 for name, facts in self.files.items()})

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer: tokens are in 0..vocab_size - 1."""
        return int(self.facts["vocab_size"])

    @property
    def floors(self) -> dict[str, float]:
        """What is reached without a model, by name."""
        return dict(self.facts["floors"])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """`encode(text).ids` are a text's tokens; `decode(tokens, skip_special_tokens=False)` is their text, with ends.

        Raises
        ------
        ImportError
            If the library tokenizers is missing.
        OSError, ValueError
            As of `open`.
        """
        return load_bpe(self.text(TOKENIZER))

    def array(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The numbers of a file: (n,), read-only, from the disk as they are used; raises as `open` does."""
        self.check_size(name)
        if not self.files[name].size:
            return np.empty(0, dtype)
        return np.memmap(self.folder / name, dtype, "r")

    def text(self, name: str) -> str:
        """The text of a file, whose sha256 is looked at; raises as `open` does."""
        path = self.folder / name
        with missing(path):
            data = path.read_bytes()
        self.check_contents(name, data)
        return data.decode()

    def check_size(self, name: str) -> None:
        path, size = self.folder / name, self.files[name].size
        with missing(path):
            found = os.stat(path).st_size
        if found != size:
            raise damaged(path, f"{found} bytes", f"{size}")

    def check_contents(self, name: str, data: Any) -> None:
        if hashlib.sha256(data).hexdigest() != self.files[name].sha256:
            raise damaged(self.folder / name, "other contents", f"the sha256 of {META}")


def damaged(path: Path, got: str, expected: str) -> ValueError:
    return ValueError(f"{path}: got {got}, expected {expected}; {WAY_OUT}")


@contextlib.contextmanager
def missing(path: Path) -> Iterator[None]:
    """The error of a missing file says what to do, as that of a damaged one."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(path, "no such file", "one that prepare writes") from None
