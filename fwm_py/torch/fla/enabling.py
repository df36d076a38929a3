"""Ours under the names of flash-linear-attention, whether it is installed or not, and back."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fwm_py.torch._replacement import Changed, Place, Replacement
from fwm_py.torch.fla import activations, convolution, delta_rules, linear_attentions, norm

PACKAGE = "fla"


def _ending(module: ModuleType, ending: str) -> dict[str, Any]:
    """The operations of a rule."""
    prefixes = ("chunk_", "fused_chunk_", "fused_recurrent_", "parallel_")
    names = [prefix + ending for prefix in prefixes]
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def _of(module: ModuleType, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


RULES = ("delta_rule", "gated_delta_rule", "kda", "gdn2")
ATTENTIONS = ("gla", "lightning_attn", "linear_attn", "retention", "simple_gla")
OPERATIONS = {f"fla.ops.{rule}": _ending(delta_rules, rule) for rule in RULES} | {
    f"fla.ops.{attention}": _ending(linear_attentions, attention) for attention in ATTENTIONS
}
OPERATIONS["fla.ops.gated_delta_rule"] |= _of(delta_rules, "chunk_gdn", "fused_recurrent_gdn")

CONVOLUTION = _of(convolution, "ShortConvolution", "causal_conv1d", "causal_conv1d_update")
GATED = _of(norm, "FusedRMSNormGated", "FusedRMSNormSwishGate")
MODULES = {
    "fla.modules.convolution": CONVOLUTION,
    "fla.modules.layernorm": _of(norm, "RMSNorm"),
    "fla.modules.fused_norm_gate": GATED,
    "fla.modules.activations": _of(
        activations, "ACT2FN", "elu_p1", "logsigmoid", "sigmoid", "swiglu", "swiglu_linear", "swish"
    ),
    "fla.modules.rotary": _of(activations, "rotary_embedding"),
}

# What stands where the package is not installed: also under the names that its modules have since 0.6.
STANDING: dict[str, dict[str, Any]] = {
    PACKAGE: {},
    "fla.ops": {name: ours for names in OPERATIONS.values() for name, ours in names.items()},
    **OPERATIONS,
    "fla.modules": {"ShortConvolution": convolution.ShortConvolution, "RMSNorm": norm.RMSNorm, **GATED},
    **MODULES,
    "fla.modules.causal_conv1d": CONVOLUTION,
    "fla.modules.norm": {"RMSNorm": norm.RMSNorm, **GATED},
}


class _Finder(MetaPathFinder, Loader):
    """Makes the modules of STANDING, while `on`; of other names of the package it says that they are not there."""

    @property
    def on(self) -> bool:
        return self in sys.meta_path

    @on.setter
    def on(self, on: bool) -> None:
        sys.meta_path.insert(0, self)

    @on.deleter
    def on(self) -> None:
        sys.meta_path.remove(self)
        for name in STANDING:
            sys.modules.pop(name, None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        if fullname not in STANDING:
            raise ImportError(
                f"{fullname}: flash-linear-attention is not installed, and fwm_py.torch.fla, which stands for it, "
                f"provides only {', '.join(name for name in STANDING if name != PACKAGE)}, and of them only what "
                "fwm_py.torch.fla has",
                name=fullname,
            )
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(STANDING[module.__name__], __all__=list(STANDING[module.__name__]))


_FINDER = _Finder()


def _is_installed() -> bool:
    """Without Triton it cannot be imported."""
    return all(importlib.util.find_spec(name) is not None for name in (PACKAGE, "triton"))


def _replacements() -> Iterator[tuple[Any, Any]]:
    """What the installed package has and we replace, functions and tables of them, and ours; classes keep their place
    and get our methods."""
    for module, names in {**OPERATIONS, **MODULES}.items():
        there = importlib.import_module(module)
        for name, ours in names.items():
            original = getattr(there, name, None)
            if isinstance(original, dict):
                yield original, original | {key: _ours.chosen(original.get(key, f), f) for key, f in ours.items()}
            elif original is not None and not isinstance(original, type):
                yield original, _ours.chosen(original, ours)


def _methods() -> Iterator[tuple[Place, Any, Any]]:
    for module, names in MODULES.items():
        for name, ours in names.items():
            kind = getattr(importlib.import_module(module), name, None)
            if isinstance(kind, type):
                for method in ("forward", "step"):
                    if method in vars(kind):
                        original = getattr(kind, method)
                        yield (kind, method), original, _ours.chosen(original, getattr(ours, method))


def _places() -> Iterator[tuple[Place, Any, Any]]:
    """Every name, in any module of the package that is loaded, of what we replace."""
    if _ours.on:
        return
    if not _is_installed():
        yield (_FINDER, "on"), None, True
        return
    ours = {id(original): (original, chosen) for original, chosen in _replacements()}
    loaded = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == PACKAGE]
    for module in dict.fromkeys(loaded):
        for name, value in list(vars(module).items()):
            if id(value) in ours:
                yield (module, name), *ours[id(value)]
    yield from _methods()


def _names(places: Iterable[Place]) -> Changed:
    changed: Changed = {}
    for owner, name in places:
        if owner is _FINDER:
            return {module: tuple(names) for module, names in STANDING.items() if names}
        if isinstance(owner, type):
            owner, name = sys.modules[owner.__module__], f"{owner.__name__}.{name}"
        changed[owner.__name__] = (*changed.get(owner.__name__, ()), name)
    return changed


_ours = Replacement(_places, _names)


def enable() -> Changed:
    """Let code that was written against flash-linear-attention run on a CPU with the kernels of `fwm_py`.

    Where the package `fla` is installed, our functions take the place of its own in all its modules, for CPU tensors;
    names that were imported from it before into other modules stay as they are. Where it is not, or where Triton is
    not, `import fla.ops` and `import fla.modules` give ours, and other names of `fla` an ImportError.

    All this until `disable()`.

    Returns
    -------
    dict
        The names that this call has given us, for each module of `fla`.
    """
    return _ours.hold(enable)


def disable() -> Changed:
    """End what `enable()` began, however often it was called, and put back what was there before.

    Inside a `with enabled()`, of any thread, the kernels stay until the last of those ends.

    Returns
    -------
    dict
        The names that this call has given back.
    """
    return _ours.let_go(enable)


@contextmanager
def enabled() -> Iterator[Changed]:
    """The same for the time of a with statement, for all threads.

    Ours go when nobody holds them any more: neither `enable()` nor another `with enabled()`, in whatever order.
    """
    with _ours.held() as changed:
        yield changed
