"""The model of a run."""

from __future__ import annotations

import os

from fwm_py.experiments import run
from fwm_py.experiments.language.settings import Settings
from fwm_py.experiments.settings import STD
from fwm_py.torch.nn import Decoder, FastWeightAttention


def make_model(settings: Settings, vocab_size: int) -> Decoder:
    """The model of a run, its parameters drawn from PyTorch's generator."""
    return Decoder(
        vocab_size,
        settings.d_model,
        settings.layers,
        lambda: FastWeightAttention(settings.d_model, settings.heads, **settings.memory_options),
        d_ff=settings.d_ff,
        positions="sinusoidal" if settings.positions == "sinusoidal" else None,
        norm="pre" if settings.norm == "pre" else "post",
        std=STD if settings.init == "normal" else None,
        dropout=settings.dropout,
    )


def load_model(folder: str | os.PathLike[str]) -> tuple[Decoder, Settings]:
    """The model of a run that has ended, in evaluation, and its settings; raises as `run.load_model` does."""
    return run.load_model(folder, Settings, make_model)
