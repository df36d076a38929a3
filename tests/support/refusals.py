"""What may be given instead of a good argument, and how a refusal is checked."""

import re

import numpy as np
import pytest

HUGE = 10**30


def assert_refused(call, name, exception):
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is exception
    assert re.match(rf"{name}\b", message), f"the message does not begin with {name}: {message}"
    assert "\n" not in message and len(message) < 400


def bad_array(good):
    """For an array of floats: (given, exception)."""
    yield from ((given, TypeError) for given in (None, "text", object()))
    for dtype in (np.int64, bool, np.float16, np.complex128, object, str, "M8[s]"):
        yield good.astype(dtype), TypeError
    if np.longdouble != np.float64:
        yield good.astype(np.longdouble), TypeError
    yield from bad_masks(good)
    yield from bad_shapes(good)


def bad_masks(good):
    """NumPy's conversion would forget a mask, also in lists."""
    mask = np.zeros(good.shape, bool)
    mask.flat[-1] = True
    yield np.ma.array(good, mask=mask), ValueError
    if good.ndim:
        yield [*good[:-1], np.ma.array(good[-1], mask=mask[-1])], ValueError


def bad_shapes(good):
    yield np.zeros((), good.dtype), ValueError
    yield good[None], ValueError
    yield good[0], ValueError
    for axis in range(good.ndim):
        yield np.concatenate([good, good], axis=axis), ValueError


def bad_indices(good, below):
    """For an array of integers below a bound."""
    yield from ((given, TypeError) for given in (None, "text"))
    for dtype in (np.float64, bool, object, "m8[s]"):
        yield good.astype(dtype), TypeError
    yield from bad_masks(good)
    yield from bad_shapes(good)
    of_64_bits = (-1, below, 2**31, 2**32, -(2**63))
    for dtype, numbers in (("i8", of_64_bits), ("i1", [-1]), ("u1", [below]), ("u8", (2**32, 2**64 - 1))):
        for number in numbers:
            wrong = good.astype(dtype)
            wrong.flat[-1] = number
            yield wrong, ValueError


def bad_offsets(good):
    """For cu_seqlens, of which [0, 4, 4, 6] is good: (given, exception)."""
    yield from ((good.astype(dtype), TypeError) for dtype in (float, bool, object, "m8[s]"))
    yield from ((given, TypeError) for given in ("text", [0.0, 6.0], [0.0, 4, 4, 6], []))
    for inside in ((4, 2), (9, 4), (-2, 4)):
        yield [0, *inside, 6], ValueError
    for ends in ((1, 6), (0, 5), (0, 7), (-1, 6), (-(2**63), 6)):
        yield [ends[0], 4, 4, ends[1]], ValueError
    for given in ([-1, 0, 4, 6], [0], [6], 6, [[0, 6]], [[0, 4, 4, 6]], [[0], [4, 6]], np.zeros(0, int)):
        yield given, ValueError
    for given in ([0, 4, 2**64 - 1, 6], [2**63, 4, 4, 6]):
        yield np.array(given, np.uint64), ValueError


def bad_count(low=1):
    """For a whole number."""
    yield from ((given, TypeError) for given in (None, "2", 2.0, 2.5, float("nan"), [2], np.float64(2)))
    yield from ((given, ValueError) for given in (low - 1, -5, -HUGE, HUGE, 2**63, 2**64))


def bad_positive():
    """For a finite number above 0."""
    yield from ((given, TypeError) for given in ("1", [1.0], 1j))
    yield from ((given, ValueError) for given in (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 10**400))


# --- options: (given, exception) by the name of the argument ---------------------------------------------------------

NUMBERS = [
    *((given, TypeError) for given in ("1", [1.0], 1j, object(), np.ones(2))),
    *((given, ValueError) for given in (float("nan"), float("inf"), -float("inf"), np.float64("nan"), 10**400)),
]
FLAGS = [
    (given, TypeError) for given in (None, 0, 1, "True", "no", "yes", "", 0.0, 1.0, [], np.True_, np.array([True]))
]
WORDS = [
    *((given, TypeError) for given in (1, True, b"l2", ["l2"], np.float64(1))),
    *((given, ValueError) for given in ("", "L2", "l2 ", "l2\0", "chunk", "é", "\udc80", "x" * 1000)),
]
OPTIONS = {
    "scale": NUMBERS,
    "eps": [(None, TypeError), *NUMBERS],
    "normalize": FLAGS,
    "clamp_first": FLAGS,
    "output_final_state": FLAGS,
    "qk_norm": WORDS,
    "method": [(None, TypeError), *WORDS],
    "activation": [*WORDS, ("SiLU", ValueError), ("silu ", ValueError), ("silu\0", ValueError), ("relu", ValueError)],
    "causal": FLAGS,
    "return_lse": FLAGS,
    "nu": list(bad_count()),
    "n_values": list(bad_count()),
}
