"""How well a model translates: the loss of a token, and BLEU and chrF of what the beam search finds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F

from fwm_py.experiments.bpe import END_ID
from fwm_py.experiments.run import in_evaluation
from fwm_py.experiments.translation.batches import IGNORED, batch_of, rows_by_length
from fwm_py.experiments.translation.data import Data, Sentences
from fwm_py.experiments.translation.metrics import measure
from fwm_py.experiments.translation.search import translate
from fwm_py.torch.nn import EncoderDecoder

BATCH_TOKENS = 8000
_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


class Translations(NamedTuple):
    """How good translations are.

    Attributes
    ----------
    bleu, chrf : float
        From 0 to 100.
    exact : float
        Share of sentences that are the reference.
    signature : str
        Of BLEU.
    """

    bleu: float
    chrf: float
    exact: float
    signature: str


def loss_of(model: EncoderDecoder, source: Sentences, target: Sentences) -> float:
    """Mean cross entropy of a target token, in nats, without label smoothing; the model is left in its mode."""
    losses, n = [], 0
    with in_evaluation(model):
        for rows in rows_by_length(np.maximum(source.lengths, target.lengths), BATCH_TOKENS):
            batch = batch_of([source[row] for row in rows], [target[row] for row in rows])
            logits = model(batch.source, batch.lengths, batch.target).flatten(0, 1)
            following = batch.following.flatten()
            losses.append(float(F.cross_entropy(logits.float(), following, ignore_index=IGNORED, reduction="sum")))
            n += batch.tokens
    return math.fsum(losses) / n


def translate_texts(model: EncoderDecoder, data: Data, texts: Sequence[str], **options: Any) -> list[str]:
    """Translations of sentences, in their order; nothing of nothing.

    Parameters
    ----------
    model : EncoderDecoder
    data : Data
        Whose tokenizer is used.
    texts : sequence of str
    **options
        Of `search.translate`.
    """
    stripped = [text.strip() for text in texts]
    places = [i for i, text in enumerate(stripped) if text]
    encoded = data.tokenizer.encode_batch([stripped[i] for i in places], add_special_tokens=False)
    sources: list[npt.NDArray[Any]] = [np.array([*encoding.ids, END_ID]) for encoding in encoded]
    found = [""] * len(texts)
    for i, hypothesis in zip(places, translate(model, sources, **options)):
        # a newline that the model made up must not break the line
        found[i] = _BREAKS.sub(" ", data.tokenizer.decode(hypothesis.tokens)).strip()
    return found


def score(model: EncoderDecoder, data: Data, split: str, **options: Any) -> Translations:
    """Translate the sentences of valid or test, and compare."""
    sources, references = data.texts(split)
    translations = translate_texts(model, data, sources, **options)
    found = measure(translations, references)
    exact = sum(map(str.__eq__, translations, references)) / len(references)
    return Translations(found.bleu, found.chrf, exact, found.signature)
