"""Gates near 1 in float32: thousands of tokens multiply the state by exp(g), whose rounding may not have one sign."""

import numpy as np
import pytest
from support.rule_cases import METHODS, RULE_CASES, Sizes

from fwm_py import gated_delta_rule, gated_linear_attention, kimi_delta_rule

GATED = [case for case in RULE_CASES if case.gate and not case.options]
SIZES = Sizes(1, 8192, 1, 1, 1, 64, 64)

# Of the largest number, for outputs and gradients. Token by token a sum's state is rounded 8192 times, and is only as
# near as linear_attention's, which has no gate.
LARGEST_ERROR = {"chunked": 1e-6, "recurrent": 3e-6}
LARGEST_DRIFT = 2.5e-7


def results(case, x, method):
    o = case.forward(x, SIZES, method=method)["o"]
    return {"o": o} | {"d" + name: gradient for name, gradient in case.backward(x, SIZES, method=method).items()}


@pytest.mark.parametrize("case", GATED, ids=str)
@pytest.mark.parametrize("g", [-1e-7, -1e-6, -1e-4, -1e-2])
def test_a_weak_gate_in_float32(case, g):
    x = case.inputs(SIZES, dtype=np.float32, states=False)
    x["g"][...] = g
    exact = results(case, {name: array.astype(np.float64) for name, array in x.items()}, "chunked")
    for method in METHODS:
        for name, got in results(case, x, method).items():
            wanted = exact[name]
            off = got - wanted
            assert np.abs(off).max() <= LARGEST_ERROR[method] * np.abs(wanted).max(), (method, name)
            if name != "dg":  # which is a sum over the state: its error turns as slowly as the state does
                drift = abs((off * np.sign(wanted)).sum()) / np.abs(wanted).sum()
                assert drift <= LARGEST_DRIFT, (method, name)


@pytest.mark.parametrize("channels", [False, True])
def test_a_sum_that_fades_slowly(channels):
    """Ones, added up over 65536 tokens: whole numbers, whose rounding repeats itself."""
    T, g = 65536, np.float32(-1e-6)
    ones = np.ones((1, T, 1, 1), np.float32)
    gate = np.full((1, T, 1, 1) if channels else (1, T, 1), g)
    o, _ = gated_linear_attention(ones, ones, ones, gate)
    assert o[0, -1, 0, 0] == pytest.approx(np.expm1(T * float(g)) / np.expm1(float(g)), rel=1e-6)


@pytest.mark.parametrize("channels", [False, True])
def test_gates_that_let_the_state_grow(channels):
    """By e^88 before the one key that is written, which may not be divided by that; and by e^18 behind it."""
    T, K, at, g = 48, 16, 39, np.float32(2.2)
    q, k = np.ones((1, T, 1, K), np.float32), np.zeros((1, T, 1, K), np.float32)
    k[:, at] = 1
    v, beta = np.ones((1, T, 1, K), np.float32), np.full((1, T, 1), 0.5, np.float32)
    gates = np.full((1, T, 1, K) if channels else (1, T, 1), g)
    rule = kimi_delta_rule if channels else gated_delta_rule
    o, state = rule(q, k, v, gates, beta, scale=1.0, output_final_state=True)
    np.testing.assert_allclose(state, 0.5 * np.exp(float(g) * (T - 1 - at)), rtol=1e-5)
    np.testing.assert_allclose(o[0, at:, 0, 0], 0.5 * K * np.exp(float(g) * np.arange(T - at)), rtol=1e-5)
