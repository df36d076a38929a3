"""How good translations are: BLEU and chrF, by the library sacrebleu."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class Metrics(NamedTuple):
    """Of the translations of a text.

    Attributes
    ----------
    bleu, chrf : float
        From 0 to 100.
    signature : str
        Of BLEU, by which its variant is known.
    """

    bleu: float
    chrf: float
    signature: str


def sacrebleu() -> Any:
    """The library of the extra `translation`."""
    try:
        return importlib.import_module("sacrebleu")
    except ImportError as error:
        message = "translations need sacrebleu: pip install 'fwm_py[translation]'"
        raise ImportError(message, name="sacrebleu") from error


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    return float(sacrebleu().corpus_bleu(list(translations), [list(references)], force=True).score)


def measure(translations: Sequence[str], references: Sequence[str]) -> Metrics:
    """BLEU and chrF of translations, a sentence each, beside one reference each."""
    library = sacrebleu()
    metric = library.metrics.BLEU(force=True)
    score = metric.corpus_score(list(translations), [list(references)])
    chrf = library.corpus_chrf(list(translations), [list(references)])
    return Metrics(float(score.score), float(chrf.score), str(metric.get_signature()))
