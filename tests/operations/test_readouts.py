"""The read-outs beyond the contract, against the equations of oracle.py that keep the whole memory."""

import numpy as np
import pytest
from support import cases, oracle
from support.operations import ReadoutOperation


def slope_along(case, inputs, dy, direction):
    """The exact derivative of sum(dy * y) when the inputs move along a direction, by one complex step."""
    moved = {name: getattr(inputs, name) + 1e-30j * direction[name] for name in case.differentiable()}
    return (dy * case.oracle(inputs._replace(**moved))).sum().imag / 1e-30


@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_sequences_of_one_value(case):
    inputs = cases.readout_inputs(3, 30, 8, 4)
    inputs.values[...] = 2
    np.testing.assert_allclose(case.forward(inputs), case.oracle(inputs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_keys_and_queries_of_both_signs(case):
    """What tanh gives: sums of a key may be small, and delta's memory grows large."""
    inputs = cases.readout_inputs(4, 24, 6, 5)
    signs = np.random.default_rng(8).choice([-1.0, 1.0], inputs.keys.shape)
    inputs = inputs._replace(keys=inputs.keys * signs, query=inputs.query * signs[:, 0])
    expected = case.oracle(inputs)
    assert np.abs(case.forward(inputs) - expected).max() <= 1e-9 * np.abs(expected).max()
    dy = np.random.default_rng(9).standard_normal(expected.shape)
    gradients = case.backward(dy, inputs)
    arrays = {name: getattr(inputs, name) for name in case.differentiable()}
    slopes = oracle.gradient(lambda a: (dy * case.oracle(inputs._replace(**a))).sum(), arrays)
    for name, slope in slopes.items():
        cases.assert_gradient(gradients[name], slope, 1e-9, name)


@pytest.mark.parametrize("case", [case for case in cases.READOUT_CASES if str(case) == "fwm"], ids=str)
def test_what_has_faded_from_the_memory_of_fwm(case):
    """|W| grows about fourfold a token: old rows are dropped, and the gradient of old tokens ends as exact zeros."""
    inputs = cases.readout_inputs(2, 200, 24, 90)
    inputs = inputs._replace(keys=3 * inputs.keys)
    single = inputs.astype(np.float32)
    y, y_single = case.forward(inputs), case.forward(single)
    np.testing.assert_allclose(y, case.oracle(inputs), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(y_single, y, rtol=1e-4, atol=1e-4)
    dy = np.random.default_rng(5).standard_normal(y.shape)
    gradients, of_single = case.backward(dy, inputs), case.backward(dy.astype(np.float32), single)
    direction = {
        name: np.random.default_rng(6).standard_normal(getattr(inputs, name).shape) for name in case.differentiable()
    }
    along = sum((gradients[name] * direction[name]).sum() for name in direction)
    assert abs(along / slope_along(case, inputs, dy, direction) - 1) <= 1e-8
    for name, exact in gradients.items():
        assert np.abs(of_single[name] - exact).max() <= 1e-4 * np.abs(exact).max(), name
    gone = of_single["keys"] == 0
    assert gone.mean() > 0.3 and np.abs(gradients["keys"][gone]).max() <= 1e-10 * np.abs(gradients["keys"]).max()


@pytest.mark.parametrize("dtype, scale", [(np.float32, 30), (np.float32, 300), (np.float64, 1e4), (np.float64, 1e6)])
@pytest.mark.parametrize("case", [case for case in cases.READOUT_CASES if str(case) == "fwm"], ids=str)
def test_the_memory_of_fwm_grows_fast(case, dtype, scale):
    """Each token multiplies |W| by up to |k|^2: products of several tokens' norms pass the range of the dtype."""
    inputs = cases.readout_inputs(2, 40, 12, 5).astype(dtype)
    inputs = inputs._replace(keys=inputs.keys * dtype(scale))
    wide, dy = inputs.astype(np.float64), np.random.default_rng(1).standard_normal((2, 5)).astype(dtype)
    tolerance = 1e-3 if dtype == np.float32 else 1e-8
    np.testing.assert_allclose(case.forward(inputs), case.oracle(wide), atol=tolerance)
    arrays = {name: getattr(wide, name) for name in case.differentiable()}
    slopes = oracle.gradient(lambda a: (dy * case.oracle(wide._replace(**a))).sum(), arrays)
    for name, gradient in case.backward(dy, inputs).items():
        cases.assert_gradient(gradient, slopes[name], 10 * tolerance, name)


def test_the_clamp_of_fwm_is_checked_on_both_sides():
    """The central differences above see tokens where |W|_F > 1 and others where it is below, none beside the kink."""
    norms = []
    for size in ReadoutOperation.small:
        seen = []
        oracle.fwm_rule(*cases.readout_inputs(*size[:4]), norms=seen)
        norms += list(np.ravel(seen))
    norms = np.array(norms)
    assert np.mean(norms > 1) > 0.2 and np.sum(norms < 1) >= 5
    assert np.abs(norms - 1).min() > 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_a_sequence_without_tokens_answers_zero(case, dtype):
    inputs = cases.readout_inputs(2, 0, 5, 3).astype(dtype)
    np.testing.assert_array_equal(case.forward(inputs), np.zeros((2, 3)))
    gradients = case.backward(np.ones((2, 3), dtype), inputs)
    assert gradients["keys"].shape == (2, 0, 5)
    np.testing.assert_array_equal(gradients["query"], np.zeros((2, 5)))


@pytest.mark.parametrize("integers", "i1 u1 i2 u2 i4 u4 i8 u8 p q >i2 <u4 >i8".split())
@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_values_of_any_integer_type(case, integers):
    inputs = cases.readout_inputs(3, 6, 7, 4)
    dy = np.random.default_rng(1).standard_normal((3, 4))
    other = inputs._replace(values=inputs.values.astype(integers))
    assert case.forward(other).tobytes() == case.forward(inputs).tobytes()
    expected = case.backward(dy, inputs)
    for name, gradient in case.backward(dy, other).items():
        assert gradient.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("name", ["keys", "beta", "query"])
@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_nan_stays_in_its_sequence(case, name):
    if name not in case.differentiable():
        pytest.skip("the rule does not use it")
    inputs = cases.readout_inputs(3, 20, 6, 4)
    clean = case.forward(inputs)
    getattr(inputs, name)[1].flat[0] = np.nan
    y = case.forward(inputs)
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])
    assert np.isnan(y[1]).any()


@pytest.mark.parametrize(
    "dtype, powers",
    [(np.float32, (-13, -18, -22, -26, -31)), (np.float64, (-13, -80, -150, -170, -250))],
    ids=["float32", "float64"],
)
@pytest.mark.parametrize("L", [7, 18])
def test_small_totals_of_the_delta_rule(L, dtype, powers):
    """Keys whose features are as small as FAVOR+ makes them: 1 / total, the product of two keys and the square of a
    total all leave the range of the numbers before the key does."""
    case = next(case for case in cases.READOUT_CASES if str(case) == "ours")
    inputs = cases.readout_inputs(2, L, 6, 5, seed=1)
    for mixed in (False, True):  # with keys of ordinary size between them
        factors = 10.0 ** np.resize(powers, (2, L))
        if mixed:
            factors[:, ::3] = 1
        small = inputs._replace(keys=inputs.keys * factors[..., None]).astype(dtype)
        wide = small.astype(np.float64)
        dy = np.random.default_rng(1).standard_normal((2, 5)).astype(dtype)
        tolerance = 1e-4 if dtype is np.float32 else 1e-10
        np.testing.assert_allclose(case.forward(small), case.oracle(wide), rtol=tolerance, atol=tolerance)
        # x / sum(x) does not change when x is multiplied: the gradients of small keys are those of the others, divided.
        ordinary = wide._replace(keys=wide.keys / factors[..., None])
        arrays = {name: getattr(ordinary, name) for name in case.differentiable()}
        slopes = oracle.gradient(lambda a: (dy * case.oracle(ordinary._replace(**a))).sum(), arrays)
        gradients = case.backward(dy, small)
        gradients["keys"] = gradients["keys"].astype(np.float64) * factors[..., None]
        for name, slope in slopes.items():
            cases.assert_gradient(gradients[name], slope, 10 * tolerance, name)


def spoiled(inputs, name, token, bad):
    """A copy whose second sequence has a bad number, at a token unless in the query; bad 0: a whole row of zeros."""
    arrays = {key: getattr(inputs, key).copy() for key in ("keys", "beta", "query")}
    row = arrays[name][1] if name == "query" else arrays[name][1, token, ...]
    row[... if bad == 0 or row.ndim == 0 else 0] = bad
    return inputs._replace(**arrays)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0], ids=["nan", "inf", "zeros"])
@pytest.mark.parametrize("name", ["keys", "beta", "query"])
@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_nan_is_where_the_equation_has_it(case, name, bad, dtype):
    """A value that is never written, too: the memory is NaN as a whole, or 0 times NaN is asked of it."""
    if name not in case.differentiable():
        pytest.skip("the rule does not use it")
    dy = np.random.default_rng(3).standard_normal((3, 9)).astype(dtype)
    for L in (1, 2, 20, 33):
        for token in sorted({0, L // 2, L - 1}):
            inputs = spoiled(cases.readout_inputs(3, L, 6, 9), name, token, bad).astype(dtype)
            with np.errstate(all="ignore"):
                exact = case.oracle(inputs.astype(np.float64))
            expected = np.isnan(exact)
            got = np.isnan(case.forward(inputs))
            assert got[expected].all() and not got[np.isfinite(exact)].any(), f"L {L}, token {token}"
            if expected.any() and bad is not np.inf and name != "beta":  # a beta's gradient does not depend on itself
                for key, gradient in case.backward(dy, inputs).items():
                    assert np.isnan(gradient[1]).all() and not np.isnan(gradient[[0, 2]]).any(), (key, L, token)


@pytest.mark.parametrize("case", cases.READOUT_CASES, ids=str)
def test_an_empty_memory_asked_with_nan(case):
    inputs = cases.readout_inputs(2, 0, 5, 3)
    inputs.query[1, 2] = np.nan
    y = case.forward(inputs)
    assert not y[0].any() and np.isnan(y[1]).all() == (str(case) != "softmax")  # whose sum over nothing is 0
