"""What a layer carries from one call to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["AttentionState", "KeyCache"]

Memory = Tensor | tuple[Tensor, Tensor]


class _Room:
    """Buffers with room for more keys than there are, which the caches of one sequence after the other share."""

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        self.keys, self.values, self.used = keys, values, used


class KeyCache:
    """The keys and values that softmax attention has seen; it grows without being copied for each token.

    `append` writes behind the last key of the buffers and returns a longer cache on the same buffers; this one stays as
    it is. Only where there is no room left, where another cache has grown from this one before, or where a gradient is
    wanted, are the keys copied.
    """

    def __init__(self, room: _Room, length: int, key_lengths: Tensor | None = None) -> None:
        self._room, self.length, self.key_lengths = room, length, key_lengths

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, key_lengths: Tensor | None = None) -> KeyCache:
        """Of keys (B, N, H, K) and values (B, N, H, V), of which key_lengths (B,) count."""
        return cls(_Room(keys, values, keys.shape[1]), keys.shape[1], key_lengths)

    @property
    def keys(self) -> Tensor:
        """(B, length, H, K)"""
        return self._room.keys[:, : self.length]

    @property
    def values(self) -> Tensor:
        """(B, length, H, V)"""
        return self._room.values[:, : self.length]

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """keys and values with the room behind them, whose numbers mean nothing."""
        return self._room.keys, self._room.values

    def append(self, keys: Tensor, values: Tensor, differentiable: bool = False) -> KeyCache:
        """The cache with T more tokens: keys (B, T, H, K), values (B, T, H, V).

        differentiable: whether what reads them has a gradient, though they may have none; they are then copied, since
        its backward needs them as they are.
        """
        room, length = self._room, self.length + keys.shape[1]
        if self.key_lengths is not None:
            raise ValueError("context: got a tensor, expected None with a state of padded keys")
        tensors = (room.keys, room.values, keys, values)
        if torch.is_grad_enabled() and (differentiable or any(x.requires_grad for x in tensors)):
            return KeyCache.of(torch.cat([self.keys, keys], 1), torch.cat([self.values, values], 1))
        elsewhere = room.keys.is_inference() and not torch.is_inference_mode_enabled()  # cannot be written here
        if room.used != self.length or room.keys.shape[1] < length or elsewhere:
            room = _Room(self._longer(self.keys, length), self._longer(self.values, length), self.length)
        room.keys[:, self.length : length] = keys
        room.values[:, self.length : length] = values
        room.used = length
        return KeyCache(room, length)

    @staticmethod
    def _longer(x: Tensor, length: int) -> Tensor:
        """x in a buffer of twice the length, so that the copies of all tokens together stay fewer than two each."""
        buffer = x.new_empty((x.shape[0], 2 * length, *x.shape[2:]))
        buffer[:, : x.shape[1]] = x
        return buffer

    def map(self, function: Callable[[Tensor], Tensor]) -> KeyCache:
        lengths = None if self.key_lengths is None else function(self.key_lengths)
        return KeyCache.of(function(self.keys), function(self.values), lengths)


@dataclass(frozen=True)
class AttentionState:
    """The state of a `FastWeightAttention` after some tokens.

    Attributes
    ----------
    memory : tensor (n, kv_heads, features, value_dim), a pair of it and z (n, kv_heads, features), or `KeyCache`
        n rows, or packed sequences.
    convolution : tuple of three tensors (n, conv_size - 1, channels), optional
        The last inputs of the convolutions of q, k and v.
    tokens : int
        How many there were, where they have rotary positions; else 0.
    """

    memory: Memory | KeyCache
    convolution: tuple[Tensor, Tensor, Tensor] | None = None
    tokens: int = 0

    def detach(self) -> AttentionState:
        """The same numbers, through which no gradient flows: between the pieces of a long text."""
        return self._map(Tensor.detach)

    def select(self, rows: Tensor) -> AttentionState:
        """The rows of these numbers (m,), in this order and as often as they occur: some sequences of a batch, or the
        beams that a search goes on with."""
        return self._map(lambda x: x.index_select(0, rows))

    def tensors(self) -> dict[str, Tensor]:
        """All its numbers by name: S and z, or keys and values; q, k, v of the convolutions."""
        memory: Any = self.memory
        if isinstance(memory, KeyCache):
            found = {"keys": memory.keys, "values": memory.values}
        else:
            found = dict(zip(("S", "z"), memory if isinstance(memory, tuple) else (memory,)))
        return found | dict(zip(("q", "k", "v"), self.convolution or ()))

    @classmethod
    def of(cls, tensors: dict[str, Tensor], tokens: int = 0) -> AttentionState:
        """The state that has these `tensors`."""
        memory: Any = tensors.get("S")
        if memory is None:
            memory = KeyCache.of(tensors["keys"], tensors["values"])
        elif "z" in tensors:
            memory = (memory, tensors["z"])
        convolution: Any = tuple(tensors[name] for name in ("q", "k", "v")) if "q" in tensors else None
        return cls(memory, convolution, tokens)

    def _map(self, function: Callable[[Tensor], Tensor]) -> AttentionState:
        memory: Any = self.memory
        if isinstance(memory, KeyCache):
            memory = memory.map(function)
        else:
            memory = tuple(map(function, memory)) if isinstance(memory, tuple) else function(memory)
        convolution: Any = self.convolution and tuple(map(function, self.convolution))
        return AttentionState(memory, convolution, self.tokens)
