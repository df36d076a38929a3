"""The causal convolution: the equation in plain NumPy, and its cases."""

import itertools

import numpy as np

from fwm_py.convolution import CausalConv1dGradients, causal_conv1d, causal_conv1d_backward
from support.contract import Case, by_input, normal, without

# --- the equation --------------------------------------------------------------------------------------------------


def oracle(x, weight, bias=None, *, activation=None, initial_state=None):
    """(y, final_state)"""
    (B, T, D), W = x.shape, weight.shape[1]
    before = np.zeros((B, W - 1, D)) if initial_state is None else initial_state
    seen = np.concatenate([before, x], axis=1)
    z = np.zeros((B, T, D)) if bias is None else np.broadcast_to(bias, (B, T, D)).copy()
    for t in range(T):
        for w in range(W):
            z[:, t] += weight[:, w] * seen[:, t + w]
    return z if activation is None else z / (1 + np.exp(-z)), seen[:, T:]


def oracle_backward(dy, x, weight, bias=None, *, activation=None, initial_state=None, dfinal_state=None):
    (B, T, D), W = x.shape, weight.shape[1]
    before = np.zeros((B, W - 1, D)) if initial_state is None else initial_state
    seen = np.concatenate([before, x], axis=1)
    dseen, dweight, dbias = np.zeros(seen.shape), np.zeros((D, W)), np.zeros(D)
    if dfinal_state is not None:
        dseen[:, T:] += dfinal_state
    z, _ = oracle(x, weight, bias, initial_state=initial_state)
    s = 1 / (1 + np.exp(-z))
    dz = dy if activation is None else dy * (s + z * s * (1 - s))
    for t in range(T):
        dbias += dz[:, t].sum(axis=0)
        for w in range(W):
            dweight[:, w] += (dz[:, t] * seen[:, t + w]).sum(axis=0)
            dseen[:, t + w] += weight[:, w] * dz[:, t]
    return CausalConv1dGradients(
        dseen[:, W - 1 :],
        dweight,
        None if bias is None else dbias,
        None if initial_state is None else dseen[:, : W - 1],
    )


# --- cases ---------------------------------------------------------------------------------------------------------


def inputs(B=2, T=9, D=5, W=4, dtype=np.float64, seed=0, n=None):
    """All arrays of a backward, by name."""
    state = (B if n is None else n, W - 1, D)
    shapes = {"dy": (B, T, D), "x": (B, T, D), "weight": (D, W), "bias": (D,)}
    return normal(shapes | {"initial_state": state, "dfinal_state": state}, dtype, seed)


def forward(x, **options):
    """causal_conv1d with the arrays that it takes, and with the state."""
    return causal_conv1d(**without(x, "dy", "dfinal_state"), **({"output_final_state": True} | options))


def backward(x, **options):
    return causal_conv1d_backward(**x, **options)


def everything(x, **options):
    """Results, and gradients that there are, by name."""
    gradients = backward(x, **without(options, "output_final_state"))._asdict()
    made = dict(zip(("y", "final_state"), forward(x, **options))) | gradients
    return {name: array for name, array in made.items() if array is not None}


class ConvolutionCase(Case):
    """Sizes are (B, T, D, where packed sequences begin and end)."""

    # Fewer tokens than a filter has numbers; vectors' widths, and blocks of 256 tokens and 256 channels, crossed.
    sizes = tuple(
        (2, T, D, None)
        for T, D in (
            *itertools.product((0, 1, 2, 3, 17), (1, 5, 16, 33, 130)),
            *((255, 3), (256, 3), (257, 3), (259, 3), (300, 5), (600, 257), (5, 512), (2, 600)),
        )
    )
    busy = (1, 300, 260, None)

    def __init__(self, W, activation, left_out):
        self.W, self.activation, self.left_out = W, activation, left_out
        self.name = "-".join(["convolution", str(W), str(activation), *(f"no {name}" for name in left_out)])
        if not left_out:
            self.small = tuple((2, T, 3, None) for T in (0, 1, 2, 3, 6))
            self.float32 = ((1, 2000, 130, None),)
        if not left_out and activation:
            self.shared = (
                *((1, 1100, 80, None), (3, 700, 40, None), (2, 1, 40000, None), (90, 3, 300, None)),
                (1, 900, 600, (0, 3, 3, 250, 600, 900)),
            )

    def inputs(self, size, dtype=np.float64, seed=0):
        B, T, D, offsets = size
        x = inputs(B, T, D, self.W, dtype, seed, None if offsets is None else len(offsets) - 1)
        return without(x, *self.left_out) | ({} if offsets is None else {"cu_seqlens": np.array(offsets)})

    def forward(self, x):
        return dict(zip(("y", "final_state"), forward(x, activation=self.activation)))

    def backward(self, x):
        return by_input(backward(x, activation=self.activation))

    def expected(self, x):
        return dict(zip(("y", "final_state"), oracle(**without(x, "dy", "dfinal_state"), activation=self.activation)))

    def expected_gradients(self, x):
        return by_input(oracle_backward(**x, activation=self.activation))


OPTIONAL = [(), ("bias",), ("initial_state",), ("dfinal_state",), ("bias", "initial_state", "dfinal_state")]
CASES = [ConvolutionCase(*form) for form in itertools.product((2, 3, 4), (None, "silu"), OPTIONAL)]
CASES += [ConvolutionCase(*form) for form in itertools.product((1, 5, 16), (None, "silu"), ((), OPTIONAL[-1]))]
