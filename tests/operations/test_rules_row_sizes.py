"""Keys and queries of any size under qk_norm="l2": a forward multiplies what a row reads and writes by its factor, and
the row itself only where the factor is far from 1."""

import numpy as np
import pytest
from support import rule_oracle

import fwm_py

SHAPES = [(70, 1, 1, 32, 32), (70, 1, 2, 17, 40), (33, 2, 2, 64, 16)]  # T, H, HV, K, V
STRENGTHS = {
    "delta_rule": ("beta",),
    "gated_delta_rule": ("g", "beta"),
    "kimi_delta_rule": ("g", "beta"),
    "gated_delta_rule_2": ("g", "b", "w"),
}

every_function = pytest.mark.parametrize("function", STRENGTHS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def drawn(function, shape):
    T, H, HV, K, V = shape
    random = np.random.default_rng(0)
    per_gate = () if function == "gated_delta_rule" else (K,)
    rest = {"g": (T, HV, *per_gate), "beta": (T, HV), "b": (T, HV, K), "w": (T, HV, V)}
    x = {name: random.standard_normal((1, T, *heads)) for name, heads in zip("qkv", [(H, K), (H, K), (HV, V)])}
    x |= {name: random.random((1, *rest[name])) for name in STRENGTHS[function]}
    if "g" in x:
        x["g"] *= -0.2
    return {name: array.astype(np.float32) for name, array in x.items()}


def run(function, x):
    return getattr(fwm_py, function)(*x.values(), qk_norm="l2")[0]


@pytest.mark.parametrize("tokens", [slice(0, None), slice(5, 6), slice(30, 33)])
@pytest.mark.parametrize("size", [2.0**60, 2.0**-8, 2.0**-20, 2.0**-50, 2.0**-64, 0])
@pytest.mark.parametrize("which", ["k", "q", "qk"])
@every_shape
@every_function
def test_rows_of_any_size(function, shape, which, size, tokens):
    x = drawn(function, shape)
    for name in which:
        x[name][:, tokens] *= np.float32(size)
    expected = rule_oracle.forward(function, {name: a.astype(np.float64) for name, a in x.items()}, qk_norm="l2")["o"]
    for o, exact in zip(np.moveaxis(run(function, x), 1, 0), np.moveaxis(expected, 1, 0)):
        assert np.abs(o - exact).max() <= 1e-4 * np.abs(exact).max()


@pytest.mark.parametrize("size", [1e25, 1e-25, np.inf, np.nan])
@pytest.mark.parametrize("which", ["k", "q"])
@every_shape
@every_function
def test_what_comes_before_has_the_same_bits(function, shape, which, size):
    x = drawn(function, shape)
    before = run(function, x)
    x[which][:, 22] *= np.float32(size)
    after = run(function, x)
    assert before[:, :22].tobytes() == after[:, :22].tobytes()
    assert np.isfinite(after).all() or not np.isfinite(size)
