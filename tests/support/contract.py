"""What an operation brings to the tests of operations/test_contract*.py, each of which runs for all of them.

An operation joins by a subclass of `Case` with its equation, whose cases go into CASES of operations.py, and by its
functions with good arguments in CALLS of calls.py. It then inherits every test there; no test names an operation.
"""

from typing import NamedTuple

import numpy as np


class Near(NamedTuple):
    """How far an array may be off: `relative` of its largest number, which counts as `floor` where it is smaller, or
    of each number."""

    relative: float
    floor: float = 1.0
    each: bool = False
    slack: float = 0.0

    def check(self, got, expected):
        assert got.keys() == expected.keys()
        for name, wanted in expected.items():
            assert got[name].shape == wanted.shape, name
            size = np.abs(wanted) if self.each else max(np.abs(wanted).max(initial=0), self.floor)
            off = np.abs(got[name] - wanted)
            worst = off.max(initial=0)
            assert (off <= self.relative * size + self.slack).all(), f"{name}: off by {worst:.3g} of {np.max(size):.3g}"


class Case:
    """An operation with its options. Arrays go by name: those of a call, and d<result> for each result.

    Sizes are whatever `inputs` takes: `sizes` for the equation; `small`, where central differences are taken, away from
    kinks; `float32`; `shared`, what threads share; `busy`, for calls side by side.
    """

    name = ""
    sizes = small = float32 = shared = ()
    busy = None
    results = gradients = Near(1e-12)
    results32 = gradients32 = Near(1e-6, 0)

    def __str__(self):
        return self.name

    def inputs(self, size, dtype=np.float64, seed=0):
        """All arrays of a backward."""
        raise NotImplementedError

    def forward(self, x):
        """Results by name."""
        raise NotImplementedError

    def backward(self, x):
        """Gradients by the name of the input."""
        raise NotImplementedError

    def expected(self, x):
        raise NotImplementedError

    def expected_gradients(self, x):
        raise NotImplementedError

    def reference(self, size):
        """The inputs, and the oracle's results and gradients of them."""
        x = self.inputs(size)
        return x, self.expected(x), self.expected_gradients(x)

    def cancels(self, size):
        """Inputs whose gradient nearly cancels at a size of `small`, which leaves differences no digits."""
        return ()

    def everything(self, x):
        """Results, and gradients under their own names."""
        return {**self.forward(x), **{"d" + name: gradient for name, gradient in self.backward(x).items()}}

    def bits(self, x):
        return bits(self.everything(x))


def assert_close(got, expected, tolerance):
    """Within `tolerance` of the largest number of an array, or of 1."""
    Near(tolerance).check({"array": got}, {"array": expected})


def bits(arrays):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


def cast(x, dtype):
    """Numbers that are not integers in another precision."""
    floats = {name: a.astype(dtype) for name, a in x.items() if getattr(a, "dtype", None) in (np.float32, np.float64)}
    return x | floats


def normal(shapes, dtype, seed):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def without(x, *names):
    return {name: array for name, array in x.items() if name not in names}


def by_input(gradients):
    """The gradients of a named tuple that there are, by the name of the input."""
    return {name[1:]: gradient for name, gradient in gradients._asdict().items() if gradient is not None}
