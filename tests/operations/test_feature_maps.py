"""Feature maps against plain NumPy, their gradients, and their accuracy over the whole range of a number."""

import numpy as np
import pytest
from support import cases, oracle
from support.operations import points

import fwm_py
from fwm_py import _core, feature_maps
from fwm_py.random import MT19937, Philox


@pytest.mark.parametrize("case", cases.MAP_CASES, ids=str)
def test_positive_is_what_the_table_says(case):
    assert (case.forward(points((100, 5))) >= 0).all() == case.row["positive"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", cases.MAP_CASES, ids=str)
def test_nan_stays_in_its_row(case, dtype):
    x = points((5, 6)).astype(dtype)
    clean = case.forward(x)
    x[2, 1] = np.nan
    phi = case.forward(x)
    others = np.arange(5) != 2
    np.testing.assert_array_equal(phi[others], clean[others])
    np.testing.assert_array_equal(np.isnan(phi[2]), np.isnan(case.oracle(x.astype(np.float64))[2]))
    assert np.isnan(phi[2]).any()
    dx = case.backward(np.ones(phi.shape, dtype), x)
    assert np.isnan(dx[2]).any() and not np.isnan(dx[others]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_at_the_ends(dtype):
    x = np.array([-np.inf, -0.0, 0.0, np.inf], dtype)
    np.testing.assert_array_equal(feature_maps.elu1(x), [0, 1, 1, np.inf])
    np.testing.assert_array_equal(feature_maps.tanh(x), [-1, 0, 0, 1])
    np.testing.assert_array_equal(np.signbit(feature_maps.tanh(x)), [True, True, False, False])
    one = np.ones(4, dtype)
    np.testing.assert_array_equal(feature_maps.elu1_backward(one, x), [0, 1, 1, 1])
    np.testing.assert_array_equal(feature_maps.tanh_backward(one, x), [0, 1, 1, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("d", [4, 7, 64])
def test_the_slope_of_relu_at_zero_is_zero(d, sign, dtype):
    """Although the factors beside it in the products are not, whatever the signs."""
    for i in (1, d - 2):
        for zero in (0.0, -0.0):
            x = sign * np.arange(1, d + 1).astype(dtype)
            x[i] = zero
            for nu in (1, 2, 3):
                assert feature_maps.dpfp_backward(np.ones(2 * d * nu, dtype), x, nu)[i] == 0


# --- accuracy in ulp -----------------------------------------------------------------------------------------------


def whole_range(dtype):
    """Finite numbers of every exponent and both signs, and more of them where exp and tanh have their work."""
    random, info = np.random.default_rng(5), np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    every = np.ldexp(random.uniform(1, 2, (40, len(exponents))), exponents).astype(dtype).ravel()
    busy = np.concatenate([random.uniform(0, top, 20000) for top in (1e-3, 0.7, 1, 10, 25, 110, 750)]).astype(dtype)
    ends = np.array([0, info.smallest_subnormal, info.tiny, info.max], dtype)
    x = np.concatenate([every, busy, ends])
    return np.concatenate([x, -x])


def wider(dtype):
    """A type in which NumPy's own functions are exact enough to judge results of dtype."""
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if np.finfo(wide).nmant < np.finfo(dtype).nmant + 10:
        pytest.skip("this platform has nothing wider than float64")
    return wide


def error_in_ulp(result, exact):
    """Distance from the exact value in units of the result's last place; where exact overflows, inf is right."""
    with np.errstate(over="ignore"):
        nearest = exact.astype(result.dtype)
    finite = np.isfinite(nearest)
    np.testing.assert_array_equal(result[~finite], nearest[~finite])
    with np.errstate(over="ignore"):  # the spacing of the largest number
        return (np.abs(result - exact)[finite] / np.spacing(np.abs(nearest[finite]))).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_within_two_ulp(dtype):
    x = whole_range(dtype)
    assert error_in_ulp(feature_maps.tanh(x), np.tanh(x.astype(wider(dtype)))) <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elu1_within_two_ulp(dtype):
    """Below 0 this is exp, down to the smallest denormal number."""
    x = whole_range(dtype)
    wide = x.astype(wider(dtype))
    exact = np.where(wide > 0, wide + 1, np.exp(np.minimum(wide, 0)))
    result = feature_maps.elu1(x)
    assert error_in_ulp(result, exact) <= 2
    tiny = (exact >= np.finfo(dtype).smallest_subnormal) & (exact < np.finfo(dtype).tiny)
    assert tiny.sum() > 100 and np.all(result[tiny] > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_favor_keeps_denormal_results(dtype):
    """exp(u - o) fades gradually to 2^-149 (float64: 2^-1074): only the rounding of u and o may show."""
    deepest = 104 if dtype == np.float32 else 745
    x = np.linspace(0, 1 + np.sqrt(2 * deepest), 20001).astype(dtype)[:, None]
    wide = x.astype(wider(dtype))
    o = wide * wide / 2 + np.log(wide.dtype.type(2)) / 2
    info = np.finfo(dtype)
    for column, u in ((0, wide), (1, -wide)):
        exact = np.exp(u - o)[:, 0]
        result = feature_maps.favor(x, np.ones((1, 1), dtype))[:, column]
        rounding = 2 * info.eps * (np.abs(u) + o + 1)[:, 0]
        assert np.all(np.abs(result - exact) <= rounding * exact + info.smallest_subnormal)
        assert np.all(result[exact > 2 * info.smallest_subnormal] > 0)
        assert np.sum((result > 0) & (result < info.tiny)) > 50


def test_favor_overflows_to_infinity_only():
    phi = feature_maps.favor(np.array([[4.0]], np.float32), np.array([[40.0]], np.float32))
    np.testing.assert_array_equal(phi, [[np.inf, 0]])


def test_the_place_that_the_bridge_gives():
    x, out = points((3, 4)), np.empty((3, 16))
    assert _core.map_forward("dpfp", x=x, argument=2, out=out) is out and np.array_equal(out, feature_maps.dpfp(x, 2))
    dx = np.empty((3, 4))
    assert _core.map_backward("dpfp", dy=out, x=x, argument=2, out=(dx,))[0] is dx and np.array_equal(
        dx, feature_maps.dpfp_backward(out, x, 2)
    )
    with pytest.raises(ValueError, match="^out: got shape"):
        _core.map_forward("dpfp", x=x, argument=2, out=dx)
    with pytest.raises(ValueError, match="^out: got memory of x"):
        _core.map_forward("tanh", x=x, out=x)


# --- weights that are small against the eps of linear_attention: the figures of its documentation ---------------------


def sum_of_weights(q, k):
    ones = np.ones((*k.shape[:3], 1))
    return fwm_py.linear_attention(q, k, ones, normalize=True)[0][0, -1, 0, 0]


def test_small_features_fade():
    phi = feature_maps.elu1(np.full((1, 1, 1, 8), -10.0))
    assert round(sum_of_weights(phi, phi), 3) == 0.016
    sums = []
    for seed in range(50):
        x = np.random.default_rng(seed).standard_normal((2, 1, 16, 1, 8))
        x *= 8 / np.linalg.norm(x, axis=-1, keepdims=True)
        sums.append(sum_of_weights(*feature_maps.favor(x, feature_maps.draw_omega(8, 64, Philox(seed)))))
    assert round(np.mean(sums), 3) == 0.002 and np.median(sums) < 1e-5
    assert fwm_py.linear_attention(phi, phi, np.ones((1, 1, 1, 1)), normalize=True, eps=1e-20)[0] > 0.999


def test_what_fades_is_documented():
    assert "0.016" in fwm_py.linear_attention.__doc__ and "0.002" in fwm_py.linear_attention.__doc__
    assert "0.002" in feature_maps.favor.__doc__


# --- Omega ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", [Philox, MT19937])
@pytest.mark.parametrize("d, m", [(1, 1), (1, 3), (2, 2), (3, 7), (4, 2), (8, 8), (17, 40), (64, 128)])
def test_omega_is_the_householder_q_of_the_blocks(generator, d, m):
    ours, same = generator(1), generator(1)
    omega = feature_maps.draw_omega(d, m, ours)
    assert omega.shape == (d, m) and omega.dtype == np.float32
    np.testing.assert_allclose(omega, oracle.draw_omega(d, m, same.normal), atol=2e-5)
    np.testing.assert_array_equal(ours.normal(16), same.normal(16))  # whole blocks were drawn, and no more


def test_omega_columns_are_orthogonal():
    omega = feature_maps.draw_omega(16, 16, Philox(7)).astype(np.float64)
    gram = omega.T @ omega
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_omega_is_converted_to_the_dtype_of_x(dtype):
    x, omega = points((5, 4)).astype(dtype), feature_maps.draw_omega(4, 6, Philox(1))
    for other in (omega, omega.astype(np.float64)):
        phi = feature_maps.favor(x, other)
        assert phi.dtype == dtype
        np.testing.assert_array_equal(phi, feature_maps.favor(x, omega.astype(dtype)))
        dx = feature_maps.favor_backward(phi, x, other)
        np.testing.assert_array_equal(dx, feature_maps.favor_backward(phi, x, omega.astype(dtype)))
