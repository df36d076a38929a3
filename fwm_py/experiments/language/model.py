"""The model of a run, and its file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch

from fwm_py.checks import shown
from fwm_py.experiments.checkpoint import load_checkpoint, save_checkpoint
from fwm_py.experiments.language.settings import Settings
from fwm_py.torch.nn import Decoder, FastWeightAttention

MODEL = "model.safetensors"
STD = 0.02


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


def save_model(folder: str | os.PathLike[str], model: Decoder, settings: Settings) -> None:
    """Write `model.safetensors` into the folder of a run."""
    facts = {"settings": dataclasses.asdict(settings), "vocab_size": model.embed.num_embeddings}
    save_checkpoint(Path(folder) / MODEL, model.state_dict(), facts)


def load_model(folder: str | os.PathLike[str]) -> tuple[Decoder, Settings]:
    """The model of a run that has ended, in evaluation, and its settings.

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
        settings = Settings(**facts["settings"])
        model = make_model(settings, facts["vocab_size"])
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: got {shown(' '.join(str(error).split()))}, expected a language model") from None
    return model.eval(), settings


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
