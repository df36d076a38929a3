"""An encoder and a decoder with memories, as machine translation has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fwm_py.torch._arrays import check_flag, shown
from fwm_py.torch.nn.checks import check_number, check_sizes, check_word
from fwm_py.torch.nn.decoder import Layer, draw_matrices, sinusoids

__all__ = ["EncoderDecoder", "EncoderDecoderState"]


@dataclass(frozen=True)
class EncoderDecoderState:
    """What the decoder of an `EncoderDecoder` knows: the source, and the target's tokens so far.

    Attributes
    ----------
    tokens : int
        Of the target.
    source : tuple
        What the cross memories hold, a layer each.
    memories : tuple
        What the decoder's own memories hold, a layer each; None before the first token.
    """

    tokens: int
    source: tuple[Any, ...]
    memories: tuple[Any, ...]

    def select(self, rows: Tensor, *, sources: bool = True) -> EncoderDecoderState:
        """The rows of these numbers (m,), in this order and as often as they occur: the beams that a search goes on
        with. Where these are of the same sources as before, row by row, sources=False leaves what is known of them."""
        return EncoderDecoderState(
            self.tokens,
            tuple(memory.select(rows) for memory in self.source) if sources else self.source,
            tuple(memory and memory.select(rows) for memory in self.memories),
        )


class EncoderLayer(Layer):
    """A layer whose memory is written with the whole source before it is read."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        y = self.memory(self.before(x, self.memory_norm), key_lengths=lengths)
        return self.with_network(self.after(x, y, self.memory_norm))


class CrossLayer(Layer):
    """A layer of the decoder: its own memory, then one of the source, then the feed-forward network."""

    def __init__(self, memory: nn.Module, cross: nn.Module, d_model: int, d_ff: int, norm: str, dropout: float) -> None:
        super().__init__(memory, d_model, d_ff, norm, dropout)
        self.cross, self.cross_norm = cross, nn.LayerNorm(d_model)

    def forward(  # type: ignore[override]
        self, x: Tensor, state: Any, source: Any, return_state: bool
    ) -> tuple[Tensor, Any]:
        x, state = self.with_memory(x, state, return_state)
        y = self.cross(self.before(x, self.cross_norm), source)
        return self.with_network(self.after(x, y, self.cross_norm)), state


class EncoderDecoder(nn.Module):
    """An encoder reads a source, and a decoder predicts each token of a target from those before it and the source.

    One embedding serves source, target and output.

    Parameters
    ----------
    vocab_size, d_model : int
    encoder_layers, decoder_layers : int
    encoder : callable
        Makes the memory of an encoder layer: a module that is called as memory(x, key_lengths=..) with x
        (B, N, d_model) and the lengths (B,), as a `FastWeightAttention` with causal=False is.
    decoder : callable
        Makes a decoder layer's own memory, called as memory(x, state, return_state=..): a causal one.
    cross : callable
        Makes a decoder layer's memory of the source, called as memory(x, context=.., key_lengths=..,
        return_state=True), then as memory(x, state): one with causal=False.
    d_ff : int, optional
        Width of the feed-forward networks: 4 d_model if not given.
    positions : "sinusoidal" or None
        Added to the embeddings.
    norm : "pre" or "post"
        LayerNorm before each part and at the ends of encoder and decoder, or after each sum.
    std : float, optional
        As of `Decoder`.
    dropout : float
        Likewise.

    Examples
    --------
    >>> import torch
    >>> from fwm_py.torch.nn import EncoderDecoder, FastWeightAttention
    >>> def memory(**options):
    ...     return lambda: FastWeightAttention(32, 4, rule="linear_attention", feature_map="elu1", **options)
    >>> model = EncoderDecoder(100, 32, 2, 2, memory(causal=False), memory(), memory(causal=False))
    >>> source, lengths, target = torch.randint(100, (2, 7)), torch.tensor([7, 4]), torch.randint(100, (2, 5))
    >>> logits = model(source, lengths, target)
    >>> logits.shape
    torch.Size([2, 5, 100])
    >>> state = model.encode(source, lengths)
    >>> first, state = model.decode(target[:, :4], state, return_state=True)
    >>> last, state = model.decode(target[:, 4:], state, return_state=True)
    >>> torch.allclose(last, logits[:, 4:], atol=1e-4)
    True
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        encoder_layers: int,
        decoder_layers: int,
        encoder: Callable[[], nn.Module],
        decoder: Callable[[], nn.Module],
        cross: Callable[[], nn.Module],
        *,
        d_ff: int | None = None,
        positions: Literal["sinusoidal"] | None = "sinusoidal",
        norm: Literal["pre", "post"] = "pre",
        std: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
        check_sizes({"vocab_size": vocab_size, "d_model": d_model} | layers, d_ff=d_ff)
        check_word("positions", positions, ("sinusoidal", None))
        check_word("norm", norm, ("pre", "post"))
        check_number("dropout", dropout, 0, 1, "0 to 1")
        for name, made in (("encoder", encoder), ("decoder", decoder), ("cross", cross)):
            if not callable(made):
                raise TypeError(f"{name}: got {shown(made)}, expected a function that makes a module")
        rest: Any = (d_model, 4 * d_model if d_ff is None else d_ff, norm, dropout)
        self.positions, self.dropout, self.scale = positions, nn.Dropout(dropout), math.sqrt(d_model)
        self.embed = nn.Embedding(vocab_size, d_model)
        self.encoder = nn.ModuleList([EncoderLayer(encoder(), *rest) for _ in range(encoder_layers)])
        self.decoder = nn.ModuleList([CrossLayer(decoder(), cross(), *rest) for _ in range(decoder_layers)])
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(d_model) if norm == "pre" else nn.Identity() for _ in "ed")
        draw_matrices(self, self.embed, std)

    def encode(self, source: Tensor, lengths: Tensor) -> EncoderDecoderState:
        """Read sources.

        Parameters
        ----------
        source : tensor (B, N) of integers
        lengths : tensor (B,) of integers
            Tokens of each row; what stands behind them is padding, and changes nothing.

        Returns
        -------
        EncoderDecoderState
            Before the first token of the target.
        """
        x = self._embedded(source, 0)
        for layer in self.encoder:
            x = layer(x, lengths)
        x = self.encoder_norm(x)
        held = []
        for layer in self.decoder:
            cross: Any = layer.cross
            held.append(cross(x[:, :0], context=x, key_lengths=lengths, return_state=True)[1])
        return EncoderDecoderState(0, tuple(held), (None,) * len(self.decoder))

    def decode(
        self, target: Tensor, state: EncoderDecoderState, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, EncoderDecoderState]:
        """Logits of the tokens that follow each of these.

        Parameters
        ----------
        target : tensor (B, T) of integers
        state : EncoderDecoderState
            What `encode` returned, or an earlier call, of the tokens before.
        return_state : bool

        Returns
        -------
        tensor (B, T, vocab_size), and with return_state the state after the last token
        """
        check_flag("return_state", return_state)
        if not isinstance(state, EncoderDecoderState):
            raise TypeError(f"state: got {shown(state)}, expected what encode or decode returns")
        if len(state.source) != len(self.decoder):
            raise ValueError(f"state: got one of {len(state.source)} layers, expected {len(self.decoder)}")
        x, memories = self._embedded(target, state.tokens), []
        for layer, memory, source in zip(self.decoder, state.memories, state.source):
            x, memory = layer(x, memory, source, return_state)
            memories.append(memory)
        logits = F.linear(self.decoder_norm(x), self.embed.weight)
        if not return_state:
            return logits
        return logits, EncoderDecoderState(state.tokens + target.shape[1], state.source, tuple(memories))

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Logits (B, T, vocab_size) of the tokens that follow each of target (B, T), as `encode` and `decode` say."""
        logits = self.decode(target, self.encode(source, lengths))
        assert isinstance(logits, Tensor)
        return logits

    def _embedded(self, tokens: Tensor, first: int) -> Tensor:
        x = self.embed(tokens) * self.scale
        if self.positions:
            x = x + sinusoids(first, tokens.shape[1], x.shape[-1], x)
        y: Tensor = self.dropout(x)
        return y
