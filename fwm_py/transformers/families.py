"""The families of models that call these functions, and their modelling files."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType

FAMILIES = (
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
    "olmo_hybrid",
    "kimi_linear",
    "glm5_next",
    "bailing_hybrid",
)


def modelling_files() -> Iterator[ModuleType]:
    for family in FAMILIES:
        if importlib.util.find_spec(f"transformers.models.{family}"):
            yield importlib.import_module(f"transformers.models.{family}.modeling_{family}")
