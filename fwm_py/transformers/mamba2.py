"""The scan of Mamba-2 with the arguments that models give it.

It is the gated linear attention of q = C, k = B, v = dt x and g = dt A, unscaled, with D x added: a group is a key
head. What the models call a state is (.., P, N), value first.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

import fwm_py.torch as fwm
from fwm_py.torch._arrays import computed_in
from fwm_py.transformers.packed import over_sequences

POSITIVE = (0.0, math.inf)


def _scan(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    A: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float] | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """x (B, T, H, P), dt (B, T, H), B and C (B, T, G, N), A, D and dt_bias (H,); computed in the dtype of x, if that is
    float64, else in float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, dt = x.to(wide), dt.to(wide) if dt_bias is None else dt + dt_bias.to(wide)
    dt = softplus(dt) if dt_softplus else dt
    if dt_limit is not None and not (dt_softplus and tuple(dt_limit) == POSITIVE):
        dt = dt.clamp(*dt_limit)
    y, state = fwm.gated_linear_attention(
        C.to(wide),  # y has its dtype
        B,
        x * dt[..., None],
        A.to(wide) * dt,
        scale=1.0,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=True,
        cu_seqlens=cu_seqlens,
    )
    return y if D is None else torch.addcmul(y, x, D[:, None].to(wide)), state


def split_conv1d_scan_combined(*args: Any, **others: Any) -> None:
    """The whole layer at once; None says that convolution, scan and norm are called one by one."""
    return None


def chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = POSITIVE,
    return_final_states: bool = False,
    z: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    seq_idx: Tensor | None = None,
    **others: Any,
) -> Tensor | tuple[Tensor, Tensor | None] | Any:
    """hidden_states (B, T, H, P), dt (B, T, H), A, D and dt_bias (H,), B and C (B, T, G, N); states (B, H, P, N)."""
    if z is not None or any(x is not None and x.dim() != 1 for x in (A, D, dt_bias)):
        return NotImplemented
    y, state = over_sequences(
        partial(_scan, A=A, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit),
        (hidden_states, dt, B, C),
        initial_states,
        return_final_states,
        cu_seqlens=cu_seqlens,
        cu_seq_lens_q=cu_seq_lens_q,
        seq_idx=seq_idx,
    )
    return (y, state) if return_final_states else y


def _of_head(x: Tensor | None, axes: int, expanded: int) -> Any:
    """One number for a head, of a tensor that is expanded along its last axes; NotImplemented if it is not."""
    if x is None:
        return None
    lengths = list(zip(x.shape, x.stride()))
    if len(lengths) != axes or any(n > 1 and stride for n, stride in lengths[-expanded:]):
        return NotImplemented
    index: Any = (..., *[0] * expanded)
    return x[index]


def selective_state_update(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **others: Any,
) -> Tensor | Any:
    """One token: hidden_states, dt (B, H, P), B and C (B, G, N), A (H, P, N), D and dt_bias (H, P), with the same
    numbers for all of a head; state (B, H, P, N), changed in place."""
    of_heads = [_of_head(x, *axes) for x, axes in ((dt, (3, 1)), (A, (3, 2)), (D, (2, 1)), (dt_bias, (2, 1)))]
    if any(x is NotImplemented for x in of_heads):
        return NotImplemented
    dt, A, D, dt_bias = of_heads
    x, dt, B, C = (token.unsqueeze(1) for token in (hidden_states, dt, B, C))
    computed = computed_in(("state", "hidden_states", "dt", "B", "C"), (state, x, dt, B, C))
    in_place = state.dtype is computed and state.is_contiguous() and not torch.is_grad_enabled()
    options: dict[str, Any] = {"dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": None}
    options |= {"output_final_state": not in_place, "inplace_final_state": in_place}
    y, after = _scan(x, dt, B, C, A=A, D=D, initial_state=state, **options)
    if not in_place:
        state.copy_(cast("Tensor", after))
    y = y.squeeze(1)
    return (y if z is None else y * silu(z.to(y.dtype))).to(hidden_states.dtype)
