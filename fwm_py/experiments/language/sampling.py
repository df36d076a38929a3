"""Text from a model, token by token from its states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fwm_py.checks import integer
from fwm_py.torch.nn import Decoder


@torch.no_grad()
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
    """Yield n tokens that follow the given ones.

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
    if not isinstance(temperature, (int, float)) or not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature!r}, expected a number from 0")
    if top_k is not None:
        integer("top_k", top_k, 1, model.embed.num_embeddings)
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    x, state = torch.tensor([list(tokens)]), None
    for _ in range(n):
        hidden, state = model.hidden(x, state, return_state=True)
        logits = model.logits(hidden[:, -1])[0].double()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        yield token
        if token == end:
            return
        x = torch.tensor([[token]])
