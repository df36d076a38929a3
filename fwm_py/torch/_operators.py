"""The custom operators of PyTorch behind `fwm_py.torch`: schemas, kernels, shapes for tracing, gradients.

`fwm_py::memory` is every rule of `fwm_py.kernels`, as `_core.memory_forward` is. Numbers are computed in float64 where
an input has it, else in float32, whatever mixture of half and float32 comes; outputs get the dtype of the queries,
states that of the computation, gradients those of their inputs. An operator returns tensors always: one without
numbers stands for a result that was not asked for, or that there is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fwm_py import _core

Operator = Callable[..., Any]

NAMES = ("q", "k", "v", "g", "beta", "b", "w", "initial_state", "initial_sum")
INPUTS = "Tensor q, Tensor k, Tensor v, " + ", ".join(f"Tensor? {name}" for name in NAMES[3:])
N_INPUTS = len(NAMES)
OPTIONS = "float? scale, str? qk_norm, bool normalize, float eps, bool clamp_first, Tensor? cu_seqlens, str method"


def computed_in(tensors: dict[str, Tensor | None], integers: Tensor | None = None) -> torch.dtype:
    """The dtype of the computation; all are on one device, and hold floating point numbers but for the integers."""
    there = {name: x for name, x in tensors.items() if x is not None}
    first, *_ = there
    for name, x in (there if integers is None else there | {"cu_seqlens": integers}).items():
        if x.device != there[first].device:
            raise ValueError(f"{name}: got a tensor on {x.device}, expected one on {there[first].device}, as {first} is")
        if name != "cu_seqlens" and not x.is_floating_point():
            raise TypeError(f"{name}: got {x.dtype}, expected floating point numbers")
    return torch.float64 if any(x.dtype == torch.float64 for x in there.values()) else torch.float32


def to_array(x: Tensor | None, dtype: torch.dtype) -> np.ndarray | None:
    """Its numbers, without a copy where it is contiguous and of that dtype."""
    return None if x is None else x.detach().to(dtype).contiguous().numpy()


def to_tokens(x: Tensor | None, dtype: torch.dtype) -> np.ndarray | None:
    """The same for numbers of tokens (B, T, ..), of which a forward also reads a part of each token of a larger tensor."""
    if x is None:
        return None
    side_by_side = x.dim() in (3, 4) and x.stride(-1) == 1 and (x.dim() == 3 or x.stride(-2) == x.shape[-1])
    return x.detach().numpy() if x.dtype == dtype and side_by_side else to_array(x, dtype)


def to_tensor(x: np.ndarray | None, dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype) if x is None else torch.from_numpy(x).to(dtype)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """The call, on as many threads as PyTorch has."""
    _core.set_threads_here(torch.get_num_threads())
    try:
        return function(*args)
    finally:
        _core.set_threads_here(0)


_library = torch.library.Library("fwm_py", "DEF")


def define(name: str, schema: str, kernel: Callable[..., Any], shapes: Callable[..., Any]) -> Operator:
    """An operator for CPU tensors, and what it returns where tensors have shapes only."""
    _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, "CPU")
    torch.library.register_fake(f"fwm_py::{name}", shapes, lib=_library)
    operator = getattr(torch.ops.fwm_py, name).default

    def call(*args: Any) -> Any:
        if forward_ad._current_level >= 0:  # PyTorch would drop the tangents silently
            raise NotImplementedError("fwm_py.torch: there are no derivatives in forward mode")
        return operator(*args)

    return call


def differentiate(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Make `name` differentiable, by an operator `name`_backward that is not."""
    torch.library.register_autograd(f"fwm_py::{name}", backward, setup_context=save, lib=_library)
    torch.library.register_autograd(f"fwm_py::{name}_backward", refuse_second_derivative, lib=_library)


def refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("fwm_py.torch: gradients cannot be differentiated again")


def gradients_like(inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Shapes of gradients: those of the inputs, or nothing."""
    like = next(x for x in inputs if x is not None)
    return tuple(like.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs)


def given(gradients: tuple[Tensor, ...], inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs that there are."""
    return tuple(None if x is None else gradient for gradient, x in zip(gradients, inputs))


# ---- the general memories --------------------------------------------------------------------------------------------


def pair(state: Any, total: Any) -> Any:
    return state if total is None else (state, total)


def split(state: Any) -> tuple[Any, Any]:
    return state if isinstance(state, tuple) else (state, None)


def core_arguments(
    inputs: tuple[Tensor | None, ...], options: tuple[Any, ...], dtype: torch.dtype, convert: Callable[..., Any] = to_array
) -> tuple[Any, ...]:
    """The common arguments of `_core.memory_forward` and `_core.memory_backward`."""
    *tokens, state, total = inputs
    *options, cu_seqlens, method = options
    initial = pair(to_array(state, dtype), to_array(total, dtype))
    offsets = None if cu_seqlens is None else cu_seqlens.numpy()
    return *(convert(x, dtype) for x in tokens), initial, *options, offsets, method


def memory_kernel(function: str, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, options, output_final_state = args[:N_INPUTS], args[N_INPUTS:-1], args[-1]
    dtype = computed_in(dict(zip(NAMES, inputs)), options[-2])
    arguments = core_arguments(inputs, options, dtype, to_tokens)
    o, final = run(_core.memory_forward, function, *arguments, output_final_state, None)
    state, total = split(final)
    return to_tensor(o, inputs[0].dtype), to_tensor(state, dtype), to_tensor(total, dtype)


def memory_shapes(function: str, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, options, output_final_state = (q, k, v, *args[: N_INPUTS - 3]), args[N_INPUTS - 3 : -1], args[-1]
    normalize, cu_seqlens = options[2], options[5]
    dtype = computed_in(dict(zip(NAMES, inputs)), cu_seqlens)
    B, T, HQ, K = q.shape
    H, HV, V = k.shape[2], v.shape[2], v.shape[3]
    n = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = q.new_empty((n, HV, K, V) if output_final_state else (0,), dtype=dtype)
    total = q.new_empty((n, H, K) if output_final_state and normalize else (0,), dtype=dtype)
    return q.new_empty((B, T, max(HQ, HV), V)), state, total


def memory_backward_kernel(
    function: str, do: Tensor, dstate: Tensor | None, dtotal: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    inputs, options = args[:N_INPUTS], args[N_INPUTS:]
    dtype = computed_in(dict(zip(NAMES, inputs)), options[-2])
    dfinal = pair(to_array(dstate, dtype), to_array(dtotal, dtype))
    arguments = core_arguments(inputs, options, dtype)
    *gradients, dinitial = run(_core.memory_backward, function, to_array(do, dtype), dfinal, *arguments, None)
    every = (*gradients, *split(dinitial))
    return tuple(to_tensor(x, inputs[0].dtype if of is None else of.dtype) for x, of in zip(every, inputs))


def memory_backward_shapes(function: str, do: Tensor, dstate: Any, dtotal: Any, *args: Any) -> tuple[Tensor, ...]:
    return gradients_like(args[:N_INPUTS])


memory = define("memory", f"(str function, {INPUTS}, {OPTIONS}, bool output_final_state) -> (Tensor, Tensor, Tensor)",
                memory_kernel, memory_shapes)
memory_backward = define(
    "memory_backward", f"(str function, Tensor do, Tensor? dfinal_state, Tensor? dfinal_sum, {INPUTS}, {OPTIONS}) -> "
    f"({', '.join(['Tensor'] * N_INPUTS)})", memory_backward_kernel, memory_backward_shapes)


def save_memory(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.function, tensors, options = inputs[0], inputs[1 : 1 + N_INPUTS], inputs[1 + N_INPUTS : -1]
    *ctx.options, cu_seqlens, ctx.method = options
    ctx.normalize, ctx.has_state = options[2], inputs[-1]
    ctx.save_for_backward(*tensors, cu_seqlens)


def differentiate_memory(ctx: Any, do: Tensor, dstate: Tensor, dtotal: Tensor) -> tuple[Any, ...]:
    *inputs, cu_seqlens = ctx.saved_tensors
    dfinal = (dstate if ctx.has_state else None, dtotal if ctx.has_state and ctx.normalize else None)
    gradients = memory_backward(ctx.function, do, *dfinal, *inputs, *ctx.options, cu_seqlens, ctx.method)
    return None, *given(gradients, inputs), *[None] * 8


differentiate("memory", differentiate_memory, save_memory)


# ---- softmax attention -----------------------------------------------------------------------------------------------


def softmax_kernel(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    dtype = computed_in({"q": q, "k": k, "v": v})
    o, lse = run(_core.attention_forward, to_array(q, dtype), to_array(k, dtype), to_array(v, dtype), causal, scale, True, None)
    return to_tensor(o, q.dtype), to_tensor(lse, dtype)


def softmax_shapes(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=computed_in({"q": q, "k": k, "v": v}))


def softmax_backward_kernel(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = computed_in({"q": q, "k": k, "v": v})
    arrays = [to_array(x, dtype) for x in (do, q, k, v, o, lse)]
    gradients = run(_core.attention_backward, *arrays[:4], causal, scale, *arrays[4:], None)
    dq, dk, dv = (to_tensor(x, of.dtype) for x, of in zip(gradients, (q, k, v)))
    return dq, dk, dv


softmax = define("softmax_attention", "(Tensor q, Tensor k, Tensor v, bool causal, float? scale) -> (Tensor, Tensor)",
                 softmax_kernel, softmax_shapes)
softmax_backward = define(
    "softmax_attention_backward", "(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, bool causal, float? scale) "
    "-> (Tensor, Tensor, Tensor)", softmax_backward_kernel, lambda do, q, k, v, *rest: gradients_like((q, k, v)))


def save_softmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.causal, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def differentiate_softmax(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Any, ...]:
    q, k, v, o, lse = ctx.saved_tensors
    return *softmax_backward(do, q, k, v, o, lse, ctx.causal, ctx.scale), None, None


differentiate("softmax_attention", differentiate_softmax, save_softmax)


# ---- the causal convolution ------------------------------------------------------------------------------------------

TAPS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? cu_seqlens, str? activation"


def convolution_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, cu_seqlens: Tensor | None,
) -> tuple[torch.dtype, list[np.ndarray | None], np.ndarray | None]:
    """The dtype, the arrays of x, weight, bias and initial_state, and cu_seqlens."""
    dtype = convolved_in(x, weight, bias, initial_state, cu_seqlens)
    arrays = [to_array(y, dtype) for y in (x, weight, bias, initial_state)]
    return dtype, arrays, None if cu_seqlens is None else cu_seqlens.numpy()


def convolved_in(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> torch.dtype:
    return computed_in({"x": x, "weight": weight, "bias": bias, "initial_state": initial_state}, cu_seqlens)


def convolution_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, activation, output_final_state = args
    dtype, (x, weight, bias, state), cu_seqlens = convolution_arguments(*tensors)
    y, final = run(_core.convolution_forward, x, weight, bias, activation, state, output_final_state, cu_seqlens, None)
    return to_tensor(y, tensors[0].dtype), to_tensor(final, dtype)


def convolution_shapes(*args: Any) -> tuple[Tensor, Tensor]:
    x, weight, _, _, cu_seqlens = args[:5]
    n = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = (n, weight.shape[1] - 1, x.shape[2]) if args[-1] else (0,)
    return x.new_empty(x.shape), x.new_empty(state, dtype=convolved_in(*args[:5]))


def convolution_backward_kernel(dy: Tensor, dfinal_state: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *tensors, activation = args
    dtype, (x, weight, bias, state), cu_seqlens = convolution_arguments(*tensors)
    gradients = run(_core.convolution_backward, to_array(dy, dtype), x, weight, bias, activation, state, cu_seqlens,
                    to_array(dfinal_state, dtype), None)
    return tuple(to_tensor(y, tensors[0].dtype if of is None else of.dtype) for y, of in zip(gradients, tensors))


conv1d = define("causal_conv1d", f"({TAPS}, bool output_final_state) -> (Tensor, Tensor)", convolution_kernel, convolution_shapes)
conv1d_backward = define("causal_conv1d_backward",
                         f"(Tensor dy, Tensor? dfinal_state, {TAPS}) -> (Tensor, Tensor, Tensor, Tensor)",
                         convolution_backward_kernel, lambda dy, dfinal_state, *args: gradients_like(args[:4]))


def save_convolution(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, ctx.has_state = inputs
    ctx.save_for_backward(*tensors)


def differentiate_convolution(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Any, ...]:
    *inputs, cu_seqlens = ctx.saved_tensors
    gradients = conv1d_backward(dy, dstate if ctx.has_state else None, *inputs, cu_seqlens, ctx.activation)
    return *given(gradients, inputs), None, None, None


differentiate("causal_conv1d", differentiate_convolution, save_convolution)


# ---- RMS norm --------------------------------------------------------------------------------------------------------

NORMED = "Tensor x, Tensor weight, Tensor? gate, str activation, float eps"


def normed_in(x: Tensor, weight: Tensor, gate: Tensor | None) -> torch.dtype:
    return computed_in({"x": x, "weight": weight, "gate": gate})


def norm_kernel(*args: Any) -> Tensor:
    *tensors, activation, eps = args
    arrays = [to_array(y, normed_in(*tensors)) for y in tensors]
    return to_tensor(run(_core.norm_forward, *arrays, activation, eps, None), tensors[0].dtype)


def norm_shapes(*args: Any) -> Tensor:
    normed_in(*args[:3])
    return args[0].new_empty(args[0].shape)


def norm_backward_kernel(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, activation, eps = args
    dtype = normed_in(*tensors)
    gradients = run(_core.norm_backward, to_array(dy, dtype), *(to_array(y, dtype) for y in tensors), activation, eps, None)
    return tuple(to_tensor(y, tensors[0].dtype if of is None else of.dtype) for y, of in zip(gradients, tensors))


norm = define("rms_norm", f"({NORMED}) -> Tensor", norm_kernel, norm_shapes)
norm_backward = define("rms_norm_backward", f"(Tensor dy, {NORMED}) -> (Tensor, Tensor, Tensor)", norm_backward_kernel,
                       lambda dy, *args: gradients_like(args[:3]))


def save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def differentiate_norm(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    return *given(norm_backward(dy, *inputs, ctx.activation, ctx.eps), inputs), None, None


differentiate("rms_norm", differentiate_norm, save_norm)


# ---- feature maps ----------------------------------------------------------------------------------------------------


def map_argument(nu: int | None, omega: Tensor | None, dtype: torch.dtype) -> Any:
    return nu if omega is None else to_array(omega, dtype)


def map_kernel(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    dtype = computed_in({"x": x, "omega": omega})
    return to_tensor(run(_core.map_forward, function, to_array(x, dtype), map_argument(nu, omega, dtype)), x.dtype)


def map_shapes(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    features = 2 * omega.shape[1] if omega is not None else 2 * nu * x.shape[-1] if nu is not None else x.shape[-1]
    return x.new_empty((*x.shape[:-1], features))


def map_backward_kernel(function: str, dy: Tensor, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    dtype = computed_in({"x": x, "omega": omega})
    argument = map_argument(nu, omega, dtype)
    return to_tensor(run(_core.map_backward, function, to_array(dy, dtype), to_array(x, dtype), argument), x.dtype)


feature_map = define("feature_map", "(str function, Tensor x, int? nu, Tensor? omega) -> Tensor", map_kernel, map_shapes)
feature_map_backward = define("feature_map_backward", "(str function, Tensor dy, Tensor x, int? nu, Tensor? omega) -> Tensor",
                              map_backward_kernel, lambda function, dy, x, nu, omega: x.new_empty(x.shape))


def save_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.function, x, ctx.nu, omega = inputs
    ctx.save_for_backward(x, omega)


def differentiate_map(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, omega = ctx.saved_tensors
    return None, feature_map_backward(ctx.function, dy, x, ctx.nu, omega), None, None


differentiate("feature_map", differentiate_map, save_map)
