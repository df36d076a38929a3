"""A run: the loop that trains a model, its log, its checkpoints, and its folder, which a kill leaves to be resumed."""

from __future__ import annotations

import abc
import dataclasses
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fwm_py import __version__
from fwm_py.checks import shown
from fwm_py.experiments.checkpoint import load_checkpoint, save_checkpoint
from fwm_py.experiments.files import append_line, locked, naming, write_file
from fwm_py.experiments.prepared import Prepared
from fwm_py.experiments.run_folder import (
    CHECKPOINT,
    CONFIG,
    LOG,
    MODEL,
    RESULT,
    LogRow,
    check_config,
    read_result,
    write_json,
)
from fwm_py.experiments.settings import TrainingSettings
from fwm_py.experiments.training import Stepper, rank, step_size, world

OnLog = Callable[[LogRow], object]
Tensors = dict[str, Tensor]


Settings = TypeVar("Settings", bound=TrainingSettings)
Data = TypeVar("Data", bound=Prepared)
Model = TypeVar("Model", bound=nn.Module)


class Run(abc.ABC, Generic[Settings, Data, Model]):
    """A training, from its first step or from a checkpoint.

    Parameters
    ----------
    settings : TrainingSettings
    data : Prepared
    folder : path
        Of the run's files.

    Attributes
    ----------
    model : Module
    step, tokens : int
        That have been made, and that it has been trained on.
    seconds : float
        Of training, with its evaluations.
    """

    def __init__(self, settings: Settings, data: Data, folder: Path) -> None:
        self.settings, self.data, self.folder = settings, data, folder
        self.steps = settings.steps(world())
        torch.manual_seed(settings.seed)
        self.model: Model = self.make_model()
        torch.manual_seed(settings.seed + rank())  # dropout differs between processes
        betas = (settings.beta1, settings.beta2)
        self.stepper = Stepper(self.model, settings.lr, betas, settings.weight_decay, settings.clip)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._loss, self._norm, self._since = 0.0, 0.0, 0

    # ---- what an experiment adds ----

    @abc.abstractmethod
    def make_model(self) -> Model:
        """The model, its parameters drawn from PyTorch's generator."""

    @abc.abstractmethod
    def losses(self) -> list[Callable[[], Tensor]]:
        """Of the parts of this process in the next step; counts the tokens of all processes."""

    @abc.abstractmethod
    def valid_loss(self) -> float:
        """Of a token."""

    @abc.abstractmethod
    def scores(self) -> dict[str, Any]:
        """What result.json says of the model that is written."""

    def settle(self) -> None:
        """What is done with the model once it is trained; only process 0 does it."""

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """What a checkpoint holds beside model and optimiser: tensors, and facts that JSON can hold."""
        return {}, {}

    def load_state(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Take up what `state` gave; KeyError, TypeError or ValueError if it is not that."""

    # ---- the loop ----

    def train(self, on_log: OnLog | None) -> None:
        settings, started = self.settings, time.perf_counter() - self.seconds
        warmup = settings.warmup(world())
        self.model.train()
        while self.step < self.steps:
            lr = step_size(settings.schedule, settings.lr, self.step + 1, warmup, self.steps)
            made = self.stepper.step(lr, self.losses())
            self.step += 1
            self._loss, self._norm, self._since = (
                self._loss + made.loss,
                self._norm + made.gradient_norm,
                self._since + 1,
            )
            last = self.step == self.steps
            valid = self.valid_loss() if last or self.step % settings.evaluate_every == 0 else None
            self.seconds = time.perf_counter() - started
            if valid is not None or self.step % settings.log_every == 0:
                self._log(lr, valid, on_log)
            if last or self.step % settings.checkpoint_every == 0:
                self.save()

    def _log(self, lr: float, valid: float | None, on_log: OnLog | None) -> None:
        means = self._loss / self._since, self._norm / self._since
        self._loss, self._norm, self._since = 0.0, 0.0, 0
        row = LogRow(self.step, self.tokens, *means, lr, self.stepper.skipped, round(self.seconds, 2), valid)
        if rank() == 0:
            append_line(self.folder / LOG, ",".join("" if value is None else str(value) for value in row))
        if on_log is not None:
            on_log(row)

    # ---- files ----

    def save(self) -> None:
        """Write the checkpoint: all that a resume to the bit needs. Of process 0; the others hold the same model."""
        if rank():
            return
        tensors, own = self.state()
        tensors = {f"own.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= self.stepper.tensors() | {"generator": torch.get_rng_state()}
        facts = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "skipped": [self.stepper.skipped, self.stepper.in_a_row],
            "since_log": [self._loss, self._norm, self._since],
            "log": (self.folder / LOG).stat().st_size,
            "processes": world(),
            "own": own,
        }
        save_checkpoint(self.folder / CHECKPOINT, tensors, facts)

    def load(self) -> None:
        """Go on from the checkpoint.

        Raises
        ------
        ValueError
            If it is damaged, or of a run with another number of processes.
        """
        path = self.folder / CHECKPOINT
        tensors, facts = load_checkpoint(path)
        if facts.get("processes") != world():
            raise ValueError(f"{path}: got a run of {facts.get('processes')} processes, expected {world()}")
        try:
            self.model.load_state_dict(beginning_with("model.", tensors))
            self.stepper.load(tensors)
            self.stepper.skipped, self.stepper.in_a_row = facts["skipped"]
            self.step, self.tokens, self.seconds = facts["step"], facts["tokens"], facts["seconds"]
            self._loss, self._norm, self._since = facts["since_log"]
            self.load_state(beginning_with("own.", tensors), facts["own"])
            torch.set_rng_state(tensors["generator"])
            size = facts["log"]
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: got {shown(error)}, expected a checkpoint of this run") from None
        with naming(self.folder / LOG):
            os.truncate(self.folder / LOG, size)

    def result(self) -> dict[str, Any]:
        return self.scores() | {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "steps": self.step,
            "skipped": self.stepper.skipped,
            "seconds": round(self.seconds, 2),
            "version": __version__,
        }


def beginning_with(prefix: str, tensors: Tensors) -> Tensors:
    """Those whose names begin so, without this prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def train_in_folder(run: Run[Any, Any, Any], *, resume: bool = False, on_log: OnLog | None = None) -> dict[str, Any]:
    """Train a run that has just been made, and write its folder.

    The folder gets config.json, log.csv (a row each `log_every` steps and each evaluation), checkpoint.safetensors, and
    at the end model.safetensors and result.json. What a kill leaves, `resume` goes on from, to the bit.

    Parameters
    ----------
    run : Run
    resume : bool
        Go on from the last checkpoint, or begin if there is none. A run that has ended is left as it is.
    on_log : callable, optional
        Called with each row of the log.

    Returns
    -------
    dict
        What result.json holds; of other processes than the first, nothing.

    Raises
    ------
    Refused
        If another process is writing into the folder.
    FileExistsError
        If the folder has files and `resume` is False.
    ValueError
        With `resume`, if settings or data are not those of the run; for damaged files.
    Diverged
        If ten steps in a row had no finite loss.
    """
    folder = run.folder
    if rank():  # process 0 writes
        if resume and (folder / CHECKPOINT).exists():
            run.load()
        run.train(None)
        return {}
    config = {
        "settings": dataclasses.asdict(run.settings),
        "data": run.data.identity,
        "data_folder": str(run.data.folder),
        "version": __version__,
    }
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "another run is writing into this folder"):
        if not resume and any(folder.iterdir()):
            raise FileExistsError(f"{folder}: got a folder with files, expected an empty one, or a resume")
        if any((folder / name).exists() for name in (RESULT, CHECKPOINT)):
            check_config(folder, config)
        if (folder / RESULT).exists():
            return read_result(folder)
        if (folder / CHECKPOINT).exists():
            run.load()
        else:
            write_json(folder / CONFIG, config)
            write_file(folder / LOG, (",".join(LogRow._fields) + "\n").encode())
        run.train(on_log)
        run.settle()
        save_model(folder, run.model, config["settings"])
        result = run.result()
        write_json(folder / RESULT, result)
    return result


def perplexity(loss: float) -> float:
    """exp(loss), infinite where it is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf if loss == loss else math.nan


def save_model(folder: Path, model: Any, settings: dict[str, Any]) -> None:
    """Write `model.safetensors`: the parameters, the settings that made it, and the number of its embeddings."""
    facts = {"settings": settings, "vocab_size": model.embed.num_embeddings}
    save_checkpoint(folder / MODEL, model.state_dict(), facts)


def load_model(
    folder: str | os.PathLike[str], settings: type[Settings], make: Callable[[Settings, int], Model]
) -> tuple[Model, Settings]:
    """The model of a run that has ended, in evaluation, and its settings.

    Parameters
    ----------
    folder : path
    settings : type
    make : callable
        make(settings, vocab_size) -> model.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, or no model: "<path>: ..".
    """
    path = Path(folder) / MODEL
    tensors, facts = load_checkpoint(path)
    try:
        made = settings(**facts["settings"])
        model = make(made, facts["vocab_size"])
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: got {shown(' '.join(str(error).split()))}, expected a model of this kind") from None
    return model.eval(), made
