"""Training a language model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from fwm_py.experiments import run
from fwm_py.experiments.language.batches import Batches, Part, Segments, Shape, Streams
from fwm_py.experiments.language.data import Data
from fwm_py.experiments.language.model import make_model
from fwm_py.experiments.language.scores import Score, evaluate
from fwm_py.experiments.language.settings import Settings
from fwm_py.experiments.training import rank, world
from fwm_py.torch.nn import Decoder, DecoderState

CARRIED = 1024
"""Tokens of a segment of an evaluation that carries its state."""


class Run(run.Run[Settings, Data, Decoder]):
    """The training of a language model, on segments or on streams whose states are handed on."""

    def __init__(self, settings: Settings, data: Data, folder: Path) -> None:
        super().__init__(settings, data, folder)
        shape = Shape(settings.batch_size, settings.seq_len, settings.accumulate, world(), rank())
        tokens = data.tokens("train")
        self.batches: Batches = Streams(tokens, shape) if settings.carry else Segments(tokens, shape, settings.seed)
        self.states: list[DecoderState | None] = [None] * settings.accumulate
        self._after = list(self.states)  # of the last losses
        self._valid: Score | None = None

    NUMBERS: ClassVar[tuple[str, ...]] = tuple(
        f"{split} {name}" for split in ("valid", "test") for name in ("perplexity", "bits_per_byte")
    )

    def make_model(self) -> Decoder:
        return make_model(self.settings, self.data.vocab_size)

    def losses(self) -> list[Callable[[], Tensor]]:
        parts = self.batches.parts(self.step)
        if self.batches.begins(self.step):
            self.states = [None] * len(parts)
        self.tokens += sum(part.tokens.numel() for part in parts) * world()
        return [self._loss_of(i, part) for i, part in enumerate(parts)]

    def _loss_of(self, i: int, part: Part) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            with run.autocast(self.settings.bf16):
                hidden, state = self.model.hidden(part.tokens, self.states[i], return_state=self.settings.carry)
                logits = self.model.logits(hidden)
            self._after[i] = state and state.detach()
            return F.cross_entropy(logits.float().flatten(0, 1), part.following.flatten())

        return loss

    def score(self, split: str) -> Score:
        """Of valid or test: in segments, or with the state carried, when their length does not matter."""
        settings, tokens, n_bytes = self.settings, self.data.tokens(split), self.data.bytes[split]
        with run.autocast(self.settings.bf16):
            if settings.carry:
                return evaluate(self.model, tokens, n_bytes, seq_len=max(CARRIED, settings.seq_len), mode="carry")
            return evaluate(self.model, tokens, n_bytes, seq_len=settings.seq_len)

    def step_made(self) -> None:
        self.states = list(self._after)

    def valid_loss(self) -> float:
        self._valid = self.score("valid")
        return self._valid.loss

    def scores(self) -> dict[str, Any]:
        valid, test = self._valid or self.score("valid"), self.score("test")
        state = self.model.numbers_of_state(self.settings.seq_len)
        return {"valid": valid._asdict(), "test": test._asdict(), "state": state}

    def state(self) -> tuple[run.Tensors, dict[str, Any]]:
        tensors = {
            f"{i}.{name}": tensor
            for i, state in enumerate(self.states)
            if state is not None
            for name, tensor in state.tensors().items()
        }
        return tensors, {"state_tokens": [state.tokens if state else 0 for state in self.states]}

    def load_state(self, tensors: run.Tensors, facts: dict[str, Any]) -> None:
        for i, n_tokens in enumerate(facts["state_tokens"]):
            state = run.beginning_with(f"{i}.", tensors)
            self.states[i] = DecoderState.of(state, n_tokens) if state else None


def train(
    settings: Settings,
    data: Data,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    on_log: run.OnLog | None = None,
) -> dict[str, Any]:
    """Train a model and write the folder of its run, as `fwm_py.experiments.run.train_in_folder` says.

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
    Refused, FileExistsError, ValueError, Diverged
        As of `train_in_folder`; and ValueError for settings that do not fit the data.
    """
    return run.train_in_folder(Run(settings, data, Path(folder)), resume=resume, on_log=on_log)
