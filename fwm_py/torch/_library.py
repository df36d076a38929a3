"""How a kernel becomes a custom operator of PyTorch: its schema, shapes for tracing, its gradient.

Kernels return None for a result that was not asked for, or that there is not. An operator returns tensors always: one
without numbers stands for None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from fwm_py import _core
from fwm_py.torch._arrays import USUAL, check_types, empty_like, refuse_wrappers

Operator = Callable[..., Any]


def run(call: Callable[[], Any]) -> Any:
    """The call, on as many threads as PyTorch has."""
    _core.set_threads_here(torch.get_num_threads())
    try:
        return call()
    finally:
        _core.set_threads_here(0)


_library = torch.library.Library("fwm_py", "DEF")
_kernels: dict[str, Callable[..., Any]] = {}
_functions: dict[str, Any] = {}  # of differentiable operators: the same for autograd alone

KINDS = (Tensor, torch.nn.Parameter)


def is_unseen() -> bool:
    """Whether nothing of PyTorch's but autograd has to see an operator: a call of a few numbers takes less than half
    the time without the dispatcher."""
    return not (
        is_dynamo_compiling()
        or _len_torch_dispatch_stack()  # FakeTensorMode, make_fx, FlopCounterMode, ..
        or _len_torch_function_stack()
        or _are_functorch_transforms_active()
        or _profiler_enabled()
        or _get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def filled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with an empty tensor for None."""

    def fill(*args: Any) -> Any:
        results = function(*args)
        if isinstance(results, Tensor) or all(x is not None for x in results):
            return results
        like = next(x for x in args if isinstance(x, Tensor))
        return tuple(like.new_empty(0) if x is None else x for x in results)

    return fill


def define(name: str, schema: str, kernel: Callable[..., Any], shapes: Callable[..., Any]) -> Operator:
    """An operator for CPU tensors, and what it returns where tensors have shapes only."""
    _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, filled(kernel), "CPU")
    torch.library.register_fake(f"fwm_py::{name}", filled(shapes), lib=_library)
    operator = getattr(torch.ops.fwm_py, name).default
    arguments = operator._schema.arguments
    _kernels[name] = kernel

    def call(*args: Any) -> Any:
        if is_unseen():
            differentiable = _core.plain_tensors(args, KINDS, torch.strided)
            if differentiable and torch.is_grad_enabled():
                run_directly = _functions.get(name)
            else:
                run_directly = None if differentiable is None else kernel
            if run_directly is not None:
                try:
                    return run_directly(*args)
                except Exception:
                    check_types(arguments, args)
                    raise
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
    kernel = _kernels[name]

    def forward(ctx: Any, *args: Any) -> Any:
        output = kernel(*args)
        save(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    _functions[name] = type(name, (torch.autograd.Function,), methods).apply  # type: ignore[attr-defined]


def refuse_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("fwm_py.torch: gradients cannot be differentiated again")


def gradients_like(inputs: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> tuple[Tensor | None, ...]:
    """Tensors for gradients, of the inputs' shapes and dtypes (or this one)."""
    return tuple([None if x is None else empty_like(x, dtype or x.dtype) for x in inputs])


def given(gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs that there are."""
    return tuple([None if x is None else gradient for gradient, x in zip(gradients, inputs)])
