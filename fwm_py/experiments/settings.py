"""The settings that all trained models have: sizes of their parts, the optimiser, and what is written when."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from fwm_py.checks import choice, flag, integer, positive, shown

NORMS = ("pre", "post")
INITS = ("scaled", "normal")
STD = 0.02
"""Of the normal numbers that all matrices begin with, where `init` is `normal`."""

SCHEDULES = ("cosine", "inverse_sqrt", "constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What the settings of all trained models have in common, checked when they are made.

    Parameters
    ----------
    d_model, heads, d_ff : int
        Width of the model, heads of its memories, width of its feed-forward networks.
    norm : str
        `pre` or `post`.
    init : str
        `scaled`: embeddings N(0, d_model**-0.5), times d_model**0.5 on their way in; `normal`: all matrices N(0, 0.02).
    dropout : float
    accumulate : int
        Parts of a batch, whose gradients are added up before a step.
    lr, beta1, beta2, weight_decay, clip : float
        Of AdamW; the largest norm of a gradient (0: any).
    schedule : str
        `cosine`, `inverse_sqrt` or `constant`.
    warmup_steps : int, optional
        A tenth of all steps if not given.
    bf16 : bool
        Autocast to bfloat16.
    seed : int
        Of parameters, order of the data, dropout and FAVOR+.
    log_every, evaluate_every, checkpoint_every : int
        Steps.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """

    d_model: int = 128
    heads: int = 8
    d_ff: int = 512
    norm: str = "pre"
    init: str = "scaled"
    dropout: float = 0.0
    accumulate: int = 1
    lr: float = 8e-3
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: str = "cosine"
    warmup_steps: int | None = None
    bf16: bool = False
    seed: int = 1
    log_every: int = 20
    evaluate_every: int = 200
    checkpoint_every: int = 200

    LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
        "d_model": (1, 1 << 16),
        "heads": (1, 1 << 12),
        "d_ff": (1, 1 << 18),
        "accumulate": (1, 1 << 16),
        "warmup_steps": (0, 10**12),
        "seed": (0, 2**32 - 1),
        "log_every": (1, 10**9),
        "evaluate_every": (1, 10**9),
        "checkpoint_every": (1, 10**9),
    }
    """The smallest and the largest value of each whole number."""
    WORDS: ClassVar[dict[str, tuple[str, ...]]] = {"norm": NORMS, "init": INITS, "schedule": SCHEDULES}
    NUMBERS: ClassVar[dict[str, int | None]] = {
        "dropout": 1,
        "beta1": 1,
        "beta2": 1,
        "weight_decay": None,
        "clip": None,
    }
    """Numbers from 0, and below what."""
    FLAGS: ClassVar[tuple[str, ...]] = ("bf16",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("warmup_steps",)
    """Whole numbers that may be None."""

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"lr": positive("lr", self.lr)}
        for name, limits in self.LIMITS.items():
            if name not in self.OPTIONAL or getattr(self, name) is not None:
                checked[name] = integer(name, getattr(self, name), *limits)
        checked |= {name: _from_zero(name, getattr(self, name), below) for name, below in self.NUMBERS.items()}
        checked |= {name: flag(name, getattr(self, name)) for name in self.FLAGS}
        for name, words in self.WORDS.items():
            choice(name, getattr(self, name), words)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name, fits, expected in self.checks():
            if not fits:
                raise ValueError(f"{name}: got {shown(getattr(self, name))}, expected {expected}")

    def checks(self) -> list[tuple[str, bool, str]]:
        """Names of settings, whether they fit the others, and what is expected of them."""
        steps = self.steps()
        return [
            ("heads", self.d_model % self.heads == 0, f"a divisor of d_model {self.d_model}"),
            ("warmup_steps", (self.warmup_steps or 0) < steps, f"fewer than all {steps} steps"),
        ]

    def steps(self, processes: int = 1) -> int:
        """Steps of the whole run."""
        raise NotImplementedError

    def warmup(self, processes: int = 1) -> int:
        """Steps over which the step size rises."""
        return self.steps(processes) // 10 if self.warmup_steps is None else self.warmup_steps


def _from_zero(name: str, value: Any, below: int | None) -> float:
    expected = "a number from 0" + ("" if below is None else f", below {below}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {shown(value)}, expected {expected}")
    if not 0 <= value < (float("inf") if below is None else below):
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return float(value)
