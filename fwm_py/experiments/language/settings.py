"""The settings of a language model's run: everything that determines it but the data."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from fwm_py.experiments.settings import TrainingSettings
from fwm_py.experiments.words import RULES, memory_options

POSITIONS = ("sinusoidal", "rotary", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Everything that determines a run but its data, checked when it is made.

    Parameters
    ----------
    rule, feature_map : str
        Of the memories, by their words: `delta`, `gated_delta`, ..; `none`, `elu1`, `dpfp1`, `favor16`, ..
    normalize, redraw : bool
        Of `fwm_py.torch.nn.FastWeightAttention`.
    conv_size : int
        Tokens of the memories' short convolutions, 1 to 16; 0: there are none.
    layers : int
    kv_heads : int, optional
        heads if not given.
    positions : str
        `sinusoidal` (added to embeddings), `rotary` (turn q and k) or `none`.
    seq_len, batch_size : int
        Tokens of a segment, segments of a part of a batch (of each process under torchrun).
    carry : bool
        Ordered streams: each segment follows the one before it in its row, which hands on its state, detached.
    max_tokens : int
        Tokens of training, rounded up to whole steps.
    d_model, heads, .. :
        As of `fwm_py.experiments.settings.TrainingSettings`.

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
    kv_heads: int | None = None
    positions: str = "sinusoidal"
    seq_len: int = 256
    batch_size: int = 4
    carry: bool = False
    max_tokens: int = 600_000

    LIMITS: ClassVar[dict[str, tuple[int, int]]] = TrainingSettings.LIMITS | {
        "conv_size": (0, 16),
        "layers": (1, 1000),
        "kv_heads": (1, 1 << 12),
        "seq_len": (1, 1 << 20),
        "batch_size": (1, 1 << 16),
        "max_tokens": (1, 1 << 50),
    }
    WORDS: ClassVar[dict[str, tuple[str, ...]]] = TrainingSettings.WORDS | {
        "rule": tuple(RULES),
        "positions": POSITIONS,
    }
    FLAGS: ClassVar[tuple[str, ...]] = (*TrainingSettings.FLAGS, "normalize", "redraw", "carry")
    OPTIONAL: ClassVar[tuple[str, ...]] = (*TrainingSettings.OPTIONAL, "kv_heads")

    def __post_init__(self) -> None:
        super().__post_init__()
        memory_options(self.rule, self.feature_map, self.normalize, self.redraw)

    def checks(self) -> list[tuple[str, bool, str]]:
        return [
            *super().checks(),
            ("carry", not (self.carry and self.rule == "softmax"), "False with softmax, whose state would grow on"),
            ("redraw", not (self.carry and self.redraw), "False with carry: a state is read as it was written"),
            ("kv_heads", self.heads % (self.kv_heads or 1) == 0, f"a divisor of heads {self.heads}"),
            ("positions", self.positions != "rotary" or self.d_model // self.heads % 2 == 0, "another with odd heads"),
        ]

    def steps(self, processes: int = 1) -> int:
        return -(-self.max_tokens // (self.seq_len * self.batch_size * self.accumulate * processes))

    @property
    def memory_options(self) -> dict[str, Any]:
        """Those of `fwm_py.torch.nn.FastWeightAttention`."""
        given = {"conv_size": self.conv_size, "kv_heads": self.kv_heads, "rotary": self.positions == "rotary"}
        options = memory_options(self.rule, self.feature_map, self.normalize, self.redraw)
        return options | {name: value for name, value in given.items() if value}


MODEL_SETTINGS = (
    *("rule", "feature_map", "normalize", "redraw", "conv_size", "layers", "kv_heads", "positions"),
    *("d_model", "heads", "d_ff", "norm", "init", "dropout"),
)
"""Those that say what a model computes; the others say how it is trained."""

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
