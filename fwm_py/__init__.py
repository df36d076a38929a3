"""Fast weight memories: the associative-retrieval experiments of linear transformers, on a C core."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

try:
    from fwm_py._core import build_info, get_num_threads, set_num_threads
except ModuleNotFoundError as error:
    if error.name != "fwm_py._core":
        raise
    from pathlib import Path

    raise ImportError(f"fwm_py is not built: run pip install . in {Path(__file__).parent.parent}") from None

from fwm_py import attention, convolution, feature_maps, norm, random, readouts, rules
from fwm_py.attention import SoftmaxGradients, softmax_attention, softmax_attention_backward
from fwm_py.convolution import CausalConv1dGradients, causal_conv1d, causal_conv1d_backward, causal_conv1d_update
from fwm_py.norm import RmsNormGradients, rms_norm, rms_norm_backward
from fwm_py.rules import (
    DeltaRuleGradients,
    GatedDeltaRule2Gradients,
    GatedDeltaRuleGradients,
    GatedLinearAttentionGradients,
    LinearAttentionGradients,
    delta_rule,
    delta_rule_backward,
    fast_weight_memory,
    fast_weight_memory_backward,
    gated_delta_rule,
    gated_delta_rule_2,
    gated_delta_rule_2_backward,
    gated_delta_rule_backward,
    gated_linear_attention,
    gated_linear_attention_backward,
    kimi_delta_rule,
    kimi_delta_rule_backward,
    linear_attention,
    linear_attention_backward,
)

if TYPE_CHECKING:
    from fwm_py import experiments
    from fwm_py.experiments.retrieval.sweep import reproduce

__all__ = [
    "CausalConv1dGradients",
    "DeltaRuleGradients",
    "GatedDeltaRule2Gradients",
    "GatedDeltaRuleGradients",
    "GatedLinearAttentionGradients",
    "LinearAttentionGradients",
    "RmsNormGradients",
    "SoftmaxGradients",
    "attention",
    "build_info",
    "causal_conv1d",
    "causal_conv1d_backward",
    "causal_conv1d_update",
    "convolution",
    "delta_rule",
    "delta_rule_backward",
    "experiments",
    "fast_weight_memory",
    "fast_weight_memory_backward",
    "feature_maps",
    "gated_delta_rule",
    "gated_delta_rule_2",
    "gated_delta_rule_2_backward",
    "gated_delta_rule_backward",
    "gated_linear_attention",
    "gated_linear_attention_backward",
    "get_num_threads",
    "kimi_delta_rule",
    "kimi_delta_rule_backward",
    "linear_attention",
    "linear_attention_backward",
    "norm",
    "random",
    "readouts",
    "reproduce",
    "rms_norm",
    "rms_norm_backward",
    "rules",
    "set_num_threads",
    "softmax_attention",
    "softmax_attention_backward",
]


def __getattr__(name: str) -> Any:
    """The experiments, on first use: who wants the functions does not load csv, gzip and joblib."""
    if name == "reproduce":
        return importlib.import_module("fwm_py.experiments.retrieval").reproduce
    if name == "experiments":
        return importlib.import_module("fwm_py.experiments")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
