"""Which tokens a step trains on: segments in random order, or ordered streams.

Both are a function of the step, so that a run that is resumed needs no more than its number; and both are cut from the
whole batch of all parts and processes, so that two processes, or two parts, get what one of twice the size would.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Tokens = npt.NDArray[Any]


class Part(NamedTuple):
    """A part of a batch: tokens and the tokens that follow them, (B, T) int64 each."""

    tokens: Tensor
    following: Tensor


class Batches(Protocol):
    def parts(self, step: int) -> list[Part]:
        """The parts of this process in step 0, 1, .."""
        ...

    def begins(self, step: int) -> bool:
        """Whether no segment of this step follows one of the step before."""
        ...


def cut(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> Part:
    """The segments of `length` tokens at `starts`."""
    rows = np.asarray(tokens[starts[:, None] + np.arange(length + 1)], np.int64)
    return Part(torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy()))


class Shape(NamedTuple):
    """B segments of T tokens in each of K parts of each of `processes`, of which this is number `rank`."""

    batch_size: int
    seq_len: int
    parts: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def rows(self) -> int:
        return self.batch_size * self.parts * self.processes

    def rows_of(self, part: int) -> slice:
        """Of a whole batch, the rows of this process's part."""
        first = (part * self.processes + self.rank) * self.batch_size
        return slice(first, first + self.batch_size)


class Segments:
    """Segments in an order that is drawn anew, with another first token, each time the text has been through."""

    def __init__(self, tokens: Tokens, shape: Shape, seed: int) -> None:
        self.tokens, self.shape, self.seed = tokens, shape, seed
        self.n = (len(tokens) - 1) // shape.seq_len - 1
        if self.n < 1:
            raise ValueError(
                f"seq_len: got {shape.seq_len}, expected at most {(len(tokens) - 1) // 2}, half of the text"
            )
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def _start(self, segment: int) -> int:
        epoch, place = divmod(segment, self.n)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._epoch = epoch
            self._starts = random.permutation(self.n) * self.shape.seq_len + random.integers(self.shape.seq_len)
        return int(self._starts[place])

    def parts(self, step: int) -> list[Part]:
        starts = np.array([self._start(step * self.shape.rows + row) for row in range(self.shape.rows)])
        return [
            cut(self.tokens, starts[self.shape.rows_of(part)], self.shape.seq_len) for part in range(self.shape.parts)
        ]

    def begins(self, step: int) -> bool:
        return True


class Streams:
    """The text cut into as many rows as a whole batch has; a step's segments follow those of the step before."""

    def __init__(self, tokens: Tokens, shape: Shape) -> None:
        self.tokens, self.shape = tokens, shape
        self.row = (len(tokens) - 1) // shape.rows
        self.steps = self.row // shape.seq_len
        if self.steps < 1:
            raise ValueError(
                f"batch_size: got {shape.rows} rows of {shape.seq_len} tokens, expected {len(tokens) - 1} in all"
            )

    def parts(self, step: int) -> list[Part]:
        starts = np.arange(self.shape.rows) * self.row + step % self.steps * self.shape.seq_len
        return [
            cut(self.tokens, starts[self.shape.rows_of(part)], self.shape.seq_len) for part in range(self.shape.parts)
        ]

    def begins(self, step: int) -> bool:
        return step % self.steps == 0
