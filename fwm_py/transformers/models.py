"""Our functions in the place of those that models have, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from fwm_py.torch._arrays import PLAIN
from fwm_py.torch._replacement import Changed, Place, Replacement
from fwm_py.transformers.attention import sdpa
from fwm_py.transformers.families import Family, modelling_files
from fwm_py.transformers.functions import FUNCTIONS, GATED_NORMS, norm_forward


def _of(kind: type, ours: Callable[..., Any]) -> Callable[..., Any]:
    """Ours for this class, and not for those made from it, which may norm otherwise."""

    def of(norm: torch.nn.Module, *args: Any, **options: Any) -> Any:
        if type(norm) is not kind or type(getattr(norm, "weight", None)) not in PLAIN:
            return NotImplemented
        return ours(norm, *args, **options)

    return of


class _Kept:
    """The forward that a hook of accelerate has found in a norm and keeps in it: ours in the place of the class's."""

    name = "_old_forward"

    def __init__(self, original: Callable[..., Any], ours: Callable[..., Any]) -> None:
        self.original, self.ours = original, ours

    def __get__(self, norm: torch.nn.Module | None, kind: type) -> Any:
        if norm is None:
            return self
        if self.name not in vars(norm):
            raise AttributeError(self.name)
        kept = vars(norm)[self.name]
        return MethodType(self.ours, norm) if getattr(kept, "__func__", None) is self.original else kept

    def __set__(self, norm: torch.nn.Module, kept: Any) -> None:
        vars(norm)[self.name] = kept

    def __delete__(self, norm: torch.nn.Module) -> None:
        if vars(norm).pop(self.name, None) is None:
            raise AttributeError(self.name)


class _Attention(AttentionInterface):
    """A model's attention functions, registered before or later, with ours in the place of transformers' own sdpa."""

    def __init__(self, original: AttentionInterface) -> None:
        self._local_mapping = original._local_mapping
        self._sdpa = _ours.chosen(sdpa_attention_forward, sdpa)

    def __getitem__(self, key: str) -> Callable[..., Any]:
        function: Callable[..., Any] = super().__getitem__(key)  # type: ignore[no-untyped-call]
        return self._sdpa if function is sdpa_attention_forward else function


def functions_of(module: ModuleType, family: Family) -> Iterator[tuple[Place, Any, Any]]:
    """Where a modelling file has something that we replace, what is there, and ours."""
    for name in family.functions:
        if hasattr(module, name):
            original = getattr(module, name)
            yield (module, name), original, _ours.chosen(original, FUNCTIONS[name])
    kinds: list[Any] = [kind for kind in vars(module).values() if isinstance(kind, type)]
    for kind in kinds:
        if kind.__module__ != module.__name__ or kind.__name__.endswith("UnweightedRMSNorm"):
            continue
        for ending, ours in (("RMSNorm", norm_forward), ("RMSNormGated", GATED_NORMS.get(family.gated_norm))):
            if ours is not None and kind.__name__.endswith(ending):
                original, chosen = kind.forward, _ours.chosen(kind.forward, _of(kind, ours))
                yield (kind, "forward"), original, chosen
                yield (kind, _Kept.name), None, _Kept(original, chosen)
    functions = getattr(module, "ALL_ATTENTION_FUNCTIONS", None)
    if isinstance(functions, AttentionInterface):
        yield (module, "ALL_ATTENTION_FUNCTIONS"), functions, _Attention(functions)


def _names(keys: Iterable[Place]) -> Changed:
    changed: Changed = {}
    for owner, name in keys:
        if name == _Kept.name:
            continue
        module, name = (
            (owner.__name__, name) if isinstance(owner, ModuleType) else (owner.__module__, f"{owner.__name__}.{name}")
        )
        changed[_family(module)] = (*changed.get(_family(module), ()), name)
    return changed


def _family(module: str) -> str:
    return module.rpartition("modeling_")[2]


def _places() -> Iterator[tuple[Place, Any, Any]]:
    for module, family in list(modelling_files()):
        yield from functions_of(module, family)


def _lost() -> Changed:
    """Functions that a family has in other versions of transformers."""
    lost = {
        _family(module.__name__): tuple(f"no {name}" for name in family.functions if not hasattr(module, name))
        for module, family in modelling_files()
    }
    return {family: names for family, names in lost.items() if names}


_ours = Replacement(_places, _names, _lost)


def enable() -> Changed:
    """Let models on the CPU use the kernels of `fwm_py`, until `disable()`.

    Returns
    -------
    dict
        The functions that this call has replaced, for each family of models that the installed transformers has, and,
        if it is the first, "no NAME" for what a family's file had once and does not have: its models keep theirs.
    """
    return _ours.hold(enable)


def disable() -> Changed:
    """End what `enable()` began, however often it was called, and put back what was there before.

    Inside a `with enabled()`, of any thread, the kernels stay until the last of those ends.

    Returns
    -------
    dict
        The functions that this call has put back.
    """
    return _ours.let_go(enable)


@contextmanager
def enabled() -> Iterator[Changed]:
    """The kernels for the time of a with statement, for all threads.

    They go when nobody holds them any more: neither `enable()` nor another `with enabled()`, in whatever order.
    """
    with _ours.held() as changed:
        yield changed
