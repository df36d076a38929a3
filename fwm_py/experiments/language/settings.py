"""The settings of a language model's run: everything that determines it but the data."""

from __future__ import annotations

import dataclasses
from typing import Any

from fwm_py.checks import choice, flag, integer, positive, shown
from fwm_py.experiments.words import RULES, memory_options

POSITIONS = ("sinusoidal", "rotary", "none")
NORMS = ("pre", "post")
INITS = ("scaled", "normal")
SCHEDULES = ("cosine", "inverse_sqrt", "constant")

LIMITS: dict[str, tuple[int, int]] = {
    "layers": (1, 1000),
    "d_model": (1, 1 << 16),
    "heads": (1, 1 << 12),
    "d_ff": (1, 1 << 18),
    "seq_len": (1, 1 << 20),
    "batch_size": (1, 1 << 16),
    "accumulate": (1, 1 << 16),
    "max_tokens": (1, 1 << 50),
    "seed": (0, 2**32 - 1),
    "log_every": (1, 10**9),
    "evaluate_every": (1, 10**9),
    "checkpoint_every": (1, 10**9),
}
"""The smallest and the largest value of each whole-number setting that is always given."""

WORDS: dict[str, tuple[str, ...]] = {
    "rule": tuple(RULES),
    "positions": POSITIONS,
    "norm": NORMS,
    "init": INITS,
    "schedule": SCHEDULES,
}
FLAGS = ("normalize", "redraw", "carry", "bf16")
NUMBERS = {"dropout": 1, "beta1": 1, "beta2": 1, "weight_decay": None, "clip": None}
"""Numbers from 0, and below what."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines a run but its data, checked when it is made.

    Parameters
    ----------
    rule, feature_map : str
        Of the memories, by their words: `delta`, `gated_delta`, ..; `none`, `elu1`, `dpfp1`, `favor16`, ..
    normalize, redraw : bool
        Of `fwm_py.torch.nn.FastWeightAttention`.
    conv_size : int
        Tokens of the memories' short convolutions, 2 to 4; 0: there are none.
    layers, d_model, heads, d_ff : int
    kv_heads : int, optional
        heads if not given.
    positions : str
        `sinusoidal` (added to embeddings), `rotary` (turn q and k) or `none`.
    norm : str
        `pre` or `post`.
    init : str
        `scaled`: embeddings N(0, d_model**-0.5), times d_model**0.5 on their way in; `normal`: all matrices N(0, 0.02).
    dropout : float
    seq_len, batch_size : int
        Tokens of a segment, segments of a part of a batch (of each process under torchrun).
    accumulate : int
        Parts of a batch, whose gradients are added up before a step.
    carry : bool
        Ordered streams: each segment follows the one before it in its row, which hands on its state, detached.
    lr, beta1, beta2, weight_decay, clip : float
        Of AdamW; the largest norm of a gradient (0: any).
    schedule : str
        `cosine`, `inverse_sqrt` or `constant`.
    warmup_steps : int, optional
        A tenth of all steps if not given.
    max_tokens : int
        Tokens of training, rounded up to whole steps.
    bf16 : bool
        Autocast to bfloat16.
    seed : int
        Of parameters, order of segments, dropout and FAVOR+.
    log_every, evaluate_every, checkpoint_every : int
        Steps.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """

    rule: str = "delta"
    feature_map: str = "elu1"
    normalize: bool = False
    redraw: bool = False
    conv_size: int = 0
    layers: int = 2
    d_model: int = 128
    heads: int = 8
    kv_heads: int | None = None
    d_ff: int = 512
    positions: str = "sinusoidal"
    norm: str = "pre"
    init: str = "scaled"
    dropout: float = 0.0
    seq_len: int = 256
    batch_size: int = 4
    accumulate: int = 1
    carry: bool = False
    lr: float = 8e-3
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: str = "cosine"
    warmup_steps: int | None = None
    max_tokens: int = 600_000
    bf16: bool = False
    seed: int = 1
    log_every: int = 20
    evaluate_every: int = 200
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {name: integer(name, getattr(self, name), *limits) for name, limits in LIMITS.items()}
        checked["conv_size"] = self.conv_size if self.conv_size == 0 else integer("conv_size", self.conv_size, 2, 4)
        for name, limits in (("kv_heads", LIMITS["heads"]), ("warmup_steps", (0, 10**12))):
            if getattr(self, name) is not None:
                checked[name] = integer(name, getattr(self, name), *limits)
        checked["lr"] = positive("lr", self.lr)
        checked |= {name: _from_zero(name, getattr(self, name), below) for name, below in NUMBERS.items()}
        checked |= {name: flag(name, getattr(self, name)) for name in FLAGS}
        for name, words in WORDS.items():
            choice(name, getattr(self, name), words)
        self._check_sizes()
        memory_options(self.rule, self.feature_map, checked["normalize"], checked["redraw"])
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _check_sizes(self) -> None:
        for name, fits, expected in (
            ("heads", self.d_model % self.heads == 0, f"a divisor of d_model {self.d_model}"),
            ("kv_heads", self.heads % (self.kv_heads or 1) == 0, f"a divisor of heads {self.heads}"),
            ("positions", self.positions != "rotary" or self.d_model // self.heads % 2 == 0, "another with odd heads"),
            ("warmup_steps", (self.warmup_steps or 0) < self.steps(), f"fewer than all {self.steps()} steps"),
        ):
            if not fits:
                raise ValueError(f"{name}: got {shown(getattr(self, name))}, expected {expected}")

    def steps(self, processes: int = 1) -> int:
        """Steps of the whole run."""
        return -(-self.max_tokens // (self.seq_len * self.batch_size * self.accumulate * processes))

    def warmup(self, processes: int = 1) -> int:
        return self.steps(processes) // 10 if self.warmup_steps is None else self.warmup_steps

    @property
    def memory_options(self) -> dict[str, Any]:
        """Those of `fwm_py.torch.nn.FastWeightAttention`."""
        given = {"conv_size": self.conv_size, "kv_heads": self.kv_heads, "rotary": self.positions == "rotary"}
        options = memory_options(self.rule, self.feature_map, self.normalize, self.redraw)
        return options | {name: value for name, value in given.items() if value}


def _from_zero(name: str, value: Any, below: int | None) -> float:
    expected = "a number from 0" + ("" if below is None else f", below {below}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {shown(value)}, expected {expected}")
    if not 0 <= value < (float("inf") if below is None else below):
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}")
    return float(value)


LMTOOL: dict[str, Any] = {
    "norm": "post",
    "init": "normal",
    "lr": 2.5e-4,
    "beta2": 0.999,
    "clip": 0.25,
    "dropout": 0.1,
    "warmup_steps": 2000,
}
"""What the paper's program does otherwise: post-norm, N(0, 0.02), Adam as PyTorch has it."""

PRESETS: dict[str, dict[str, Any]] = {
    "test": {},
    "study": {"max_tokens": 2_500_000, "evaluate_every": 500, "checkpoint_every": 500},
    "paper-small": LMTOOL | {"layers": 16, "d_ff": 2048, "batch_size": 96, "max_tokens": 500_000 * 96 * 256},
    "paper-medium": LMTOOL
    | {"layers": 16, "d_model": 256, "d_ff": 2048, "seq_len": 384, "batch_size": 56, "max_tokens": 400_000 * 56 * 384},
    "lmtool": LMTOOL | {"max_tokens": 2_500_000},
}
"""Settings by name: those of a minute, of the committed study, of the paper's two sizes, and the paper's recipe at the
study's size."""
