"""The norms of flash-linear-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fwm_py.torch as fwm
from fwm_py.torch.fla.arguments import named

Normed = Tensor | tuple[Tensor, Tensor]


def _norm(
    norm: Any,
    x: Tensor,
    gate: Tensor | None,
    residual: Tensor | None,
    prenorm: bool,
    residual_in_fp32: bool,
    activation: Any = "silu",
) -> Normed:
    """Of x, or x + residual; with prenorm also what was normed. The result has x's dtype."""
    kept = torch.float32 if residual_in_fp32 else x.dtype
    summed = x
    if residual is not None:
        summed, kept = x.to(torch.promote_types(x.dtype, torch.float32)) + residual, residual.dtype
    weight = norm.weight
    if weight is None:
        weight = torch.ones(x.shape[-1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    gate = None if gate is None else gate.reshape(x.shape)
    y = fwm.rms_norm(summed, weight, gate, activation=activation, eps=norm.eps)
    if norm.bias is not None:
        y = y + norm.bias
    y = y.to(x.dtype)
    return (y, summed.to(kept)) if prenorm else y


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight + bias, over the last axis.

    Parameters
    ----------
    hidden_size : int
    elementwise_affine : bool
        With a weight, and with a bias if `bias` says so.
    """

    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.elementwise_affine, self.eps = hidden_size, elementwise_affine, eps
        for name, value, there in (("weight", 1.0, True), ("bias", 0.0, bias)):
            numbers = torch.full((hidden_size,), value, device=device, dtype=dtype)
            self.register_parameter(name, torch.nn.Parameter(numbers) if elementwise_affine and there else None)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Normed:
        """Of x + residual, both of one shape; with prenorm a pair, with that sum (float32 with residual_in_fp32)."""
        return _norm(self, x, None, residual, prenorm, residual_in_fp32)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, elementwise_affine={self.elementwise_affine}, eps={self.eps}"


class FusedRMSNormGated(RMSNorm):
    """RMSNorm, times an activation of a gate: "swish" (or "silu") or "sigmoid"."""

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        activation: str = "swish",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if activation not in ("swish", "silu", "sigmoid"):
            raise ValueError(f"activation: got {named(activation)}, expected swish, silu or sigmoid")
        super().__init__(hidden_size, elementwise_affine, eps=eps, device=device, dtype=dtype)
        self.activation = activation

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Normed:
        """As RMSNorm's, with the gate g, of x's shape."""
        return _norm(self, x, g, residual, prenorm, residual_in_fp32, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


class FusedRMSNormSwishGate(FusedRMSNormGated):
    """FusedRMSNormGated with "swish", by its older name."""

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, eps, device=device, dtype=dtype)
