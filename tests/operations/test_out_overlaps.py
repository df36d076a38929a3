"""An `out` on the memory of an input is refused, whatever object that memory came in, and nothing is written."""

import numpy as np
import pytest
from support.rule_calls import CALLS, flat

import fwm_py


def random_arrays(**shapes):
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape) for name, shape in shapes.items()}


SOFTMAX = random_arrays(q=(2, 7, 4, 5), k=(2, 9, 2, 5), v=(2, 9, 2, 3))
OF_SOFTMAX = dict(zip(("o", "lse"), fwm_py.softmax_attention(**SOFTMAX, return_lse=True)))
CONVOLUTION = random_arrays(x=(2, 7, 5), weight=(5, 3), bias=(5,), initial_state=(2, 2, 5))
NORM = random_arrays(x=(2, 7, 5), weight=(5,), gate=(2, 7, 5))
FUNCTIONS = {
    "softmax_attention": (fwm_py.softmax_attention, SOFTMAX),
    "softmax_attention_backward": (
        fwm_py.softmax_attention_backward,
        random_arrays(do=(2, 7, 4, 3)) | SOFTMAX | OF_SOFTMAX,
    ),
    "causal_conv1d": (fwm_py.causal_conv1d, CONVOLUTION),
    "causal_conv1d_backward": (
        fwm_py.causal_conv1d_backward,
        random_arrays(dy=(2, 7, 5)) | CONVOLUTION | random_arrays(dfinal_state=(2, 2, 5)),
    ),
    "rms_norm": (fwm_py.rms_norm, NORM),
    "rms_norm_backward": (fwm_py.rms_norm_backward, random_arrays(dy=(2, 7, 5)) | NORM),
} | {f"{call}": (call.function, call.good(K=3, V=5, T=20)) for call in CALLS}


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
    "other byte order": lambda memory, shape: as_array(memory, shape).view(memory.dtype.newbyteorder()),
}


def floats(arguments):
    """(name, array, function that puts another object in its place), those in pairs one by one."""
    for name, value in arguments.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            yield name, value, lambda given, name=name: {**arguments, name: given}
        elif isinstance(value, tuple):
            for i, part in enumerate(value):
                yield (
                    name,
                    part,
                    lambda given, name=name, value=value, i=i: {
                        **arguments,
                        name: (*value[:i], given, *value[i + 1 :]),
                    },
                )


def with_one(result, index, array):
    """A result to write into, whose array number `index` is this one, and a copy of the array there."""
    count = iter(range(99))

    def rebuild(part):
        if part is None:
            return None
        if isinstance(part, np.ndarray):
            return array.reshape(part.shape) if next(count) == index else np.zeros_like(part)
        return tuple(rebuild(one) for one in part)

    return rebuild(result if isinstance(result, (tuple, np.ndarray)) else tuple(result))


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("function, arguments", FUNCTIONS.values(), ids=FUNCTIONS)
def test_out_on_the_memory_of_an_input(function, arguments, make):
    result = function(**arguments)
    for name, array, put in floats(arguments):
        memory = np.zeros(2 * max(array.size, max(part.size for part in flat(result))))
        given = make(memory, array.shape)
        before = memory.tobytes()
        for index, part in enumerate(flat(result)):
            out = with_one(result, index, memory[: part.size])
            if name == "initial_state" and "backward" not in function.__name__ and index > 0:
                continue  # the state may be written in place
            with pytest.raises(
                ValueError, match=rf"^out(\[\d\])*: got memory of {name}(\[\d\])?, expected memory of its own"
            ):
                function(**(put(given) | {"out": out}))
            assert memory.tobytes() == before
