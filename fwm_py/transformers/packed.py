"""Sequences packed into rows, as models say where they begin: cu_seqlens, cu_seq_lens_q or seq_idx."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def over_sequences(
    rule: Callable[..., tuple[Tensor, Tensor | None]],
    inputs: Sequence[Tensor],
    initial_state: Tensor | None,
    output_final_state: bool,
    *,
    cu_seqlens: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A rule of rows (B, T, ..), packed or not: padding gives 0, and states are those of the other sequences."""
    packed, padding = packed_by(cu_seqlens, cu_seq_lens_q, seq_idx), padding_of(seq_idx)
    rows = [in_one_row(blank(x, padding), packed) for x in inputs]
    with_states = initial_state is not None or output_final_state
    kept = has_tokens(packed, padding) if with_states and cu_seqlens is None and cu_seq_lens_q is None else None
    o, state = rule(
        *rows, cu_seqlens=packed, initial_state=spread(initial_state, kept), output_final_state=output_final_state
    )
    o = blank(o.reshape(*inputs[0].shape[:2], *o.shape[2:]), padding)
    return o, state if state is None or kept is None else state[kept]
