"""A run: the loop that trains a model, its log, its checkpoints, and its folder, which a kill leaves to be resumed."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fwm_py import __version__
from fwm_py.checks import shown
from fwm_py.experiments.checkpoint import load_checkpoint, save_checkpoint
from fwm_py.experiments.files import PARTIAL, append_line, locked, naming, write_file
from fwm_py.experiments.prepared import TOKENIZER, Prepared
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
from fwm_py.experiments.training import Stepper, gathered, rank, shared, step_size, world

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
        if settings.warmup(world()) >= self.steps:
            raise ValueError(f"warmup_steps: got {settings.warmup_steps}, expected fewer than all {self.steps} steps")
        torch.manual_seed(settings.seed)
        self.model: Model = self.make_model()
        torch.manual_seed(settings.seed + (rank() + 1 << 32))  # dropout: of each process, and of no other seed
        betas = (settings.beta1, settings.beta2)
        self.stepper = Stepper(self.model, settings.lr, betas, settings.weight_decay, settings.clip)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._loss, self._norm, self._since = 0.0, 0.0, 0

    # ---- what an experiment adds ----

    NUMBERS: ClassVar[tuple[str, ...]]
    """Of result.json, `<split> <name>` each: by what a result is known to be whole."""

    @abc.abstractmethod
    def make_model(self) -> Model:
        """The model, its parameters drawn from PyTorch's generator."""

    @abc.abstractmethod
    def losses(self) -> list[Callable[[], Tensor]]:
        """Of the parts of this process in the next step; counts the tokens of all processes."""

    def step_made(self) -> None:
        """What is done when the step of the last losses was made, and not left out."""

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
            if made.made:
                self.step_made()
                self._loss, self._norm = self._loss + made.loss, self._norm + made.gradient_norm
                self._since += 1
            last = self.step == self.steps
            evaluated = rank() == 0 and (last or self.step % settings.evaluate_every == 0)
            valid = self.valid_loss() if evaluated else None
            self.seconds = time.perf_counter() - started
            if valid is not None or self.step % settings.log_every == 0:
                self._log(lr, valid, on_log)
            if last or self.step % settings.checkpoint_every == 0:
                self.save()

    def _log(self, lr: float, valid: float | None, on_log: OnLog | None) -> None:
        n = self._since or math.nan  # of steps that were left out there is no mean
        means = self._loss / n, self._norm / n
        self._loss, self._norm, self._since = 0.0, 0.0, 0
        row = LogRow(self.step, self.tokens, *means, lr, self.stepper.skipped, round(self.seconds, 2), valid)
        if rank() == 0:
            append_line(self.folder / LOG, ",".join("" if value is None else str(value) for value in row))
        if on_log is not None:
            on_log(row)

    # ---- files ----

    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "data": self.data.identity,
            "tokenizer": self.data.files[TOKENIZER].sha256,
            "data_folder": os.path.abspath(self.data.folder),
            "version": __version__,
        }

    def save(self) -> None:
        """Write the checkpoint: all that a resume to the bit needs, of all processes; process 0 writes it."""
        own, own_facts = self.state()
        each = gathered((own | {"generator": torch.get_rng_state()}, own_facts))
        if rank():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= self.stepper.tensors()
        for i, (of_process, _) in enumerate(each):
            tensors |= {f"process.{i}.{name}": tensor for name, tensor in of_process.items()}
        facts = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "skipped": [self.stepper.skipped, self.stepper.in_a_row],
            "since_log": [self._loss, self._norm, self._since],
            "log": (self.folder / LOG).stat().st_size,
            "processes": [of_process for _, of_process in each],
        }
        save_checkpoint(self.folder / CHECKPOINT, tensors, facts)

    def load(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds.

        Raises
        ------
        ValueError
            If it is of another run, or of another number of processes, or the log is shorter than it was.
        """
        path = self.folder / CHECKPOINT
        try:
            processes, size = list(facts["processes"]), int(facts["log"])
            if len(processes) == world():
                self.model.load_state_dict(beginning_with("model.", tensors))
                self.stepper.load(tensors)
                self.stepper.skipped, self.stepper.in_a_row = facts["skipped"]
                self.step, self.tokens, self.seconds = facts["step"], facts["tokens"], facts["seconds"]
                self._loss, self._norm, self._since = facts["since_log"]
                own = beginning_with(f"process.{rank()}.", tensors)
                self.load_state(own, processes[rank()])
                torch.set_rng_state(own["generator"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: got {shown(error)}, expected a checkpoint of this run") from None
        if len(processes) != world():
            raise ValueError(f"{path}: got a run of {len(processes)} processes, expected {world()}")
        if rank() == 0:
            with naming(self.folder / LOG):
                found = (self.folder / LOG).stat().st_size
                if found < size:
                    raise ValueError(
                        f"{self.folder / LOG}: got {found} bytes, expected {size}; begin in another folder"
                    )
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
        With `resume`, if the folder is no run's, or settings or data are not those of the run; for damaged files.
    Diverged
        If ten steps in a row had no finite loss.
    """
    configs = gathered(run.config())
    if rank():
        start: Start = shared(None)
        if start.error:
            raise ValueError(start.error)
        if start.checkpoint is not None:
            run.load(*start.checkpoint)
        if start.result is None:
            run.train(None)
        return {}
    with contextlib.ExitStack() as stack:
        try:
            start = _begin(run, configs, resume, stack)
        except Exception as error:
            shared(Start(error=str(error)))
            raise
        shared(start)
        if start.result is not None:
            return start.result
        if start.checkpoint is not None:
            run.load(*start.checkpoint)
        run.train(on_log)
        run.settle()
        save_model(run.folder, run.model, configs[0]["settings"])
        result = run.result()
        write_json(run.folder / RESULT, result)
    return result


class Start(NamedTuple):
    """What a run begins with, as process 0 found it: an error, what a checkpoint holds, or the result of its end."""

    error: str = ""
    checkpoint: tuple[Tensors, dict[str, Any]] | None = None
    result: dict[str, Any] | None = None


def _begin(run: Run[Any, Any, Any], configs: list[Any], resume: bool, stack: contextlib.ExitStack) -> Start:
    """Lock the folder, and see what is in it; a new one gets its first files."""
    folder, config = run.folder, configs[0]
    for i, other in enumerate(configs):
        if (other["settings"], other["data"]) != (config["settings"], config["data"]):
            raise ValueError(f"data: got other data or settings in process {i} than in process 0, expected the same")
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(folder, "another run is writing into this folder"))
    names = {path.name for path in folder.iterdir() if not path.name.endswith(PARTIAL)}
    if names and not resume:
        raise FileExistsError(f"{folder}: got a folder with files, expected an empty one, or a resume")
    if names and CONFIG not in names:
        raise ValueError(f"{folder}: got files that are of no run, expected a run, or a new folder")
    if names:
        check_config(folder, config)
    if RESULT in names:
        return Start(result=read_result(folder, run.NUMBERS))
    if CHECKPOINT in names:
        return Start(checkpoint=load_checkpoint(folder / CHECKPOINT))
    write_json(folder / CONFIG, config)
    write_file(folder / LOG, (",".join(LogRow._fields) + "\n").encode())
    return Start()


def perplexity(loss: float) -> float:
    """exp(loss), infinite where it is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf if loss == loss else math.nan


def autocast(bf16: bool) -> AbstractContextManager[Any]:
    """To bfloat16, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation and without gradients, and then as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


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
