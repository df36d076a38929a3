"""The settings of a run: everything that determines it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from fwm_py import _core
from fwm_py.checks import choice, flag, integer, positive, shown

MAP_ARGUMENTS: dict[str, str] = {row["name"]: row["argument"] for row in _core.MAPS}
"""Name of each feature map and of its argument, `""` for a map without one."""

RANDOM_MAPS: tuple[str, ...] = tuple(row["name"] for row in _core.MAPS if row["takes_omega"])
"""The maps that draw their features: FAVOR+."""

UPDATE_RULES: tuple[str, ...] = tuple(row["name"] for row in _core.READOUTS if row["uses_map"])
"""Values of `update_rule`."""

ATTN_NAMES: tuple[str, ...] = (*MAP_ARGUMENTS, *(row["name"] for row in _core.READOUTS if not row["uses_map"]))
"""Values of `attn_name`: the maps, and the rules that do without one (softmax)."""

GENERATORS: tuple[str, ...] = ("philox", "mt19937")
"""Values of `favor_generator`."""

REDRAWS: tuple[str, ...] = ("pass", "never")
"""Values of `redraw`."""

LIMITS: dict[str, tuple[int, int]] = {
    "n_keys": (2, 2000),
    "attn_arg": (0, 65536),
    "seed": (0, 2**32 - 1),
    "hidden_size": (1, 1024),
    "batch_size": (1, 4096),
    "max_steps": (0, 10**9),
}
"""The smallest and the largest value of each whole-number setting."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines one run, checked when it is made.

    Parameters
    ----------
    n_keys : int
        Number N of different keys, and of different values, 2..2000.
    attn_name : str
        One of `ATTN_NAMES`: a feature map, or `softmax`, a rule of its own.
    attn_arg : int
        Argument of the map (`MAP_ARGUMENTS`), 1..65536. Ignored by maps without one, as in the published program.
    update_rule : str
        One of `UPDATE_RULES`; `ours` is the delta rule. Ignored by softmax.
    replace : bool
        Draw keys and values with replacement, in sequences of 2 N pairs (Setting 2), instead of N (Setting 1).
    seed : int
        Seed of the data, the initial parameters and FAVOR+, 0..2**32 - 1. The published runs have 1.
    hidden_size : int
        Size d of keys and queries before the map, 1..1024.
    batch_size : int, optional
        Sequences a step, 1..4096. None: 128 for `tanh` with `fwm`, else 32.
    lr : float, optional
        Adam's step size, finite and above 0. None: 1e-4 for `tanh` with `fwm`, else 1e-3.
    max_steps : int
        The run ends after this step, if it has not ended before, 0..10**9.
    favor_generator : str
        What draws FAVOR+'s random features: `philox`, the stream of the published (GPU) logs, or `mt19937`, that of
        the published program on a CPU. Ignored by the other maps.
    redraw : str
        When FAVOR+'s random features are drawn anew: for each `pass` of the model, as published, or `never`, which the
        other maps refuse.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """

    n_keys: int = 20
    attn_name: str = "softmax"
    attn_arg: int = 0
    update_rule: str = "sum"
    replace: bool = False
    seed: int = 1
    hidden_size: int = 64
    batch_size: int | None = None
    lr: float | None = None
    max_steps: int = 100_000
    favor_generator: str = "philox"
    redraw: str = "pass"

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: integer(name, getattr(self, name), *limits)
            for name, limits in LIMITS.items()
            if not (name == "batch_size" and self.batch_size is None)
        }
        if self.lr is not None:
            checked["lr"] = positive("lr", self.lr)
        checked["replace"] = flag("replace", self.replace)
        choice("attn_name", self.attn_name, ATTN_NAMES)
        choice("update_rule", self.update_rule, UPDATE_RULES)
        choice("favor_generator", self.favor_generator, GENERATORS)
        choice("redraw", self.redraw, REDRAWS)
        argument = MAP_ARGUMENTS.get(self.attn_name, "")
        if argument and checked["attn_arg"] == 0:
            raise ValueError(
                f"attn_arg: got 0, expected an integer in 1..{LIMITS['attn_arg'][1]} ({argument} of {self.attn_name})"
            )
        if self.redraw == "never" and self.attn_name not in RANDOM_MAPS:
            raise ValueError(f"redraw: got 'never', expected 'pass' with {self.attn_name}, which draws nothing")
        for name, value in checked.items():  # whole numbers of NumPy become Python's
            object.__setattr__(self, name, value)

    @property
    def map(self) -> str | None:
        """The feature map, None for softmax."""
        return self.attn_name if self.attn_name in MAP_ARGUMENTS else None

    @property
    def rule(self) -> str:
        """The read-out rule: `update_rule`, or `softmax`."""
        return self.update_rule if self.map else self.attn_name

    @property
    def seq_len(self) -> int:
        """Length L of a training sequence: N, or 2 N with replacement."""
        return 2 * self.n_keys if self.replace else self.n_keys

    @property
    def resolved_batch_size(self) -> int:
        """`batch_size`, or the published default for this map and rule."""
        if self.batch_size is not None:
            return self.batch_size
        return 128 if self._is_original_fwm else 32

    @property
    def resolved_lr(self) -> float:
        """`lr`, or the published default for this map and rule."""
        if self.lr is not None:
            return self.lr
        return 1e-4 if self._is_original_fwm else 1e-3

    @property
    def _is_original_fwm(self) -> bool:
        """The published program trains tanh with fwm more slowly, on larger batches."""
        return (self.map, self.rule) == ("tanh", "fwm")


def step_size(lr: float, dtype: npt.DTypeLike) -> float:
    """Adam's step size, which this precision must hold, and ten times as much: the first step divides it by 1 - 0.9.

    Raises
    ------
    ValueError
        "lr: got <value>, expected <what is allowed>".
    """
    limits = np.finfo(dtype)
    low, high = float(limits.smallest_subnormal), 0.09 * float(limits.max)
    if not low <= lr <= high:
        raise ValueError(f"lr: got {shown(lr)}, expected a number in {low:.2g}..{high:.2g} in {limits.dtype}")
    return lr
