"""The operators of the rules: `fwm_py::rule` is every rule of `fwm_py.rules`, as `_core.rule_forward` is, and
`fwm_py::noncausal` linear attention without a causal mask."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fwm_py import _core
from fwm_py.torch._arrays import (
    cast,
    cast_like,
    check_axes,
    check_types,
    computed_in,
    n_sequences,
    read,
    to_array,
    to_integers,
    to_memory,
    to_tokens,
    to_write,
)
from fwm_py.torch._library import define, differentiate, given, gradients_like, run

NAMES = ("q", "k", "v", "g", "beta", "b", "w", "initial_state", "initial_sum")
INPUTS = "Tensor q, Tensor k, Tensor v, " + ", ".join(f"Tensor? {name}" for name in NAMES[3:])
N_INPUTS = len(NAMES)
OPTIONS = "float? scale, str? qk_norm, bool normalize, float eps, bool clamp_first, bool state_v_first, "
OPTIONS += "Tensor? cu_seqlens, str method"


OPTION_NAMES = tuple(option.split()[1] for option in OPTIONS.split(", "))


def places_of(row: Any) -> tuple[Any, ...]:
    """The arrays and the options that a rule takes: their names, and what takes them from INPUTS and OPTIONS."""
    takes = {"q", "k", "v", "scale", "state_v_first", "method", *row["strength"].split(", ")}
    takes |= {"g"} if row["scalar_gate"] or row["channel_gate"] else set()
    takes |= {"qk_norm"} if row["has_qk_norm"] else set()
    takes |= {"normalize", "eps"} if row["normalizes"] else set()
    takes |= {"clamp_first"} if row["clamps"] else set()
    places: list[Any] = []
    for names in (NAMES, OPTION_NAMES):
        taken = [name for name in names if name in takes]
        places += [taken, itemgetter(*map(names.index, taken))]
    return tuple(places)


HALVES = (torch.bfloat16, torch.float16)

Results = tuple[Tensor, Tensor | None, Tensor | None]  # o, S, z

PLACES = {row["function"]: places_of(row) for row in _core.RULES}


def pair(state: Any, total: Any) -> Any:
    return state if total is None else (state, total)


def core_arguments(function: str, arrays: tuple[Any, ...], options: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments that `_core.rule_forward` and `_core.rule_backward` have in common."""
    names, of_arrays, option_names, of_options = PLACES[function]
    arguments = dict(zip(names, of_arrays(arrays)))
    if options[-2] is not None:
        arguments["cu_seqlens"] = to_integers(options[-2])
    if arrays[-2] is not None:
        arguments["initial_state"] = pair(arrays[-2], arrays[-1])
    arguments.update(zip(option_names, of_options(options)))
    return arguments


def rule_results(
    dtypes: tuple[torch.dtype, torch.dtype], inputs: tuple[Any, ...], options: tuple[Any, ...], output_final_state: bool
) -> Results:
    """Tensors for o, of the first dtype, and the states, of the second."""
    q, k, v = inputs[:3]
    try:
        (B, T, HQ, K), (_, _, H, _), (_, _, HV, V) = q.shape, k.shape, v.shape
    except ValueError:
        check_axes(("q", q, "B T HQ K"), ("k", k, "B T H K"), ("v", v, "B T HV V"))
        raise
    n = n_sequences(q, options[-2])
    if HQ <= HV and v.dtype is dtypes[0] and v.is_contiguous():
        o = torch.empty_like(v)  # o's shape, and the quickest way to it
    else:
        o = q.new_empty((B, T, max(HQ, HV), V), dtype=dtypes[0])
    if not output_final_state:
        return o, None, None
    state = q.new_empty((n, HV, V, K) if options[5] else (n, HV, K, V), dtype=dtypes[1])
    return o, state, q.new_empty((n, H, K), dtype=dtypes[1]) if options[2] else None


def read_rule(
    inputs: tuple[Any, ...], cu_seqlens: Tensor | None
) -> tuple[torch.dtype, torch.dtype, tuple[np.ndarray | None, ...]]:
    """The dtypes of o and of the computation, and the arrays of a forward, which reads tokens of 16 bits as they are
    where q's are such and numbers are computed in float32."""
    half = inputs[0].dtype
    if half not in HALVES:
        dtype, arrays = read(NAMES, inputs, cu_seqlens, convert=to_tokens)
        return dtype, dtype, arrays
    dtype = computed_in(NAMES, inputs, cu_seqlens)
    stays = half if dtype is torch.float32 else dtype
    tokens = [to_tokens(x, stays if x is not None and x.dtype is stays else dtype) for x in inputs[:-2]]
    return stays, dtype, (*tokens, *(to_array(x, dtype) for x in inputs[-2:]))


def rule_kernel(function: str, *args: Any) -> Results:
    inputs, options, output_final_state = args[:N_INPUTS], args[N_INPUTS:-1], args[-1]
    of_o, dtype, arrays = read_rule(inputs, options[-2])
    o, state, total = rule_results((of_o, dtype), inputs, options, output_final_state)
    out: Any = to_memory(o)
    if state is not None:
        out = out, pair(to_memory(state), None if total is None else to_memory(total))
    arguments = core_arguments(function, arrays, options)
    run(lambda: _core.rule_forward(function, **arguments, output_final_state=output_final_state, out=out))
    return cast(o, inputs[0].dtype), state, total


def rule_shapes(function: str, *args: Any) -> Results:
    inputs, options = args[:N_INPUTS], args[N_INPUTS:-1]
    return rule_results((inputs[0].dtype, computed_in(NAMES, inputs, options[-2])), inputs, options, args[-1])


def rule_backward_kernel(
    function: str, do: Tensor, dstate: Tensor | None, dtotal: Tensor | None, *args: Any
) -> tuple[Tensor | None, ...]:
    inputs, options = args[:N_INPUTS], args[N_INPUTS:]
    dtype, arrays = read(NAMES, inputs, options[-2])
    dfinal = pair(to_array(dstate, dtype), to_array(dtotal, dtype))
    gradients = gradients_like(inputs, dtype)
    *tokens, state, total = to_write(gradients)
    out = *(x for x in tokens if x is not None), pair(state, total)
    arguments = core_arguments(function, arrays, options)
    run(lambda: _core.rule_backward(function, do=to_array(do, dtype), dfinal_state=dfinal, **arguments, out=out))
    return cast_like(gradients, inputs)


def rule_backward_shapes(function: str, do: Tensor, dstate: Any, dtotal: Any, *args: Any) -> tuple[Tensor | None, ...]:
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
    return None, *given(gradients, inputs), *[None] * 9


differentiate("rule", differentiate_rule, save_rule)


# ---- a rule that writes its final state over the initial one --------------------------------------------------------

IN_PLACE = INPUTS.replace("Tensor? initial_state", "Tensor(a!) initial_state")
IN_PLACE = IN_PLACE.replace("Tensor? initial_sum", "Tensor(b!)? initial_sum")


def writable(name: str, x: Tensor | None, dtype: torch.dtype) -> Any:
    """The memory of a state that is read and written."""
    if x is None:
        return None
    if x.dtype is not dtype or not x.is_contiguous():
        kind = f"{x.dtype}" if x.dtype is not dtype else "a tensor with gaps"
        raise ValueError(f"{name}: got {kind}, expected a contiguous tensor of {dtype}, as it is written in place")
    return to_memory(x)


def rule_in_place_kernel(function: str, *args: Any) -> Tensor:
    inputs, options, indices = args[:N_INPUTS], args[N_INPUTS:-1], to_integers(args[-1])
    of_o, dtype, arrays = read_rule(inputs, options[-2])
    o, _, _ = rule_results((of_o, dtype), inputs, options, False)
    state, total = writable("initial_state", inputs[-2], dtype), writable("initial_state", inputs[-1], dtype)
    arguments = core_arguments(function, (*arrays[:-2], state, total), options)
    out = to_memory(o), pair(state, total)
    run(lambda: _core.rule_forward(function, **arguments, state_indices=indices, out=out))
    for x in inputs[-2:]:
        if x is not None and not x.is_inference():
            increment_version(x)  # a graph that has saved the state before must not go on with it
    return cast(o, inputs[0].dtype)


def rule_in_place_shapes(function: str, *args: Any) -> Tensor:
    inputs, options = args[:N_INPUTS], args[N_INPUTS:-1]
    return rule_results((inputs[0].dtype, inputs[0].dtype), inputs, options, False)[0]


rule_in_place = define(
    "rule_in_place",
    f"(str function, {IN_PLACE}, {OPTIONS}, Tensor? state_indices) -> Tensor",
    rule_in_place_kernel,
    rule_in_place_shapes,
)


# ---- a rule that keeps states on the way -----------------------------------------------------------------------------


@torch.compiler.disable  # type: ignore[untyped-decorator]
def rule_with_states(function: str, *args: Any) -> tuple[Tensor | None, ...]:
    """o, S, z, and the states and sums on the way: no operator, as their number is not that of an axis."""
    inputs, options, (output_final_state, every) = args[:N_INPUTS], args[N_INPUTS:-2], args[-2:]
    try:
        of_o, dtype, arrays = read_rule(inputs, options[-2])
        o, _, _ = rule_results((of_o, dtype), inputs, options, False)
        arguments = core_arguments(function, arrays, options) | {"out": to_memory(o)}
        _, state, kept = run(
            lambda: _core.rule_forward(
                function, **arguments, output_final_state=output_final_state, return_states_every=every
            )
        )
    except Exception:
        check_types(torch.ops.fwm_py.rule.default._schema.arguments, (function, *args[:-1]))
        raise
    parts = [*(state if isinstance(state, tuple) else (state, None))]
    parts += kept if isinstance(kept, tuple) else (kept, None)
    states = [None if x is None else torch.from_numpy(x).clone() for x in parts]
    return cast(o, inputs[0].dtype), *states


# ---- linear attention without a causal mask --------------------------------------------------------------------------

SUMMED = ("q", "k", "v", "initial_state", "initial_sum")
SUMS = "Tensor q, Tensor k, Tensor v, Tensor? initial_state, Tensor? initial_sum, Tensor? key_lengths, float? scale, "
SUMS += "bool normalize, float eps"


def summed_in(args: tuple[Any, ...]) -> torch.dtype:
    return computed_in(SUMMED, args[:5], args[5], "key_lengths")


def noncausal_results(dtypes: tuple[torch.dtype, torch.dtype], args: tuple[Any, ...]) -> Results:
    """Tensors for o, of the first dtype, and the states, of the second."""
    q, k, v = args[:3]
    check_axes(("q", q, "B T HQ K"), ("k", k, "B N H K"), ("v", v, "B N HV V"))
    (B, T, HQ, K), H, (HV, V) = q.shape, k.shape[2], v.shape[2:]
    o = q.new_empty((B, T, max(HQ, HV), V), dtype=dtypes[0])
    if not args[-1]:
        return o, None, None
    state = q.new_empty((B, HV, K, V), dtype=dtypes[1])
    return o, state, q.new_empty((B, H, K), dtype=dtypes[1]) if args[7] else None


def noncausal_arguments(args: tuple[Any, ...], arrays: tuple[Any, ...]) -> dict[str, Any]:
    q, k, v, state, total = arrays
    key_lengths, scale, normalize, eps = args[5:9]
    options = {"key_lengths": to_integers(key_lengths), "scale": scale, "normalize": normalize, "eps": eps}
    return {"q": q, "k": k, "v": v, "initial_state": pair(state, total), **options}


def noncausal_kernel(*args: Any) -> Results:
    dtype, arrays = read(SUMMED, args[:5], args[5], "key_lengths", to_tokens)
    o, state, total = noncausal_results((dtype, dtype), args)
    out: Any = to_memory(o)
    if state is not None:
        out = out, pair(to_memory(state), None if total is None else to_memory(total))
    arguments = noncausal_arguments(args, arrays)
    run(lambda: _core.noncausal_forward(**arguments, output_final_state=args[-1], out=out))
    return cast(o, args[0].dtype), state, total


def noncausal_shapes(*args: Any) -> Results:
    return noncausal_results((args[0].dtype, summed_in(args)), args)


def noncausal_backward_kernel(
    do: Tensor, dstate: Tensor | None, dtotal: Tensor | None, *args: Any
) -> tuple[Tensor | None, ...]:
    inputs = args[:5]
    dtype, arrays = read(SUMMED, inputs, args[5], "key_lengths")
    dfinal = pair(to_array(dstate, dtype), to_array(dtotal, dtype))
    gradients = gradients_like(inputs, dtype)
    *tokens, state, total = to_write(gradients)
    arguments = noncausal_arguments(args, arrays)
    out = (*tokens, pair(state, total))
    run(lambda: _core.noncausal_backward(**arguments, do=to_array(do, dtype), dfinal_state=dfinal, out=out))
    return cast_like(gradients, inputs)


noncausal = define(
    "noncausal", f"({SUMS}, bool output_final_state) -> (Tensor, Tensor, Tensor)", noncausal_kernel, noncausal_shapes
)
noncausal_backward = define(
    "noncausal_backward",
    f"(Tensor do, Tensor? dfinal_state, Tensor? dfinal_sum, {SUMS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    noncausal_backward_kernel,
    lambda do, dstate, dtotal, *args: gradients_like(args[:5]),
)


def save_noncausal(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.normalize, ctx.eps, ctx.has_state = inputs
    ctx.save_for_backward(*tensors)


def differentiate_noncausal(ctx: Any, do: Tensor, dstate: Tensor, dtotal: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    dfinal = (dstate if ctx.has_state else None, dtotal if ctx.has_state and ctx.normalize else None)
    gradients = noncausal_backward(do, *dfinal, *tensors, ctx.scale, ctx.normalize, ctx.eps)
    return *given(gradients, tensors[:5]), *[None] * 5


differentiate("noncausal", differentiate_noncausal, save_noncausal)
