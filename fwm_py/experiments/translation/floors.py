"""What a translation has to beat: the source itself, and the translation of the most similar sentence of training.

Alike are two sentences whose tf-idf vectors have a small angle. Their terms are words and pairs of neighbouring words,
in lower case; of a term that occurs c times in a sentence, and in n of N sentences of training, the weight is
c log((1 + N) / (1 + n)); of equals the first sentence is taken, and the first of all where no term is shared.
"""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_WORD = re.compile(r"\w+|[^\w\s]")


def terms(sentence: str) -> list[str]:
    words = _WORD.findall(sentence.lower())
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


class Neighbours:
    """Sentences of which the nearest to another can be found.

    Parameters
    ----------
    sentences : sequence of str
        At least one.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        self.n = len(sentences)
        counts = [collections.Counter(terms(sentence)) for sentence in sentences]
        found = collections.Counter(term for count in counts for term in count)
        self.weight = {term: math.log((1 + self.n) / (1 + n)) for term, n in found.items()}
        rows: dict[str, list[int]] = collections.defaultdict(list)
        values: dict[str, list[float]] = collections.defaultdict(list)
        for row, count in enumerate(counts):
            weights = {term: c * self.weight[term] for term, c in count.items()}
            norm = math.sqrt(sum(weight**2 for weight in weights.values()))
            for term, weight in weights.items():
                if weight:
                    rows[term].append(row)
                    values[term].append(weight / norm)
        self.found: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {
            term: (np.array(rows[term]), np.array(values[term])) for term in rows
        }

    def nearest(self, sentence: str) -> int:
        """The place of the sentence that is most alike."""
        scores = np.zeros(self.n)
        for term, c in collections.Counter(terms(sentence)).items():
            if term in self.found:
                rows, values = self.found[term]
                scores[rows] += c * self.weight[term] * values
        return int(scores.argmax())
