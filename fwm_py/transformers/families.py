"""The families of models that call functions of ours, and their modelling files."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

CONVOLUTION = ("causal_conv1d_fn", "causal_conv1d_update")
GATED_DELTA = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule", *CONVOLUTION)
KIMI_DELTA = ("chunk_kimi_delta_attention", "recurrent_kimi_delta_attention", *CONVOLUTION)
MAMBA2 = ("mamba2_split_conv1d_scan_combined", "mamba2_chunk_scan", "mamba2_selective_state_update", *CONVOLUTION)


class Family(NamedTuple):
    """What of a modelling file is replaced, by FUNCTIONS and GATED_NORMS; also its RMS norms and its "sdpa"."""

    functions: tuple[str, ...]
    gated_norm: str | None = None


FAMILIES = {
    "qwen3_next": Family(GATED_DELTA, "norm_then_gate"),
    "qwen3_5": Family(GATED_DELTA, "norm_then_gate"),
    "qwen3_5_moe": Family(GATED_DELTA, "norm_then_gate"),
    "qwen4_exp": Family(GATED_DELTA, "norm_then_gate"),
    "olmo_hybrid": Family(GATED_DELTA, "norm_then_gate"),
    "kimi_linear": Family(KIMI_DELTA, "norm_then_gate"),
    "glm5_next": Family(KIMI_DELTA, "norm_then_gate"),
    "bailing_hybrid": Family(KIMI_DELTA, "norm_then_gate"),
    "mamba2": Family(MAMBA2, "gate_then_norm"),
    "bamba": Family(MAMBA2, "gate_then_norm"),
    "falcon_h1": Family(MAMBA2, "gate_then_norm"),
    "granitemoehybrid": Family(MAMBA2, "gate_then_norm"),
    "nemotron_h": Family(MAMBA2, "gate_then_norm"),
    "zamba2": Family(MAMBA2, "gate_then_norm"),
    "lfm2": Family(CONVOLUTION),
    "lfm2_moe": Family(CONVOLUTION),
    "lfm3": Family(CONVOLUTION),
    "inkling": Family(CONVOLUTION),
    "inkling2": Family(CONVOLUTION),
}


def modelling_files() -> Iterator[tuple[ModuleType, Family]]:
    for name, family in FAMILIES.items():
        if importlib.util.find_spec(f"transformers.models.{name}"):
            yield importlib.import_module(f"transformers.models.{name}.modeling_{name}"), family
