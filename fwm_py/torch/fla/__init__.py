"""The names of the Triton package flash-linear-attention, for code that was written against it.

>>> from fwm_py.torch.fla import chunk_gated_delta_rule, chunk_kda  # was: from fla.ops...

Operations have the package's arguments, in its order and with its defaults, and modules its parameters; `chunk_`,
`fused_chunk_`, `fused_recurrent_` and `parallel_` compute the same and are the same here. Options of time and memory on
a GPU (chunk_size, chunk_indices, disable_recompute, safe_gate) are checked and change no number; one that `fwm_py` does
not have is refused by its name (NotImplementedError), never ignored. Gates in the kernel (use_gate_in_kernel,
use_beta_sigmoid_in_kernel) are computed in front of it, in float32 or float64.

`enable()` puts all of it under the package's own names, whether that is installed or not:

>>> import fwm_py.torch.fla
>>> names = fwm_py.torch.fla.enable()
>>> from fla.ops.delta_rule import chunk_delta_rule
>>> from fla.modules import ShortConvolution
>>> names = fwm_py.torch.fla.disable()

docs/fla.md lists names and options.
"""

from fwm_py.torch.fla.convolution import ShortConvolution, causal_conv1d, causal_conv1d_update
from fwm_py.torch.fla.delta_rules import (
    chunk_delta_rule,
    chunk_gated_delta_rule,
    chunk_gdn,
    chunk_gdn2,
    chunk_kda,
    fused_chunk_delta_rule,
    fused_recurrent_delta_rule,
    fused_recurrent_gated_delta_rule,
    fused_recurrent_gdn,
    fused_recurrent_gdn2,
    fused_recurrent_kda,
)
from fwm_py.torch.fla.enabling import disable, enable, enabled
from fwm_py.torch.fla.linear_attentions import (
    chunk_gla,
    chunk_lightning_attn,
    chunk_linear_attn,
    chunk_retention,
    chunk_simple_gla,
    fused_chunk_gla,
    fused_chunk_linear_attn,
    fused_chunk_retention,
    fused_chunk_simple_gla,
    fused_recurrent_gla,
    fused_recurrent_lightning_attn,
    fused_recurrent_linear_attn,
    fused_recurrent_retention,
    fused_recurrent_simple_gla,
    parallel_retention,
    parallel_simple_gla,
)
from fwm_py.torch.fla.norm import FusedRMSNormGated, FusedRMSNormSwishGate, RMSNorm

__all__ = [
    "FusedRMSNormGated",
    "FusedRMSNormSwishGate",
    "RMSNorm",
    "ShortConvolution",
    "causal_conv1d",
    "causal_conv1d_update",
    "chunk_delta_rule",
    "chunk_gated_delta_rule",
    "chunk_gdn",
    "chunk_gdn2",
    "chunk_gla",
    "chunk_kda",
    "chunk_lightning_attn",
    "chunk_linear_attn",
    "chunk_retention",
    "chunk_simple_gla",
    "disable",
    "enable",
    "enabled",
    "fused_chunk_delta_rule",
    "fused_chunk_gla",
    "fused_chunk_linear_attn",
    "fused_chunk_retention",
    "fused_chunk_simple_gla",
    "fused_recurrent_delta_rule",
    "fused_recurrent_gated_delta_rule",
    "fused_recurrent_gdn",
    "fused_recurrent_gdn2",
    "fused_recurrent_gla",
    "fused_recurrent_kda",
    "fused_recurrent_lightning_attn",
    "fused_recurrent_linear_attn",
    "fused_recurrent_retention",
    "fused_recurrent_simple_gla",
    "parallel_retention",
    "parallel_simple_gla",
]
