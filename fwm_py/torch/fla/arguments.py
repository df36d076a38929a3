"""What the operations of flash-linear-attention have in common: options, strengths, gates in the kernel, states."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fwm_py.torch._arrays import check_flag, shown, wants_gradient

Result = tuple[Any, ...]  # (o, final_state), and the states before chunks where return_intermediate_states is True


def named(x: Any) -> str:
    """An argument in a message."""
    return "a tensor" if isinstance(x, Tensor) else shown(x)


def refuse(options: dict[str, Any]) -> None:
    """Options that `fwm_py` does not have."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: got {named(value)}, which fwm_py does not have; expected None or False")


def _take_speed_options(options: dict[str, Any], chunk_sizes: tuple[int, ...], for_states: bool) -> int:
    """Takes what is about time and memory on a GPU, and changes no number, out of the options; gives the chunk size."""
    size = options.pop("chunk_size", None)
    if size is not None and not isinstance(size, int):
        raise TypeError(f"chunk_size: got {named(size)}, expected an integer or None")
    if size is not None and size not in chunk_sizes:
        raise ValueError(f"chunk_size: got {size}, expected {' or '.join(map(str, chunk_sizes))}")
    disable_recompute = options.pop("disable_recompute", False)
    check_flag("disable_recompute", disable_recompute)
    if disable_recompute and for_states:
        raise ValueError("disable_recompute: got True, expected False where return_intermediate_states is True")
    indices = options.pop("chunk_indices", None)  # which chunk of which sequence: follows from cu_seqlens
    if indices is not None and not isinstance(indices, Tensor):
        raise TypeError(f"chunk_indices: got {named(indices)}, expected a tensor or None")
    return 64 if size is None else size


def _is_v_first(state_v_first: bool, options: dict[str, Any]) -> bool:
    check_flag("state_v_first", state_v_first)
    if "transpose_state_layout" not in options:
        return state_v_first
    older: bool = options.pop("transpose_state_layout")
    check_flag("transpose_state_layout", older)
    if state_v_first:
        raise ValueError(
            "transpose_state_layout: got a value, expected none beside state_v_first, whose old name it is"
        )
    warnings.warn("transpose_state_layout is deprecated; its name is state_v_first", DeprecationWarning, stacklevel=4)
    return older


def _before_chunks(start: Tensor, kept: Tensor, length: int, chunk_size: int) -> Tensor:
    """The states before each chunk of sequences of one length, (n, N, HV, K, V), from those where they start, and those
    after each whole chunk."""
    n = -(-length // chunk_size)
    return torch.cat([start.unsqueeze(1)[:, :n], kept[:, : n - 1]], dim=1)


def _intermediate_states(
    initial_state: Tensor | None, kept: Tensor, T: int, cu_seqlens: Tensor | None, chunk_size: int
) -> Tensor:
    """The same, (B, N, HV, K, V), of B rows; or of packed sequences, (1, N, HV, K, V), one behind the other."""
    n = kept.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    start = kept.new_zeros(n, *kept.shape[2:]) if initial_state is None else initial_state
    if cu_seqlens is None:
        return _before_chunks(start, kept, T, chunk_size)
    lengths = cu_seqlens.diff().tolist()
    own = kept.split([length // chunk_size for length in lengths], dim=1)
    parts = [_before_chunks(S[None], x, length, chunk_size) for S, x, length in zip(start, own, lengths, strict=True)]
    return torch.cat([kept[:, :0], *parts], dim=1)


def call(
    rule: Callable[..., Result],
    *inputs: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool | None,
    options: dict[str, Any],
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_sizes: tuple[int, ...] = (16, 32, 64),
    return_intermediate_states: bool = False,
    **other: Any,
) -> Result:
    """The rule, with the options that the operations have in common; `other` are its own, chunk_sizes upstream's."""
    options = dict(options)
    v_first = _is_v_first(state_v_first, options)
    check_flag("return_intermediate_states", return_intermediate_states)
    chunk_size = _take_speed_options(options, chunk_sizes, for_states=return_intermediate_states)
    refuse(options)
    if return_intermediate_states and wants_gradient((*inputs, initial_state)):
        raise ValueError("return_intermediate_states: got True, expected False where a gradient is wanted")
    packed = cu_seqlens if cu_seqlens is not None else cu_seqlens_cpu
    results = rule(
        *inputs,
        scale=scale,
        initial_state=initial_state,
        output_final_state=False if output_final_state is None else output_final_state,
        state_v_first=v_first,
        cu_seqlens=packed,
        return_states_every=chunk_size if return_intermediate_states else None,
        **other,
    )
    if not return_intermediate_states:
        return results
    (o, final_state, kept), k = results, inputs[1]
    return o, final_state, _intermediate_states(initial_state, kept, k.shape[1], packed, chunk_size).to(k.dtype)


def norm_of(use_qk_l2norm_in_kernel: bool) -> Literal["l2"] | None:
    check_flag("use_qk_l2norm_in_kernel", use_qk_l2norm_in_kernel)
    return "l2" if use_qk_l2norm_in_kernel else None


def _wide(x: Tensor) -> Tensor:
    """In the dtype of the computation."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def strength(v: Tensor, beta: Tensor | None, use_beta_sigmoid_in_kernel: bool, allow_neg_eigval: bool) -> Tensor:
    """beta as it is, or sigmoid(beta), or twice that; 1 for each value where there is none."""
    check_flag("use_beta_sigmoid_in_kernel", use_beta_sigmoid_in_kernel)
    check_flag("allow_neg_eigval", allow_neg_eigval)
    if not use_beta_sigmoid_in_kernel:
        if allow_neg_eigval:
            raise ValueError("allow_neg_eigval: got True, expected False where use_beta_sigmoid_in_kernel is False")
        return v.new_ones(v.shape[:3]) if beta is None else beta
    if beta is None:
        raise ValueError("beta: got None, expected a tensor where use_beta_sigmoid_in_kernel is True")
    sigmoid = _wide(beta).sigmoid()
    return 2 * sigmoid if allow_neg_eigval else sigmoid


def _shaped(name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
    """A parameter, which comes in many shapes of as many numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {named(x)}, expected a tensor or None")
    if x.numel() != math.prod(shape):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {math.prod(shape)} numbers")
    return _wide(x.reshape(tuple(shape)))


def _check_bound(lower_bound: float | None, safe_gate: bool, needed: bool) -> None:
    check_flag("safe_gate", safe_gate)
    if lower_bound is None:
        if safe_gate and needed:
            raise ValueError("lower_bound: got None, expected a number where safe_gate is True")
        return
    if isinstance(lower_bound, bool) or not isinstance(lower_bound, (int, float)):
        raise TypeError(f"lower_bound: got {named(lower_bound)}, expected a number or None")
    if not lower_bound < 0 or (safe_gate and lower_bound < -5):
        raise ValueError(f"lower_bound: got {lower_bound}, expected {'-5 <= lower_bound' if safe_gate else 'it'} < 0")


@overload
def gate(
    g: Tensor,
    use_gate_in_kernel: bool,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    lower_bound: float | None = None,
    safe_gate: bool = False,
) -> Tensor: ...
@overload
def gate(
    g: Tensor | None,
    use_gate_in_kernel: bool,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    lower_bound: float | None = None,
    safe_gate: bool = False,
) -> Tensor | None: ...
def gate(
    g: Tensor | None,
    use_gate_in_kernel: bool,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    lower_bound: float | None = None,
    safe_gate: bool = False,
) -> Tensor | None:
    """g as it is; or, of g (B, T, HV) or (B, T, HV, K), with x = g + dt_bias:

    -exp(A_log) softplus(x), or lower_bound sigmoid(exp(A_log) x), where A_log = None stands for 0.

    A_log has HV numbers, dt_bias as many as a token of g. safe_gate alone tells a GPU that gates are bounded.
    """
    check_flag("use_gate_in_kernel", use_gate_in_kernel)
    _check_bound(lower_bound, safe_gate, needed=use_gate_in_kernel)
    if not use_gate_in_kernel:
        for name, x in (("A_log", A_log), ("dt_bias", dt_bias)):
            if x is not None:
                raise ValueError(f"{name}: got {named(x)}, expected None where use_gate_in_kernel is False")
        return g
    if g is None:
        raise ValueError("g: got None, expected a tensor where use_gate_in_kernel is True")
    if A_log is None and lower_bound is None:
        raise ValueError("A_log: got None, expected a tensor where use_gate_in_kernel is True without a lower_bound")
    x = _wide(g)
    if dt_bias is not None:
        x = x + _shaped("dt_bias", dt_bias, g.shape[2:])
    rate = 1.0 if A_log is None else _shaped("A_log", A_log, (g.shape[2], *[1] * (g.dim() - 3))).exp()
    return -rate * softplus(x) if lower_bound is None else lower_bound * (rate * x).sigmoid()
