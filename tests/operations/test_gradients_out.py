"""`out` of every backward: gradients are written into the caller's arrays, which are of the right kind and apart."""

import numpy as np
import pytest
from support import cases
from support.rule_calls import CALLS, flat

import fwm_py


def memory(call, with_state):
    arguments = call.good(K=3, V=5, T=20)
    if not with_state:
        arguments |= {"initial_state": None, "dfinal_state": None}
    return call, arguments


def softmax():
    random = np.random.default_rng(0)
    arrays = {
        name: random.standard_normal(shape)
        for name, shape in (("do", (2, 7, 4, 3)), ("q", (2, 7, 4, 5)), ("k", (2, 9, 2, 5)), ("v", (2, 9, 2, 3)))
    }
    return lambda arguments: fwm_py.softmax_attention_backward(**arguments), arrays


def convolution(with_state):
    random = np.random.default_rng(0)
    arrays = {
        "dy": random.standard_normal((2, 7, 5)),
        "x": random.standard_normal((2, 7, 5)),
        "weight": random.standard_normal((5, 3)),
    }
    if with_state:
        arrays |= {"bias": random.standard_normal(5), "initial_state": random.standard_normal((2, 2, 5))}
    return lambda arguments: fwm_py.causal_conv1d_backward(**arguments), arrays


def norm(*gate):
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((2, 7, 5)) for name in ("dy", "x", *gate)} | {
        "weight": random.standard_normal(5)
    }
    return lambda arguments: fwm_py.rms_norm_backward(**arguments), arrays


BACKWARDS = {
    f"{call}{'' if state else '-no state'}": lambda call=call, state=state: memory(call, state)
    for call in CALLS
    if call.backward
    for state in (True, False)
}
BACKWARDS |= {
    "softmax": softmax,
    "convolution": lambda: convolution(True),
    "convolution-no state": lambda: convolution(False),
    "norm": norm,
    "norm-gate": lambda: norm("gate"),
}
every_backward = pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)


def like(result, make):
    """The result with `make` of its arrays in their places."""
    return tuple(None if x is None else like(x, make) if isinstance(x, tuple) else make(x) for x in result)


def replaced(result, old, new):
    return tuple(replaced(x, old, new) if type(x) is tuple else new if x is old else x for x in result)


def assert_refused(function, arguments, out, exception, name="out"):
    with pytest.raises(exception, match=rf"^{name}"):
        function(arguments | {"out": out})


@every_backward
def test_gradients_are_written_where_they_are_wanted(backward):
    function, arguments = backward()
    expected = function(arguments)
    out = like(expected, lambda array: np.full_like(array, np.nan))
    result = function(arguments | {"out": out})
    assert type(result) is type(expected)
    assert all(got is given for got, given in zip(flat(result), flat(out), strict=True))
    assert [array.tobytes() for array in flat(out)] == [array.tobytes() for array in flat(expected)]
    assert function(arguments | {"out": result})[0] is result[0]


@every_backward
def test_bad_gradient_arrays(backward):
    function, arguments = backward()
    out = like(function(arguments), np.zeros_like)
    for given, exception in (
        (list(out), TypeError),
        (1, TypeError),
        (out[:-1], ValueError),
        ((*out, out[0]), ValueError),
    ):
        assert_refused(function, arguments, given, exception)
    for array in flat(out):
        wrong = [
            (array.astype(np.float32), TypeError),
            (array.astype(np.int64), TypeError),
            (1.0, TypeError),
            (None, TypeError),
            (array[:1] if len(array) > 1 else array[:0], ValueError),
            (array[None], ValueError),
            (cases.read_only(array), ValueError),
            (cases.strided(array), ValueError),
        ]
        for given, exception in wrong:
            assert_refused(function, arguments, replaced(out, array, given), exception, r"out\[")
    if out[-1] is None:
        assert_refused(function, arguments, (*out[:-1], out[0]), ValueError, r"out\[")


@every_backward
def test_gradient_arrays_share_no_memory(backward):
    """With no input, and not with each other."""
    function, arguments = backward()
    out = like(function(arguments), np.zeros_like)
    read = [
        array
        for value in arguments.values()
        for array in (value if isinstance(value, tuple) else (value,))
        if isinstance(array, np.ndarray)
    ]
    for array in flat(out):
        for other in [*read, *flat(out)]:
            if other is not array and other.shape == array.shape and other.dtype == array.dtype:
                assert_refused(function, arguments, replaced(out, array, other), ValueError, r"out\[")
