"""The rows of a recall study."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from fwm_py import __version__
from fwm_py.experiments.recall.settings import Settings
from fwm_py.experiments.study import variant

LEARNED = 0.99
"""An accuracy at which a run ends."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How well a memory recalls: a row of a study.

    Attributes
    ----------
    rule, feature_map, .., seed :
        As of `Settings`.
    steps : int or None
        Steps of training.
    steps_to_90 : int or None
        Steps after which at least 90 % of the answers were right, None if they never were.
    accuracy, loss : float or None
        The largest share of right answers that an evaluation found, and its mean cross entropy, in nats.
    state : int or None
        Numbers that the memory holds after a sequence: S and z, or softmax's keys and values.
    parameters : int or None
    seconds : float or None
    version, variant : str
        Of fwm_py, and of its compiled code.
    error : str
        Why there are no numbers, or that the loss became NaN.
    """

    rule: str
    feature_map: str
    normalize: bool
    conv_size: int
    num_kv_pairs: int
    seq_len: int
    vocab_size: int
    random_non_queries: bool
    d_model: int
    heads: int
    batch_size: int
    lr: float
    warmup_steps: int
    max_steps: int
    seed: int
    steps: int | None = None
    steps_to_90: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    state: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    version: str = ""
    variant: str = ""
    error: str = ""

    KEYS: ClassVar[tuple[str, ...]] = tuple(field.name for field in dataclasses.fields(Settings))

    @property
    def failed(self) -> bool:
        """Whether there are no numbers; `error` says why."""
        return self.accuracy is None


def row_of(settings: Settings) -> Row:
    """The row of a run that has not been made."""
    return Row(**dataclasses.asdict(settings), version=__version__, variant=variant())
