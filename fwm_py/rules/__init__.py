"""Rules: causal memories of many heads, an output for every token, states in and out.

Each head holds a state S (K x V), a memory that keys write values into and queries read. For every token a rule gates
the state, writes into it, and the query reads it: o_t = scale S_t^T q_t, after the write of token t. Every rule is a
pair of functions: `<name>(...)` and `<name>_backward(do, ...)`, the gradients of sum(do * o) + sum(dfinal_state *
final_state) with respect to every input of numbers. Below, an equation is that of one value head; k and q are those of
its key and query head.

Common to all of them, for B sequences of T tokens, keys of size K and values of size V:

q : array (B, T, HQ, K), float32, float64, float16 or bfloat16
    Queries. HQ is H, or a multiple of HV: then several query heads read one state.
k : array (B, T, H, K), of q's dtype
    Keys. Key head h serves the value heads h HV/H .. (h + 1) HV/H - 1.
v : array (B, T, HV, V), of q's dtype
    Values. HV is a multiple of H; each value head has a state.
g : array (B, T, HV) or (B, T, HV, K), of q's dtype
    Gates as natural logarithms: the state, or each of its K rows, is multiplied by exp(g). At most 0 as a rule.
beta : array (B, T, HV), of q's dtype
    Write strengths: 0 writes nothing, 1 replaces what a key of norm 1 holds. Up to 2 makes sense.
scale : float, optional
    Multiplies the queries, K**-0.5 if not given.
qk_norm : None, "l2" or "sum"
    Keys and queries are taken as they are, as x / sqrt(|x|^2 + 1e-6), or as x / sum(x), which is the delta rule's own
    for positive features. x / sum(x) of zeros is zeros, and its gradient 0: a key without features (a padding token's,
    or one that a map has let underflow) writes nothing, a query without features reads 0. Where x has both signs and
    sums to 0, the result is not finite.
initial_state : array (n, HV, K, V), of q's dtype, optional
    Where the states start: n is B, or the number of packed sequences. Zeros if not given.
output_final_state : bool
    Return the states after the last token, too.
state_v_first : bool
    States are (n, HV, V, K), values first, as Mamba-2 and the layers of flash-linear-attention keep them; they are read
    and written as they lie.
state_indices : array (n,), any integer dtype, optional
    Of a forward: initial_state has the states of a pool, (P, HV, K, V), of which sequence i has the one of this number,
    and no other sequence has. They are changed in place, which is said by out=(o, initial_state).
return_states_every : int, optional
    Of a forward: a multiple C of 16. States after every C tokens of each sequence are returned too, for caches of
    prefixes and ways back of speculative decoding.
cu_seqlens : array (n + 1,), any integer dtype, optional
    Packs n sequences into one row (B must be 1): sequence i is the tokens cu_seqlens[i] .. cu_seqlens[i + 1] - 1.
    Non-decreasing, from 0 to T; a sequence without tokens keeps its state.
method : "chunked" or "recurrent"
    The fast form, or token by token as the equation stands. The numbers are the same but for rounding.
out : array o, or tuple (o, state), optional
    Arrays to write into, which are returned: of the results' shape and dtype, C-contiguous, and sharing no memory with
    an input or with each other; only state may be the array given as initial_state (decoding in place). With a state
    in out it is returned whatever output_final_state says.
    Of a backward function: a tuple of arrays as the result is, in whose order and with whose Nones.
do : array (B, T, max(HQ, HV), V), of q's dtype
    Gradient with respect to o.
dfinal_state : array, of the state's shape and dtype, optional
    Gradient with respect to the final state. Zeros if not given.

Every forward function returns (o, final_state): o (B, T, max(HQ, HV), V) and final_state (n, HV, K, V), or None unless
it was asked for. With return_states_every=C it returns (o, final_state, states): states (B, T // C, HV, K, V), and of
packed sequences (1, N, HV, K, V), those of one behind those of the other. Every backward function returns a named tuple
of gradients with the shapes of the inputs; dinitial_state is None where no initial_state was given. It computes again
what it needs of the forward.

Tokens of 16 bits, in NumPy's float16 or ml_dtypes' bfloat16: where q has such a dtype, each array of tokens has it or
float32, o has q's, and a gradient that of its input. Numbers are widened as they are read and rounded once as they are
written; sums, and all states, are float32. With q and k in bfloat16, delta_rule and gated_delta_rule read the state
rounded to bfloat16 where the processor multiplies such numbers (the variant "avx512_bf16" of build_info, and
method="chunked"): the error of o is then up to twice that of rounding the exact result, and else hardly more than that.
FWM_PY_ISA=avx512 in the environment switches this off.

Results have q's dtype and do not depend on the number of threads, to the bit. Empty B or T give an empty o, and states
as they were. Values that are not finite propagate. Inside a call, numbers below the smallest normal one may count as 0:
q = 1, k = 1e30, v = 1e-39 gives 0 in float32. Inputs are never changed, unless one is named in out. Several Python
threads may call at once; they run side by side.

Errors: TypeError for an argument of another type or dtype than said here; ValueError for shapes that do not fit, no
heads, K = 0 or V = 0, numbers of heads that do not divide, a scale or eps that is not finite, words other than those
listed, bad cu_seqlens, numbers of states that are not in the pool or come twice, and an out that cannot be written to
or overlaps; MemoryError.

With one token a call and `out=(o, state)`, `initial_state=state`, these functions decode:

>>> import numpy as np
>>> from fwm_py import gated_delta_rule, gated_delta_rule_backward
>>> random = np.random.default_rng(0)
>>> q, k, v = (random.standard_normal((1, 9, 2, 16)) for _ in range(3))  # 9 tokens, 2 heads of 16
>>> g, beta = -random.random((1, 9, 2)), random.random((1, 9, 2))
>>> inputs = (q, k, v, g, beta)
>>> o, state = gated_delta_rule(*(x[:, :8] for x in inputs), qk_norm="l2", output_final_state=True)  # a prompt
>>> out = (np.empty((1, 1, 2, 16)), state)
>>> o, state = gated_delta_rule(*(x[:, 8:] for x in inputs), qk_norm="l2", initial_state=state, out=out)  # the next
>>> whole, _ = gated_delta_rule(*inputs, qk_norm="l2")
>>> bool(np.allclose(o, whole[:, 8:]))
True

and these are the gradients of whole.sum():

>>> gradients = gated_delta_rule_backward(np.ones_like(whole), *inputs, qk_norm="l2")
>>> gradients.dg.shape
(1, 9, 2)
"""

from fwm_py.rules.bounded import fast_weight_memory, fast_weight_memory_backward
from fwm_py.rules.deltas import (
    DeltaRuleGradients,
    GatedDeltaRule2Gradients,
    GatedDeltaRuleGradients,
    delta_rule,
    delta_rule_backward,
    gated_delta_rule,
    gated_delta_rule_2,
    gated_delta_rule_2_backward,
    gated_delta_rule_backward,
    kimi_delta_rule,
    kimi_delta_rule_backward,
)
from fwm_py.rules.sums import (
    GatedLinearAttentionGradients,
    LinearAttentionGradients,
    gated_linear_attention,
    gated_linear_attention_backward,
    linear_attention,
    linear_attention_backward,
)

__all__ = [
    "DeltaRuleGradients",
    "GatedDeltaRule2Gradients",
    "GatedDeltaRuleGradients",
    "GatedLinearAttentionGradients",
    "LinearAttentionGradients",
    "delta_rule",
    "delta_rule_backward",
    "fast_weight_memory",
    "fast_weight_memory_backward",
    "gated_delta_rule",
    "gated_delta_rule_2",
    "gated_delta_rule_2_backward",
    "gated_delta_rule_backward",
    "gated_linear_attention",
    "gated_linear_attention_backward",
    "kimi_delta_rule",
    "kimi_delta_rule_backward",
    "linear_attention",
    "linear_attention_backward",
]
