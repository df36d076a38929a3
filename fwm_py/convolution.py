"""Causal depthwise convolution, with SiLU or without: forward and gradient, and the update of a server's states.

Each channel has a filter of its own, short and along the tokens: z_t = bias + sum_w weight_w x_{t - W + 1 + w}, and
y = z or z / (1 + exp(-z)). Linear attention and delta-rule layers put one in front of their queries, keys and values.

Common to the functions, for B sequences of T tokens and D channels:

x : array (B, T, D), float32 or float64
weight : array (D, W), of x's dtype
    W is 1 to 16; the last column meets the token itself. As `weight.squeeze(1)` of a torch.nn.Conv1d with groups=D.
bias : array (D,), of x's dtype, optional
activation : None, "silu" or "swish"
    The last two are the same.
initial_state : array (n, W - 1, D), of x's dtype, optional
    The tokens before the first, oldest first: n is B, or the number of packed sequences. Zeros if not given.
cu_seqlens : array (n + 1,), any integer dtype, optional
    Packs n sequences into one row (B must be 1): sequence i is the tokens cu_seqlens[i] .. cu_seqlens[i + 1] - 1.
    Non-decreasing, from 0 to T; a sequence without tokens keeps its state.

Any strides, byte order and read-only inputs work. Inputs are never changed, unless one is named in out. Results have
x's dtype and are the same to the bit for every number of threads. Empty B or T give an empty y, states as they were,
and gradients of zero. Values that are not finite propagate to the W tokens that see them. Inside a call, numbers below
the smallest normal one may count as 0. Several Python threads may call at once; they run side by side.

Errors: TypeError for an argument of another type or dtype than said here; ValueError for shapes that do not fit, D = 0,
W outside 1..16, an activation not listed, bad cu_seqlens, and an out that cannot be written to or overlaps;
MemoryError. The message begins with the argument's name.

With one token a call and `out=(y, state)`, `initial_state=state`, the convolution decodes:

>>> import numpy as np
>>> from fwm_py import causal_conv1d
>>> random = np.random.default_rng(0)
>>> x, weight = random.standard_normal((1, 9, 32)), random.standard_normal((32, 4))  # 9 tokens, 32 channels
>>> y, state = causal_conv1d(x[:, :8], weight, activation="silu", output_final_state=True)  # a prompt
>>> out = (np.empty((1, 1, 32)), state)
>>> y, state = causal_conv1d(x[:, 8:], weight, activation="silu", initial_state=state, out=out)  # the next token
>>> bool(np.allclose(y, causal_conv1d(x, weight, activation="silu")[0][:, 8:]))
True
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core

__all__ = ["CausalConv1dGradients", "causal_conv1d", "causal_conv1d_backward", "causal_conv1d_update"]

Real = npt.NDArray[np.floating[Any]]
Activation = Literal["silu", "swish"]


class CausalConv1dGradients(NamedTuple):
    """Gradients of `causal_conv1d`: dx (B, T, D), dweight (D, W); dbias (D,) and dinitial_state (n, W - 1, D), or None
    where there is no such input."""

    dx: Real
    dweight: Real
    dbias: Real | None
    dinitial_state: Real | None


def causal_conv1d(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    initial_state: npt.ArrayLike | None = None,
    output_final_state: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    out: Real | tuple[Real, Real] | None = None,
) -> tuple[Real, Real | None]:
    """Every token becomes a weighted sum of itself and the W - 1 tokens before it, channel by channel.

    z_t = bias + sum_w weight_w x_{t - W + 1 + w}, y_t = z_t or silu(z_t).

    Parameters
    ----------
    x, weight, bias, activation, initial_state, cu_seqlens
        As above.
    output_final_state : bool
        Return the last W - 1 tokens of each sequence, too.
    out : array y, or tuple (y, state), or None
        Arrays to write into, which are returned: of the results' shape and dtype, C-contiguous, and sharing no memory
        with an input or with each other; only state may be the array given as initial_state (decoding in place). With a
        state in out it is returned whatever output_final_state says.

    Returns
    -------
    y : array (B, T, D)
    final_state : array (n, W - 1, D), or None
        The last W - 1 tokens, oldest first, from initial_state where T < W - 1; None unless it was asked for.
    """
    return _core.convolution_forward(
        x=x,
        weight=weight,
        bias=bias,
        activation=activation,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
        output_final_state=output_final_state,
        out=out,
    )


def causal_conv1d_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    initial_state: npt.ArrayLike | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[Real | None, ...] | None = None,
) -> CausalConv1dGradients:
    """The gradient of sum(dy * y) + sum(dfinal_state * final_state), for what `causal_conv1d` returns.

    Parameters
    ----------
    dy : array (B, T, D), of x's dtype
        Gradient with respect to y.
    x, weight, bias, activation, initial_state, cu_seqlens
        As in the forward call.
    dfinal_state : array (n, W - 1, D), of x's dtype, optional
        Gradient with respect to the final state. Zeros if not given.
    out : tuple (dx, dweight, dbias, dinitial_state) of arrays, with None where the result has it, optional
        Are written and returned, as out of the forward call is.

    Returns
    -------
    CausalConv1dGradients
    """
    return CausalConv1dGradients(
        *_core.convolution_backward(
            x=x,
            weight=weight,
            bias=bias,
            activation=activation,
            cu_seqlens=cu_seqlens,
            initial_state=initial_state,
            dy=dy,
            dfinal_state=dfinal_state,
            out=out,
        )
    )


def causal_conv1d_update(
    x: npt.ArrayLike,
    conv_state: Real,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    conv_state_indices: npt.ArrayLike | None = None,
    cache_seqlens: npt.ArrayLike | None = None,
    out: Real | None = None,
) -> Real:
    """The same sums for the next tokens of many sequences, whose states take up these tokens in place.

    Parameters
    ----------
    x : array (B, T, D), float32 or float64
        The next T tokens of each sequence; T is 1 as a rule.
    conv_state : array (B, L, D), or (P, L, D) with conv_state_indices
        The last L tokens of each sequence, the oldest first; L is at least W - 1. It is changed: of x's dtype,
        C-contiguous, writeable, and sharing no memory with the others.
    weight, bias, activation
        As above.
    conv_state_indices : array (B,), any integer dtype, optional
        conv_state has the states of a pool, of which sequence i has the one of this number, and no other sequence has.
        -1 is padding: no state is read or changed, and y is 0.
    cache_seqlens : array (B,), any integer dtype, optional
        How many tokens of the sequence came before, at least 0. A state is then a ring: token p of the sequence is in
        row p mod L. To take back tokens, give a smaller number (L at least W - 1 and as many more).
    out : array (B, T, D), optional
        y is written there.

    Returns
    -------
    y : array (B, T, D)

    References
    ----------
    `causal_conv1d_update` of Dao-AILab/causal-conv1d, whose arrays are (B, D, T) and (P, D, L).
    """
    return _core.convolution_update_forward(
        x=x,
        conv_state=conv_state,
        weight=weight,
        bias=bias,
        activation=activation,
        conv_state_indices=conv_state_indices,
        cache_seqlens=cache_seqlens,
        out=out,
    )
