"""What every function of support/calls.py that takes `out` must do with it, forward and backward."""

import itertools

import numpy as np
import pytest
from support import cases
from support.calls import CALLS, array_arguments, bits, flat, like, overlapping, replaced
from support.refusals import assert_refused, bad_shapes

OUT = [call for call in CALLS if "out" in call.parameters]
STATES = [call for call in OUT if "output_final_state" in call.parameters]
every_call = pytest.mark.parametrize("call", OUT, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def of(call, dtype=np.float64):
    """Good arguments of several tokens, and the result."""
    good = call.good(dtype, T=20)
    return good, call(good)


def name_in(call):
    """What a message begins with about one array of `out`."""
    return r"out\[\d" if "backward" in call.function.__name__ else "out"


def is_in_place(call, name, target, result):
    """A forward may write the final state over the initial one."""
    return name == "initial_state" and "backward" not in call.function.__name__ and target is not flat(result)[0]


@every_dtype
@every_call
def test_results_are_written_where_they_are_wanted(call, dtype):
    good, expected = of(call, dtype)
    out = like(expected, lambda array: np.full_like(array, np.nan))
    result = call(good | {"out": out})
    assert not isinstance(expected, tuple) or type(result) is type(expected)
    assert all(got is given for got, given in zip(flat(result), flat(out), strict=True)) and bits(out) == bits(expected)
    again = call(good | {"out": result})
    assert all(got is given for got, given in zip(flat(again), flat(out), strict=True)) and bits(out) == bits(expected)


@every_dtype
@pytest.mark.parametrize("call", STATES, ids=str)
def test_out_of_a_state(call, dtype):
    """It is written whether or not it is asked for; `out` may also be the first array alone, or left out."""
    good, expected = of(call, dtype)
    first, state = call(good | {"output_final_state": False})
    assert state is None and bits(first) == bits(expected[0])
    out = like(expected, lambda array: np.full_like(array, np.nan))
    result = call(good | {"out": out, "output_final_state": False})
    assert all(got is given for got, given in zip(flat(result), flat(out), strict=True)) and bits(out) == bits(expected)
    first = np.full_like(expected[0], np.nan)
    assert call(good | {"out": first, "output_final_state": False})[0] is first and bits(first) == bits(expected[0])
    assert call(good | {"out": first, "output_final_state": False})[1] is None
    result = call(good | {"out": first})
    assert result[0] is first and bits(result) == bits(expected)


def bad_places(array):
    for dtype in (np.float32, np.int64, np.complex128, object, array.dtype.newbyteorder()):
        yield array.astype(dtype), TypeError
    for given, exception in bad_shapes(array):
        yield given, exception if isinstance(given, np.ndarray) else TypeError  # a number
    yield array[:1] if len(array) > 1 else array[:0], ValueError
    for make in (cases.strided, cases.backwards, cases.read_only, cases.unaligned, cases.column_major):
        if array.ndim > 1 or make is not cases.column_major:
            yield make(array), ValueError


@every_call
def test_bad_out(call):
    good, expected = of(call)
    out = like(expected, np.zeros_like)

    def refused(given, exception, name="out"):
        assert_refused(lambda: call(good | {"out": given}), name, exception)

    for given in ([*out], 1, "text", object()):
        refused(given, TypeError)
    for given in ((), out[:-1], (*out, out[0])) if isinstance(out, tuple) else ():
        refused(given, ValueError)
    for array in flat(out):
        for given in (1.0, [1.0], *([None] if isinstance(out, tuple) else [(array,)])):
            refused(replaced(out, array, given), TypeError, name_in(call))
        for given, exception in bad_places(array):
            refused(replaced(out, array, given), exception, name_in(call))
    with pytest.raises(
        TypeError, match=rf"^out.*: got float32, expected float64 in native byte order, as {call.leads} has"
    ):
        call(good | {"out": replaced(out, array, array.astype(np.float32))})
    for given, exception in bad_places(out[0]) if call in STATES else ():
        refused(given, exception)
    if isinstance(out, tuple) and out[-1] is None:
        refused((*out[:-1], out[0]), ValueError, name_in(call))


@every_call
def test_out_shares_no_memory(call):
    """With no input, nor with each other; beside one is good, and so is an initial state's place for the final one."""
    good, expected = of(call)
    out = like(expected, np.zeros_like)

    def refused(given, places):
        assert_refused(lambda: call({**given, "out": places}), name_in(call), ValueError)

    for name, array, put in array_arguments(call, good):
        for target, behind in itertools.product(flat(out), (True, False)):
            beside, free = overlapping(array, target, 0, behind)
            assert bits(call({**put(beside), "out": replaced(out, target, free)})) == bits(expected)
            over, taken = overlapping(array, target, -1, behind)
            refused(put(over), replaced(out, target, taken))
            assert over.tobytes() == array.tobytes()
            if array.shape == target.shape and not is_in_place(call, name, target, out):
                refused(put(array), replaced(out, target, array))
    for i, a in enumerate(flat(out)):
        for b in flat(out)[i + 1 :]:
            first, second = overlapping(a, b, -1)
            shared = replaced(replaced(out, a, first), b, second)
            refused(good, shared)
            if a.shape == b.shape:
                refused(good, replaced(out, a, b))


@pytest.mark.parametrize("call", [call for call in STATES if "initial_state" in call.good()], ids=str)
def test_a_state_backwards_is_not_in_place(call):
    good, expected = of(call)
    out = like(expected, np.zeros_like)
    given = replaced(out[1], flat(out[1])[0], flat(out[1])[0][::-1])
    assert_refused(lambda: call(good | {"initial_state": given, "out": out}), "out", ValueError)


# --- in whatever object the memory of an input came ----------------------------------------------------------------


class Interface:
    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.array = array


class Subclass(np.ndarray):
    pass


def as_array(memory, shape):
    return memory[: int(np.prod(shape))].reshape(shape)


MAKES = {
    "array": as_array,
    "subclass": lambda memory, shape: as_array(memory, shape).view(Subclass),
    "memoryview": lambda memory, shape: memoryview(as_array(memory, shape)),
    "interface": lambda memory, shape: Interface(as_array(memory, shape)),
    "strided memoryview": lambda memory, shape: memoryview(as_array(memory[::2], shape)),
    "strided interface": lambda memory, shape: Interface(as_array(memory[::2], shape)),
    "backwards": lambda memory, shape: as_array(memory, shape)[(slice(None, None, -1),) * len(shape)],
    "other byte order": lambda memory, shape: as_array(memory, shape).view(memory.dtype.newbyteorder()),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@every_call
def test_out_on_the_memory_of_an_input(call, make):
    good, expected = of(call)
    for name, array, put in array_arguments(call, good):
        memory = np.zeros(2 * max(array.size, max(part.size for part in flat(expected))))
        given = make(memory, array.shape)
        for part in flat(expected):
            if is_in_place(call, name, part, expected):
                continue
            out = like(replaced(expected, part, taken := as_array(memory, part.shape)), lambda a: a)
            with pytest.raises(
                ValueError, match=rf"^out(\[\d\])*: got memory of {name}(\[\d\])?, expected memory of its own"
            ):
                call(put(given) | {"out": out})
            assert not memory.any() and taken.base is not None
