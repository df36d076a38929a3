"""Training: when a run is evaluated, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fwm_py.checks import instance, shown
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import Settings, step_size
from fwm_py.experiments.retrieval.stream import Stream

STEPS_PER_EVALUATION = 100
GOOD_ENOUGH = float(np.float32(0.001))
PATIENCE = 11
"""Evaluations in a row without a new best."""

OnEvaluation = Callable[[int, float], object]
OnProgress = Callable[[int, float], object]


class Ending:
    """When a run ends before its last step: a loss that is good enough, or no new best for `PATIENCE` evaluations."""

    def __init__(self) -> None:
        self.best = math.inf
        self.strikes = 0

    def is_over(self, loss: float) -> bool:
        """After the next evaluation. NaN beats nothing."""
        if loss < self.best:
            self.best, self.strikes = loss, 0
        else:
            self.strikes += 1
        return loss <= GOOD_ENOUGH or self.strikes >= PATIENCE


def has_ended(rows: list[tuple[int, float]], max_steps: int = Settings.max_steps) -> bool:
    """Whether the last of `rows` is where a run ends by the rule of the experiments.

    Parameters
    ----------
    rows : list of (int, float)
        Step and evaluation loss of every evaluation so far, as `read_log` gives them.
    max_steps : int
        That of the run's settings.

    Returns
    -------
    bool
        True when the last loss is at most 0.001, when the best loss was not beaten by the last eleven (NaN beats
        nothing), or when there is no further evaluation up to `max_steps`.
    """
    ending = Ending()
    over = [ending.is_over(loss) for _, loss in rows]
    step = rows[-1][0] if rows else 0
    return any(over[-1:]) or step + STEPS_PER_EVALUATION > max_steps


def train(
    settings: Settings,
    on_evaluation: OnEvaluation | None = None,
    on_progress: OnProgress | None = None,
    model: Model | None = None,
) -> list[tuple[int, float]]:
    """Train a model to the end of its run.

    Every 100 steps the model is evaluated. The run ends when an evaluation loss is at most 0.001, when the best of
    them was not beaten by eleven in a row (NaN beats nothing), or after `settings.max_steps` steps.

    Parameters
    ----------
    settings : Settings
        The run.
    on_evaluation : callable, optional
        Called with (step, evaluation loss) after each evaluation.
    on_progress : callable, optional
        Called with (step, training loss) about ten times a second. Both may read the model, copy and save it, and the
        run goes on as if they had not; what FAVOR+ draws for them, the run draws again. They may not train it.
    model : Model, optional
        The model to train, in place. None: a new one. The settings it was made with may differ from `settings` in
        `seed`, `lr`, `max_steps` and `favor_generator` only.

    Returns
    -------
    list of (int, float)
        The evaluations: step and loss (a float32 value).

    Raises
    ------
    ValueError
        If `model` does not fit `settings`, or its precision does not hold their `lr`, see `step_size`.
    RuntimeError
        If `model` is in use by another thread, or is being trained.
    KeyboardInterrupt
        Within a second of Ctrl-C. Every evaluation made before has reached `on_evaluation`.
    MemoryError
        If a step does not fit into memory.
    """
    stream = Stream(settings)
    if model is None:
        model = Model(settings)
    instance("model", model, Model)
    for name, function in (("on_evaluation", on_evaluation), ("on_progress", on_progress)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: got {shown(function)}, expected a function of a step and a loss")
    for name in ("n_keys", "map", "rule", "attn_arg", "replace", "hidden_size", "resolved_batch_size"):
        got, expected = getattr(model.settings, name), getattr(settings, name)
        if got != expected:
            raise ValueError(f"model: got one with {name} {got}, expected {expected}")
    rows: list[tuple[int, float]] = []

    ending = Ending()

    def keep(step: int, loss: float) -> bool:
        rows.append((step, loss))
        if on_evaluation is not None:
            on_evaluation(step, loss)
        return ending.is_over(loss)

    lr = step_size(settings.resolved_lr, model.dtype)
    model._model.train(
        stream=stream._stream,
        lr=lr,
        max_steps=settings.max_steps,
        criterion="published",
        on_evaluation=keep,
        on_progress=on_progress,
    )
    return rows
