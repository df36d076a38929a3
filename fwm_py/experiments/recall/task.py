"""Multi-query associative recall (MQAR), as zoology defines it: pairs of a key and its value, then the keys again.

    k1 v1 k2 v2 ... kD vD | slots of two tokens, D of which begin with a key again, whose value is the answer there

Arora et al. 2023, "Zoology: Measuring and improving recall in efficient language models", arXiv 2312.04927.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py.experiments.recall.settings import Settings

POWER = 0.01
"""a: slot g = 1, 2, .. is drawn with the weight g^(a - 1), so that most keys return soon."""

FILLER = 0
"""What stands where there is neither a pair nor a key that is asked; no key and no value."""


class Questions(NamedTuple):
    """Sequences and what is asked in them.

    Attributes
    ----------
    tokens : array (B, T), int64
    asked : array (B, D), int64
        Where key i stands again.
    answers : array (B, D), int64
        Its value.
    """

    tokens: npt.NDArray[np.int64]
    asked: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]


class Task:
    """A stream of questions, from a seed.

    Keys are 1 .. V/2 - 1, values V/2 .. V - 1, each drawn without replacement in a sequence. The D slots are drawn
    without replacement, one after the other, each by the weights of those that are left; the i-th is key i's.

    Parameters
    ----------
    settings : Settings
    seed : sequence of int
        Of `numpy.random.default_rng`.
    """

    def __init__(self, settings: Settings, seed: list[int]) -> None:
        self.settings = settings
        self._random = np.random.default_rng(seed)
        n_slots = settings.seq_len // 2 - settings.num_kv_pairs
        self._log_weights = (POWER - 1) * np.log(np.arange(1, n_slots + 1))

    def questions(self, n: int) -> Questions:
        """The next n sequences."""
        D, T, V = self.settings.num_kv_pairs, self.settings.seq_len, self.settings.vocab_size
        keys = 1 + self._first_of_permutations(n, V // 2 - 1)
        values = V // 2 + self._first_of_permutations(n, V - V // 2)
        # the order of weights times exponential draws is that of successive draws without replacement
        order = (self._log_weights + self._random.gumbel(size=(n, len(self._log_weights)))).argsort(1)
        asked = 2 * D + 2 * order[:, ::-1][:, :D]
        filler = self._random.integers(V, size=(n, T)) if self.settings.random_non_queries else FILLER
        tokens = np.empty((n, T), np.int64)
        tokens[...] = filler
        tokens[:, 0 : 2 * D : 2], tokens[:, 1 : 2 * D : 2] = keys, values
        np.put_along_axis(tokens, asked, keys, 1)
        return Questions(tokens, asked, values)

    def _first_of_permutations(self, n: int, size: int) -> npt.NDArray[np.int64]:
        """(n, D) of 0 .. size - 1, different in each row."""
        return self._random.random((n, size)).argsort(1)[:, : self.settings.num_kv_pairs]
