"""One measurement of recall: a model is trained until it answers 99 % of new questions, or to its last step."""

from __future__ import annotations

import dataclasses
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from fwm_py.checks import instance
from fwm_py.experiments.recall.model import Model, numbers_of_state
from fwm_py.experiments.recall.rows import LEARNED, Row, row_of
from fwm_py.experiments.recall.settings import Settings
from fwm_py.experiments.recall.task import Questions, Task
from fwm_py.experiments.training import step_size

WEIGHT_DECAY = 0.1
STEPS_PER_EVALUATION = 25
EVALUATED = 256
"""Sequences of an evaluation, the same each time, which no step sees."""


def measure(settings: Settings) -> Row:
    """Train a model, and say how many of new questions it answers.

    Parameters
    ----------
    settings : recall.Settings

    Raises
    ------
    TypeError
        If they are no Settings.

    Notes
    -----
    On one thread, whatever PyTorch is set to; PyTorch's generator is left as it was.

    Examples
    --------
    >>> from fwm_py.experiments.recall import Settings, measure
    >>> row = measure(Settings(num_kv_pairs=4, seq_len=16, vocab_size=64, max_steps=400))
    >>> row.accuracy > 0.9
    True
    """
    instance("settings", settings, Settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(settings.seed)
            return _measure(settings)
    finally:
        torch.set_num_threads(threads)


def _measure(settings: Settings) -> Row:
    model = Model(settings)
    optimiser = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
    task = Task(settings, [settings.seed, 0])
    held_out = _tensors(Task(settings, [settings.seed, 1]).questions(EVALUATED))
    started = time.perf_counter()
    accuracy, loss, steps_to_90, error = -1.0, math.nan, None, ""
    for step in range(1, settings.max_steps + 1):
        lr = step_size("cosine", settings.lr, step, settings.warmup_steps, settings.max_steps)
        optimiser.param_groups[0]["lr"] = lr
        _step(model, optimiser, task.questions(settings.batch_size))
        if step % STEPS_PER_EVALUATION and step != settings.max_steps:
            continue
        right, mean = _evaluated(model, held_out, settings.batch_size)
        if math.isnan(mean):
            error = f"the loss is NaN at step {step}"
        if right > accuracy or step == STEPS_PER_EVALUATION:
            accuracy, loss = right, mean
        if right >= 0.9 and steps_to_90 is None:
            steps_to_90 = step
        if right >= LEARNED or error:
            break
    return dataclasses.replace(
        row_of(settings),
        steps=step,
        steps_to_90=steps_to_90,
        accuracy=accuracy,
        loss=loss,
        state=numbers_of_state(model, settings.seq_len),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=round(time.perf_counter() - started, 3),
        error=error,
    )


def _tensors(questions: Questions) -> tuple[Tensor, Tensor, Tensor]:
    tokens, asked, answers = map(torch.from_numpy, questions)
    return tokens, asked, answers


def _step(model: Model, optimiser: torch.optim.Optimizer, questions: Questions) -> None:
    tokens, asked, answers = _tensors(questions)
    optimiser.zero_grad()
    F.cross_entropy(model(tokens, asked).flatten(0, 1), answers.flatten()).backward()
    optimiser.step()


@torch.no_grad()
def _evaluated(model: Model, questions: tuple[Tensor, Tensor, Tensor], batch_size: int) -> tuple[float, float]:
    """The share of right answers, and the mean cross entropy."""
    right, loss, answered = 0, 0.0, 0
    for tokens, asked, answers in zip(*(x.split(batch_size) for x in questions)):
        logits = model(tokens, asked).flatten(0, 1)
        right += int((logits.argmax(-1) == answers.flatten()).sum())
        loss += float(F.cross_entropy(logits, answers.flatten(), reduction="sum"))
        answered += answers.numel()
    return right / answered, loss / answered
