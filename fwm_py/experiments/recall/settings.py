"""The settings of a recall run: everything that determines it."""

from __future__ import annotations

import dataclasses
from typing import Any

from fwm_py.checks import flag, integer, positive, shown
from fwm_py.experiments.words import memory_options

LIMITS: dict[str, tuple[int, int]] = {
    "num_kv_pairs": (1, 4096),
    "seq_len": (4, 65536),
    "vocab_size": (4, 65536),
    "conv_size": (0, 16),
    "d_model": (1, 4096),
    "heads": (1, 4096),
    "batch_size": (1, 4096),
    "warmup_steps": (0, 10**6),
    "max_steps": (1, 10**6),
    "seed": (0, 2**32 - 1),
}
"""The smallest and the largest value of each whole-number setting."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines one run, checked when it is made.

    Parameters
    ----------
    rule : str
        Of the layer with the memory, one of `words.RULES`.
    feature_map : str
        Its map: `none`, `elu1`, `tanh`, `dpfp1`, `favor64`, ..
    normalize : bool
        Whether what is read is divided by the sum of weights; of sum and delta with a positive map.
    conv_size : int
        Tokens that its short convolutions of q, k and v see, 1 to 16; 0: there are none.
    num_kv_pairs, seq_len : int
        D pairs in sequences of T tokens, T even and at least 4 D.
    vocab_size : int
        V, at least 2 D + 2: half are keys, half values.
    random_non_queries : bool
        Random tokens where there is neither a pair nor a key that is asked, instead of token 0 (zoology's option).
    d_model, heads : int
        Width of the model, and heads of the memory.
    batch_size : int
        Sequences a step.
    lr : float
        The highest step size of AdamW (weight decay 0.1), which then falls with a cosine to 0 at `max_steps`.
    warmup_steps : int
        Over which it rises from 0.
    max_steps : int
        The run ends after this step, if it has not ended before.
    seed : int
        Of the parameters and the data.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """

    rule: str = "delta"
    feature_map: str = "none"
    normalize: bool = False
    conv_size: int = 4
    num_kv_pairs: int = 16
    seq_len: int = 64
    vocab_size: int = 256
    random_non_queries: bool = False
    d_model: int = 32
    heads: int = 1
    batch_size: int = 32
    lr: float = 1e-2
    warmup_steps: int = 0
    max_steps: int = 1200
    seed: int = 1

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {name: integer(name, getattr(self, name), *limits) for name, limits in LIMITS.items()}
        checked["lr"] = positive("lr", self.lr)
        for name in ("normalize", "random_non_queries"):
            checked[name] = flag(name, getattr(self, name))
        memory_options(self.rule, self.feature_map, checked["normalize"])
        for name, fits, expected in (
            ("seq_len", self.seq_len % 2 == 0, "an even number"),
            ("seq_len", self.seq_len >= 4 * self.num_kv_pairs, "at least 4 num_kv_pairs"),
            ("vocab_size", self.vocab_size // 2 > self.num_kv_pairs, "at least 2 num_kv_pairs + 2"),
            ("heads", self.d_model % self.heads == 0, "a divisor of d_model"),
            ("warmup_steps", self.warmup_steps < self.max_steps, "fewer than max_steps"),
        ):
            if not fits:
                raise ValueError(f"{name}: got {shown(getattr(self, name))}, expected {expected}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def layer_options(self) -> dict[str, Any]:
        """Those of `fwm_py.torch.nn.FastWeightAttention`."""
        options = memory_options(self.rule, self.feature_map, self.normalize) | {"output_norm": True}
        return options | ({"conv_size": self.conv_size} if self.conv_size else {})
