"""Sequences packed into rows, as models say where they begin: cu_seqlens, cu_seq_lens_q or seq_idx."""

from __future__ import annotations

import torch
from torch import Tensor


def boundaries(seq_idx: Tensor) -> Tensor:
    """cu_seqlens of the rows of seq_idx (B, T), one behind the other: a sequence ends where the number changes."""
    B, T = seq_idx.shape
    begins = torch.ones(B, T, dtype=torch.bool)
    begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return torch.cat([begins.flatten().nonzero().flatten(), torch.tensor([B * T])])


def packed_by(cu_seqlens: Tensor | None, cu_seq_lens_q: Tensor | None, seq_idx: Tensor | None) -> Tensor | None:
    """Where sequences begin and end, however it was said."""
    if cu_seqlens is None:
        cu_seqlens = cu_seq_lens_q
    return boundaries(seq_idx) if cu_seqlens is None and seq_idx is not None else cu_seqlens


def padding_of(seq_idx: Tensor | None) -> Tensor | None:
    """Tokens (B, T) whose number is negative; None if there are none."""
    if seq_idx is None:
        return None
    padding = seq_idx < 0
    return padding if torch.compiler.is_compiling() or padding.any() else None  # a graph does not ask


def blank(x: Tensor, padding: Tensor | None) -> Tensor:
    """x (B, T, ..) with zeros for padding, whatever it holds."""
    return x if padding is None else x.masked_fill(padding.reshape(*padding.shape, *[1] * (x.dim() - 2)), 0)


def in_one_row(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Rows behind one another, as packed sequences lie."""
    return x if cu_seqlens is None or x.shape[0] == 1 else x.flatten(0, 1).unsqueeze(0)


def has_tokens(packed: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Which of the sequences that seq_idx packs are not padding; None if all."""
    return None if padding is None or packed is None else ~padding.flatten()[packed[:-1].long()]


def spread(states: Tensor | None, to: Tensor | None) -> Tensor | None:
    """States (n, ..) at the places of the sequences that have tokens, zeros between them."""
    if states is None or to is None:
        return states
    return states.new_zeros(to.shape[0], *states.shape[1:]).index_put((to,), states)
