"""The model of a run."""

from __future__ import annotations

import os
from collections.abc import Callable

from fwm_py.experiments import run
from fwm_py.experiments.settings import STD
from fwm_py.experiments.translation.settings import PLACES, Settings
from fwm_py.torch.nn import EncoderDecoder, FastWeightAttention


def make_model(settings: Settings, vocab_size: int) -> EncoderDecoder:
    """The model of a run, its parameters drawn from PyTorch's generator."""

    def memory(place: str) -> Callable[[], FastWeightAttention]:
        return lambda: FastWeightAttention(settings.d_model, settings.heads, **settings.memory(place))

    return EncoderDecoder(
        vocab_size,
        settings.d_model,
        settings.encoder_layers,
        settings.decoder_layers,
        *map(memory, PLACES),
        d_ff=settings.d_ff,
        norm="pre" if settings.norm == "pre" else "post",
        std=STD if settings.init == "normal" else None,
        dropout=settings.dropout,
    )


def load_model(folder: str | os.PathLike[str]) -> tuple[EncoderDecoder, Settings]:
    """The model of a run that has ended, in evaluation, and its settings; raises as `run.load_model` does."""
    return run.load_model(folder, Settings, make_model)
