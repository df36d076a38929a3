"""The rules with one query a sequence, against the equations of oracle.py that keep the whole memory."""

import numpy as np
import pytest
from support import cases, oracle

# (B, L, p, N): one token, widths around the vectors', lengths around the chunks', few values, many values.
SIZES = [
    (1, 1, 1, 2),
    (2, 1, 16, 3),
    (3, 2, 3, 2),
    (2, 5, 15, 4),
    (1, 15, 17, 6),
    (2, 16, 16, 5),
    (3, 17, 31, 5),
    (2, 33, 8, 40),
    (1, 40, 33, 3),
    (2, 50, 40, 50),
    (5, 20, 128, 20),
    (1, 100, 65, 30),
    (2, 64, 64, 1),
]
SMALL = [(1, 2, 4, 3), (2, 3, 5, 3), (2, 6, 8, 4), (1, 20, 3, 6), (2, 40, 8, 5)]


def slope_along(case, inputs, dy, direction):
    """The exact derivative of sum(dy * y) when the inputs move along a direction, by one complex step."""
    moved = {name: getattr(inputs, name) + 1e-30j * direction[name] for name in case.differentiable()}
    return (dy * case.oracle(inputs._replace(**moved))).sum().imag / 1e-30


@pytest.mark.parametrize("repeat_keys", [False, True], ids=["keys", "repeated-keys"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_forward_is_the_equation(case, size, repeat_keys):
    inputs = cases.rule_inputs(*size, repeat_keys=repeat_keys)
    y = case.forward(inputs)
    assert y.dtype == np.float64 and y.shape == (size[0], size[3]) and y.flags.c_contiguous
    np.testing.assert_allclose(y, case.oracle(inputs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_sequences_of_one_value(case):
    inputs = cases.rule_inputs(3, 30, 8, 4)
    inputs.values[...] = 2
    np.testing.assert_allclose(case.forward(inputs), case.oracle(inputs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_keys_and_queries_of_both_signs(case):
    """What tanh gives: sums of a key may be small, and delta's memory grows large."""
    inputs = cases.rule_inputs(4, 24, 6, 5)
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


@pytest.mark.parametrize("case", [case for case in cases.RULE_CASES if str(case) == "fwm"], ids=str)
def test_what_has_faded_from_the_memory_of_fwm(case):
    """|W| grows about fourfold a token: old rows are dropped, and the gradient of old tokens ends as exact zeros."""
    inputs = cases.rule_inputs(2, 200, 24, 90)
    inputs = inputs._replace(keys=3 * inputs.keys)
    single = inputs._replace(
        keys=inputs.keys.astype(np.float32), beta=inputs.beta.astype(np.float32), query=inputs.query.astype(np.float32)
    )
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
@pytest.mark.parametrize("case", [case for case in cases.RULE_CASES if str(case) == "fwm"], ids=str)
def test_the_memory_of_fwm_grows_fast(case, dtype, scale):
    """Each token multiplies |W| by up to |k|^2: products of several tokens' norms pass the range of the dtype."""
    inputs = cases.rule_inputs(2, 40, 12, 5).astype(dtype)
    inputs = inputs._replace(keys=inputs.keys * dtype(scale))
    wide, dy = inputs.astype(np.float64), np.random.default_rng(1).standard_normal((2, 5)).astype(dtype)
    tolerance = 1e-3 if dtype == np.float32 else 1e-8
    np.testing.assert_allclose(case.forward(inputs), case.oracle(wide), atol=tolerance)
    arrays = {name: getattr(wide, name) for name in case.differentiable()}
    slopes = oracle.gradient(lambda a: (dy * case.oracle(wide._replace(**a))).sum(), arrays)
    for name, gradient in case.backward(dy, inputs).items():
        cases.assert_gradient(gradient, slopes[name], 10 * tolerance, name)


@pytest.mark.parametrize("size", SMALL, ids=str)
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_gradient_by_central_differences(case, size):
    inputs = cases.rule_inputs(*size)
    dy = np.random.default_rng(1).standard_normal((size[0], size[3]))
    gradients = case.backward(dy, inputs)
    for name, gradient in gradients.items():
        slopes = cases.central_differences(lambda: (dy * case.forward(inputs)).sum(), getattr(inputs, name))
        cases.assert_gradient(gradient, slopes, name=name)


def test_the_clamp_of_fwm_is_checked_on_both_sides():
    """The central differences above see tokens where |W|_F > 1 and others where it is below, none beside the kink."""
    norms = []
    for size in SMALL:
        seen = []
        oracle.fwm_rule(*cases.rule_inputs(*size), norms=seen)
        norms += list(np.ravel(seen))
    norms = np.array(norms)
    assert np.mean(norms > 1) > 0.2 and np.sum(norms < 1) >= 5
    assert np.abs(norms - 1).min() > 1e-4


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_gradient_along_directions(case, size):
    """Every size: the gradient's product with a direction is the exact slope along it."""
    inputs, random = cases.rule_inputs(*size), np.random.default_rng(2)
    dy = random.standard_normal((size[0], size[3]))
    gradients = case.backward(dy, inputs)
    for moved in [*case.differentiable()] * 3:
        direction = {name: np.zeros(getattr(inputs, name).shape) for name in case.differentiable()}
        direction[moved] = random.standard_normal(getattr(inputs, moved).shape)
        expected = slope_along(case, inputs, dy, direction)
        scale = np.linalg.norm(gradients[moved]) * np.linalg.norm(direction[moved])
        assert abs((gradients[moved] * direction[moved]).sum() - expected) <= 1e-11 * scale + 1e-14, moved


@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_gradient_of_the_equation(case):
    inputs = cases.rule_inputs(2, 35, 9, 6, seed=4, repeat_keys=True)
    dy = np.random.default_rng(3).standard_normal((2, 6))
    arrays = {name: getattr(inputs, name) for name in case.differentiable()}
    slopes = oracle.gradient(lambda a: (dy * case.oracle(inputs._replace(**a))).sum(), arrays)
    gradients = case.backward(dy, inputs)
    assert list(gradients) == list(slopes)
    for name, slope in slopes.items():
        cases.assert_gradient(gradients[name], slope, 1e-11, name)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_float32_follows_float64(case, size):
    narrow = cases.rule_inputs(*size).astype(np.float32)
    dy = np.random.default_rng(1).standard_normal((size[0], size[3])).astype(np.float32)
    wide = narrow.astype(np.float64)
    y, exact = case.forward(narrow), case.forward(wide)
    assert y.dtype == np.float32
    assert np.abs(y - exact).max() <= 1e-5 * max(1, np.abs(exact).max())
    exact = case.backward(dy.astype(np.float64), wide)
    for name, gradient in case.backward(dy, narrow).items():
        assert gradient.dtype == np.float32
        assert np.abs(gradient - exact[name]).max() <= 1e-4 * np.abs(exact[name]).max() + 1e-6, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_no_sequences_give_empty_results(case, dtype):
    inputs = cases.rule_inputs(0, 4, 5, 3).astype(dtype)
    assert case.forward(inputs).shape == (0, 3)
    gradients = case.backward(np.empty((0, 3), dtype), inputs)
    assert all(g.shape == getattr(inputs, name).shape and g.dtype == dtype for name, g in gradients.items())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_a_sequence_without_tokens_answers_zero(case, dtype):
    inputs = cases.rule_inputs(2, 0, 5, 3).astype(dtype)
    np.testing.assert_array_equal(case.forward(inputs), np.zeros((2, 3)))
    gradients = case.backward(np.ones((2, 3), dtype), inputs)
    assert gradients["keys"].shape == (2, 0, 5)
    np.testing.assert_array_equal(gradients["query"], np.zeros((2, 5)))


@pytest.mark.parametrize("make", cases.MAKES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_any_array_gives_the_same_bits(case, dtype, make):
    inputs = cases.rule_inputs(3, 6, 7, 4).astype(dtype)
    dy = np.random.default_rng(1).standard_normal((3, 4)).astype(dtype)
    other = cases.RuleInputs(*(make(a) for a in inputs[:4]), inputs.n_values)
    assert case.forward(other).tobytes() == case.forward(inputs).tobytes()
    expected = case.backward(dy, inputs)
    for name, gradient in case.backward(make(dy), other).items():
        assert gradient.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize(
    "integers",
    [
        np.int8,
        np.uint8,
        np.int16,
        np.uint16,
        np.int32,
        np.uint32,
        np.int64,
        np.uint64,
        np.intp,
        np.longlong,
        ">i2",
        "<u4",
        ">i8",
    ],
    ids=str,
)
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_values_of_any_integer_type(case, integers):
    inputs = cases.rule_inputs(3, 6, 7, 4)
    dy = np.random.default_rng(1).standard_normal((3, 4))
    other = inputs._replace(values=inputs.values.astype(integers))
    assert case.forward(other).tobytes() == case.forward(inputs).tobytes()
    expected = case.backward(dy, inputs)
    for name, gradient in case.backward(dy, other).items():
        assert gradient.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_inputs_are_not_changed(case):
    inputs = cases.rule_inputs(2, 40, 12, 5)
    dy = np.random.default_rng(1).standard_normal((2, 5))
    arrays = [*inputs[:4], dy]
    before = [a.tobytes() for a in arrays]
    case.forward(inputs)
    case.backward(dy, inputs)
    assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("name", ["keys", "beta", "query"])
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_nan_stays_in_its_sequence(case, name):
    if name not in case.differentiable():
        pytest.skip("the rule does not use it")
    inputs = cases.rule_inputs(3, 20, 6, 4)
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
    case = next(case for case in cases.RULE_CASES if str(case) == "ours")
    inputs = cases.rule_inputs(2, L, 6, 5, seed=1)
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
@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_nan_is_where_the_equation_has_it(case, name, bad, dtype):
    """A value that is never written, too: the memory is NaN as a whole, or 0 times NaN is asked of it."""
    if name not in case.differentiable():
        pytest.skip("the rule does not use it")
    dy = np.random.default_rng(3).standard_normal((3, 9)).astype(dtype)
    for L in (1, 2, 20, 33):
        for token in sorted({0, L // 2, L - 1}):
            inputs = spoiled(cases.rule_inputs(3, L, 6, 9), name, token, bad).astype(dtype)
            with np.errstate(all="ignore"):
                exact = case.oracle(inputs.astype(np.float64))
            expected = np.isnan(exact)
            got = np.isnan(case.forward(inputs))
            assert got[expected].all() and not got[np.isfinite(exact)].any(), f"L {L}, token {token}"
            if expected.any() and bad is not np.inf and name != "beta":  # a beta's gradient does not depend on itself
                for key, gradient in case.backward(dy, inputs).items():
                    assert np.isnan(gradient[1]).all() and not np.isnan(gradient[[0, 2]]).any(), (key, L, token)


@pytest.mark.parametrize("case", cases.RULE_CASES, ids=str)
def test_an_empty_memory_asked_with_nan(case):
    inputs = cases.rule_inputs(2, 0, 5, 3)
    inputs.query[1, 2] = np.nan
    y = case.forward(inputs)
    assert not y[0].any() and np.isnan(y[1]).all() == (str(case) != "softmax")  # whose sum over nothing is 0
