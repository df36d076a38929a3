"""Parts of layers: a short convolution, and a norm of what is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fwm_py.torch as fwm

__all__ = ["RMSNorm", "ShortConvolution", "rotated"]


def rotated(x: Tensor, first: int, base: float = 1e4) -> Tensor:
    """Rotary positions: numbers i and i + K/2 of token t turned by the angle (first + t) base^(-2 i / K).

    Parameters
    ----------
    x : tensor (B, T, H, K), K even
    first : int
        Place of the first token.
    base : float

    References
    ----------
    Su et al. 2021, arXiv 2104.09864.
    """
    half = x.shape[-1] // 2
    places = torch.arange(first, first + x.shape[1], dtype=torch.float64, device=x.device)
    frequencies = base ** -(torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = (places[:, None] * frequencies)[:, None]  # (T, 1, K/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class ShortConvolution(nn.Module):
    """A causal convolution of each channel, then SiLU (`fwm_py.causal_conv1d`).

    It begins near the identity: 1 for the token's own number, and uniform numbers up to size**-0.5 added to all. So a
    layer passes tokens on from its first step, which is what lets it learn recall (tests/bridge/test_torch_recall.py).

    Parameters
    ----------
    channels : int
    size : int
        Tokens that a filter sees, 1 to 16: the token's own and those before it.
    """

    def __init__(self, channels: int, size: int, **made: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight.shape[1] ** -0.5
        with torch.no_grad():
            nn.init.uniform_(self.weight, -bound, bound)[:, -1] += 1

    def forward(
        self, x: Tensor, state: Tensor | None = None, cu_seqlens: Tensor | None = None, return_state: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, channels), state (n, size - 1, channels) -> y, and the state after the last token."""
        return fwm.causal_conv1d(
            x,
            self.weight,
            activation="silu",
            initial_state=state,
            output_final_state=return_state,
            cu_seqlens=cu_seqlens,
        )

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, size={self.weight.shape[1]}"


class RMSNorm(nn.Module):
    """A norm over the last axis, times SiLU of a gate if there is one (`fwm_py.rms_norm`)."""

    def __init__(self, size: int, eps: float, **made: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """x, gate (..., size)"""
        return fwm.rms_norm(x, self.weight, gate, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
