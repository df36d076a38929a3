"""Softmax attention with the arguments that models give it, "sdpa"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fwm_py.torch as fwm

MORE_THAN_SDPA = ("cache", "output_attentions", "position_bias", "softcap")  # left to the original, or to its refusal


def sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None] | Any:
    """query (B, HQ, T, K), key (B, H, S, K), value (B, H, S, V) -> (B, T, HQ, V).

    Each key head becomes a sequence of its own, since that is how its tokens lie. NotImplemented leaves the call to the
    original.
    """
    (B, HQ, T, _), (_, H, S, _) = query.shape, key.shape
    more = [
        name for name, asked in others.items() if name in MORE_THAN_SDPA and asked is not None and asked is not False
    ]
    if attention_mask is not None or dropout or more or T == 1:  # a single token costs more to call than to compute
        return NotImplemented
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if key.shape[0] != B or value.shape[:3] != key.shape[:3] or HQ % H or S < (T if causal else 1):
        return NotImplemented
    if causal:
        key, value = key[:, :, :T], value[:, :, :T]  # what lies behind is the room of a static cache
    rows = query.unflatten(1, (H, HQ // H)).transpose(2, 3).flatten(0, 1)
    o = fwm.softmax_attention(
        rows, key.flatten(0, 1).unsqueeze(2), value.flatten(0, 1).unsqueeze(2), causal=causal, scale=scaling
    )
    return o.unflatten(0, (B, H)).transpose(1, 2).flatten(2, 3).contiguous(), None
