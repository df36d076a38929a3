"""The files of models: .npz archives whose headers are read, and checked, before their numbers.

A damaged file, or one made to do harm, costs no more memory than its size and the numbers that its settings ask for.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

HEADER = "fwm_py"
LONGEST_HEADER = 2**16
NOT_A_MODEL = "not a model file of fwm_py"


def format_model(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """What `ModelFile` reads."""
    file = io.BytesIO()
    members: dict[str, Any] = {HEADER: np.array(json.dumps(header)), **arrays}
    np.savez(file, **members)
    return file.getvalue()


class Member(NamedTuple):
    """An array of the archive, by its own header."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    in_columns: bool
    start: int
    info: zipfile.ZipInfo


class ModelFile:
    """A model file in memory: its header, and where its arrays lie.

    Attributes
    ----------
    header : object
        As `format_model` was given it, if the file is its.
    members : dict
        Name -> Member of each array.

    Raises
    ------
    ValueError
        If this is no archive of arrays with such a header.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
            self.members = {info.filename.removesuffix(".npy"): self._member(info) for info in self._archive.infolist()}
            if len(self.members) < len(self._archive.infolist()):
                raise ValueError("two of one name")
            member = self.members.pop(HEADER)
            if member.dtype.kind != "U" or member.info.file_size > LONGEST_HEADER:
                raise ValueError("no header")
            self.header: Any = json.loads(str(self._read(member)[()]))
        except Exception:  # zipfile and NumPy raise whatever damaged bytes lead to: a dozen kinds of errors
            raise ValueError(NOT_A_MODEL) from None

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """The array of this name, whose header has been found right."""
        try:
            return self._read(self.members[name])
        except MemoryError:
            raise
        except Exception:
            raise ValueError(f"{name}: {NOT_A_MODEL}") from None

    def _member(self, info: zipfile.ZipInfo) -> Member:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("another compression")
        with self._archive.open(info) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version")
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject:
                raise ValueError("pickled")
            return Member(shape, dtype, in_columns, file.tell(), info)

    def _read(self, member: Member) -> npt.NDArray[Any]:
        size = member.dtype.itemsize
        for length in member.shape:
            size *= length
        if member.start + size != member.info.file_size:
            raise ValueError("another size")
        with self._archive.open(member.info) as file:
            file.read(member.start)
            data = file.read(size + 1)  # to the end, where the checksum is looked at; and no more if the size is a lie
        if len(data) != size:
            raise ValueError("another size")
        return np.frombuffer(data, member.dtype).reshape(member.shape, order="F" if member.in_columns else "C")
