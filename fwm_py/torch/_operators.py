"""The custom operators of PyTorch behind `fwm_py.torch`: schemas, kernels, shapes for tracing, gradients.

`fwm_py::rule` is every rule of `fwm_py.rules`, as `_core.rule_forward` is. Numbers are computed in float64 where
an input has it, else in float32, whatever mixture of half and float32 comes; outputs get the dtype of the queries,
states that of the computation, gradients those of their inputs. An operator returns tensors always: one without
numbers stands for a result that was not asked for, or that there is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fwm_py import _core
from fwm_py.torch._arrays import (
    USUAL,
    cast,
    cast_like,
    check_axes,
    check_types,
    computed_in,
    empty_like,
    n_sequences,
    refuse_wrappers,
    to_array,
    to_memory,
    to_offsets,
    to_tokens,
    to_write,
)

Operator = Callable[..., Any]

NAMES = ("q", "k", "v", "g", "beta", "b", "w", "initial_state", "initial_sum")
INPUTS = "Tensor q, Tensor k, Tensor v, " + ", ".join(f"Tensor? {name}" for name in NAMES[3:])
N_INPUTS = len(NAMES)
OPTIONS = "float? scale, str? qk_norm, bool normalize, float eps, bool clamp_first, Tensor? cu_seqlens, str method"


OPTION_NAMES = tuple(option.split()[1] for option in OPTIONS.split(", "))


def places_of(row: Any) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The arrays and the options that a rule takes: their names, and where they are in INPUTS and OPTIONS."""
    takes = {"q", "k", "v", "scale", "method", *row["strength"].split(", ")}
    takes |= {"g"} if row["scalar_gate"] or row["channel_gate"] else set()
    takes |= {"qk_norm"} if row["has_qk_norm"] else set()
    takes |= {"normalize", "eps"} if row["normalizes"] else set()
    takes |= {"clamp_first"} if row["clamps"] else set()
    arrays = [(name, i) for i, name in enumerate(NAMES) if name in takes]
    return arrays, [(name, i) for i, name in enumerate(OPTION_NAMES) if name in takes]


PLACES = {row["function"]: places_of(row) for row in _core.RULES}


def run(call: Callable[[], Any]) -> Any:
    """The call, on as many threads as PyTorch has."""
    _core.set_threads_here(torch.get_num_threads())
    try:
        return call()
    finally:
        _core.set_threads_here(0)


_library = torch.library.Library("fwm_py", "DEF")


def define(name: str, schema: str, kernel: Callable[..., Any], shapes: Callable[..., Any]) -> Operator:
    """An operator for CPU tensors, and what it returns where tensors have shapes only."""
    _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, "CPU")
    torch.library.register_fake(f"fwm_py::{name}", shapes, lib=_library)
    operator = getattr(torch.ops.fwm_py, name).default
    arguments = operator._schema.arguments

    def call(*args: Any) -> Any:
        if not USUAL.issuperset(map(type, args)):
            refuse_wrappers(arguments, args)
        if forward_ad._current_level >= 0:  # PyTorch would drop the tangents silently
            raise NotImplementedError("fwm_py.torch: there are no derivatives in forward mode")
        try:
            return operator(*args)
        except RuntimeError:
            check_types(arguments, args)
            raise

    return call


def differentiate(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Make `name` differentiable, by an operator `name`_backward that is not."""
    torch.library.register_autograd(f"fwm_py::{name}", backward, setup_context=save, lib=_library)
    torch.library.register_autograd(f"fwm_py::{name}_backward", refuse_second_derivative, lib=_library)


def refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("fwm_py.torch: gradients cannot be differentiated again")


def gradients_like(inputs: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Tensors for gradients, of the inputs' shapes and dtypes (or this one); empty where there is no input."""
    like = next(x for x in inputs if x is not None)
    return tuple(like.new_empty(0) if x is None else empty_like(x, dtype or x.dtype) for x in inputs)


def given(gradients: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs that there are."""
    return tuple(None if x is None else gradient for gradient, x in zip(gradients, inputs))


# ---- rules -----------------------------------------------------------------------------------------------------------


def pair(state: Any, total: Any) -> Any:
    return state if total is None else (state, total)


def core_arguments(
    function: str,
    inputs: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    dtype: torch.dtype,
    convert: Callable[..., Any] = to_array,
) -> dict[str, Any]:
    """The arguments that `_core.rule_forward` and `_core.rule_backward` have in common."""
    arrays, named = PLACES[function]
    arguments = {name: convert(inputs[i], dtype) for name, i in arrays}
    arguments["cu_seqlens"] = to_offsets(options[-2])
    if inputs[-2] is not None:
        arguments["initial_state"] = pair(to_array(inputs[-2], dtype), to_array(inputs[-1], dtype))
    for name, i in named:
        arguments[name] = options[i]
    return arguments


def rule_results(
    dtypes: tuple[torch.dtype, torch.dtype], inputs: tuple[Any, ...], options: tuple[Any, ...], output_final_state: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors for o, of the first dtype, and the states, of the second."""
    (q, k, v), normalize, cu_seqlens = inputs[:3], options[2], options[5]
    check_axes(("q", q, "B T HQ K"), ("k", k, "B T H K"), ("v", v, "B T HV V"))
    (B, T, HQ, K), H, (HV, V), n = q.shape, k.shape[2], v.shape[2:], n_sequences(q, cu_seqlens)
    o = q.new_empty((B, T, max(HQ, HV), V), dtype=dtypes[0])
    state = q.new_empty((n, HV, K, V) if output_final_state else 0, dtype=dtypes[1])
    return o, state, q.new_empty((n, H, K) if output_final_state and normalize else 0, dtype=dtypes[1])


def rule_kernel(function: str, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, options, output_final_state = args[:N_INPUTS], args[N_INPUTS:-1], args[-1]
    dtype = computed_in(NAMES, inputs, options[-2])
    o, state, total = rule_results((dtype, dtype), inputs, options, output_final_state)
    out: Any = to_memory(o)
    if output_final_state:
        out = out, pair(to_memory(state), to_memory(total) if options[2] else None)
    arguments = core_arguments(function, inputs, options, dtype, to_tokens)
    run(lambda: _core.rule_forward(function, **arguments, output_final_state=output_final_state, out=out))
    return cast(o, inputs[0].dtype), state, total


def rule_shapes(function: str, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, options = args[:N_INPUTS], args[N_INPUTS:-1]
    return rule_results((inputs[0].dtype, computed_in(NAMES, inputs, options[-2])), inputs, options, args[-1])


def rule_backward_kernel(
    function: str, do: Tensor, dstate: Tensor | None, dtotal: Tensor | None, *args: Any
) -> tuple[Tensor, ...]:
    inputs, options = args[:N_INPUTS], args[N_INPUTS:]
    dtype = computed_in(NAMES, inputs, options[-2])
    dfinal = pair(to_array(dstate, dtype), to_array(dtotal, dtype))
    gradients = gradients_like(inputs, dtype)
    *tokens, state, total = to_write(gradients, inputs)
    out = *(x for x in tokens if x is not None), pair(state, total)
    arguments = core_arguments(function, inputs, options, dtype)
    run(lambda: _core.rule_backward(function, do=to_array(do, dtype), dfinal_state=dfinal, **arguments, out=out))
    return cast_like(gradients, inputs)


def rule_backward_shapes(function: str, do: Tensor, dstate: Any, dtotal: Any, *args: Any) -> tuple[Tensor, ...]:
    return gradients_like(args[:N_INPUTS])


rule = define(
    "rule",
    f"(str function, {INPUTS}, {OPTIONS}, bool output_final_state) -> (Tensor, Tensor, Tensor)",
    rule_kernel,
    rule_shapes,
)
rule_backward = define(
    "rule_backward",
    f"(str function, Tensor do, Tensor? dfinal_state, Tensor? dfinal_sum, {INPUTS}, {OPTIONS}) -> "
    f"({', '.join(['Tensor'] * N_INPUTS)})",
    rule_backward_kernel,
    rule_backward_shapes,
)


def save_rule(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.function, tensors, options = inputs[0], inputs[1 : 1 + N_INPUTS], inputs[1 + N_INPUTS : -1]
    *ctx.options, cu_seqlens, ctx.method = options
    ctx.normalize, ctx.has_state = options[2], inputs[-1]
    ctx.save_for_backward(*tensors, cu_seqlens)


def differentiate_rule(ctx: Any, do: Tensor, dstate: Tensor, dtotal: Tensor) -> tuple[Any, ...]:
    *inputs, cu_seqlens = ctx.saved_tensors
    dfinal = (dstate if ctx.has_state else None, dtotal if ctx.has_state and ctx.normalize else None)
    gradients = rule_backward(ctx.function, do, *dfinal, *inputs, *ctx.options, cu_seqlens, ctx.method)
    return None, *given(gradients, inputs), *[None] * 8


differentiate("rule", differentiate_rule, save_rule)


# ---- softmax attention -----------------------------------------------------------------------------------------------


def attended_in(q: Tensor, k: Tensor, v: Tensor) -> torch.dtype:
    check_axes(("q", q, "B T HQ K"), ("k", k, "B S H K"), ("v", v, "B S H V"))
    return computed_in(NAMES, (q, k, v))


def softmax_kernel(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    dtype = attended_in(q, k, v)
    o = q.new_empty((*q.shape[:3], v.shape[3]), dtype=dtype)
    arrays: dict[str, Any] = {"q": to_array(q, dtype), "k": to_array(k, dtype), "v": to_array(v, dtype)}
    _, lse = run(
        lambda: _core.attention_forward(**arrays, causal=causal, scale=scale, return_lse=True, out=to_memory(o))
    )
    return cast(o, q.dtype), torch.from_numpy(lse).clone()


def softmax_shapes(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    dtype = attended_in(q, k, v)
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=dtype)


def softmax_backward_kernel(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, ...]:
    dtype = attended_in(q, k, v)
    named = {"do": do, "q": q, "k": k, "v": v, "o": o, "lse": lse}
    arrays: dict[str, Any] = {name: to_array(x, dtype) for name, x in named.items()}
    gradients = gradients_like((q, k, v), dtype)
    run(lambda: _core.attention_backward(**arrays, causal=causal, scale=scale, out=to_write(gradients, (q, k, v))))
    return cast_like(gradients, (q, k, v))


softmax = define(
    "softmax_attention",
    "(Tensor q, Tensor k, Tensor v, bool causal, float? scale) -> (Tensor, Tensor)",
    softmax_kernel,
    softmax_shapes,
)
softmax_backward = define(
    "softmax_attention_backward",
    "(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, bool causal, float? scale) "
    "-> (Tensor, Tensor, Tensor)",
    softmax_backward_kernel,
    lambda do, q, k, v, *rest: gradients_like((q, k, v)),
)


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


def convolved_in(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> torch.dtype:
    return computed_in(("x", "weight", "bias", "initial_state"), (x, weight, bias, initial_state), cu_seqlens)


def convolution_results(
    dtypes: tuple[torch.dtype, torch.dtype], tensors: Sequence[Any], output_final_state: bool
) -> tuple[Tensor, Tensor]:
    """Tensors for y, of the first dtype, and the state, of the second."""
    x, weight, *_, cu_seqlens = tensors
    check_axes(("x", x, "B T D"), ("weight", weight, "D W"))
    state = (n_sequences(x, cu_seqlens), max(weight.shape[1], 1) - 1, x.shape[2])
    return empty_like(x, dtypes[0]), x.new_empty(state if output_final_state else 0, dtype=dtypes[1])


def convolution_arguments(tensors: Sequence[Any], dtype: torch.dtype) -> dict[str, Any]:
    *inputs, cu_seqlens = tensors
    arrays = {name: to_array(x, dtype) for name, x in zip(("x", "weight", "bias", "initial_state"), inputs)}
    return arrays | {"cu_seqlens": to_offsets(cu_seqlens)}


def convolution_kernel(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, activation, output_final_state = args
    dtype = convolved_in(*tensors)
    y, state = convolution_results((dtype, dtype), tensors, output_final_state)
    arrays = convolution_arguments(tensors, dtype)
    out = (to_memory(y), to_memory(state)) if output_final_state else to_memory(y)
    run(
        lambda: _core.convolution_forward(
            **arrays, activation=activation, output_final_state=output_final_state, out=out
        )
    )
    return cast(y, tensors[0].dtype), state


def convolution_shapes(*args: Any) -> tuple[Tensor, Tensor]:
    return convolution_results((args[0].dtype, convolved_in(*args[:5])), args[:5], args[-1])


def convolution_backward_kernel(dy: Tensor, dfinal_state: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    *inputs, cu_seqlens, activation = args
    dtype = convolved_in(*args[:5])
    gradients = gradients_like(inputs, dtype)
    run(
        lambda: _core.convolution_backward(
            dy=to_array(dy, dtype),
            **convolution_arguments((*inputs, cu_seqlens), dtype),
            activation=activation,
            dfinal_state=to_array(dfinal_state, dtype),
            out=to_write(gradients, inputs),
        )
    )
    return cast_like(gradients, inputs)


conv1d = define(
    "causal_conv1d", f"({TAPS}, bool output_final_state) -> (Tensor, Tensor)", convolution_kernel, convolution_shapes
)
conv1d_backward = define(
    "causal_conv1d_backward",
    f"(Tensor dy, Tensor? dfinal_state, {TAPS}) -> (Tensor, Tensor, Tensor, Tensor)",
    convolution_backward_kernel,
    lambda dy, dfinal_state, *args: gradients_like(args[:4]),
)


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
    return computed_in(("x", "weight", "gate"), (x, weight, gate))


def norm_kernel(*args: Any) -> Tensor:
    *tensors, activation, eps = args
    dtype = normed_in(*tensors)
    y = empty_like(tensors[0], dtype)
    arrays: dict[str, Any] = {name: to_array(x, dtype) for name, x in zip(("x", "weight", "gate"), tensors)}
    out = to_memory(y)
    run(lambda: _core.norm_forward(**arrays, activation=activation, eps=eps, out=out))
    return cast(y, tensors[0].dtype)


def norm_shapes(*args: Any) -> Tensor:
    normed_in(*args[:3])
    return empty_like(args[0], args[0].dtype)


def norm_backward_kernel(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, activation, eps = args
    dtype = normed_in(*tensors)
    gradients = gradients_like(tensors, dtype)
    arrays: dict[str, Any] = {
        name: to_array(x, dtype) for name, x in zip(("dy", "x", "weight", "gate"), (dy, *tensors))
    }
    run(lambda: _core.norm_backward(**arrays, activation=activation, eps=eps, out=to_write(gradients, tensors)))
    return cast_like(gradients, tensors)


norm: Callable[..., Tensor] = define("rms_norm", f"({NORMED}) -> Tensor", norm_kernel, norm_shapes)
norm_backward = define(
    "rms_norm_backward",
    f"(Tensor dy, {NORMED}) -> (Tensor, Tensor, Tensor)",
    norm_backward_kernel,
    lambda dy, *args: gradients_like(args[:3]),
)


def save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def differentiate_norm(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    return *given(norm_backward(dy, *inputs, ctx.activation, ctx.eps), inputs), None, None


differentiate("rms_norm", differentiate_norm, save_norm)


# ---- feature maps ----------------------------------------------------------------------------------------------------


MOST_FEATURES = 2**31 - 1


def map_arguments(nu: int | None, omega: Tensor | None, dtype: torch.dtype) -> dict[str, Any]:
    return {"argument": nu, "omega": to_array(omega, dtype)}


def n_features(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> int:
    if omega is not None:
        check_axes(("omega", omega, "d m"))
    argument = omega.shape[1] if omega is not None else nu or 0
    d = x.shape[-1] if x.dim() else 0
    return _core.map_features(function, d, argument) if 0 <= argument <= MOST_FEATURES else 0


def map_kernel(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    dtype, features = computed_in(("x", "omega"), (x, omega)), n_features(function, x, nu, omega)
    room = features if 0 < features <= MOST_FEATURES else 0  # too many or none: the kernel says what does not fit
    y = x.new_empty((*x.shape[:-1], room), dtype=dtype)
    run(lambda: _core.map_forward(function, x=to_array(x, dtype), **map_arguments(nu, omega, dtype), out=to_memory(y)))
    return cast(y, x.dtype)


def map_shapes(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], n_features(function, x, nu, omega)))


def map_backward_kernel(function: str, dy: Tensor, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    dtype = computed_in(("x", "omega"), (x, omega))
    dx = empty_like(x, dtype)
    arrays: dict[str, Any] = {"dy": to_array(dy, dtype), "x": to_array(x, dtype)}
    run(lambda: _core.map_backward(function, **arrays, **map_arguments(nu, omega, dtype), out=(to_memory(dx),)))
    return cast(dx, x.dtype)


feature_map: Callable[..., Tensor] = define(
    "feature_map", "(str function, Tensor x, int? nu, Tensor? omega) -> Tensor", map_kernel, map_shapes
)
feature_map_backward = define(
    "feature_map_backward",
    "(str function, Tensor dy, Tensor x, int? nu, Tensor? omega) -> Tensor",
    map_backward_kernel,
    lambda function, dy, x, nu, omega: empty_like(x, x.dtype),
)


def save_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.function, x, ctx.nu, omega = inputs
    ctx.save_for_backward(x, omega)


def differentiate_map(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, omega = ctx.saved_tensors
    return None, feature_map_backward(ctx.function, dy, x, ctx.nu, omega), None, None


differentiate("feature_map", differentiate_map, save_map)
