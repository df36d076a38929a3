"""The log of a run: a row each few steps, and at each evaluation."""

from __future__ import annotations

from typing import NamedTuple

LOG = "log.csv"


class LogRow(NamedTuple):
    """A row of log.csv: means since the row before; valid_loss where it was evaluated."""

    step: int
    tokens: int
    loss: float
    gradient_norm: float
    lr: float
    skipped: int
    seconds: float
    valid_loss: float | None
