"""The rules of `fwm_py.torch`: arguments checked, and the operators called."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import Tensor

from fwm_py.rules.sums import check_causal
from fwm_py.torch import _rules
from fwm_py.torch._arrays import check_flag, wants_gradient

Norm: TypeAlias = Literal["l2", "sum"]
Method: TypeAlias = Literal["chunked", "recurrent"]
SumState: TypeAlias = Tensor | tuple[Tensor, Tensor]
Results: TypeAlias = tuple[Any, ...]  # (o, final_state), and the states where return_states_every asks for them


def _states(normalize: bool, initial_state: SumState | None) -> tuple[Tensor | None, Tensor | None]:
    """S and z of a state, which is a pair where the rule normalizes."""
    check_flag("normalize", normalize)
    if normalize and not (initial_state is None or (isinstance(initial_state, tuple) and len(initial_state) == 2)):
        raise TypeError(
            f"initial_state: got {type(initial_state).__name__}, expected a tuple (S, z) where normalize is True"
        )
    if not isinstance(initial_state, tuple):
        return initial_state, None
    if not normalize:
        raise TypeError("initial_state: got a tuple, expected a tensor where normalize is False")
    return initial_state


def _result(
    results: tuple[Tensor, Tensor, Tensor], output_final_state: bool, normalize: bool
) -> tuple[Tensor, SumState | None]:
    o, state, total = results
    return o, None if not output_final_state else (state, total) if normalize else state


def _check_in_place(inplace_final_state: bool, inputs: tuple[Tensor | None, ...]) -> None:
    check_flag("inplace_final_state", inplace_final_state)
    if inputs[-2] is None:
        raise ValueError("inplace_final_state: got True, expected False where there is no initial_state")
    if wants_gradient(inputs):
        raise ValueError("inplace_final_state: got True, expected False where a gradient is wanted")


def _check_states(return_states_every: int, inplace_final_state: bool, inputs: tuple[Tensor | None, ...]) -> None:
    if not isinstance(return_states_every, int) or isinstance(return_states_every, bool):
        raise TypeError(f"return_states_every: got {type(return_states_every).__name__}, expected an integer")
    if inplace_final_state is not False:
        raise ValueError("return_states_every: got a number, expected None where inplace_final_state is True")
    if wants_gradient(inputs):
        raise ValueError("return_states_every: got a number, expected None where a gradient is wanted")


def _rule(
    function: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    beta: Tensor | None = None,
    b: Tensor | None = None,
    w: Tensor | None = None,
    *,
    scale: float | None,
    initial_state: SumState | None,
    output_final_state: bool,
    inplace_final_state: bool,
    state_v_first: bool,
    state_indices: Tensor | None,
    return_states_every: int | None,
    cu_seqlens: Tensor | None,
    method: Method,
    qk_norm: Norm | None = None,
    normalize: bool = False,
    eps: float = 0.0,
    clamp_first: bool = True,
) -> Results:
    check_flag("output_final_state", output_final_state)
    check_flag("state_v_first", state_v_first)
    check_flag("clamp_first", clamp_first)
    states = (None, None) if initial_state is None and normalize is False else _states(normalize, initial_state)
    inputs = (q, k, v, g, beta, b, w, *states)
    options = (scale, qk_norm, normalize, eps, clamp_first, state_v_first, cu_seqlens, method)
    if return_states_every is not None:
        _check_states(return_states_every, inplace_final_state, inputs)
        o, state, total, *kept = _rules.rule_with_states(
            function, *inputs, *options, output_final_state, return_states_every
        )
        return *_result((o, state, total), output_final_state, normalize), _rules.pair(*kept)
    if inplace_final_state is not False:
        _check_in_place(inplace_final_state, inputs)
        return _rules.rule_in_place(function, *inputs, *options, state_indices), initial_state
    if state_indices is not None:
        raise ValueError("state_indices: got a tensor, expected None unless inplace_final_state is True")
    results = _rules.rule(function, *inputs, *options, output_final_state)
    return _result(results, output_final_state, normalize)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: SumState | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: Tensor | None = None,
    return_states_every: int | None = None,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> Results:
    """`fwm_py.linear_attention`; with normalize, states are pairs (S, z)."""
    if not check_causal(
        causal,
        key_lengths,
        method,
        cu_seqlens=cu_seqlens,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
    ):
        check_flag("output_final_state", output_final_state)
        states = _states(normalize, initial_state)
        results = _rules.noncausal(q, k, v, *states, key_lengths, scale, normalize, eps, output_final_state)
        return _result(results, output_final_state, normalize)
    return _rule(
        "linear_attention",
        q,
        k,
        v,
        scale=scale,
        normalize=normalize,
        eps=eps,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: Tensor | None = None,
    return_states_every: int | None = None,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> Results:
    """`fwm_py.gated_linear_attention`: g (B, T, HV) or (B, T, HV, K)."""
    return _rule(
        "gated_linear_attention",
        q,
        k,
        v,
        g,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
    initial_state: SumState | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: Tensor | None = None,
    return_states_every: int | None = None,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> Results:
    """`fwm_py.delta_rule`: DeltaNet; with normalize, states are pairs (S, z)."""
    return _rule(
        "delta_rule",
        q,
        k,
        v,
        None,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        normalize=normalize,
        eps=eps,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: Tensor | None = None,
    return_states_every: int | None = None,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> Results:
    """`fwm_py.gated_delta_rule`: Gated DeltaNet, g (B, T, HV)."""
    return _rule(
        "gated_delta_rule",
        q,
        k,
        v,
        g,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def kimi_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: Tensor | None = None,
    return_states_every: int | None = None,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> Results:
    """`fwm_py.kimi_delta_rule`: Kimi Delta Attention, g (B, T, HV, K)."""
    return _rule(
        "kimi_delta_rule",
        q,
        k,
        v,
        g,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def gated_delta_rule_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    b: Tensor,
    w: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: Tensor | None = None,
    return_states_every: int | None = None,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> Results:
    """`fwm_py.gated_delta_rule_2`: Gated DeltaNet-2, g and b (B, T, HV, K), w (B, T, HV, V)."""
    return _rule(
        "gated_delta_rule_2",
        q,
        k,
        v,
        g,
        None,
        b,
        w,
        scale=scale,
        qk_norm=qk_norm,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
        cu_seqlens=cu_seqlens,
        method=method,
    )


def fast_weight_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    qk_norm: Norm | None = None,
    clamp_first: bool = True,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = False,
    state_v_first: bool = False,
    state_indices: Tensor | None = None,
    return_states_every: int | None = None,
    cu_seqlens: Tensor | None = None,
    method: Method = "chunked",
) -> Results:
    """`fwm_py.fast_weight_memory`: delta writes into a memory of bounded norm."""
    return _rule(
        "fast_weight_memory",
        q,
        k,
        v,
        None,
        beta,
        scale=scale,
        qk_norm=qk_norm,
        clamp_first=clamp_first,
        initial_state=initial_state,
        output_final_state=output_final_state,
        inplace_final_state=inplace_final_state,
        state_v_first=state_v_first,
        state_indices=state_indices,
        return_states_every=return_states_every,
        cu_seqlens=cu_seqlens,
        method=method,
    )
