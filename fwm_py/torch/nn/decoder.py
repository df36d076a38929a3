"""A language model: an embedding, layers of a memory and a feed-forward network, and the embedding again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwm_py.torch._arrays import check_flag, shown
from fwm_py.torch.nn.checks import check_number, check_sizes, check_word
from fwm_py.torch.nn.state import AttentionState

__all__ = ["Decoder", "DecoderState"]


@dataclass(frozen=True)
class DecoderState:
    """The state of a `Decoder` after some tokens.

    Attributes
    ----------
    tokens : int
        How many there were.
    memories : tuple
        The states of its memories, a layer each.
    """

    tokens: int
    memories: tuple[Any, ...]

    def detach(self) -> DecoderState:
        """The same numbers, through which no gradient flows: between the pieces of a long text."""
        return DecoderState(self.tokens, tuple(memory.detach() for memory in self.memories))

    def select(self, rows: Tensor) -> DecoderState:
        """The rows of these numbers (m,), in this order and as often as they occur."""
        return DecoderState(self.tokens, tuple(memory.select(rows) for memory in self.memories))

    def tensors(self) -> dict[str, Tensor]:
        """All its numbers by layer and name, where its memories' states are `AttentionState`s."""
        return {f"{i}.{name}": x for i, memory in enumerate(self.memories) for name, x in memory.tensors().items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], tokens: int) -> DecoderState:
        """The state that has these `tensors`, after so many tokens."""
        layers: dict[int, dict[str, Tensor]] = {}
        for name, x in tensors.items():
            layer, part = name.split(".")
            layers.setdefault(int(layer), {})[part] = x
        return cls(tokens, tuple(AttentionState.of(layers[i], tokens) for i in sorted(layers)))


def sinusoids(first: int, length: int, size: int, like: Tensor) -> Tensor:
    """(length, size): sines, then cosines, of place times 10000^(-2 i / size) (Vaswani et al. 2017)."""
    places = torch.arange(first, first + length, dtype=torch.float64, device=like.device)
    frequencies = 1e4 ** -(torch.arange(0, size, 2, dtype=torch.float64, device=like.device) / size)
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)[:, :size].to(like.dtype)


class FeedForward(nn.Sequential):
    """Two linear maps with a ReLU between them."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d_ff, d_model))


class Layer(nn.Module):
    """x + memory(x), then x + ff(x), normed before each (pre) or after each sum (post)."""

    def __init__(self, memory: nn.Module, d_model: int, d_ff: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.memory, self.ff = memory, FeedForward(d_model, d_ff, dropout)
        self.memory_norm, self.ff_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.pre, self.dropout = norm == "pre", nn.Dropout(dropout)

    def before(self, x: Tensor, norm: nn.Module) -> Tensor:
        """What a part of the layer is given."""
        y: Tensor = norm(x) if self.pre else x
        return y

    def after(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """x and what a part has made of it."""
        x = x + self.dropout(y)
        return x if self.pre else norm(x)

    def with_memory(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, Any]:
        """x and what the memory reads, and its state after the last token."""
        y = self.memory(self.before(x, self.memory_norm), state, return_state=return_state)
        y, state = y if return_state else (y, None)
        return self.after(x, y, self.memory_norm), state

    def with_network(self, x: Tensor) -> Tensor:
        """x and what the feed-forward network makes of it."""
        return self.after(x, self.ff(self.before(x, self.ff_norm)), self.ff_norm)

    def forward(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, Any]:
        x, state = self.with_memory(x, state, return_state)
        return self.with_network(x), state


def draw_matrices(model: nn.Module, embed: nn.Embedding, std: float | None) -> None:
    """Begin the embedding, and with `std` all other matrices, with normal numbers; biases then begin at zero."""
    nn.init.normal_(embed.weight, std=embed.embedding_dim**-0.5 if std is None else std)
    if std is not None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class Decoder(nn.Module):
    """Layers of a memory and a feed-forward network between an embedding and itself.

    Parameters
    ----------
    vocab_size, d_model, layers : int
    memory : callable
        Makes the memory of a layer: a module that is called as memory(x, state, return_state=..) with x
        (B, T, d_model) and returns y, or (y, state) where return_state is True; `FastWeightAttention` is one.
    d_ff : int, optional
        Width of the feed-forward networks: 4 d_model if not given.
    positions : "sinusoidal" or None
        Added to the embeddings. (Rotary positions are an option of `FastWeightAttention`.)
    norm : "pre" or "post"
        LayerNorm before each part and of the end, or after each sum.
    std : float, optional
        Of the normal numbers that all matrices begin with. If not given: the embedding begins with d_model**-0.5, and
        is multiplied by d_model**0.5 on its way in, memories and networks with their own.
    dropout : float
        Of embeddings, of what each part adds, and inside the networks, in training.

    Examples
    --------
    >>> import torch
    >>> from fwm_py.torch.nn import Decoder, FastWeightAttention
    >>> model = Decoder(100, 32, layers=2, memory=lambda: FastWeightAttention(32, 4, rule="gated_delta_rule"))
    >>> tokens = torch.randint(100, (2, 9))
    >>> logits = model(tokens)
    >>> logits.shape
    torch.Size([2, 9, 100])
    >>> first, state = model(tokens[:, :8], return_state=True)
    >>> last, state = model(tokens[:, 8:], state, return_state=True)
    >>> torch.allclose(last, logits[:, 8:], atol=1e-4)
    True
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        layers: int,
        memory: Callable[[], nn.Module],
        *,
        d_ff: int | None = None,
        positions: Literal["sinusoidal"] | None = "sinusoidal",
        norm: Literal["pre", "post"] = "pre",
        std: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes({"vocab_size": vocab_size, "d_model": d_model, "layers": layers}, d_ff=d_ff)
        check_word("positions", positions, ("sinusoidal", None))
        check_word("norm", norm, ("pre", "post"))
        check_number("dropout", dropout, 0, 1, "0 to 1")
        if not callable(memory):
            raise TypeError(f"memory: got {shown(memory)}, expected a function that makes a module")
        self.positions, self.dropout = positions, nn.Dropout(dropout)
        self.embed = nn.Embedding(vocab_size, d_model)
        wide = 4 * d_model if d_ff is None else d_ff
        self.layers = nn.ModuleList([Layer(memory(), d_model, wide, norm, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(d_model) if norm == "pre" else nn.Identity()
        self.scale = math.sqrt(d_model)
        draw_matrices(self, self.embed, std)

    def hidden(
        self, tokens: Tensor, state: DecoderState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, DecoderState | None]:
        """What the logits are made of, (B, T, d_model), and the state after the last token."""
        check_flag("return_state", return_state)
        if state is not None and len(state.memories) != len(self.layers):
            raise ValueError(f"state: got one of {len(state.memories)} layers, expected {len(self.layers)}")
        first = 0 if state is None else state.tokens
        x = self.embed(tokens) * self.scale
        if self.positions:
            x = x + sinusoids(first, tokens.shape[1], x.shape[-1], x)
        x = self.dropout(x)
        memories: list[Any] = []
        for i, layer in enumerate(self.layers):
            x, memory = layer(x, None if state is None else state.memories[i], return_state)
            memories.append(memory)
        return self.norm(x), DecoderState(first + tokens.shape[1], tuple(memories)) if return_state else None

    def logits(self, hidden: Tensor) -> Tensor:
        """(.., d_model), as `hidden` gives them -> (.., vocab_size)."""
        return F.linear(hidden, self.embed.weight)

    def forward(
        self, tokens: Tensor, state: DecoderState | None = None, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, DecoderState]:
        """Logits of the next token.

        Parameters
        ----------
        tokens : tensor (B, T) of integers
        state : DecoderState, optional
            What an earlier call returned, of the tokens before.
        return_state : bool

        Returns
        -------
        tensor (B, T, vocab_size), and with return_state the state after the last token
        """
        hidden, after = self.hidden(tokens, state, return_state=return_state)
        logits = self.logits(hidden)
        return logits if after is None else (logits, after)

    @torch.no_grad()
    def numbers_of_state(self, length: int) -> int:
        """How many numbers its memories hold after `length` tokens of one text."""
        training = self.training
        self.eval()
        _, state = self.hidden(torch.zeros(1, length, dtype=torch.int64), return_state=True)
        self.train(training)
        return sum(x.numel() for x in state.tensors().values()) if state else 0
