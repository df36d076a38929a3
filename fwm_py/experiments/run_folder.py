"""The folder of a run: its settings, log and checkpoint, and at the end its model and result."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fwm_py.checks import shown
from fwm_py.experiments.files import write_file

CONFIG, LOG, CHECKPOINT, MODEL, RESULT = (
    "config.json",
    "log.csv",
    "checkpoint.safetensors",
    "model.safetensors",
    "result.json",
)


class LogRow(NamedTuple):
    """A row of log.csv: means since the row before; valid_loss where it was evaluated."""

    step: int
    tokens: int
    loss: float
    gradient_norm: float
    lr: float
    skipped: int
    seconds: float
    valid_loss: float | None


def write_json(path: Path, facts: dict[str, Any]) -> None:
    write_file(path, (json.dumps(facts, indent=1) + "\n").encode())


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What config.json holds: `settings`, `data` (its identity), `tokenizer` (its sha256), `data_folder`, `version`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged.
    """
    path = Path(folder) / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        dict(config["settings"]), *(str(config[name]) for name in ("data", "tokenizer", "data_folder"))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: got a damaged file, expected a run's settings; begin in another folder") from None
    return config


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a folder whose run was begun with other settings or data."""
    known = read_config(folder)
    theirs, ours = known["settings"] | {"data": known["data"]}, config["settings"] | {"data": config["data"]}
    for name in ours:
        if theirs.get(name) != ours[name]:
            raise ValueError(
                f"{folder / CONFIG}: got a run with {name} {shown(theirs.get(name))}, expected {shown(ours[name])}"
            )


def read_result(folder: str | os.PathLike[str], numbers: Sequence[str]) -> dict[str, Any]:
    """What result.json holds; `numbers` are some of them, `<split> <name>` each.

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
        found = [result[split][name] for split, name in (number.split() for number in numbers)]
        list(map(float, found)), int(result["steps"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: got a damaged file, expected a result; delete it, and resume") from None
    return result
