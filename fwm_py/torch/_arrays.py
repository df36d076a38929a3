"""Tensors of PyTorch as the arrays that the kernels of `fwm_py` read and write, and what is checked of them before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from fwm_py import _core

# What NumPy calls the numbers of a tensor. It has no bfloat16; this is what the kernels know as such.
NAMED = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
TYPES = {getattr(torch, name): np.dtype(name) for name in NAMED}
TYPES[torch.bfloat16] = np.dtype([("bfloat16", np.uint16)])

# Tensors whose numbers are where they seem to be, and those that PyTorch traces with.
PLAIN = frozenset({Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor})
USUAL = PLAIN | {type(None), str, bool, int, float}


def shown(x: Any) -> str:
    """An argument in a message: a word or a number as it is, of anything else its kind."""
    return repr(x) if isinstance(x, (str, int, float, type(None))) else type(x).__name__


WORDS: dict[str, tuple[Any, str]] = {
    "Tensor": (Tensor, "a tensor"),
    "float": ((float, int), "a number"),
    "int": (int, "an integer"),
    "str": (str, "a string"),
    "bool": (bool, "True or False"),
}


def check_types(arguments: Sequence[Any], args: Sequence[Any]) -> None:
    """What an operator's schema asks for. PyTorch says it with a whole tensor in the message."""
    for argument, x in zip(arguments, args):
        name, optional = str(argument.type), str(argument.type).startswith("Optional")
        kind, words = WORDS[name.removeprefix("Optional[").removesuffix("]")]
        if not isinstance(x, kind) and not (optional and x is None):
            raise TypeError(
                f"{argument.name}: got {shown(x)}, expected {words}{' or None' if optional else ''}"
            ) from None


def check_flag(name: str, x: Any) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"{name}: got {shown(x)}, expected True or False")


def wants_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Of what may yet turn out to be no tensor."""
    return torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in tensors)


def refuse_wrappers(arguments: Sequence[Any], args: Sequence[Any]) -> None:
    """Subclasses that say themselves what an operator does, as DTensor, know nothing of ours."""
    for argument, x in zip(arguments, args):
        if (
            isinstance(x, Tensor)
            and type(x) not in PLAIN
            and type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
        ):
            raise TypeError(f"{argument.name}: got {type(x).__name__}, expected a plain tensor")


COMPUTED = {torch.float64: TYPES[torch.float64], torch.float32: TYPES[torch.float32]}
FLOATS = COMPUTED.keys() | {torch.bfloat16, torch.float16}


def computed_in(
    names: tuple[str, ...],
    tensors: Sequence[Tensor | None],
    integers: Tensor | None = None,
    integers_name: str = "cu_seqlens",
) -> torch.dtype:
    """The dtype of the computation; all are on one device, and hold floating point numbers but for the integers."""
    there = [x for x in tensors if x is not None]
    dtypes, devices = {x.dtype for x in there}, {x.device for x in there}
    if len(devices) > 1 or integers is not None or not dtypes <= FLOATS:
        there_named = [(name, x) for name, x in zip(names, tensors) if x is not None]
        check_kinds(there_named, integers, integers_name)
    return torch.float64 if torch.float64 in dtypes else torch.float32


def read(
    names: tuple[str, ...],
    tensors: tuple[Tensor | None, ...],
    integers: Tensor | None = None,
    integers_name: str = "cu_seqlens",
    convert: Callable[..., Any] | None = None,
) -> tuple[torch.dtype, tuple[np.ndarray | None, ...]]:
    """The dtype of the computation, and the tensors' arrays, made by `convert` (to_array) where they are not as usual:
    contiguous, and of one dtype, in which numbers are computed. Those cost one look."""
    first: Any = tensors[0]
    numbers = COMPUTED.get(first.dtype)
    if numbers is not None and integers is None:
        arrays = _core.tensor_arrays(tensors, first.dtype, numbers)
        if arrays is not None:
            return first.dtype, arrays
    dtype = computed_in(names, tensors, integers, integers_name)
    return dtype, tuple([(convert or to_array)(x, dtype) for x in tensors])


def check_kinds(there: list[tuple[str, Tensor]], integers: Tensor | None, integers_name: str) -> None:
    first, device = there[0][0], there[0][1].device
    for name, x in [*there, *([] if integers is None else [(integers_name, integers)])]:
        if x.device != device:
            raise ValueError(f"{name}: got a tensor on {x.device}, expected one on {device}, as {first} is")
        if x is integers and (x.is_floating_point() or x.dtype not in TYPES):
            raise TypeError(f"{name}: got {x.dtype}, expected integers")
        if x is not integers and not x.is_floating_point():
            raise TypeError(f"{name}: got {x.dtype}, expected floating point numbers")


def check_axes(*expected: tuple[str, Tensor, str]) -> None:
    """Names, tensors and axes, as "B T H K": there must be as many; how long they are the kernels check."""
    for name, x, axes in expected:
        if x.dim() != axes.count(" ") + 1:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected ({axes.replace(' ', ', ')})")


def n_sequences(x: Tensor, cu_seqlens: Tensor | None) -> int:
    """The rows of x, or the sequences packed into one."""
    if cu_seqlens is None:
        return x.shape[0]
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens: got shape {tuple(cu_seqlens.shape)}, expected (n + 1,)")
    return cu_seqlens.shape[0] - 1


def to_memory(x: Tensor, read_only: bool = False) -> np.ndarray:
    """The tensor's own numbers."""
    return _core.tensor_array(x, TYPES[x.dtype], read_only)


@overload
def to_array(x: Tensor, dtype: torch.dtype) -> np.ndarray: ...
@overload
def to_array(x: Tensor | None, dtype: torch.dtype) -> np.ndarray | None: ...
def to_array(x: Tensor | None, dtype: torch.dtype) -> np.ndarray | None:
    """Its numbers, to be read, without a copy where it is contiguous and of that dtype."""
    if x is None:
        return None
    return to_memory(x if x.dtype is dtype and x.is_contiguous() else x.detach().to(dtype).contiguous(), True)


def to_tokens(x: Tensor | None, dtype: torch.dtype) -> np.ndarray | None:
    """The same for numbers of tokens (B, T, ..): a forward also reads a part of each token of a larger tensor."""
    if x is None:
        return None
    if x.dtype is dtype and x.is_contiguous():
        return _core.tensor_array(x, TYPES[dtype], True)
    side_by_side = x.dim() in (3, 4) and x.stride(-1) == 1 and (x.dim() == 3 or x.stride(-2) == x.shape[-1])
    return to_memory(x, True) if x.dtype is dtype and side_by_side else to_array(x, dtype)


def to_integers(x: Tensor | None) -> np.ndarray | None:
    """cu_seqlens, or key_lengths."""
    return None if x is None else to_memory(x, True)


def empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of x's shape, in one piece."""
    if x.dtype is dtype and x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def to_write(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Arrays to write gradients into."""
    return [None if x is None else to_memory(x) for x in tensors]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)


def cast_like(gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple([x if x is None or of is None else cast(x, of.dtype) for x, of in zip(gradients, inputs)])
