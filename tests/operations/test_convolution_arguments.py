"""The causal convolution: arrays of every make, out, and bad arguments, which an exception names first."""

import sys

import numpy as np
import pytest
from support import cases
from test_bad_input import assert_refused, bad_array, bad_shapes
from test_convolution import backward, bits, every_dtype, everything, forward, inputs, without
from test_rules_bad_input import overlapping

import fwm_py
from fwm_py.convolution import causal_conv1d, causal_conv1d_backward

# --- arrays of every make, and out ---------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("make", cases.MAKES, ids=lambda make: make.__name__)
def test_arrays_of_another_make(make, dtype):
    arrays = inputs(2, 20, 6, 3, dtype)
    made = {name: make(array) for name, array in arrays.items()}
    before = [array.tobytes() for array in made.values()]
    assert bits(everything(made, activation="silu")) == bits(everything(arrays, activation="silu"))
    assert [array.tobytes() for array in made.values()] == before


def test_lists():
    assert causal_conv1d([[[1.0], [2.0]]], [[10.0, 1.0]], [100.0])[0].tolist() == [[[101.0], [112.0]]]


@every_dtype
def test_out(dtype):
    arrays = inputs(2, 30, 20, 4, dtype)
    expected, state = forward(arrays)
    for with_state in (False, True):
        out, state_out = np.full_like(expected, np.nan), np.full_like(state, np.nan)
        y, final = forward(arrays, out=(out, state_out) if with_state else out, output_final_state=not with_state)
        assert y is out and (final is state_out) == with_state
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(final, state)


# --- bad arguments -------------------------------------------------------------------------------------------------

GOOD = inputs(2, 3, 5, 4)


def refused(instead, name, exception):
    """By the backward, and by the forward unless the argument is the backward's."""
    assert_refused(lambda: backward(GOOD | instead), name, exception)
    if name not in ("dy", "dfinal_state"):
        assert_refused(lambda: forward(GOOD | instead), name, exception)


@pytest.mark.parametrize("name", GOOD)
def test_bad_arrays(name):
    good = GOOD[name]
    for given, exception in bad_array(good):
        if given is None and name in ("bias", "initial_state", "dfinal_state"):
            continue
        if name == "x" and exception is ValueError and np.ndim(given) == 3:  # gives the sizes: another array is blamed
            continue
        if name == "weight" and getattr(given, "shape", None) == (5, 8):
            continue
        refused({name: given}, name, exception)
    if name != "x":
        refused({name: good.astype(np.float32)}, name, TypeError)
    refused({name: [[1.0], [1.0, 2.0]]}, name, ValueError)


def test_sizes():
    for W in (0, 1, 5, 8):
        refused({"weight": np.ones((5, W))}, "weight", ValueError)
    refused(
        {name: GOOD[name][..., :0] for name in GOOD if name != "weight"} | {"weight": GOOD["weight"][:0]},
        "x",
        ValueError,
    )
    with pytest.raises(ValueError, match=r"^weight: got W = 5, expected 2 to 4"):
        causal_conv1d(GOOD["x"], np.ones((5, 5)))
    with pytest.raises(TypeError, match=r"^weight: got float64, expected float32, as x has"):
        causal_conv1d(GOOD["x"].astype(np.float32), GOOD["weight"])
    with pytest.raises(ValueError, match=r"^initial_state: got shape .*, expected \(n, W - 1, D\)"):
        causal_conv1d(GOOD["x"], GOOD["weight"], initial_state=np.ones((2, 4, 5)))


@pytest.mark.parametrize(
    "name, given, exception",
    [
        *(("activation", given, TypeError) for given in (1, True, b"silu", ["silu"], np.float64(1))),
        *(
            ("activation", given, ValueError)
            for given in ("", "SiLU", "silu ", "relu", "silu\0", "é", "\udc80", "x" * 1000)
        ),
        *(("output_final_state", given, TypeError) for given in (None, 0, 1, "True", 1.0, [], np.True_)),
    ],
    ids=ascii,
)
def test_bad_options(name, given, exception):
    assert_refused(lambda: forward(GOOD, **{name: given}), name, exception)
    if name == "activation":
        assert_refused(lambda: backward(GOOD, **{name: given}), name, exception)


def test_bad_cu_seqlens():
    arrays = inputs(1, 6, 5, 4, n=3)
    everything(arrays, cu_seqlens=[0, 4, 4, 6])
    for exception, bad in (
        (TypeError, ([0.0, 4, 4, 6], "text", [])),
        (
            ValueError,
            (
                [0, 4, 2, 6],
                [1, 4, 4, 6],
                [0, 4, 4, 5],
                [0, 4, 4, 7],
                [0],
                6,
                [[0, 6]],
                np.array([0, 4, 2**64 - 1, 6], np.uint64),
            ),
        ),
    ):
        for given in bad:
            assert_refused(lambda: forward(arrays, cu_seqlens=given), "cu_seqlens", exception)
            assert_refused(lambda: backward(arrays, cu_seqlens=given), "cu_seqlens", exception)
    assert_refused(lambda: forward(arrays, cu_seqlens=[0, 4, 6]), "initial_state", ValueError)
    assert_refused(lambda: backward(without(arrays, "initial_state"), cu_seqlens=[0, 4, 6]), "dfinal_state", ValueError)
    assert_refused(lambda: forward(GOOD, cu_seqlens=[0, 2, 3]), "cu_seqlens", ValueError)


def test_bad_out():
    y, state = forward(GOOD)

    def out_refused(out, exception):
        assert_refused(lambda: forward(GOOD, out=out), "out", exception)

    for given in ([y, state], 1, "text", object(), (y, None), (None, state), (y, [1.0])):
        out_refused(given, TypeError)
    for given in ((), (y,), (y, state, state)):
        out_refused(given, ValueError)
    for array, put in ((y, lambda given: given), (y, lambda given: (given, state)), (state, lambda given: (y, given))):
        for dtype in (np.float32, np.int64, np.complex128, object, array.dtype.newbyteorder()):
            out_refused(put(array.astype(dtype)), TypeError)
        for given, exception in bad_shapes(array):
            out_refused(put(given), exception)
        for make in (cases.strided, cases.backwards, cases.read_only, cases.unaligned, cases.column_major):
            out_refused(put(make(array)), ValueError)
    with pytest.raises(TypeError, match=r"^out: got float32, expected float64 in native byte order, as x has"):
        forward(GOOD, out=y.astype(np.float32))


@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
def test_out_shares_no_memory(name):
    y, state = forward(GOOD)
    for target, put in ((y, lambda given: (given, state)), (state, lambda given: (y, given))):
        beside, free = overlapping(GOOD[name], target, 0)
        np.testing.assert_array_equal(forward(GOOD | {name: beside}, out=put(free))[0], forward(GOOD)[0])
        over, taken = overlapping(GOOD[name], target, -1)
        assert_refused(lambda: forward(GOOD | {name: over}, out=put(taken)), "out", ValueError)
        assert over.tobytes() == GOOD[name].tobytes()


def test_results_share_no_memory():
    y, state = overlapping(*forward(GOOD), -1)
    assert_refused(lambda: forward(GOOD, out=(y, state)), "out", ValueError)
    state = forward(GOOD)[1]
    assert_refused(
        lambda: forward(GOOD | {"initial_state": state[::-1]}, out=(forward(GOOD)[0], state)), "out", ValueError
    )
    x = GOOD["x"].copy()
    assert_refused(lambda: forward(GOOD | {"x": x}, out=x), "out", ValueError)


@pytest.mark.skipif(sys.maxsize < 2**40, reason="sizes of 64 bits")
def test_results_beyond_all_memory():
    for shape in ((2**40, 1, 1), (1, 2**41, 1), (2**40, 0, 1), (1, 1, 2**45)):
        x = np.broadcast_to(1.0, shape)
        weight = np.broadcast_to(1.0, (shape[2], 4))
        with pytest.raises((MemoryError, ValueError)):
            causal_conv1d(x, weight, output_final_state=True)
        if shape[1]:
            with pytest.raises((MemoryError, ValueError)):
                causal_conv1d_backward(x, x, weight)


def test_missing_and_unknown_arguments():
    x, weight = GOOD["x"], GOOD["weight"]
    for call in (
        lambda: causal_conv1d(x),
        lambda: causal_conv1d(x, weight, None, "silu"),
        lambda: causal_conv1d_backward(x, x, weight, surprise=1),
        lambda: fwm_py._core.convolution_forward(x, weight),
    ):
        with pytest.raises(TypeError):
            call()
