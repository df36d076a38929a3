"""RMS norm, gated and not: the equation in plain NumPy, and its cases."""

import numpy as np

from fwm_py.norm import RmsNormGradients, rms_norm, rms_norm_backward
from support.contract import Case, by_input, normal, without

# --- the equation --------------------------------------------------------------------------------------------------


def gate_and_slope(z, activation):
    s = 1 / (1 + np.exp(-z))
    return (s, s * (1 - s)) if activation == "sigmoid" else (z * s, s + z * s * (1 - s))


def oracle(x, weight, gate=None, *, activation="silu", eps=1e-6):
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return y if gate is None else y * gate_and_slope(gate, activation)[0]


def oracle_backward(dy, x, weight, gate=None, *, activation="silu", eps=1e-6):
    """With n = r x and r = (mean(x^2) + eps)^-1/2:  dn_j / dx_i = r (i == j) - r n_j n_i / D."""
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    n, (a, slope) = r * x, (1, 0) if gate is None else gate_and_slope(gate, activation)
    dn = dy * weight * a
    dx = r * (dn - n * (dn * n).mean(-1, keepdims=True))
    dweight = (dy * n * a).reshape(-1, len(weight)).sum(0)
    return RmsNormGradients(dx, dweight, None if gate is None else dy * weight * n * slope)


# --- cases ---------------------------------------------------------------------------------------------------------


class NormCase(Case):
    # Vectors' widths, and blocks of 16384 numbers crossed (256 rows of 64) and of 16 rows.
    sizes = (
        *((2, D) for D in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65)),
        *((5,), (0, 5), (2, 0, 3), (257, 64), (3, 2, 130, 48), (17, 1500)),
    )
    busy = (3000, 48)

    def __init__(self, activation, eps):
        self.activation, self.options = activation, {"eps": eps} | ({"activation": activation} if activation else {})
        self.name = f"norm-{activation}-{eps}"
        if eps < 0.1:
            self.float32, self.shared = ((3000, 130),), ((5000, 64), (50, 20000), (3, 700, 4, 33))
        else:  # the gradient of a row of one number is next to nothing without it
            self.small = ((3, 1), (2, 3, 7), (2, 17))

    def inputs(self, size, dtype=np.float64, seed=0):
        x = normal({"dy": size, "x": size, "weight": size[-1:], "gate": size}, dtype, seed)
        return x if self.activation else without(x, "gate")

    def forward(self, x):
        return {"y": rms_norm(**without(x, "dy"), **self.options)}

    def backward(self, x):
        return by_input(rms_norm_backward(**x, **self.options))

    def expected(self, x):
        return {"y": oracle(**without(x, "dy"), **self.options)}

    def expected_gradients(self, x):
        return by_input(oracle_backward(**x, **self.options))


CASES = [NormCase(activation, eps) for activation in ("silu", "sigmoid", None) for eps in (1e-6, 0.5)]
