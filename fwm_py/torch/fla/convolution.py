"""The short convolution of flash-linear-attention, whose states are its last inputs (n, D, W), the token's own among
them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fwm_py.torch as fwm
from fwm_py.torch.fla.arguments import named, refuse

BACKENDS = ("triton", "cuda", "mix")
ACTIVATIONS = (None, "silu", "swish")


def _check_cache(name: str, cache: Tensor | None, n: int, weight: Tensor) -> None:
    shape = (n, *weight.shape)
    if cache is not None and cache.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(cache.shape)}, expected (n, D, W), here {shape}")


def _before(cache: Tensor | None) -> Tensor | None:
    """Of a state the tokens before the next, (n, W - 1, D)."""
    return None if cache is None else cache[..., 1:].transpose(1, 2)


def _last_inputs(x: Tensor, cache: Tensor | None, ends: Tensor, lengths: Tensor, W: int) -> Tensor:
    """(n, D, W) of sequences of x (B, T, D) with these ends in B T tokens; those before them are the cache's."""
    D, n = x.shape[-1], len(ends)
    tokens = x.reshape(-1, D)
    before = x.new_zeros(n, D, W) if cache is None else cache
    there = torch.cat([before.transpose(1, 2).reshape(n * W, D), tokens.to(before.dtype)])
    back = torch.arange(W, 0, -1, device=x.device)
    in_tokens = n * W + ends[:, None] - back
    in_cache = torch.arange(1, n + 1, device=x.device)[:, None] * W + lengths[:, None] - back
    return there[torch.where(back <= lengths[:, None], in_tokens, in_cache)].transpose(1, 2)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
    activation: str | None = None,
    backend: str | None = "triton",
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.torch.causal_conv1d`, and residual added to it.

    Parameters
    ----------
    x : tensor (B, T, D) or (B, T, .., d), whose last axes are D channels together
    weight : tensor (D, W)
    residual : tensor, of x's shape, optional
    initial_state : tensor (n, D, W), optional
        The last inputs of each sequence, oldest first.
    activation : None, "silu" or "swish"
    backend : str
        Upstream's kernels; says nothing here.
    """
    refuse(options)
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {named(backend)}, expected one of {', '.join(BACKENDS)}")
    packed = cu_seqlens if cu_seqlens is not None else cu_seqlens_cpu
    D, W = weight.shape
    given = x.shape
    x = x if x.shape[-1] == D else x.flatten(2)
    n = x.shape[0] if packed is None else len(packed) - 1
    _check_cache("initial_state", initial_state, n, weight)
    inside: Any = activation
    y, _ = fwm.causal_conv1d(
        x, weight, bias, activation=inside, initial_state=_before(initial_state), cu_seqlens=packed
    )
    y = y.reshape(given)
    y = y if residual is None else y + residual
    if not output_final_state:
        return y, None
    bounds = torch.arange(n + 1, device=x.device) * x.shape[1] if packed is None else packed
    return y, _last_inputs(x, initial_state, bounds[1:], bounds.diff(), W)


def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of each of n sequences: x (n, D), (n, 1, D) or (1, n, D); cache (n, D, W) is changed in place.

    There is no gradient; where one is wanted this is a ValueError.
    """
    if weight is None:
        raise TypeError("weight: got None, expected a tensor")
    tokens = x.reshape(-1, 1, weight.shape[0])
    _check_cache("cache", cache, len(tokens), weight)
    inside: Any = activation
    y = fwm.causal_conv1d_update(tokens, cache.transpose(1, 2), weight, bias, activation=inside).reshape(x.shape)
    return y if residual is None else y + residual, cache


class ShortConvolution(torch.nn.Conv1d):
    """A causal convolution of each channel by itself, with a cache for decoding.

    Parameters
    ----------
    hidden_size : int
        D, the number of channels.
    kernel_size : int
        W, 1 to 16 taps.
    activation : None, "silu" or "swish"
    backend : str
        Upstream's kernels; says nothing here.

    Its parameters are weight (D, 1, W) and, with bias, bias (D,), as upstream's.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        bias: bool = False,
        activation: str | None = "silu",
        backend: str | None = "triton",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        options.pop("use_fast_conv1d", None)  # of upstream's older versions: which kernel
        refuse(options)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: got {named(activation)}, expected None, silu or swish")
        if backend not in BACKENDS[:2]:
            raise ValueError(f"backend: got {named(backend)}, expected one of {', '.join(BACKENDS[:2])}")
        super().__init__(
            hidden_size,
            hidden_size,
            kernel_size,
            groups=hidden_size,
            bias=bias,
            padding=kernel_size - 1,
            device=device,
            dtype=dtype,
        )
        self.hidden_size, self.activation, self.backend = hidden_size, activation, backend

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        chunk_indices: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """y of x (B, T, D), and the new cache (n, D, W) if asked for.

        For single tokens without gradients that is the given one, changed in place, else a new tensor. Tokens whose
        mask (B, T) is 0 are padding, and count as 0.
        """
        refuse(options)
        if mask is not None:
            if cu_seqlens is not None:
                raise ValueError("mask: got a tensor, expected None where there are cu_seqlens")
            x = x * mask.unsqueeze(-1)
        n = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        single = x.shape[0] * x.shape[1] == n and (cu_seqlens is None or bool((cu_seqlens.diff() == 1).all()))
        if single and not torch.is_grad_enabled():
            return self.step(x, residual, cache, output_final_state, cu_seqlens)
        return causal_conv1d(
            x,
            self.weight.squeeze(1),
            self.bias,
            residual,
            cache,
            output_final_state,
            self.activation,
            cu_seqlens=cu_seqlens,
        )

    def step(
        self,
        x: Tensor,
        residual: Tensor | None,
        cache: Tensor | None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The same for single tokens: x (n, 1, D), or (1, n, D) with cu_seqlens."""
        weight = self.weight.squeeze(1)
        cache = x.new_zeros(x.shape[0] * x.shape[1], *weight.shape) if cache is None else cache
        y, cache = causal_conv1d_update(x, cache, residual, weight, self.bias, self.activation)
        return y, cache if output_final_state else None

    @property
    def state_size(self) -> int:
        """Numbers of a sequence's cache."""
        return self.hidden_size * self.kernel_size[0]
