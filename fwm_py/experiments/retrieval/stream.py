"""The data of a run: sequences of random key-value pairs, and their queries."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core
from fwm_py.checks import instance
from fwm_py.experiments.retrieval.settings import Settings


class Batch(NamedTuple):
    """Sequences and their queries, int64: keys are 0..N-1, values N..2N-1."""

    keys: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    query: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]


def parts_of(batch: Any) -> dict[str, Any]:
    """Keys, values, query and answer."""
    expected = "expected a Batch: keys, values, query and answer"
    if not isinstance(batch, (tuple, list)):
        raise TypeError(f"batch: got {type(batch).__name__}, {expected}")
    if len(batch) != len(Batch._fields):
        raise ValueError(f"batch: got a {type(batch).__name__} of {len(batch)}, {expected}")
    return dict(zip(Batch._fields, batch))


class Stream:
    """The data of a run, from `numpy.random.RandomState(seed)`'s stream.

    Training and evaluation draw from the same stream, as in the published program: what `evaluation` draws, `batch`
    does not draw again. A copy, or what was pickled, goes on from where it was.
    """

    def __init__(self, settings: Settings) -> None:
        instance("settings", settings, Settings)
        self.settings = settings
        self._stream = _core.Stream(
            seed=settings.seed,
            n_keys=settings.n_keys,
            batch_size=settings.resolved_batch_size,
            replace=settings.replace,
        )

    def __copy__(self) -> Stream:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return f"<Stream of {self.settings}>"

    def batch(self) -> Batch:
        """The next training batch: keys and values (B, L), query and answer (B,)."""
        return Batch(*self._stream.batch())

    def evaluation(self) -> list[Batch]:
        """The sequences of the next evaluation: 20 of keys and values (N,), query and answer (n,).

        A sequence's queries are its n distinct keys in ascending order, the first 200 of them.
        """
        return [Batch(*sequence) for sequence in self._stream.evaluation()]

    def recall(self) -> list[Batch]:
        """The sequences of the next `Model.recall`: 20 of keys and values (L,), query and answer (n,).

        They are as long as those trained, and a sequence's queries are all its n distinct keys in ascending order.
        """
        return [Batch(*sequence) for sequence in self._stream.recall()]
