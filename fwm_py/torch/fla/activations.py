"""What surrounds the operations in flash-linear-attention's layers, in plain PyTorch: activations, rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


def logsigmoid(x: Tensor, temperature: float = 1.0) -> Tensor:
    return F.logsigmoid(x) / temperature


def swish(x: Tensor) -> Tensor:
    return F.silu(x)


def elu_p1(x: Tensor) -> Tensor:
    """elu(x) + 1."""
    return F.elu(x) + 1


def swiglu(x: Tensor, y: Tensor) -> Tensor:
    """silu(x) y."""
    return F.silu(x) * y


def swiglu_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(x) y, projected."""
    return F.linear(swiglu(x, y).to(weight.dtype), weight, bias)


ACT2FN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": sigmoid,
    "logsigmoid": logsigmoid,
    "silu": swish,
    "swish": swish,
}


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    chunk_indices: Tensor | None = None,
) -> Tensor | Any:
    """x (B, T, H, D), its first 2 R numbers turned by angles of the token's position; cos and sin (positions, R).

    seqlen_offsets, a number or one of each sequence, counts the tokens before. inplace is left to the original.
    """
    if inplace:
        return NotImplemented
    B, T = x.shape[:2]
    if cu_seqlens is None:
        positions = torch.arange(T, device=x.device).expand(B, T)
        offsets = seqlen_offsets
        if isinstance(offsets, Tensor):
            offsets = offsets[:, None]
    else:
        tokens = torch.arange(T, device=x.device)
        sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True)
        positions = (tokens - cu_seqlens[sequence])[None]
        offsets = seqlen_offsets[sequence][None] if isinstance(seqlen_offsets, Tensor) else seqlen_offsets
    positions = positions + offsets
    cos, sin, R = cos[positions][:, :, None], sin[positions][:, :, None], cos.shape[-1]
    turned, rest = x[..., : 2 * R], x[..., 2 * R :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = (a * cos - b * sin, a * sin + b * cos)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([turned, rest], -1).to(x.dtype)
