"""One measurement of capacity: a model of Setting 1 or 2, trained until it stores no more."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import ClassVar

from fwm_py import __version__, _core
from fwm_py.checks import instance
from fwm_py.experiments.retrieval.model import Model, Recall
from fwm_py.experiments.retrieval.settings import Settings, step_size
from fwm_py.experiments.retrieval.stream import Stream
from fwm_py.experiments.study import variant

PATIENCE = 11
"""Evaluations in a row without a new best, after which a run ends."""

NOTHING_LOST = 1e-5
"""A loss at which a run ends: 2e-5 of the keys are lost."""

MAP_WORDS: dict[str, str] = {row["name"]: row["function"] for row in _core.MAPS}
RULE_WORDS: dict[str, str] = {row["name"]: row["function"].removesuffix("_rule") for row in _core.READOUTS}


@dataclasses.dataclass(frozen=True)
class Row:
    """What a memory holds: a row of a study.

    Attributes
    ----------
    feature_map, rule : str
        By their words: `dpfp3`, `delta`. Softmax has the map `none`.
    redraw, replace, hidden_size, n_keys, seed, lr, batch_size, max_steps, favor_generator :
        As of `retrieval.Settings`, defaults resolved.
    p : int or None
        Features; None for softmax, which has no bound.
    load : float or None
        n_keys / p.
    steps, best_step : int or None
        Steps of training, and after which of them the loss was least. What follows is that evaluation's.
    loss : float or None
        The mean of 0.5 |one-hot(answer) - y|^2 over all distinct keys of 20 sequences.
    stored : float or None
        D (1 - 2 loss) for the D distinct keys that a sequence has on average: without replacement the keys kept. None
        for fwm, whose answers are normed, so that only `right` tells what it holds.
    right : float or None
        The share of keys whose answer has the largest y.
    worst : float or None
        The largest loss of a key.
    lost : float or None
        D - stored = 2 D loss.
    seconds : float or None
    version, variant : str
        Of fwm_py, and of its compiled code.
    error : str
        Why there are no numbers, or that the loss became NaN.
    """

    feature_map: str
    rule: str
    redraw: str
    replace: bool
    hidden_size: int
    p: int | None
    n_keys: int
    load: float | None
    seed: int
    lr: float
    batch_size: int
    max_steps: int
    favor_generator: str
    steps: int | None = None
    best_step: int | None = None
    loss: float | None = None
    stored: float | None = None
    right: float | None = None
    worst: float | None = None
    lost: float | None = None
    seconds: float | None = None
    version: str = ""
    variant: str = ""
    error: str = ""

    KEYS: ClassVar[tuple[str, ...]] = (
        "feature_map",
        "rule",
        "redraw",
        "replace",
        "hidden_size",
        "n_keys",
        "seed",
        "lr",
        "batch_size",
        "max_steps",
        "favor_generator",
    )

    @property
    def failed(self) -> bool:
        """Whether there are no numbers; `error` says why."""
        return self.loss is None


def features_of(settings: Settings) -> int | None:
    """p, the number of features of a key; None for softmax."""
    if settings.map is None:
        return None
    return _core.map_features(MAP_WORDS[settings.map], settings.hidden_size, settings.attn_arg)


def distinct_keys(settings: Settings) -> float:
    """D, the number of different keys that a sequence has on average: N, or N (1 - (1 - 1/N)^2N) with replacement."""
    N = settings.n_keys
    return N * (1 - (1 - 1 / N) ** settings.seq_len) if settings.replace else N


def row_of(settings: Settings) -> Row:
    """The row of a run that has not been made."""
    p = features_of(settings)
    word = "none" if settings.map is None else MAP_WORDS[settings.map]
    if settings.map and next(row for row in _core.MAPS if row["name"] == settings.map)["argument"]:
        word += str(settings.attn_arg)
    return Row(
        feature_map=word,
        rule=RULE_WORDS[settings.rule],
        redraw=settings.redraw,
        replace=settings.replace,
        hidden_size=settings.hidden_size,
        p=p,
        n_keys=settings.n_keys,
        load=None if p is None else settings.n_keys / p,
        seed=settings.seed,
        lr=settings.resolved_lr,
        batch_size=settings.resolved_batch_size,
        max_steps=settings.max_steps,
        favor_generator=settings.favor_generator,
        version=__version__,
        variant=variant(),
    )


class _Best:
    """The best evaluation of a run, and when the run ends."""

    def __init__(self) -> None:
        self.step, self.recall = 0, Recall(math.nan, math.nan, math.nan)
        self.last_step, self.strikes, self.nan_since = 0, 0, 0

    def is_over(self, step: int, loss: float, right: float, worst: float) -> bool:
        """After the next evaluation. NaN beats nothing."""
        self.last_step = step
        self.strikes += 1
        if loss < self.recall.loss or (math.isnan(self.recall.loss) and not math.isnan(loss)):
            self.step, self.recall, self.strikes = step, Recall(loss, right, worst), 0
        if math.isnan(loss):
            self.nan_since = self.nan_since or step
        return loss <= NOTHING_LOST or self.strikes >= PATIENCE


def measure(settings: Settings) -> Row:
    """Train a model until it stores no more, and say how much that is.

    Every 100 steps `Model.recall` asks for all keys of 20 new sequences. The run ends when the best loss was not beaten
    by eleven in a row, when nothing is lost any more (a loss of 1e-5), or after `settings.max_steps` steps.

    Parameters
    ----------
    settings : retrieval.Settings

    Raises
    ------
    TypeError
        If they are no Settings.
    ValueError
        If float32 does not hold their lr.
    MemoryError
        If the model does not fit into memory.

    Examples
    --------
    >>> from fwm_py.experiments.capacity import measure
    >>> from fwm_py.experiments.retrieval import Settings
    >>> row = measure(Settings(n_keys=32, attn_name="dpfp", attn_arg=1, hidden_size=8))
    >>> row.p, round(row.stored)
    (16, 16)
    """
    instance("settings", settings, Settings)
    model, stream, best = Model(settings), Stream(settings), _Best()
    started = time.perf_counter()
    model._model.train(
        stream=stream._stream,
        lr=step_size(settings.resolved_lr, model.dtype),
        max_steps=settings.max_steps,
        criterion="recall",
        on_evaluation=best.is_over,
        on_progress=None,
    )
    seconds = time.perf_counter() - started
    if not best.last_step:
        best.is_over(0, *model.recall(stream))
        best.last_step = settings.max_steps
    D, (loss, right, worst) = distinct_keys(settings), best.recall
    normed = settings.rule == "fwm"
    return dataclasses.replace(
        row_of(settings),
        steps=best.last_step,
        best_step=best.step,
        loss=loss,
        stored=None if normed else D * (1 - 2 * loss),
        right=right,
        worst=worst,
        lost=None if normed else D * 2 * loss,
        seconds=round(seconds, 3),
        error=f"the loss is NaN at step {best.nan_since}" if best.nan_since else "",
    )
