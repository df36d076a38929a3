"""Our functions in the place of another package's, and back."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fwm_py.torch._arrays import PLAIN

Changed = dict[str, tuple[str, ...]]
Place = tuple[Any, str]  # a module, a class or another object, and the name of its attribute


def is_ours(given: Iterable[Any]) -> bool:
    """Plain tensors on the CPU, and not inside torch.func's transforms or derivatives in forward mode, which know no
    operators like ours."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    if not tensors or forward_ad._current_level >= 0:
        return False
    if any(type(x) not in PLAIN or x.device.type != "cpu" for x in tensors):
        return False
    return torch.compiler.is_dynamo_compiling() or torch._C._functorch.peek_interpreter_stack() is None


class Replacement:
    """Ours in their places, as long as somebody holds them there.

    Parameters
    ----------
    places
        Yields each place, what is there (None: nothing, so that the attribute is deleted in the end), and ours.
    names
        What `hold` and `let_go` return for the places they have changed.
    lost
        What the first `hold` returns besides: places that are looked for and not there.
    """

    def __init__(
        self,
        places: Callable[[], Iterable[tuple[Place, Any, Any]]],
        names: Callable[[Iterable[Place]], Changed],
        lost: Callable[[], Changed] = dict,
    ) -> None:
        self._places, self._names, self._lost = places, names, lost
        self._lock = threading.RLock()
        self._replaced: dict[Place, tuple[Any, Any]] = {}  # what was there, and ours
        self._holders: set[object] = set()
        self.on = False  # whether there is a holder; asked by what somebody has kept of ours

    def chosen(self, original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        """Ours, or the original for tensors that are not ours, where ours returns NotImplemented, and when nobody holds
        ours any more."""

        @functools.wraps(original)
        def chosen(*args: Any, **options: Any) -> Any:
            if self.on and is_ours((*args, *options.values())):
                result = ours(*args, **options)
                if result is not NotImplemented:
                    return result
            return original(*args, **options)

        return chosen

    def hold(self, holder: object) -> Changed:
        """Put ours in place, as long as this holder or another does not let go."""
        changed = []
        with self._lock:
            lost = {} if self.on else self._lost()
            for place, original, ours in list(self._places()):  # all are there before one is changed
                if place not in self._replaced:
                    self._replaced[place] = original, ours
                    setattr(*place, ours)
                    changed.append(place)
            self._holders.add(holder)
            self.on = True
        names = self._names(changed)
        return names | {key: (*names.get(key, ()), *more) for key, more in lost.items()}

    def let_go(self, holder: object) -> Changed:
        """Put back what was there, if no other holder is left."""
        restored = []
        with self._lock:
            self._holders.discard(holder)
            self.on = bool(self._holders)
            while not self.on and self._replaced:
                place, (original, ours) = self._replaced.popitem()
                if getattr(*place) is not ours:  # somebody has replaced it since
                    continue
                if original is None:
                    delattr(*place)
                else:
                    setattr(*place, original)
                restored.append(place)
        return self._names(reversed(restored))

    @contextmanager
    def held(self) -> Iterator[Changed]:
        """Ours for the time of a with statement, which is a holder of its own."""
        holder = object()
        changed = self.hold(holder)
        try:
            yield changed
        finally:
            self.let_go(holder)
