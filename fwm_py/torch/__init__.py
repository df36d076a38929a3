"""The kernels of `fwm_py` on PyTorch's CPU tensors, differentiable.

Every function has the name, the arguments and the shapes of the one on NumPy arrays (`fwm_py.rules`,
`fwm_py.attention`, `fwm_py.convolution`, `fwm_py.feature_maps`, which say what they compute), but for these:

- Tensors are float64, float32, bfloat16 or float16, in any mixture. Numbers are computed in float64 where an input has
  it, else in float32. Outputs have the dtype of q (or x), states that of the computation, gradients those of their
  inputs. Contiguous tensors of the dtype of the computation are read where they are, and by a rule's forward also
  parts of each token of a larger tensor, as queries, keys and values of one projection are, and tokens of q's dtype
  where that is bfloat16 or float16; the output is then written as such.
- Gradients flow to every input of numbers, initial states included, but omega (`favor`). They cannot be differentiated
  again.
- There is no `out`: results are new tensors. Without gradients, `inplace_final_state=True` writes the final state of a
  rule over initial_state, and returns that: decoding takes no new memory for each token. With state_indices it is so
  always; return_states_every has no gradient, and is not compiled.
- As many threads work as `torch.set_num_threads` says; results do not depend on it, to the bit.

The functions are custom operators (torch.ops.fwm_py), so that torch.compile, torch.export, autocast, activation
checkpointing, torch.vmap and torch.utils.flop_counter know them. The last counts a rule's products with its state,
token by token: 2 K V for the write, the read, and a delta rule's read before the write; twice that backward. Of other
devices PyTorch says that there is no kernel (NotImplementedError); meta tensors give shapes. Derivatives in forward
mode are refused (NotImplementedError), and torch.func.grad does not take operators like these (RuntimeError).

Errors are those of the functions on arrays, TypeError for a tensor that holds no floating point numbers and for
subclasses of Tensor that handle operators themselves (DTensor), ValueError for tensors on several devices, and
PyTorch's RuntimeError where there is no memory for a result. Inputs stay as they are, and so do their storages: FSDP
may free and fill them.

>>> import torch
>>> import fwm_py.torch as fwm
>>> q, k, v = (torch.randn(2, 9, 4, 16, requires_grad=True) for _ in range(3))  # 2 rows of 9 tokens, 4 heads of 16
>>> g, beta = -torch.rand(2, 9, 4), torch.rand(2, 9, 4)
>>> o, state = fwm.gated_delta_rule(q, k, v, g, beta, qk_norm="l2", output_final_state=True)
>>> o.square().sum().backward()
>>> k.grad.shape
torch.Size([2, 9, 4, 16])

Needs PyTorch: pip install 'fwm_py[torch]'.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("fwm_py.torch needs PyTorch: pip install 'fwm_py[torch]'") from error

from fwm_py.torch import _flops  # noqa: F401  counts the operators
from fwm_py.torch._functions import (
    causal_conv1d,
    causal_conv1d_update,
    dpfp,
    elu1,
    favor,
    rms_norm,
    softmax_attention,
    tanh,
)
from fwm_py.torch._rule_functions import SumState as SumState
from fwm_py.torch._rule_functions import (
    delta_rule,
    fast_weight_memory,
    gated_delta_rule,
    gated_delta_rule_2,
    gated_linear_attention,
    kimi_delta_rule,
    linear_attention,
)

__all__ = [
    "causal_conv1d",
    "causal_conv1d_update",
    "delta_rule",
    "dpfp",
    "elu1",
    "fast_weight_memory",
    "favor",
    "gated_delta_rule",
    "gated_delta_rule_2",
    "gated_linear_attention",
    "kimi_delta_rule",
    "linear_attention",
    "rms_norm",
    "softmax_attention",
    "tanh",
]
