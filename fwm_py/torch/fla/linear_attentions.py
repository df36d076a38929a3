"""The linear attentions of flash-linear-attention: linear_attn, simple_gla, gla, retention, lightning_attn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fwm_py.torch import SumState, gated_linear_attention, linear_attention
from fwm_py.torch.fla.arguments import call, named

POWERS = tuple(2**i for i in range(10))  # chunk sizes of simple_gla


def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor | None] | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, SumState | None]:
    """`fwm_py.torch.linear_attention`; the sum of keys in a state is (n, 1, H, K)."""
    state: Any = initial_state
    if normalize and initial_state is not None:
        S, z = initial_state if isinstance(initial_state, tuple) else (initial_state, None)
        state = S, S.new_zeros(S.shape[0], *k.shape[2:]) if z is None else z.squeeze(1)
    o, final_state = call(
        linear_attention,
        q,
        k,
        v,
        scale=k.shape[-1] ** -0.5 if scale is None else scale,
        initial_state=state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        normalize=normalize,
        eps=1e-10,
        options=options,
    )
    if isinstance(final_state, tuple):
        final_state = final_state[0], final_state[1].unsqueeze(1)
    return o, final_state


fused_chunk_linear_attn = chunk_linear_attn


def fused_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | tuple[Tensor, Tensor | None] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, SumState | None]:
    """`chunk_linear_attn`, without normalisation unless it is asked for."""
    return chunk_linear_attn(
        q, k, v, scale, initial_state, output_final_state, normalize, cu_seqlens, reverse=reverse, **options
    )


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.gated_linear_attention` with g (B, T, H), or g_gamma (H,) for every token, or their sum; without
    either `fwm_py.torch.linear_attention`."""
    if g_gamma is not None:
        if g_gamma.shape != v.shape[2:3]:
            raise ValueError(f"g_gamma: got shape {tuple(g_gamma.shape)}, expected (H,), here ({v.shape[2]},)")
        g = g_gamma.expand(v.shape[:3]) if g is None else g + g_gamma
    gates = () if g is None else (g,)
    return call(
        gated_linear_attention if gates else linear_attention,
        q,
        k,
        v,
        *gates,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        cu_seqlens_cpu=cu_seqlens_cpu,
        chunk_sizes=POWERS,
        options=options,
    )


def fused_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla`."""
    return chunk_simple_gla(
        q, k, v, g, g_gamma, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens, **options
    )


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla`."""
    return chunk_simple_gla(
        q,
        k,
        v,
        g,
        g_gamma,
        scale,
        initial_state,
        output_final_state,
        state_v_first,
        cu_seqlens,
        reverse=reverse,
        **options,
    )


def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`chunk_simple_gla` without states; the second result, upstream's scores, is None."""
    options = {"output_attentions": output_attentions, **options}
    o, _ = chunk_simple_gla(q, k, v, g, scale=scale, cu_seqlens=cu_seqlens, cu_seqlens_cpu=cu_seqlens_cpu, **options)
    return o, None


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.gated_linear_attention` with g (B, T, H, K)."""
    return call(
        gated_linear_attention,
        q,
        k,
        v,
        g,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        cu_seqlens_cpu=cu_seqlens_cpu,
        options=options,
    )


fused_chunk_gla = chunk_gla


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gla` with g = gk, or without a gate."""
    options = {"gv": gv, "reverse": reverse, **options}
    states = (scale, initial_state, output_final_state, state_v_first, cu_seqlens)
    if gk is None:
        return chunk_simple_gla(q, k, v, None, None, *states, **options)
    return chunk_gla(q, k, v, gk, *states, **options)


def _retention_gates(v: Tensor) -> Tensor:
    """log(1 - 2^(-5 - h)) of each head h, in float32 as upstream."""
    heads = torch.arange(v.shape[2], dtype=torch.float32, device=v.device)
    return (1 - 2.0 ** (-5.0 - heads)).log()


def chunk_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla` with the gates of RetNet: log(1 - 2^(-5 - h)) in head h."""
    return chunk_simple_gla(
        q, k, v, None, _retention_gates(v), scale, initial_state, output_final_state, cu_seqlens=cu_seqlens, **options
    )


fused_chunk_retention = chunk_retention


def fused_recurrent_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_retention`."""
    options = {"reverse": reverse, "state_v_first": state_v_first, **options}
    return chunk_retention(q, k, v, scale, initial_state, output_final_state, cu_seqlens, **options)


def parallel_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`chunk_retention` without states; the second result, upstream's scores, is None."""
    o, _ = chunk_retention(q, k, v, scale, cu_seqlens=cu_seqlens, output_attentions=output_attentions, **options)
    return o, None


def _lightning_gates(v: Tensor, layer_idx: int, num_layers: int) -> Tensor:
    """-8 h / H (1 - layer_idx / num_layers) of each head h."""
    for name, x in (("layer_idx", layer_idx), ("num_layers", num_layers)):
        if isinstance(x, bool) or not isinstance(x, int):
            raise TypeError(f"{name}: got {named(x)}, expected an integer")
    if num_layers < 1:
        raise ValueError(f"num_layers: got {num_layers}, expected it >= 1")
    H = v.shape[2]
    return -(8 / H * (1 - layer_idx / num_layers)) * torch.arange(H, dtype=torch.float32, device=v.device)


def chunk_lightning_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla` with the gates of Lightning Attention: -8 h / H (1 - layer_idx / num_layers) in head h."""
    gates = _lightning_gates(v, layer_idx, num_layers)
    return chunk_simple_gla(
        q, k, v, None, gates, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens, **options
    )


def fused_recurrent_lightning_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer_idx: int,
    num_layers: int,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_lightning_attn`."""
    options = {"reverse": reverse, **options}
    states = (scale, initial_state, output_final_state, cu_seqlens)
    return chunk_lightning_attn(q, k, v, layer_idx, num_layers, *states, **options)
