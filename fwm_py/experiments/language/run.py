"""Training a language model: the loop, its log, its checkpoints, and what it ends with."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fwm_py import __version__
from fwm_py.checks import shown
from fwm_py.experiments.checkpoint import load_checkpoint, save_checkpoint
from fwm_py.experiments.files import append_line, locked, naming, write_file
from fwm_py.experiments.language.batches import Batches, Part, Segments, Shape, Streams
from fwm_py.experiments.language.data import Data
from fwm_py.experiments.language.log import LOG, LogRow
from fwm_py.experiments.language.model import count_parameters, make_model, save_model
from fwm_py.experiments.language.scores import Score, evaluate
from fwm_py.experiments.language.settings import Settings
from fwm_py.experiments.training import Stepper, rank, step_size, world
from fwm_py.torch.nn import DecoderState

CONFIG, CHECKPOINT, RESULT = "config.json", "checkpoint.safetensors", "result.json"


CARRIED = 1024
"""Tokens of a segment of an evaluation that carries its state."""


OnLog = Callable[[LogRow], object]


class Run:
    """A training, from its first step or from a checkpoint.

    Parameters
    ----------
    settings : Settings
    data : Data
    folder : path
        Of the run's files.
    """

    def __init__(self, settings: Settings, data: Data, folder: Path) -> None:
        self.settings, self.data, self.folder = settings, data, folder
        self.steps = settings.steps(world())
        shape = Shape(settings.batch_size, settings.seq_len, settings.accumulate, world(), rank())
        tokens = data.tokens("train")
        self.batches: Batches = Streams(tokens, shape) if settings.carry else Segments(tokens, shape, settings.seed)
        torch.manual_seed(settings.seed)
        self.model = make_model(settings, data.vocab_size)
        torch.manual_seed(settings.seed + rank())  # dropout differs between processes
        betas = (settings.beta1, settings.beta2)
        self.stepper = Stepper(self.model, settings.lr, betas, settings.weight_decay, settings.clip)
        self.states: list[DecoderState | None] = [None] * settings.accumulate
        self.step, self.seconds = 0, 0.0
        self._loss, self._norm, self._since = 0.0, 0.0, 0

    # ---- the loop ----

    def train(self, on_log: OnLog | None) -> None:
        settings, started = self.settings, time.perf_counter() - self.seconds
        warmup = settings.warmup(world())
        self.model.train()
        while self.step < self.steps:
            lr = step_size(settings.schedule, settings.lr, self.step + 1, warmup, self.steps)
            parts = self.batches.parts(self.step)
            if self.batches.begins(self.step):
                self.states = [None] * len(parts)
            made = self.stepper.step(lr, [self._loss_of(i, part) for i, part in enumerate(parts)])
            self.step += 1
            self._loss, self._norm, self._since = (
                self._loss + made.loss,
                self._norm + made.gradient_norm,
                self._since + 1,
            )
            last = self.step == self.steps
            valid = self.score("valid").loss if last or self.step % settings.evaluate_every == 0 else None
            self.seconds = time.perf_counter() - started
            if valid is not None or self.step % settings.log_every == 0:
                self._log(lr, valid, on_log)
            if last or self.step % settings.checkpoint_every == 0:
                self.save()

    def _loss_of(self, i: int, part: Part) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            with self._autocast():
                hidden, state = self.model.hidden(part.tokens, self.states[i], return_state=self.settings.carry)
                logits = self.model.logits(hidden)
            self.states[i] = state and state.detach()
            return F.cross_entropy(logits.float().flatten(0, 1), part.following.flatten())

        return loss

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.settings.bf16 else nullcontext()

    def score(self, split: str) -> Score:
        """Of valid or test: in segments, or with the state carried, when their length does not matter."""
        settings, tokens, n_bytes = self.settings, self.data.tokens(split), self.data.bytes[split]
        with self._autocast():
            if settings.carry:
                return evaluate(self.model, tokens, n_bytes, seq_len=max(CARRIED, settings.seq_len), mode="carry")
            return evaluate(self.model, tokens, n_bytes, seq_len=settings.seq_len)

    def _log(self, lr: float, valid: float | None, on_log: OnLog | None) -> None:
        n_tokens = self.step * self.settings.seq_len * self.settings.batch_size * self.settings.accumulate * world()
        means = self._loss / self._since, self._norm / self._since
        self._loss, self._norm, self._since = 0.0, 0.0, 0
        row = LogRow(self.step, n_tokens, *means, lr, self.stepper.skipped, round(self.seconds, 2), valid)
        if rank() == 0:
            append_line(self.folder / LOG, ",".join("" if value is None else str(value) for value in row))
        if on_log is not None:
            on_log(row)

    # ---- files ----

    def save(self) -> None:
        """Write the checkpoint: all that a resume to the bit needs. Of process 0; the others hold the same model."""
        if rank():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= self.stepper.tensors() | {"generator": torch.get_rng_state()}
        for i, state in enumerate(self.states):
            if state is not None:
                tensors |= {f"state.{i}.{name}": tensor for name, tensor in state.tensors().items()}
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": [self.stepper.skipped, self.stepper.in_a_row],
            "since_log": [self._loss, self._norm, self._since],
            "log": (self.folder / LOG).stat().st_size,
            "state_tokens": [state.tokens if state else 0 for state in self.states],
            "processes": world(),
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
            self.model.load_state_dict(_of("model.", tensors))
            self.stepper.load(tensors)
            self.stepper.skipped, self.stepper.in_a_row = facts["skipped"]
            self.step, self.seconds = facts["step"], facts["seconds"]
            self._loss, self._norm, self._since = facts["since_log"]
            for i, n_tokens in enumerate(facts["state_tokens"]):
                state = _of(f"state.{i}.", tensors)
                self.states[i] = DecoderState.of(state, n_tokens) if state else None
            torch.set_rng_state(tensors["generator"])
            size = facts["log"]
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: got {shown(error)}, expected a checkpoint of this run") from None
        with naming(self.folder / LOG):
            os.truncate(self.folder / LOG, size)


def _of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def train(
    settings: Settings, data: Data, folder: str | os.PathLike[str], *, resume: bool = False, on_log: OnLog | None = None
) -> dict[str, Any]:
    """Train a model and write the folder of its run.

    The folder gets config.json, log.csv (a row each `log_every` steps and each evaluation), checkpoint.safetensors, and
    at the end model.safetensors and result.json. What a kill leaves, `resume` goes on from, to the bit.

    Parameters
    ----------
    settings : Settings
    data : Data
    folder : path
        Made if missing; empty, unless `resume`.
    resume : bool
        Go on from the last checkpoint, or begin if there is none. A run that has ended is left as it is.
    on_log : callable, optional
        Called with each row of the log.

    Returns
    -------
    dict
        What result.json holds: {"valid": {"perplexity": .., "bits_per_byte": ..}, "test": .., ..}.

    Raises
    ------
    Refused
        If another process is writing into the folder.
    FileExistsError
        If the folder has files and `resume` is False.
    ValueError
        If the settings do not fit the data, or, with `resume`, are not those of the run; damaged files.
    Diverged
        If ten steps in a row had no finite loss.
    """
    folder = Path(folder)
    if settings.carry and settings.rule == "softmax":
        raise ValueError("carry: got True with softmax, expected False: its state would grow without end")
    run = Run(settings, data, folder)
    if rank():  # process 0 writes
        if resume and (folder / CHECKPOINT).exists():
            run.load()
        run.train(None)
        return result_of(run)
    config = {
        "settings": dataclasses.asdict(settings),
        "data": data.identity,
        "data_folder": str(data.folder),
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
            write_file(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
            write_file(folder / LOG, (",".join(LogRow._fields) + "\n").encode())
        run.train(on_log)
        save_model(folder, run.model, settings)
        result = result_of(run)
        write_file(folder / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def result_of(run: Run) -> dict[str, Any]:
    return {split: run.score(split)._asdict() for split in ("valid", "test")} | {
        "parameters": count_parameters(run.model),
        "state": run.model.numbers_of_state(run.settings.seq_len),
        "steps": run.step,
        "skipped": run.stepper.skipped,
        "seconds": round(run.seconds, 2),
        "version": __version__,
    }


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Whether a run was begun with these settings and data."""
    path = folder / CONFIG
    try:
        known = json.loads(path.read_bytes())
        theirs, ours = known["settings"] | {"data": known["data"]}, config["settings"] | {"data": config["data"]}
        differing = [name for name in ours if theirs.get(name) != ours[name]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: got a damaged file, expected a run's settings; begin in another folder") from None
    if differing:
        name = differing[0]
        raise ValueError(f"{path}: got a run with {name} {shown(theirs.get(name))}, expected {shown(ours[name])}")


def read_result(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What result.json holds.

    Raises
    ------
    OSError
        If the run has not ended, or the file cannot be read.
    ValueError
        If it is damaged.
    """
    path = Path(folder) / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_bytes())
        float(result["valid"]["perplexity"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: got a damaged file, expected a result; delete it, and resume") from None
    return result
