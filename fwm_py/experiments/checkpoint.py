"""Checkpoints: one file of tensors and facts, in the format of safetensors, without pickle."""

from __future__ import annotations

import json
import os
from typing import Any

from torch import Tensor

from fwm_py.experiments.files import write_file

FACTS = "facts"


def save_checkpoint(path: str | os.PathLike[str], tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Replace the file by these tensors and by facts that JSON can hold, wholly or not at all.

    Raises
    ------
    OSError
        With the name of the file.
    """
    from safetensors.torch import save

    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_file(path, save(whole, metadata={FACTS: json.dumps(facts)}))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts that `save_checkpoint` wrote.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged: "<path>: ..".
    """
    from safetensors import SafetensorError, safe_open

    name = os.fsdecode(path)
    with open(path, "rb"):  # an OSError that names the file
        pass
    try:
        with safe_open(name, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[FACTS])
            return {key: file.get_tensor(key) for key in file.keys()}, facts
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{name}: got a damaged file ({' '.join(str(error).split())[:200]}), expected a checkpoint"
        ) from None
