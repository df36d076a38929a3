"""Training a translation model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fwm_py.experiments import run
from fwm_py.experiments.checkpoint import load_checkpoint, save_checkpoint
from fwm_py.experiments.training import rank, world
from fwm_py.experiments.translation.batches import IGNORED, Batch, Batches
from fwm_py.experiments.translation.data import Data
from fwm_py.experiments.translation.model import make_model
from fwm_py.experiments.translation.scores import loss_of, score
from fwm_py.experiments.translation.settings import Settings
from fwm_py.torch.nn import EncoderDecoder

BEAM = 4
"""Of the search that result.json tells of."""

AVERAGED = "parameters-{}.safetensors"
"""The parameters at a checkpoint, by its step, which the model that is written is a mean of."""


class Run(run.Run[Settings, Data, EncoderDecoder]):
    """The training of a translation model."""

    def __init__(self, settings: Settings, data: Data, folder: Path) -> None:
        super().__init__(settings, data, folder)
        shape = settings.batch_tokens, settings.seed, settings.accumulate, world(), rank()
        self._valid: float | None = None
        self.batches = Batches(*data.tokens("train"), *shape)

    NUMBERS: ClassVar[tuple[str, ...]] = "valid perplexity", "test bleu", "test chrf", "test exact"

    def make_model(self) -> EncoderDecoder:
        return make_model(self.settings, self.data.vocab_size)

    def losses(self) -> list[Callable[[], Tensor]]:
        parts, tokens = self.batches.step(self.step)
        self.tokens += tokens
        # the mean over parts and processes of these is the loss of a token of the whole batch
        return [self._loss_of(part, tokens / (len(parts) * world())) for part in parts]

    def _loss_of(self, batch: Batch, tokens: float) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            with run.autocast(self.settings.bf16):
                logits = self.model(batch.source, batch.lengths, batch.target)
            total = F.cross_entropy(
                logits.float().flatten(0, 1),
                batch.following.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
                label_smoothing=self.settings.label_smoothing,
            )
            return total / tokens

        return loss

    def valid_loss(self) -> float:
        self._valid = self._loss_of_valid()
        return self._valid

    def _loss_of_valid(self) -> float:
        with run.autocast(self.settings.bf16):
            return loss_of(self.model, *self.data.tokens("valid"))

    def scores(self) -> dict[str, Any]:
        changed = self.settings.average > 1  # since it was evaluated
        loss = self._loss_of_valid() if self._valid is None or changed else self._valid
        found = score(self.model, self.data, "test", beam=BEAM)
        return {"valid": {"loss": loss, "perplexity": run.perplexity(loss)}, "test": found._asdict() | {"beam": BEAM}}

    # ---- the mean of the last checkpoints ----

    def save(self) -> None:
        if self.settings.average > 1 and not rank():
            name = AVERAGED.format(self.step)
            save_checkpoint(self.folder / name, dict(self.model.named_parameters()), {"step": self.step})
        super().save()
        if not rank():
            for path in list(self._averaged().values())[: -self.settings.average]:
                path.unlink(missing_ok=True)

    def load(self, tensors: run.Tensors, facts: dict[str, Any]) -> None:
        super().load(tensors, facts)
        if not rank():
            for step, path in self._averaged().items():
                if step > self.step:  # of a checkpoint that a kill prevented
                    path.unlink(missing_ok=True)

    def _averaged(self) -> dict[int, Path]:
        """The files of parameters by their steps, ascending."""
        pattern = re.escape(AVERAGED).replace(r"\{\}", "([0-9]+)")
        found = ((re.fullmatch(pattern, path.name), path) for path in self.folder.iterdir())
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def settle(self) -> None:
        """Put the mean of the parameters at the last checkpoints in place of the last ones; buffers stay."""
        settings = self.settings
        if settings.average == 1:
            return
        every = range(settings.checkpoint_every, self.step, settings.checkpoint_every)
        steps, paths = [*every, self.step][-settings.average :], self._averaged()
        missing = [step for step in steps if step not in paths]
        if missing:
            raise ValueError(
                f"{self.folder / AVERAGED.format(missing[0])}: got no such file, expected what average needs"
            )
        found = [load_checkpoint(paths[step])[0] for step in steps]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.stack([tensors[name].double() for tensors in found]).mean(0))


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
        What result.json holds: {"valid": {"perplexity": ..}, "test": {"bleu": .., "chrf": ..}, ..}.

    Raises
    ------
    Refused, FileExistsError, ValueError, Diverged
        As of `train_in_folder`.
    """
    return run.train_in_folder(Run(settings, data, Path(folder)), resume=resume, on_log=on_log)
