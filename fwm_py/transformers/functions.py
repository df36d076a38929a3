"""Rules, convolutions and norms with the arguments that models give them.

One that returns NotImplemented leaves the call to the original.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers.activations import ACT2FN

import fwm_py.torch as fwm
from fwm_py.transformers.mamba2 import chunk_scan, selective_state_update, split_conv1d_scan_combined
from fwm_py.transformers.packed import blank, in_one_row, over_sequences, packed_by, padding_of

WIDTHS = range(1, 17)  # of the convolution; others are left to the original
FEW_NUMBERS = 65536  # fewer are left to the original by a norm without a gate: the call would take longer than the work


def with_models_arguments(
    function: Callable[..., tuple[Tensor, Tensor | None]],
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The rule with the models' arguments, which come by name from initial_state on."""

    def rule(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        *,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        return over_sequences(
            partial(function, qk_norm="l2" if use_qk_l2norm_in_kernel else None),
            (query, key, value, g, beta),
            initial_state,
            output_final_state,
            cu_seqlens=cu_seqlens,
            cu_seq_lens_q=cu_seq_lens_q,
            seq_idx=seq_idx,
        )

    return rule


def _activated(convolution: Callable[..., Tensor], activation: str | None) -> Tensor | Any:
    """convolution(activation=..); one that the kernel does not have comes behind it."""
    inside = activation if activation in ("silu", "swish") else None
    y = convolution(activation=inside)
    return y if activation == inside else ACT2FN[activation](y)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, packed: Tensor | None = None
) -> Any:
    """x (B, T, D)."""
    return _activated(lambda **inside: fwm.causal_conv1d(x, weight, bias, cu_seqlens=packed, **inside)[0], activation)


def causal_conv1d_fn(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    seq_idx: Tensor | None = None,
    **others: Any,
) -> Tensor | Any:
    """hidden_states (B, D, T)."""
    B, D, T = hidden_states.shape
    packed = packed_by(cu_seqlens, cu_seq_lens_q, seq_idx)
    if weight.shape[-1] not in WIDTHS and packed is None:  # the original would let packed sequences run into each other
        return NotImplemented
    padding = padding_of(seq_idx)
    x = blank(hidden_states.transpose(1, 2), padding)
    y = _convolve(in_one_row(x, packed), weight, bias, activation, packed)
    return blank(y.reshape(B, T, D), padding).transpose(1, 2)


def causal_conv1d_update(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    **others: Any,
) -> Tensor | Any:
    """hidden_states (B, D, T), as a rule one token; conv_state (B, D, L): the last inputs, changed in place."""
    T, W, L = hidden_states.shape[-1], weight.shape[-1], conv_state.shape[-1]
    if W not in WIDTHS:
        return NotImplemented
    if cache_seqlens is not None or conv_state_indices is not None or (L >= W - 1 and not torch.is_grad_enabled()):
        update = partial(
            fwm.causal_conv1d_update,
            hidden_states.transpose(1, 2),
            conv_state.transpose(1, 2),
            weight,
            bias,
            conv_state_indices=conv_state_indices,
            cache_seqlens=cache_seqlens,
        )
        return _activated(update, activation).transpose(1, 2)
    window = torch.cat([conv_state, hidden_states], dim=-1)
    conv_state.copy_(window[..., -conv_state.shape[-1] :])
    y = _convolve(window[..., -(T + W - 1) :].transpose(1, 2), weight, bias, activation)
    return y[:, -T:].transpose(1, 2).to(hidden_states.dtype)


def norm_then_gate(norm: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor | Any:
    """forward of the gated delta rules' RMSNormGated."""
    if gate is None or gate.shape != hidden_states.shape or norm.weight.shape != hidden_states.shape[-1:]:
        return NotImplemented
    if norm.activation not in ("silu", "swish", "sigmoid"):
        return NotImplemented
    return fwm.rms_norm(hidden_states, norm.weight, gate, activation=norm.activation, eps=norm.variance_epsilon)


def gate_then_norm(norm: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor | Any:
    """forward of the Mamba-2 models' RMSNormGated, which norms groups of numbers; Falcon-H1's may gate them behind."""
    weight, of_falcon = norm.weight, hasattr(norm, "norm_before_gate")
    if gate is None or gate.shape != hidden_states.shape or weight.shape != hidden_states.shape[-1:]:
        return NotImplemented
    gate_first = not (of_falcon and norm.norm_before_gate)
    size = len(weight) // norm.n_groups if of_falcon else norm.group_size
    x = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    gate = silu(gate.to(x.dtype))
    y = _norm_groups(x * gate if gate_first else x, weight.to(x.dtype), size, norm.variance_epsilon)
    dtype = hidden_states.dtype if of_falcon else torch.promote_types(hidden_states.dtype, weight.dtype)
    return (y if gate_first else y * gate).to(dtype)


def _norm_groups(x: Tensor, weight: Tensor, size: int, eps: float) -> Tensor:
    if size == len(weight):
        return fwm.rms_norm(x, weight, eps=eps)
    return fwm.rms_norm(x.unflatten(-1, (-1, size)), weight.new_ones(size), eps=eps).flatten(-2) * weight


def norm_forward(norm: Any, *args: Tensor, **options: Tensor) -> Tensor | Any:
    """forward of the models' RMSNorm, whose weight counts from 0 in the Qwen families, which call their epsilon eps."""
    given = (*args, *options.values())  # under names that differ
    if len(given) != 1:
        return NotImplemented
    hidden_states, weight = given[0], norm.weight
    few = not torch.compiler.is_compiling() and hidden_states.numel() < FEW_NUMBERS  # a graph may serve many lengths
    if few or weight.shape != hidden_states.shape[-1:] or getattr(norm, "group_size", None) is not None:
        return NotImplemented
    if hasattr(norm, "eps"):
        return fwm.rms_norm(
            hidden_states, 1 + weight.to(torch.promote_types(weight.dtype, torch.float32)), eps=norm.eps
        )
    if weight.dtype != hidden_states.dtype:  # theirs has the dtype that both promote to
        return NotImplemented
    return fwm.rms_norm(hidden_states, weight, eps=norm.variance_epsilon)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch_chunk_gated_delta_rule": with_models_arguments(fwm.gated_delta_rule),
    "torch_recurrent_gated_delta_rule": with_models_arguments(fwm.gated_delta_rule),
    "chunk_kimi_delta_attention": with_models_arguments(fwm.kimi_delta_rule),
    "recurrent_kimi_delta_attention": with_models_arguments(fwm.kimi_delta_rule),
    "mamba2_split_conv1d_scan_combined": split_conv1d_scan_combined,
    "mamba2_chunk_scan": chunk_scan,
    "mamba2_selective_state_update": selective_state_update,
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
}

GATED_NORMS: dict[str | None, Callable[..., Any]] = {"norm_then_gate": norm_then_gate, "gate_then_norm": gate_then_norm}
