"""RMS norm, gated and not: its equation in plain NumPy, central differences; arrays, out, bad arguments."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import cases
from test_bad_input import assert_refused, bad_array, bad_shapes
from test_rules_bad_input import overlapping

import fwm_py
from fwm_py.norm import RmsNormGradients, rms_norm, rms_norm_backward

# --- the equation --------------------------------------------------------------------------------------------------


def gate_and_slope(z, activation):
    s = 1 / (1 + np.exp(-z))
    return (s, s * (1 - s)) if activation == "sigmoid" else (z * s, s + z * s * (1 - s))


def oracle(x, weight, gate=None, *, activation="silu", eps=1e-6):
    y = np.empty(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        rms = np.sqrt(sum(number * number for number in x[row]) / len(weight) + eps)
        for i in range(len(weight)):
            y[row][i] = (
                weight[i] * x[row][i] / rms * (1 if gate is None else gate_and_slope(gate[row][i], activation)[0])
            )
    return y


def oracle_backward(dy, x, weight, gate=None, *, activation="silu", eps=1e-6):
    """By the matrix of a row's derivatives, dn_j / dx_i = r (i == j) - r^3 x_j x_i / D."""
    D = len(weight)
    dx, dweight, dgate = np.empty(x.shape), np.zeros(D), None if gate is None else np.empty(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        r, (a, slope) = (
            1 / np.sqrt((x[row] ** 2).mean() + eps),
            (1, 0) if gate is None else gate_and_slope(gate[row], activation),
        )
        dweight += dy[row] * r * x[row] * a
        dx[row] = (r * np.eye(D) - r**3 * np.outer(x[row], x[row]) / D) @ (dy[row] * weight * a)
        if gate is not None:
            dgate[row] = dy[row] * weight * r * x[row] * slope
    return RmsNormGradients(dx, dweight, dgate)


def inputs(shape=(2, 3, 5), dtype=np.float64, seed=0):
    """All arrays of a backward, by name."""
    normal = np.random.default_rng(seed).standard_normal
    shapes = {"dy": shape, "x": shape, "weight": shape[-1:], "gate": shape}
    return {name: normal(of_it).astype(dtype) for name, of_it in shapes.items()}


def forward(arrays, **options):
    return rms_norm(**{name: array for name, array in arrays.items() if name != "dy"}, **options)


def backward(arrays, **options):
    return rms_norm_backward(**arrays, **options)


def gated(arrays, activation):
    """The arrays and the activation of a form: without a gate for None."""
    return (
        (arrays, {"activation": activation})
        if activation
        else ({name: array for name, array in arrays.items() if name != "gate"}, {})
    )


def everything(arrays, **options):
    """The result, and the gradients that there are."""
    return [forward(arrays, **options), *(gradient for gradient in backward(arrays, **options) if gradient is not None)]


def bits(results):
    return [(a.dtype, a.shape, a.tobytes()) for a in results]


def assert_close(got, expected, tolerance):
    """Within tolerance of the array's largest value."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= tolerance * max(1, np.abs(expected).max(initial=0))


every_form = pytest.mark.parametrize("form", ["silu", "sigmoid", None])
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# --- what is computed ----------------------------------------------------------------------------------------------

# Vectors' widths, and blocks of 16384 numbers crossed (256 rows of 64) and of 16 rows.
SHAPES = [
    *((2, D) for D in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65)),
    (5,),
    (0, 5),
    (2, 0, 3),
    (257, 64),
    (3, 2, 130, 48),
    (17, 1500),
]


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_gradient_are_the_equation(shape, form):
    arrays, options = gated(inputs(shape), form)
    for eps in (1e-6, 0.5):
        y = forward(arrays, eps=eps, **options)
        assert y.dtype == np.float64 and y.flags.c_contiguous
        assert_close(y, oracle(**{name: arrays[name] for name in arrays if name != "dy"}, eps=eps, **options), 1e-12)
        gradients = backward(arrays, eps=eps, **options)
        assert (gradients.dgate is None) == (form is None)
        for got, expected in zip(gradients, oracle_backward(**arrays, eps=eps, **options), strict=True):
            if got is not None:
                assert got.dtype == np.float64 and got.flags.c_contiguous
                assert_close(got, expected, 1e-12)


@every_form
@pytest.mark.parametrize("shape", [(3, 1), (2, 3, 7), (2, 17)], ids=str)
def test_gradient_by_central_differences(shape, form):
    arrays, options = gated(inputs(shape), form)
    gradients = backward(arrays, eps=0.1, **options)._asdict()
    for name in arrays.keys() - {"dy"}:
        reference = cases.central_differences(
            lambda: (arrays["dy"] * forward(arrays, eps=0.1, **options)).sum(), arrays[name]
        )
        cases.assert_gradient(gradients["d" + name], reference, name=name)


def test_rows_longer_than_a_block():
    """Gradients by the difference along a direction."""
    arrays, change = inputs((2, 20000)), inputs((2, 20000), seed=1)
    assert_close(forward(arrays), oracle(arrays["x"], arrays["weight"], arrays["gate"]), 1e-12)
    gradients = backward(arrays)
    for name, gradient in gradients._asdict().items():
        name = name[1:]
        losses = [
            (arrays["dy"] * forward(arrays | {name: arrays[name] + h * change[name]})).sum() for h in (1e-4, -1e-4)
        ]
        assert (gradient * change[name]).sum() == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-6)


@every_form
def test_float32_follows_float64(form):
    arrays, options = gated(inputs((3000, 130), np.float32), form)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    for got, expected in zip(everything(arrays, **options), everything(wide, **options), strict=True):
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


@every_dtype
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_gates_of_every_size(activation, dtype):
    """Within some ulp from the smallest to the largest number, for x = 1, whose root mean square is 1."""
    sizes = np.logspace(np.log10(np.finfo(dtype).tiny) + 1, np.log10(np.finfo(dtype).max) - 2, 1000)
    z = np.concatenate([-sizes, [0], sizes]).astype(dtype)
    one, wide, eps, tiny = np.ones(z.size, dtype), z.astype(np.longdouble), np.finfo(dtype).eps, np.finfo(dtype).tiny
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-wide))
    expected = wide * s if activation == "silu" else s
    y = rms_norm(one, one, z, activation=activation, eps=0)
    assert (np.abs(y - expected) <= 5 * eps * np.abs(expected) + 100 * tiny).all()
    slope = s * (1 + wide * (1 - s)) if activation == "silu" else s * (1 - s)
    assert (np.abs(rms_norm_backward(one, one, one, z, activation=activation, eps=0).dgate - slope) <= 20 * eps).all()


def test_rows_of_zeros():
    """eps is what keeps them finite; without it the equation has 0 / 0."""
    arrays = inputs((2, 5)) | {"x": np.zeros((2, 5))}
    y, dx, dweight, dgate = everything(arrays)
    assert not y.any() and not dgate.any() and not dweight.any()
    s = 1 / (1 + np.exp(-arrays["gate"]))
    assert_close(dx, arrays["dy"] * arrays["weight"] * arrays["gate"] * s * 1e3, 1e-12)
    assert np.isnan(forward(arrays, eps=0)).all()


def test_swish_is_silu_and_the_default():
    arrays = inputs()
    assert (
        bits(everything(arrays, activation="swish"))
        == bits(everything(arrays))
        == bits(everything(arrays, activation="silu"))
    )
    assert bits(everything(arrays, activation="sigmoid")) != bits(everything(arrays))
    assert bits(everything(arrays, eps=1e-6)) == bits(everything(arrays)) != bits(everything(arrays, eps=1e-5))


@every_form
def test_torch(form):
    torch = pytest.importorskip("torch")
    arrays, options = gated(inputs((2, 40, 3, 17)), form)
    dy, x, weight, *gate = (torch.from_numpy(array).requires_grad_() for array in arrays.values())
    y = torch.nn.functional.rms_norm(x, (17,), weight, eps=1e-3)
    for z in gate:
        y = y * getattr(torch.nn.functional, form)(z)
    expected = [y, *torch.autograd.grad(y, (x, weight, *gate), dy)]
    for got, theirs in zip(everything(arrays, eps=1e-3, **options), expected, strict=True):
        assert_close(got, theirs.detach().numpy(), 1e-12)


# --- numbers that are not finite, threads --------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(
    "form, name",
    [(form, name) for form in ("silu", "sigmoid", None) for name in ("x", "gate", "dy") if form or name != "gate"],
)
def test_nan_stays_in_its_row(form, name, dtype):
    arrays, options = gated(inputs((700, 33), dtype), form)
    before = everything(arrays, **options)
    changed = arrays | {name: arrays[name].copy()}
    changed[name][300, 7] = np.nan
    y, dx, dweight, *dgate = everything(changed, **options)
    in_y = {"x": range(33), "gate": [7], "dy": []}[name]
    assert {tuple(at) for at in np.argwhere(np.isnan(y))} == {(300, i) for i in in_y}
    assert {tuple(at) for at in np.argwhere(np.isnan(dx))} == {(300, i) for i in range(33)}
    assert set(np.flatnonzero(np.isnan(dweight))) == (set(range(33)) if name == "x" else {7})
    for gradient in dgate:
        assert {tuple(at) for at in np.argwhere(np.isnan(gradient))} == {
            (300, i) for i in (range(33) if name == "x" else [7])
        }
    for got, expected in zip((y, dx, *dgate), (*before[:2], *before[3:]), strict=True):
        np.testing.assert_array_equal(np.delete(got, 300, axis=0), np.delete(expected, 300, axis=0))


@every_dtype
@every_form
@pytest.mark.parametrize("shape", [(5000, 64), (50, 20000), (3, 700, 4, 33)], ids=str)
def test_the_same_bits_for_every_number_of_threads(shape, form, dtype):
    arrays, options = gated(inputs(shape, dtype), form)
    results = []
    for n in (1, 2, 3, 5):
        fwm_py.set_num_threads(n)
        results.append(bits(everything(arrays, **options)))
    assert all(result == results[0] for result in results[1:])


def test_many_callers_at_once():
    fwm_py.set_num_threads(2)
    work = [inputs((3000 + i, 48), np.float32, seed=i) for i in range(8)]
    expected = [bits(everything(arrays)) for arrays in work]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda arrays: bits(everything(arrays)), work)) == expected


def test_subnormal_numbers_are_the_callers_again():
    everything(inputs(dtype=np.float32))
    assert np.float32(1e-40) * np.ones(64, np.float32).sum() > 0


# --- arrays of every make, and out ---------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("make", cases.MAKES, ids=lambda make: make.__name__)
def test_arrays_of_another_make(make, dtype):
    arrays = inputs((4, 20, 6), dtype)
    made = {name: make(array) for name, array in arrays.items()}
    before = [array.tobytes() for array in made.values()]
    assert bits(everything(made)) == bits(everything(arrays))
    assert [array.tobytes() for array in made.values()] == before


def test_lists():
    assert rms_norm([3.0, -3.0], [1.0, 2.0], eps=0).tolist() == [1.0, -2.0]
    assert rms_norm([3.0, -3.0], [1.0, 2.0], [0.0, 0.0], activation="sigmoid", eps=0).tolist() == [0.5, -1.0]


@every_dtype
def test_out(dtype):
    arrays = inputs((30, 20), dtype)
    out = np.full((30, 20), np.nan, dtype)
    assert forward(arrays, out=out) is out
    np.testing.assert_array_equal(out, forward(arrays))


# --- bad arguments -------------------------------------------------------------------------------------------------

GOOD = inputs()


def refused(instead, name, exception):
    """By the backward, and by the forward unless the argument is the backward's."""
    assert_refused(lambda: backward(GOOD | instead), name, exception)
    if name != "dy":
        assert_refused(lambda: forward(GOOD | instead), name, exception)


@pytest.mark.parametrize("name", GOOD)
def test_bad_arrays(name):
    for given, exception in bad_array(GOOD[name]):
        if name == "x" and exception is ValueError and np.ndim(given):  # gives the sizes: another array is blamed
            continue
        if name == "gate" and given is None:
            continue
        refused({name: given}, name, exception)
    if name != "x":
        refused({name: GOOD[name].astype(np.float32)}, name, TypeError)
    refused({name: [[1.0], [1.0, 2.0]]}, name, ValueError)


def test_sizes():
    refused({name: array[..., :0] for name, array in GOOD.items()}, "x", ValueError)
    with pytest.raises(ValueError, match=r"^gate: got shape \(2, 3, 4\), expected \(\.\.\., D\), here \(2, 3, 5\)"):
        forward(GOOD | {"gate": GOOD["gate"][..., :4]})
    with pytest.raises(TypeError, match=r"^weight: got float64, expected float32, as x has"):
        rms_norm(GOOD["x"].astype(np.float32), GOOD["weight"])


@pytest.mark.parametrize(
    "name, given, exception",
    [
        *(("activation", given, TypeError) for given in (None, 1, True, b"silu", ["silu"], np.float64(1))),
        *(
            ("activation", given, ValueError)
            for given in ("", "SiLU", "silu ", "relu", "silu\0", "é", "\udc80", "x" * 1000)
        ),
        *(("eps", given, TypeError) for given in (None, "1", [1.0], 1j, object())),
        *(("eps", given, ValueError) for given in (-1e-6, np.nan, np.inf, -np.inf, 10**400)),
    ],
    ids=ascii,
)
def test_bad_options(name, given, exception):
    assert_refused(lambda: forward(GOOD, **{name: given}), name, exception)
    assert_refused(lambda: backward(GOOD, **{name: given}), name, exception)


def test_bad_out():
    y = forward(GOOD)
    for given in ([y], 1, "text", object(), (y,)):
        assert_refused(lambda: forward(GOOD, out=given), "out", TypeError)
    for dtype in (np.float32, np.int64, np.complex128, object, y.dtype.newbyteorder()):
        assert_refused(lambda: forward(GOOD, out=y.astype(dtype)), "out", TypeError)
    for given, exception in bad_shapes(y):
        assert_refused(lambda: forward(GOOD, out=given), "out", exception)
    for make in (cases.strided, cases.backwards, cases.read_only, cases.unaligned, cases.column_major):
        assert_refused(lambda: forward(GOOD, out=make(y)), "out", ValueError)


@pytest.mark.parametrize("name", ["x", "gate", "weight"])
def test_out_shares_no_memory(name):
    y = forward(GOOD)
    beside, free = overlapping(GOOD[name], y, 0)
    np.testing.assert_array_equal(forward(GOOD | {name: beside}, out=free), y)
    over, taken = overlapping(GOOD[name], y, -1)
    assert_refused(lambda: forward(GOOD | {name: over}, out=taken), "out", ValueError)
    assert over.tobytes() == GOOD[name].tobytes()


@pytest.mark.skipif(sys.maxsize < 2**40, reason="sizes of 64 bits")
def test_results_beyond_all_memory():
    for rows, D in ((1, 2**41), (2**40, 4), (2**20, 2**22)):
        x, weight = np.broadcast_to(1.0, (rows, D)), np.broadcast_to(1.0, D)
        with pytest.raises((MemoryError, ValueError)):
            rms_norm(x, weight, x)
        with pytest.raises((MemoryError, ValueError)):
            rms_norm_backward(x, x, weight, x)


def test_missing_and_unknown_arguments():
    x, weight, gate = GOOD["x"], GOOD["weight"], GOOD["gate"]
    for call in (
        lambda: rms_norm(x),
        lambda: rms_norm(x, weight, gate, "silu"),
        lambda: rms_norm_backward(x, x, weight, gate, surprise=1),
        lambda: fwm_py._core.norm_forward(x, weight, gate),
    ):
        with pytest.raises(TypeError):
            call()
