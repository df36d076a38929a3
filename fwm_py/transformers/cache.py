"""What a language model keeps of the tokens that it has seen, in the place of transformers' keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fwm_py.checks import shown
from fwm_py.torch.nn import Decoder, DecoderState

__all__ = ["FwmCache"]


class Group(NamedTuple):
    """Rows of a batch (m,) that have as many tokens, and their state: None before the first of them."""

    rows: Tensor
    state: DecoderState | None

    def select(self, places: Tensor, rows: Tensor) -> Group:
        """The group's rows at these places, which are `rows` of the batch from now on."""
        whole = torch.equal(places, torch.arange(len(self.rows)))
        return Group(rows, self.state if whole or self.state is None else self.state.select(places))


class FwmCache:
    """The `past_key_values` of a `FwmForCausalLM`: its states, which each call replaces.

    A model of transformers pads a batch of unequal texts; here padding is never read. Rows that have as many tokens
    are computed together, and those that have not, apart.

    Attributes
    ----------
    groups : list of Group
    columns : int
        Tokens of a row, padding included: what transformers calls the length.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the attention mask until now, the same for all layers."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows (m,), in this order and as often as they occur: the beams of a search."""
        chosen = []
        for group in self.groups:
            found = beam_idx[:, None] == group.rows  # (m, rows of the group)
            rows = found.any(1).nonzero()[:, 0]
            if len(rows):
                chosen.append(group.select(found[rows].int().argmax(1), rows))
        self.groups = chosen

    def hidden(self, model: Decoder, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """What the model makes its logits of, and its states after these tokens.

        Parameters
        ----------
        model : Decoder
        tokens : tensor (B, T) of integers
        mask : tensor (B, T), optional
            0 where there is padding, before or after a row's tokens; it gives 0.

        Returns
        -------
        tensor (B, T, d_model)
        """
        n_rows = sum(len(group.rows) for group in self.groups)
        if self.groups and n_rows != len(tokens):
            raise ValueError(f"past_key_values: got a cache of {n_rows} rows, expected {len(tokens)}, as input_ids has")
        groups = self.groups or [Group(torch.arange(len(tokens)), None)]
        after, parts = [], []
        for group in groups:
            for start, stop, places in spans(tokens[group.rows], None if mask is None else mask[group.rows]):
                rows, state = group.select(places, group.rows[places])
                if start < stop:
                    hidden, state = model.hidden(tokens[rows, start:stop], state, return_state=True)
                    parts.append((rows, start, stop, hidden))
                after.append(Group(rows, state))
        self.groups, self.columns = after, self.columns + tokens.shape[1]
        if len(after) == 1 and parts and parts[0][3].shape[1] == tokens.shape[1]:
            return parts[0][3]
        like = model.embed.weight
        whole = torch.zeros(*tokens.shape, like.shape[1], dtype=like.dtype)
        for rows, start, stop, hidden in parts:
            whole[rows, start:stop] = hidden.to(like.dtype)
        return whole


def spans(tokens: Tensor, mask: Tensor | None) -> Iterator[tuple[int, int, Tensor]]:
    """Where tokens (m, T) begin and end, and the rows that have them there."""
    T = tokens.shape[1]
    if mask is None:
        yield 0, T, torch.arange(len(tokens))
        return
    lengths = mask.sum(1)
    starts = mask.int().argmax(1)
    ends = starts + lengths
    columns = torch.arange(T)
    if not torch.equal(mask, (columns >= starts[:, None]) & (columns < ends[:, None])):
        raise ValueError("attention_mask: got zeros between a row's tokens, expected them before or after")
    kinds, kind = torch.stack([starts, ends], 1).unique(dim=0, return_inverse=True)
    for i, (start, stop) in enumerate(kinds.tolist()):
        yield start, stop, (kind == i).nonzero()[:, 0]


def present(mask: Tensor | None, tokens: Tensor, seen: int) -> Tensor | None:
    """Which of these tokens (B, T) are there, by the attention mask of all until now; None: all of them.

    Raises
    ------
    TypeError, ValueError
        "attention_mask: got .., expected ..".
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask: got {shown(mask)}, expected a tensor")
    B, T = tokens.shape
    if mask.shape not in ((B, T), (B, seen + T)):
        raise ValueError(f"attention_mask: got shape {tuple(mask.shape)}, expected {(B, seen + T)}")
    mask = mask[:, mask.shape[1] - T :]
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask: got other numbers, expected 0 and 1")
    mask = mask.bool()
    return None if bool(mask.all()) else mask
