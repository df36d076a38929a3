"""The kernels of `fwm_py` on PyTorch's CPU tensors, differentiable.

Every function has the name, the arguments and the shapes of the one on NumPy arrays (`fwm_py.rules`,
`fwm_py.attention`, `fwm_py.convolution`, `fwm_py.feature_maps`, which say what they compute), but for these:

- Tensors are float64, float32, bfloat16 or float16, in any mixture. Numbers are computed in float64 where an input has
  it, else in float32. Outputs have the dtype of q (or x), states that of the computation, gradients those of their
  inputs. Contiguous tensors of the dtype of the computation are read where they are, and by a rule's forward also
  parts of each token of a larger tensor, as queries, keys and values of one projection are.
- Gradients flow to every input of numbers, initial states included, but omega (`favor`). They cannot be differentiated
  again.
- There is no `out`: results are new tensors. Without gradients, `inplace_final_state=True` writes the final state of a
  rule over initial_state, and returns that: decoding takes no new memory for each token.
- As many threads work as `torch.set_num_threads` says; results do not depend on it, to the bit.

The functions are custom operators (torch.ops.fwm_py), so that torch.compile, torch.export, autocast, activation
checkpointing, torch.vmap and torch.utils.flop_counter know them. The last counts a rule's products with its state,
token by token: 2 K V for the write, the read, and a delta rule's read before the write; twice that backward. Of other
devices PyTorch says that there is no kernel (NotImplementedError); meta tensors give shapes. Derivatives in forward
mode are refused (NotImplementedError), and torch.func.grad does not take operators like these (RuntimeError).

Errors are those of the functions on arrays, TypeError for a tensor that holds no floating point numbers and for
subclasses of Tensor that handle operators themselves (DTensor), ValueError for tensors on several devices, and
PyTorch's RuntimeError where there is no memory for a result. Inputs stay as they are, and so do their storages: FSDP
may free and fill them.

>>> import torch
>>> import fwm_py.torch as fwm
>>> q, k, v = (torch.randn(2, 9, 4, 16, requires_grad=True) for _ in range(3))  # 2 rows of 9 tokens, 4 heads of 16
>>> g, beta = -torch.rand(2, 9, 4), torch.rand(2, 9, 4)
>>> o, state = fwm.gated_delta_rule(q, k, v, g, beta, qk_norm="l2", output_final_state=True)
>>> o.square().sum().backward()
>>> k.grad.shape
torch.Size([2, 9, 4, 16])

Needs PyTorch: pip install 'fwm_py[torch]'.
"""

from __future__ import annotations

from typing import Any, Literal, overload

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("fwm_py.torch needs PyTorch: pip install 'fwm_py[torch]'") from error

from fwm_py.rules import check_causal
from fwm_py.torch import (
    _flops,  # noqa: F401  counts the operators
    _operators,
    _rules,
)
from fwm_py.torch._arrays import check_flag as _check_flag

__all__ = [
    "causal_conv1d",
    "delta_rule",
    "dpfp",
    "elu1",
    "fast_weight_memory",
    "favor",
    "gated_delta_rule",
    "gated_delta_rule_2",
    "gated_linear_attention",
    "kimi_delta_rule",
    "linear_attention",
    "rms_norm",
    "softmax_attention",
    "tanh",
]

Tensor = _torch.Tensor
Norm = Literal["l2", "sum"]
Method = Literal["chunked", "recurrent"]
SumState = Tensor | tuple[Tensor, Tensor]


def _states(normalize: bool, initial_state: SumState | None) -> tuple[Tensor | None, Tensor | None]:
    """S and z of a state, which is a pair where the rule normalizes."""
    _check_flag("normalize", normalize)
    if normalize and not (initial_state is None or (isinstance(initial_state, tuple) and len(initial_state) == 2)):
        raise TypeError(
            f"initial_state: got {type(initial_state).__name__}, expected a tuple (S, z) where normalize is True"
        )
    if not isinstance(initial_state, tuple):
        return initial_state, None
    if not normalize:
        raise TypeError("initial_state: got a tuple, expected a tensor where normalize is False")
    return initial_state


def _result(
    results: tuple[Tensor, Tensor, Tensor], output_final_state: bool, normalize: bool
) -> tuple[Tensor, SumState | None]:
    o, state, total = results
    return o, None if not output_final_state else (state, total) if normalize else state


def _check_in_place(inplace_final_state: bool, inputs: tuple[Tensor | None, ...]) -> None:
    _check_flag("inplace_final_state", inplace_final_state)
    if inputs[-2] is None:
        raise ValueError("inplace_final_state: got True, expected False where there is no initial_state")
    if _torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        raise ValueError("inplace_final_state: got True, expected False where a gradient is wanted")


def _rule(
    function: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    b: Tensor | None = None,
    w: Tensor | None = None,
    *,
    scale: float | None,
    initial_state: SumState | None,
    output_final_state: bool,
    inplace_final_state: bool,
    cu_seqlens: Tensor | None,
    method: Method,
    qk_norm: Norm | None = None,
    normalize: bool = False,
    eps: float = 0.0,
    clamp_first: bool = True,
) -> tuple[Tensor, Any]:
    _check_flag("output_final_state", output_final_state)
    _check_flag("clamp_first", clamp_first)
    states = (None, None) if initial_state is None and normalize is False else _states(normalize, initial_state)
    options = (scale, qk_norm, normalize, eps, clamp_first, cu_seqlens, method)
    if inplace_final_state is not False:
        _check_in_place(inplace_final_state, (q, k, v, g, beta, b, w, *states))
        return _rules.rule_in_place(function, q, k, v, g, beta, b, w, *states, *options), initial_state
    results = _rules.rule(function, q, k, v, g, beta, b, w, *states, *options, output_final_state)
    return _result(results, output_final_state, normalize)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: SumState | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> tuple[Tensor, SumState | None]:
    """`fwm_py.linear_attention`; with normalize, states are pairs (S, z)."""
    if not check_causal(causal, key_lengths, cu_seqlens, method):
        if inplace_final_state is not False:
            raise ValueError("inplace_final_state: got True, expected False where causal is False")
        _check_flag("output_final_state", output_final_state)
        states = _states(normalize, initial_state)
        results = _rules.noncausal(q, k, v, *states, key_lengths, scale, normalize, eps, output_final_state)
        return _result(results, output_final_state, normalize)
    return _rule(
        "linear_attention",
        q,
        k,
        v,
        scale=scale,
        normalize=normalize,
        eps=eps,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.gated_linear_attention`: g (B, T, HV) or (B, T, HV, K)."""
    return _rule(
        "gated_linear_attention",
        q,
        k,
        v,
        g,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: SumState | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> tuple[Tensor, SumState | None]:
    """`fwm_py.delta_rule`: DeltaNet; with normalize, states are pairs (S, z)."""
    return _rule(
        "delta_rule",
        q,
        k,
        v,
        None,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        normalize=normalize,
        eps=eps,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.gated_delta_rule`: Gated DeltaNet, g (B, T, HV)."""
    return _rule(
        "gated_delta_rule",
        q,
        k,
        v,
        g,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def kimi_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.kimi_delta_rule`: Kimi Delta Attention, g (B, T, HV, K)."""
    return _rule(
        "kimi_delta_rule",
        q,
        k,
        v,
        g,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def gated_delta_rule_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.gated_delta_rule_2`: Gated DeltaNet-2, g and b (B, T, HV, K), w (B, T, HV, V)."""
    return _rule(
        "gated_delta_rule_2",
        q,
        k,
        v,
        g,
        None,
        b,
        w,
        scale=scale,
        qk_norm=qk_norm,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def fast_weight_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    clamp_first: bool = True,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> tuple[Tensor, Tensor | None]:
    """`fwm_py.fast_weight_memory`: delta writes into a memory of bounded norm."""
    return _rule(
        "fast_weight_memory",
        q,
        k,
        v,
        None,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        clamp_first=clamp_first,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        cu_seqlens=cu_seqlens,
        method=method,
    )


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
    _check_flag("causal", causal)
    _check_flag("return_lse", return_lse)
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
    _check_flag("output_final_state", output_final_state)
    y, state = _operators.conv1d(x, weight, bias, initial_state, cu_seqlens, activation, output_final_state)
    return y, state if output_final_state else None


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
