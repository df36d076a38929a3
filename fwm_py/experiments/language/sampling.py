"""Text from a model, token by token from its states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fwm_py.checks import integer, shown
from fwm_py.experiments.run import in_evaluation
from fwm_py.torch.nn import Decoder


def generate(
    model: Decoder,
    tokens: Sequence[int],
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 1,
    end: int | None = None,
) -> Iterator[int]:
    """n tokens that follow the given ones, each when it is asked for.

    Parameters
    ----------
    model : Decoder
    tokens : sequence of int
        At least one.
    n : int
    temperature : float
        Divides the logits; 0: the most likely token each time.
    top_k : int, optional
        Draw among so many of the most likely: all if not given.
    seed : int
        Of the draws.
    end : int, optional
        A token after which nothing follows.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """
    integer("n", n, 0, 1 << 40)
    integer("tokens", len(tokens), 1, 1 << 40)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature: got {shown(temperature)}, expected a number from 0")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: got {shown(temperature)}, expected a number from 0")
    if top_k is not None:
        if temperature == 0:
            raise ValueError(f"top_k: got {top_k} with temperature 0, expected None: nothing is drawn")
        integer("top_k", top_k, 1, model.embed.num_embeddings)
    return _tokens(model, list(tokens), n, float(temperature), top_k, seed, end)


def _tokens(
    model: Decoder, tokens: list[int], n: int, temperature: float, top_k: int | None, seed: int, end: int | None
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    x, state = torch.tensor([tokens]), None
    for _ in range(n):
        with in_evaluation(model):  # not around the yield: the caller may train in between
            hidden, state = model.hidden(x, state, return_state=True)
            logits = model.logits(hidden[:, -1])[0].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
            p = ((logits - logits.max()) / temperature).softmax(-1)
            token = int(torch.multinomial(p, 1, generator=generator))
        yield token
        if token == end:
            return
        x = torch.tensor([[token]])
