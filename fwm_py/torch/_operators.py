"""The other operators: softmax attention, the causal convolution, RMS norm, feature maps.

Numbers are computed in float64 where an input has it, else in float32, whatever mixture of half and float32 comes;
outputs get the dtype of the queries, states that of the computation, gradients those of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fwm_py import _core
from fwm_py.torch._arrays import (
    cast,
    cast_like,
    check_axes,
    check_kinds,
    computed_in,
    empty_like,
    n_sequences,
    read,
    to_array,
    to_integers,
    to_memory,
    to_write,
)
from fwm_py.torch._library import define, differentiate, given, gradients_like, run

# ---- softmax attention -----------------------------------------------------------------------------------------------


def attended_in(q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None) -> torch.dtype:
    check_axes(("q", q, "B T HQ K"), ("k", k, "B S H K"), ("v", v, "B S H V"))
    return computed_in(("q", "k", "v"), (q, k, v), key_lengths, "key_lengths")


def softmax_kernel(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    dtype, given = read(("q", "k", "v"), (q, k, v), key_lengths, "key_lengths")
    if any(x is not None and x.ndim != 4 for x in given):
        attended_in(q, k, v, key_lengths)
    o = q.new_empty((*q.shape[:3], v.shape[3]), dtype=dtype)
    arrays: dict[str, Any] = {**dict(zip("qkv", given)), "key_lengths": to_integers(key_lengths)}
    _, lse = run(
        lambda: _core.attention_forward(**arrays, causal=causal, scale=scale, return_lse=True, out=to_memory(o))
    )
    return cast(o, q.dtype), torch.from_numpy(lse).clone()


def softmax_shapes(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    dtype = attended_in(q, k, v, key_lengths)
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=dtype)


def softmax_backward_kernel(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor | None, ...]:
    dtype, (q_, k_, v_) = read(("q", "k", "v"), (q, k, v), key_lengths, "key_lengths")
    arrays: dict[str, Any] = {"q": q_, "k": k_, "v": v_, "key_lengths": to_integers(key_lengths)}
    arrays |= {name: to_array(x, dtype) for name, x in (("do", do), ("o", o), ("lse", lse))}
    gradients = gradients_like((q, k, v), dtype)
    run(lambda: _core.attention_backward(**arrays, causal=causal, scale=scale, out=tuple(to_write(gradients))))
    return cast_like(gradients, (q, k, v))


softmax = define(
    "softmax_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? key_lengths, bool causal, float? scale) -> (Tensor, Tensor)",
    softmax_kernel,
    softmax_shapes,
)
softmax_backward = define(
    "softmax_attention_backward",
    "(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? key_lengths, bool causal, float? scale) "
    "-> (Tensor, Tensor, Tensor)",
    softmax_backward_kernel,
    lambda do, q, k, v, *rest: gradients_like((q, k, v)),
)


def save_softmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, key_lengths, ctx.causal, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, key_lengths)


def differentiate_softmax(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Any, ...]:
    return *softmax_backward(do, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None, None


differentiate("softmax_attention", differentiate_softmax, save_softmax)


# ---- the causal convolution ------------------------------------------------------------------------------------------

CONVOLVED = ("x", "weight", "bias", "initial_state")
TAPS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? cu_seqlens, str? activation"


def convolved_in(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> torch.dtype:
    return computed_in(CONVOLVED, (x, weight, bias, initial_state), cu_seqlens)


def convolution_results(
    dtypes: tuple[torch.dtype, torch.dtype], tensors: Sequence[Any], output_final_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Tensors for y, of the first dtype, and the state, of the second."""
    x, weight, *_, cu_seqlens = tensors
    check_axes(("x", x, "B T D"), ("weight", weight, "D W"))
    y, n = empty_like(x, dtypes[0]), n_sequences(x, cu_seqlens)
    if not output_final_state:
        return y, None
    return y, x.new_empty((n, max(weight.shape[1], 1) - 1, x.shape[2]), dtype=dtypes[1])


def convolution_arguments(tensors: Sequence[Any]) -> tuple[torch.dtype, dict[str, Any]]:
    *inputs, cu_seqlens = tensors
    dtype, arrays = read(CONVOLVED, tuple(inputs), cu_seqlens)
    return dtype, {**dict(zip(CONVOLVED, arrays)), "cu_seqlens": to_integers(cu_seqlens)}


def convolution_kernel(*args: Any) -> tuple[Tensor, Tensor | None]:
    *tensors, activation, output_final_state = args
    dtype, arrays = convolution_arguments(tensors)
    y, state = convolution_results((dtype, dtype), tensors, output_final_state)
    out: Any = to_memory(y) if state is None else (to_memory(y), to_memory(state))
    run(
        lambda: _core.convolution_forward(
            **arrays, activation=activation, output_final_state=output_final_state, out=out
        )
    )
    return cast(y, tensors[0].dtype), state


def convolution_shapes(*args: Any) -> tuple[Tensor, Tensor | None]:
    return convolution_results((args[0].dtype, convolved_in(*args[:5])), args[:5], args[-1])


def convolution_backward_kernel(dy: Tensor, dfinal_state: Tensor | None, *args: Any) -> tuple[Tensor | None, ...]:
    inputs, activation = args[:4], args[5]
    dtype, arrays = convolution_arguments(args[:5])
    gradients = gradients_like(inputs, dtype)
    run(
        lambda: _core.convolution_backward(
            dy=to_array(dy, dtype),
            **arrays,
            activation=activation,
            dfinal_state=to_array(dfinal_state, dtype),
            out=tuple(to_write(gradients)),
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


# ---- the update of its states ----------------------------------------------------------------------------------------


def numbers_of_states(indices: Tensor, states: int) -> Tensor:
    """The sequences that have a state, by their numbers, which must be in the pool, each once."""
    there = (indices >= 0).nonzero().flatten()
    numbers = indices[there]
    wrong = indices[(indices < -1) | (indices >= states)]
    if len(wrong):
        raise ValueError(f"conv_state_indices: got {int(wrong[0])}, expected integers in -1..{states - 1}")
    found, counts = numbers.unique(return_counts=True)
    if len(found) < len(numbers):
        raise ValueError(f"conv_state_indices: got {int(found[counts.argmax()])} twice, expected each number once")
    return there


def conv1d_update_kernel(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor | None,
    positions: Tensor | None,
    activation: str | None,
) -> Tensor:
    names = ("x", "conv_state", "weight", "bias")
    dtype = computed_in(names, (x, conv_state, weight, bias))
    check_axes(("x", x, "B T D"), ("conv_state", conv_state, "P L D"))
    for name, integers in (("conv_state_indices", indices), ("cache_seqlens", positions)):
        if integers is not None:
            check_kinds([("x", x)], integers, name)
    as_it_lies = conv_state.dtype is dtype and conv_state.is_contiguous()
    states, own, there, numbers = conv_state, indices, None, None
    if not as_it_lies and indices is not None:
        there = numbers_of_states(indices, len(conv_state))
        numbers = indices[there].long()
        own = torch.full_like(indices, -1).index_copy(0, there, torch.arange(len(there)).to(indices.dtype))
        states = conv_state[numbers]
    states = states if as_it_lies else states.to(dtype, memory_format=torch.contiguous_format, copy=True).contiguous()
    y = empty_like(x, dtype)
    given: dict[str, Any] = {name: to_array(a, dtype) for name, a in (("x", x), ("weight", weight), ("bias", bias))}
    given |= {"conv_state_indices": to_integers(own), "cache_seqlens": to_integers(positions)}
    run(
        lambda: _core.convolution_update_forward(
            **given, conv_state=to_memory(states), activation=activation, out=to_memory(y)
        )
    )
    if as_it_lies and not conv_state.is_inference():
        increment_version(conv_state)
    elif not as_it_lies:
        with torch.no_grad():
            conv_state[slice(None) if numbers is None else numbers] = states.to(conv_state.dtype)
    return cast(y, x.dtype)


conv1d_update: Callable[..., Tensor] = define(
    "causal_conv1d_update",
    "(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? conv_state_indices, "
    "Tensor? cache_seqlens, str? activation) -> Tensor",
    conv1d_update_kernel,
    lambda x, *others: empty_like(x, x.dtype),
)


# ---- RMS norm --------------------------------------------------------------------------------------------------------

GATED = ("x", "weight", "gate")
NORMED = "Tensor x, Tensor weight, Tensor? gate, str activation, float eps"


def normed_in(x: Tensor, weight: Tensor, gate: Tensor | None) -> torch.dtype:
    return computed_in(GATED, (x, weight, gate))


def norm_kernel(*args: Any) -> Tensor:
    *tensors, activation, eps = args
    dtype, arrays = read(GATED, tuple(tensors))
    y = empty_like(tensors[0], dtype)
    given: Any = dict(zip(GATED, arrays))
    run(lambda: _core.norm_forward(**given, activation=activation, eps=eps, out=to_memory(y)))
    return cast(y, tensors[0].dtype)


def norm_shapes(*args: Any) -> Tensor:
    normed_in(*args[:3])
    return empty_like(args[0], args[0].dtype)


def norm_backward_kernel(dy: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    *tensors, activation, eps = args
    dtype, arrays = read(GATED, tuple(tensors))
    gradients = gradients_like(tensors, dtype)
    given: dict[str, Any] = {"dy": to_array(dy, dtype), **dict(zip(GATED, arrays))}
    run(lambda: _core.norm_backward(**given, activation=activation, eps=eps, out=tuple(to_write(gradients))))
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
MAPPED = ("x", "omega")


def n_features(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> int:
    if omega is not None:
        check_axes(("omega", omega, "d m"))
    argument = omega.shape[1] if omega is not None else nu or 0
    d = x.shape[-1] if x.dim() else 0
    return _core.map_features(function, d, argument) if 0 <= argument <= MOST_FEATURES else 0


def map_kernel(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    dtype, (x_, omega_) = read(MAPPED, (x, omega))
    features = n_features(function, x, nu, omega)
    room = features if 0 < features <= MOST_FEATURES else 0  # too many or none: the kernel says what does not fit
    if x.dim() and room == x.shape[-1]:
        y = empty_like(x, dtype)
    else:
        y = x.new_empty((*x.shape[:-1], room), dtype=dtype)
    given: Any = {"x": x_, "omega": omega_}
    run(lambda: _core.map_forward(function, **given, argument=nu, out=to_memory(y)))
    return cast(y, x.dtype)


def map_shapes(function: str, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], n_features(function, x, nu, omega)))


def map_backward_kernel(function: str, dy: Tensor, x: Tensor, nu: int | None, omega: Tensor | None) -> Tensor:
    dtype, (x_, omega_) = read(MAPPED, (x, omega))
    dx = empty_like(x, dtype)
    given: Any = {"dy": to_array(dy, dtype), "x": x_, "omega": omega_}
    run(lambda: _core.map_backward(function, **given, argument=nu, out=(to_memory(dx),)))
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
