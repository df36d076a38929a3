"""The other functions of `fwm_py.torch`: attention, convolution, norm, maps."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from fwm_py.torch import _operators
from fwm_py.torch._arrays import check_flag, wants_gradient


@overload
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`fwm_py.softmax_attention`; no gradient flows through lse."""
    check_flag("causal", causal)
    check_flag("return_lse", return_lse)
    o, lse = _operators.softmax(q, k, v, key_lengths, causal, scale)
    return (o, lse) if return_lse else o


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu", "swish"] | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.causal_conv1d`: x (B, T, D), weight (D, W); (B, D, T), as PyTorch's, is x.transpose(1, 2)."""
    check_flag("output_final_state", output_final_state)
    y, state = _operators.conv1d(x, weight, bias, initial_state, cu_seqlens, activation, output_final_state)
    return y, state if output_final_state else None


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu", "swish"] | None = None,
    conv_state_indices: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """`fwm_py.causal_conv1d_update`: conv_state (P, L, D), of any dtype and strides, is changed in place.

    The arrays of causal-conv1d, (P, D, L), are conv_state.transpose(1, 2). One in a piece, of the dtype of the
    computation, is changed where it lies; of another one the states of the call are copied out and back.
    """
    if wants_gradient((x, conv_state, weight, bias)):
        raise ValueError("conv_state: got a tensor to be changed, expected none where a gradient is wanted")
    return _operators.conv1d_update(x, conv_state, weight, bias, conv_state_indices, cache_seqlens, activation)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    gate: Tensor | None = None,
    *,
    activation: Literal["silu", "swish", "sigmoid"] = "silu",
    eps: float = 1e-6,
) -> Tensor:
    """`fwm_py.rms_norm`: x and gate (..., D), weight (D,)."""
    return _operators.norm(x, weight, gate, activation, eps)


def elu1(x: Tensor) -> Tensor:
    """`fwm_py.feature_maps.elu1`."""
    return _operators.feature_map("elu1", x, None, None)


def tanh(x: Tensor) -> Tensor:
    """`fwm_py.feature_maps.tanh`."""
    return _operators.feature_map("tanh", x, None, None)


def dpfp(x: Tensor, nu: int = 1) -> Tensor:
    """`fwm_py.feature_maps.dpfp`."""
    return _operators.feature_map("dpfp", x, nu, None)


def favor(x: Tensor, omega: Tensor) -> Tensor:
    """`fwm_py.feature_maps.favor`; omega counts as a constant."""
    return _operators.feature_map("favor", x, None, omega)
