"""How well a model predicts a text: in segments, with a sliding window, or with its state carried through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fwm_py.checks import choice, integer
from fwm_py.experiments.language.batches import Tokens, cut
from fwm_py.experiments.run import in_evaluation, perplexity
from fwm_py.torch.nn import Decoder, DecoderState

MODES = ("segments", "sliding", "carry")
ROWS = 16


class Score(NamedTuple):
    """How well a text was predicted.

    Attributes
    ----------
    loss : float
        Mean cross entropy of a token, in nats.
    perplexity : float
        exp(loss).
    bits_per_byte : float
        Of the whole text, the first token of which is not predicted.
    tokens : int
        That were predicted: all but the first.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int


def evaluate(
    model: Decoder, tokens: Tokens, n_bytes: int, *, seq_len: int, mode: str = "segments", stride: int | None = None
) -> Score:
    """The cross entropy of every token but the first.

    Parameters
    ----------
    model : Decoder
        As it is in evaluation; left in the mode that it has.
    tokens : array (n,) of integers
    n_bytes : int
        Of the text.
    seq_len : int
        Tokens of a segment, or of a window.
    mode : str
        `segments`: one after the other, each without what was before it. `sliding`: windows that begin `stride` tokens
        apart, each of which predicts the tokens that no window before it has. `carry`: segments whose state is handed
        on, through the whole text.
    stride : int, optional
        1 .. seq_len, with `sliding` only, which needs it.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """
    choice("mode", mode, MODES)
    integer("seq_len", seq_len, 1, 1 << 24)
    if (stride is None) != (mode != "sliding"):
        raise ValueError(f"stride: got {stride} with {mode}, expected it with sliding, and only there")
    if stride is not None:
        integer("stride", stride, 1, seq_len)
    integer("tokens", len(tokens), 2, 1 << 50)
    integer("n_bytes", n_bytes, 1, 1 << 60)
    with in_evaluation(model):
        carried = mode == "carry"
        total = math.fsum(
            _carried(model, tokens, seq_len) if carried else _windows(model, tokens, seq_len, stride or seq_len)
        )
    n = len(tokens) - 1
    return Score(total / n, perplexity(total / n), total / math.log(2) / n_bytes, n)


def _sum(model: Decoder, hidden: Tensor, following: Tensor) -> float:
    logits = model.logits(hidden).flatten(0, -2)
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    return float(F.cross_entropy(logits, following.flatten(), reduction="sum"))


def _windows(model: Decoder, tokens: Tokens, seq_len: int, stride: int) -> Iterator[float]:
    """Windows at 0, stride, 2 stride, ..; each counts its last `stride` predictions, the first all of them."""
    n = len(tokens) - 1
    yield _sum(model, *_predicted(model, tokens, np.array([0]), min(seq_len, n), min(seq_len, n)))
    starts = np.arange(stride, n - seq_len + 1, stride)
    for first in range(0, len(starts), ROWS):
        yield _sum(model, *_predicted(model, tokens, starts[first : first + ROWS], seq_len, stride))
    done = (int(starts[-1]) if len(starts) else 0) + min(seq_len, n)
    if done < n:  # what is left, in a window that ends with the text
        start = max(0, n - seq_len) if stride < seq_len else done
        yield _sum(model, *_predicted(model, tokens, np.array([start]), n - start, n - done))


def _predicted(
    model: Decoder, tokens: Tokens, starts: np.ndarray[tuple[int], np.dtype[np.int64]], length: int, last: int
) -> tuple[Tensor, Tensor]:
    part = cut(tokens, starts, length)
    hidden, _ = model.hidden(part.tokens)
    return hidden[:, length - last :], part.following[:, length - last :]


def _carried(model: Decoder, tokens: Tokens, seq_len: int) -> Iterator[float]:
    state: DecoderState | None = None
    n = len(tokens) - 1
    for start in range(0, n, seq_len):
        part = cut(tokens, np.array([start]), min(seq_len, n - start))
        hidden, state = model.hidden(part.tokens, state, return_state=True)
        yield _sum(model, hidden, part.following)
