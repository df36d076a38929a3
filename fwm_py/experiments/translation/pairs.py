"""Sentences and their translations: read from files that are parallel line by line, and filtered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

Pair = tuple[str, str]
"""A sentence and its translation."""


def read_pairs(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[Pair]:
    """The lines of two files, side by side, without the space around them.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        "<path>: got <what>, expected <what>": not UTF-8, or of another number of lines.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise ValueError(
            f"{os.fsdecode(target)}: got {len(targets)} lines, expected {len(sources)}, as {os.fsdecode(source)} has"
        )
    return list(zip(sources, targets))


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text, without the space around them; only newlines end a line."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fsdecode(path)}: got no UTF-8 at byte {error.start}, expected text") from None
    if "\0" in text:
        raise ValueError(f"{os.fsdecode(path)}: got a NUL, expected text")
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


class LeftOut(NamedTuple):
    """How many pairs were left out, by why.

    Attributes
    ----------
    empty : int
        One side, or both, has no words.
    duplicates : int
        Both sides as of a pair before.
    long : int
        A side has more tokens than is allowed.
    ratio : int
        One side has too many times the tokens of the other.
    """

    empty: int
    duplicates: int
    long: int
    ratio: int


def without_empty(pairs: Sequence[Pair]) -> tuple[list[Pair], int]:
    kept = [pair for pair in pairs if all(pair)]
    return kept, len(pairs) - len(kept)


def without_duplicates(pairs: Sequence[Pair]) -> tuple[list[Pair], int]:
    kept = list(dict.fromkeys(pairs))
    return kept, len(pairs) - len(kept)
