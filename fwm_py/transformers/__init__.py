"""The kernels of `fwm_py` in the models of transformers, on the CPU.

Models with a delta rule, with the scan of Mamba-2 or with short convolutions look these up by name in their modelling
file, and on a CPU find reference functions in PyTorch, correct but slow, which refuse packed sequences. `enable()` puts
faster functions under those names, with the same arguments and results, for models loaded before and after alike, and
in the place of what surrounds them: RMS norms, gated and not, and softmax attention ("sdpa") without dropout and with
no mask but the causal one:

>>> import fwm_py.transformers
>>> replaced = fwm_py.transformers.enable()
>>> replaced["qwen3_next"][:2]
('torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule')
>>> put_back = fwm_py.transformers.disable()

Prefill, cached decoding and training work as before; the gradients are those of `fwm_py.torch`. In these layers
sequences packed into one row are kept apart, by `cu_seq_lens_q` or by `seq_idx`, where -1 marks padding: such tokens
give 0, nobody sees them, and there is no state of theirs. What a model's softmax layers see is transformers' business
(with use_cache=False they keep them apart in all families but glm5_next and granitemoehybrid), and so is what it tells
its layers: Mamba2ForCausalLM and Inkling's convolutions behind its layers hear of no sequences. Tensors that are not on
the CPU, subclasses of Tensor (DTensor), torch.func's transforms, convolutions of other widths than 1 to 16, softmax
attention with another mask or for one token, and norms of a few numbers go to the function that was there before. Hooks
of accelerate (device_map, offloading) may be put on before `enable()` or after it; a layer whose own forward somebody
has replaced keeps that, as one does whose hook was removed before. Gradients cannot be differentiated again. Where a
package for GPUs is installed but no GPU is there, its functions fail on the CPU; these do not.

FAMILIES says which models there are, and which functions of each.

Two things are apart from that: `register_attention()` gives models, of these families or others, linear attention by
name; and `FwmForCausalLM` is a language model of `fwm_py` itself for transformers' programs, from_pretrained, generate
and Trainer, which `fwm-py language convert` makes of a run. Needs transformers 5.23 or newer: pip install
'fwm_py[transformers]'.
"""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError("fwm_py.transformers needs transformers: pip install 'fwm_py[transformers]'") from error

from fwm_py.transformers.cache import FwmCache
from fwm_py.transformers.families import FAMILIES
from fwm_py.transformers.language_models import FwmConfig, FwmForCausalLM
from fwm_py.transformers.linear_attention import register_attention
from fwm_py.transformers.models import disable, enable, enabled

__all__ = ["FAMILIES", "FwmCache", "FwmConfig", "FwmForCausalLM", "disable", "enable", "enabled", "register_attention"]
