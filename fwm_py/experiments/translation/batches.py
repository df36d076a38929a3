"""Which pairs a step trains on: batches of sentences that are about as long, in an order that is drawn for each epoch.

A function of the step, so that a run that is resumed needs no more than its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fwm_py.experiments.bpe import END_ID
from fwm_py.experiments.translation.data import Sentences

IGNORED = -100
"""What stands for the tokens that follow padding: cross entropy leaves it out."""


class Batch(NamedTuple):
    """Sentences, padded to the longest.

    Attributes
    ----------
    source : tensor (B, N) of int64
        END behind each sentence, and behind that as padding.
    lengths : tensor (B,) of int64
        Tokens of each source, with END.
    target : tensor (B, T)
        END, then the tokens of the translation.
    following : tensor (B, T)
        The tokens of the translation, then END; `IGNORED` as padding.
    """

    source: Tensor
    lengths: Tensor
    target: Tensor
    following: Tensor

    @property
    def tokens(self) -> int:
        """That are predicted."""
        return int((self.following != IGNORED).sum())


def padded(rows: Sequence[npt.NDArray[Any]], padding: int) -> Tensor:
    """(B, the most tokens of a row), int64"""
    found = np.full((len(rows), max(map(len, rows))), padding, np.int64)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return torch.from_numpy(found)


def batch_of(source: Sequence[npt.NDArray[Any]], target: Sequence[npt.NDArray[Any]]) -> Batch:
    """Of sentences with END."""
    before = [np.concatenate([[END_ID], row[:-1]]) for row in target]
    lengths = torch.tensor([len(row) for row in source])
    return Batch(padded(source, END_ID), lengths, padded(before, END_ID), padded(target, IGNORED))


def rows_by_length(longest: npt.NDArray[Any], batch_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Rows in ascending order of their length, cut into batches of at most `batch_tokens` with padding, a row at least.

    Parameters
    ----------
    longest : array (n,)
        Of each row the length of its longer side.
    batch_tokens : int
    """
    order = np.argsort(longest, kind="stable")
    batches, first = [], 0
    for place in range(1, len(order) + 1):
        if place == len(order) or (place + 1 - first) * longest[order[place]] > batch_tokens:
            batches.append(order[first:place])
            first = place
    return batches


class Batches:
    """The batches of all steps.

    Parameters
    ----------
    source, target : Sentences
    batch_tokens : int
        Of a batch, with its padding.
    seed : int
        Of the order.
    parts, processes, rank : int
        A step has so many batches for each of the processes, of which this is number `rank`.
    """

    def __init__(
        self,
        source: Sentences,
        target: Sentences,
        batch_tokens: int,
        seed: int,
        parts: int = 1,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        self.source, self.target, self.batch_tokens, self.seed = source, target, batch_tokens, seed
        self.parts, self.processes, self.rank = parts, processes, rank
        self.longest = np.maximum(source.lengths, target.lengths)
        self.n = len(rows_by_length(self.longest, batch_tokens))
        self._epoch, self._rows = -1, [np.empty(0, np.int64)]

    def _rows_of(self, number: int) -> npt.NDArray[np.int64]:
        """The rows of batch 0, 1, .. of the whole run: each epoch mixes equally long rows and the order of batches."""
        epoch, place = divmod(number, self.n)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            mixed = random.permutation(len(self.longest))
            batches = rows_by_length(self.longest[mixed], self.batch_tokens)
            self._epoch, self._rows = epoch, [mixed[batches[i]] for i in random.permutation(self.n)]
        return self._rows[place]

    def step(self, step: int) -> tuple[list[Batch], int]:
        """The batches of this process in step 0, 1, .., and the tokens that all processes predict in it."""
        whole = [self._rows_of(step * self.parts * self.processes + i) for i in range(self.parts * self.processes)]
        tokens = int(sum(self.target.lengths[rows].sum() for rows in whole))
        return [self.batch(whole[part * self.processes + self.rank]) for part in range(self.parts)], tokens

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        return batch_of([self.source[row] for row in rows], [self.target[row] for row in rows])
