"""Beam search: the translation of a sentence to which the model gives the highest score, or nearly.

A step adds a token to each of the `beam` best beginnings of every sentence. Of all continuations the best 2 beam are
looked at; an end of the sentence among the best `beam` makes a hypothesis, and the best `beam` of the others go on. A
sentence is done with `beam` hypotheses, or at its longest length, where all beginnings end. The score of a hypothesis
of n tokens, its end counted, is the sum of their log probabilities divided by n^length_penalty. With beam = 1 this is
greedy: the most likely token each time. (The rules of fairseq, Ott et al. 2019, arXiv 1904.01038.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fwm_py.checks import integer, shown
from fwm_py.experiments.bpe import END_ID
from fwm_py.experiments.run import in_evaluation
from fwm_py.experiments.translation.batches import padded, rows_by_length
from fwm_py.torch.nn import EncoderDecoder, EncoderDecoderState

Tokens = npt.NDArray[Any]


class Hypothesis(NamedTuple):
    """A translation.

    Attributes
    ----------
    tokens : list of int
        Without the end.
    score : float
    """

    tokens: list[int]
    score: float


def longest_translation(n: int) -> int:
    """Of a sentence of n tokens, ends counted."""
    return 2 * n + 20


def translate(
    model: EncoderDecoder,
    sources: Sequence[Tokens],
    *,
    beam: int = 4,
    length_penalty: float = 1.0,
    batch_tokens: int = 8000,
    use_states: bool = True,
) -> list[Hypothesis]:
    """Translate sentences, those of about the same length together.

    Parameters
    ----------
    model : EncoderDecoder
        As it is in evaluation; left in the mode that it has.
    sources : sequence of array (n,) of integers
        The tokens of each sentence, with END behind them.
    beam : int
    length_penalty : float
        From 0 to 100: 0 compares sums of log probabilities, 1 their means; more favours longer translations.
    batch_tokens : int
        Of the sentences that are translated together, times `beam`, with padding.
    use_states : bool
        False computes all tokens again for each one that is added: what the states save.

    Returns
    -------
    list of Hypothesis
        In the order of the sentences.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """
    integer("beam", beam, 1, 1 << 20)
    integer("batch_tokens", batch_tokens, 1, 1 << 40)
    if isinstance(length_penalty, bool) or not isinstance(length_penalty, (int, float)):
        raise TypeError(f"length_penalty: got {shown(length_penalty)}, expected a number from 0")
    if not 0 <= length_penalty <= 100:
        raise ValueError(f"length_penalty: got {shown(length_penalty)}, expected a number from 0 to 100")
    found: list[Hypothesis | None] = [None] * len(sources)
    if not len(sources):
        return []
    with in_evaluation(model):
        for rows in rows_by_length(np.array([len(source) for source in sources]) * beam, batch_tokens):
            search = _Search(model, [sources[row] for row in rows], beam, length_penalty, use_states)
            for row, hypothesis in zip(rows, search.best()):
                found[row] = hypothesis
    return [hypothesis for hypothesis in found if hypothesis is not None]


class _Search:
    """The search of some sentences; rows of tensors are `beam` beginnings of each sentence that is not done."""

    def __init__(
        self, model: EncoderDecoder, sources: Sequence[Tokens], beam: int, length_penalty: float, use_states: bool
    ) -> None:
        self.model, self.beam, self.length_penalty, self.use_states = model, beam, length_penalty, use_states
        lengths = torch.tensor([len(source) for source in sources])
        self.limits = [longest_translation(len(source)) for source in sources]
        self.open = list(range(len(sources)))  # the sentences that are not done
        self.done: list[list[Hypothesis]] = [[] for _ in sources]
        each = torch.arange(len(sources)).repeat_interleave(beam)
        self.state: EncoderDecoderState = model.encode(padded(sources, END_ID), lengths).select(each)
        self.tokens = torch.full((len(each), 1), END_ID)  # with the END that every sentence begins with
        self.sums = torch.full((len(sources), beam), -torch.inf, dtype=model.embed.weight.dtype)
        self.sums[:, 0] = 0.0  # all beginnings are one

    def best(self) -> list[Hypothesis]:
        while self.open:
            self._step()
        nothing = Hypothesis([], math.nan)  # where the model says NaN
        return [max(done, key=lambda hypothesis: hypothesis.score, default=nothing) for done in self.done]

    def _log_probabilities(self) -> Tensor:
        """Of the next token: (sentences, beam, vocab_size)."""
        if self.use_states:
            logits, self.state = self.model.decode(self.tokens[:, -1:], self.state, return_state=True)
        else:
            logits = self.model.decode(self.tokens, self.state)
            assert isinstance(logits, Tensor)
        last: Tensor = logits[:, -1].log_softmax(-1)
        return last.view(len(self.open), self.beam, -1)

    def _step(self) -> None:
        totals = self.sums[..., None] + self._log_probabilities()
        n, vocab_size = self.tokens.shape[1], totals.shape[-1]
        best, places = totals.flatten(1).topk(min(2 * self.beam, self.beam * vocab_size), sorted=True)
        rows, chosen, sums, still = [], [], [], []
        for i, sentence in enumerate(self.open):
            if n >= self.limits[sentence]:  # all beginnings end here
                for k, total in enumerate(totals[i, :, END_ID].tolist()):
                    self._end(sentence, i * self.beam + k, total)
                continue
            going: list[tuple[int, int, float]] = []
            for place, (total, where) in enumerate(zip(best[i].tolist(), places[i].tolist())):
                k, token = divmod(where, vocab_size)
                if token != END_ID:
                    going.append((i * self.beam + k, token, total))
                elif place < self.beam:
                    self._end(sentence, i * self.beam + k, total)
            if len(self.done[sentence]) < self.beam:
                still.append(sentence)
                for row, token, total in going[: self.beam]:
                    rows.append(row)
                    chosen.append(token)
                    sums.append(total)
        self._go_on(still, torch.tensor(rows, dtype=torch.int64), torch.tensor(chosen, dtype=torch.int64), sums)

    def _end(self, sentence: int, row: int, total: float) -> None:
        if total > -torch.inf:
            tokens = self.tokens[row, 1:].tolist()
            score = total / (len(tokens) + 1) ** self.length_penalty
            self.done[sentence].append(Hypothesis(tokens, score))

    def _go_on(self, still: list[int], rows: Tensor, chosen: Tensor, sums: list[float]) -> None:
        self.open = still
        if still:
            done = len(rows) < len(self.tokens)  # else what is known of the sources stays as it is
            self.state = self.state.select(rows, sources=done)
            self.tokens = torch.cat([self.tokens[rows], chosen[:, None]], 1)
            self.sums = torch.tensor(sums, dtype=self.sums.dtype).view(len(still), self.beam)
