"""What a language model has to beat: the perplexities of a unigram and of interpolated Kneser-Ney models.

Of an n-gram with context u and last token w, the model of order k says

    p(w | u) = (max(c(uw) - D, 0) + D N(u) p'(w | u')) / c(u),

where c(u) is the sum of c(uw) over all w, N(u) the number of w with c(uw) > 0, u' is u without its first token, and p'
the model of order k - 1; below the first order, p' = 1/V. A context that was never seen has p(w | u) = p'(w | u'). The
highest order counts how often an n-gram occurs; each lower one, how many different tokens occur before it. Each order
has its discount D = n1 / (n1 + 2 n2) from the numbers n1 and n2 of its n-grams that were counted once and twice.

Sources: R. Kneser and H. Ney, Improved backing-off for m-gram language modeling, ICASSP 1995; S. F. Chen and
J. Goodman, An empirical study of smoothing techniques for language modeling, Computer Speech and Language 13 (1999),
whose interpolated form this is, with one discount for each order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py.checks import integer

Tokens = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LARGEST_VOCAB = 1 << 20
"""Of which three fit into an integer of 64 bits."""


class Floors(NamedTuple):
    """Perplexities of a token.

    Attributes
    ----------
    unigram : float
        Of p(w) = (c(w) + 1) / (n + V).
    bigram, trigram : float
        Of interpolated Kneser-Ney models.
    """

    unigram: float
    bigram: float
    trigram: float


def floors(train: Tokens, valid: Tokens, vocab_size: int) -> Floors:
    """How well n-gram models of one text predict every token of another but the first.

    The end of a document is a token like all others, and contexts reach over it.

    Parameters
    ----------
    train, valid : array (n,) of integers in 0..vocab_size - 1
        `valid` of at least two tokens.
    vocab_size : int
        V, up to 2^20.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """
    V = integer("vocab_size", vocab_size, 1, LARGEST_VOCAB)
    train, valid = _checked("train", train, 1, V), _checked("valid", valid, 2, V)
    unigram = (np.bincount(train, minlength=V) + 1) / (len(train) + V)
    return Floors(
        perplexity(unigram[valid[1:]]),
        perplexity(KneserNey(train, V, 2).probabilities(valid)),
        perplexity(KneserNey(train, V, 3).probabilities(valid)),
    )


def perplexity(probabilities: Floats) -> float:
    """exp of the mean of -log p."""
    return math.exp(-float(np.log(probabilities).mean()))


def _checked(name: str, tokens: Tokens, shortest: int, V: int) -> Integers:
    integer(f"{name}: number of tokens", len(tokens), shortest, 1 << 50)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= V:
        raise ValueError(f"{name}: got the token {low if low < 0 else high}, expected tokens in 0..{V - 1}")
    return tokens.astype(np.int64)


class KneserNey:
    """An interpolated Kneser-Ney model; its memory is about 100 bytes for each token of training.

    Parameters
    ----------
    tokens : array (n,) of integers in 0..vocab_size - 1
        What it is trained on.
    vocab_size : int
        V, with V^order below 2^63.
    order : int
        Tokens of the longest n-gram: 2 or 3.
    """

    def __init__(self, tokens: Tokens, vocab_size: int, order: int) -> None:
        self.V = vocab_size
        keys, counts = np.unique(_ngrams(tokens.astype(np.int64), order, self.V), return_counts=True)
        self._levels = [_Level.of(keys, counts, self.V)]  # the lowest order first
        for k in range(order - 1, 0, -1):
            keys, counts = np.unique(keys % self.V**k, return_counts=True)
            self._levels.insert(0, _Level.of(keys, counts, self.V))

    def probabilities(self, tokens: Tokens) -> Floats:
        """Of each token but the first, given those before it: (n - 1,).

        A token with fewer tokens before it than the order has is the next lower order's to predict.
        """
        tokens = tokens.astype(np.int64)
        p = np.full(len(tokens) - 1, 1 / self.V)
        for k, level in enumerate(self._levels, start=1):
            first = max(k - 1, 1)  # the first token that order k predicts
            p[first - 1 :] = level.interpolated(_ngrams(tokens[first - (k - 1) :], k, self.V), p[first - 1 :], self.V)
        return p


def _ngrams(tokens: Integers, n: int, V: int) -> Integers:
    """The n-grams of a text, each as one number: its tokens are the digits, base V, the first the most significant."""
    number = max(len(tokens) - n + 1, 0)
    keys = np.zeros(number, np.int64)
    for i in range(n):
        keys = keys * V + tokens[i : i + number]
    return keys


class _Level(NamedTuple):
    """An order of a model.

    Attributes
    ----------
    keys, counts : array (K,)
        Its n-grams as numbers, ascending, and c of each.
    contexts, totals, followers : array (U,)
        Their contexts u as numbers, ascending, and c(u) and N(u) of each.
    discount : float
        D.
    """

    keys: Integers
    counts: Integers
    contexts: Integers
    totals: Integers
    followers: Integers
    discount: float

    @staticmethod
    def of(keys: Integers, counts: Integers, V: int) -> _Level:
        contexts = keys // V
        starts = np.flatnonzero(np.diff(contexts, prepend=-1))
        totals = np.diff(np.append(0, np.cumsum(counts))[np.append(starts, len(keys))])
        followers = np.diff(starts, append=len(keys))
        return _Level(keys, counts, contexts[starts], totals, followers, _discount(counts))

    def interpolated(self, keys: Integers, lower: Floats, V: int) -> Floats:
        """p of the n-grams `keys`, (n,), whose p' are `lower`, (n,)."""
        counts = _looked_up(self.keys, self.counts, keys)
        totals = _looked_up(self.contexts, self.totals, keys // V)
        followers = _looked_up(self.contexts, self.followers, keys // V)
        p = (np.maximum(counts - self.discount, 0) + self.discount * followers * lower) / np.maximum(totals, 1)
        return np.where(totals > 0, p, lower)


def _looked_up(keys: Integers, values: Integers, wanted: Integers) -> Integers:
    """The value of each wanted key, 0 where there is no such key."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _discount(counts: Integers) -> float:
    """n1 / (n1 + 2 n2); 1/2 where n1 is 0, as of the single tokens of a long text, so that nothing is impossible."""
    n1, n2 = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return n1 / (n1 + 2 * n2) if n1 else 0.5
