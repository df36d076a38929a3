"""What every operation of support/operations.py must do with numbers: the equation, its gradient, float32, threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.cases import assert_gradient, central_differences
from support.contract import bits, cast
from support.operations import CASES

import fwm_py


def every(sizes):
    """All cases with each of their sizes of a kind."""
    pairs = [(case, size) for case in CASES for size in getattr(case, sizes)]
    return pytest.mark.parametrize("case, size", pairs, ids=[f"{case}-{size}" for case, size in pairs])


def arrays_of(x):
    return {name: array for name, array in x.items() if isinstance(array, np.ndarray)}


every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@every_case
def test_an_operation_has_sizes(case):
    assert case.sizes and case.busy and sum(str(case) == str(other) for other in CASES) == 1
    alike = [other for other in CASES if type(other) is type(case)]
    assert all(any(getattr(other, kind) for other in alike) for kind in ("small", "float32", "shared"))


@every("sizes")
def test_the_equation(case, size):
    """In new arrays; those given stay as they are."""
    x, results, gradients = case.reference(size)
    before = bits(arrays_of(x))
    got, slopes = case.forward(x), case.backward(x)
    assert bits(arrays_of(x)) == before
    assert all(a.dtype == np.float64 and a.flags.c_contiguous for a in (*got.values(), *slopes.values()))
    case.results.check(got, results)
    case.gradients.check(slopes, gradients)


@every("small")
def test_gradient_by_central_differences(case, size):
    x = case.inputs(size, seed=3)

    def value():
        return sum((x["d" + name] * result).sum() for name, result in case.forward(x).items() if "d" + name in x)

    gradients = case.backward(x)
    for name in gradients.keys() - case.cancels(size):
        assert_gradient(gradients[name], central_differences(value, x[name]), name=name)


@every("float32")
def test_float32_follows_float64(case, size):
    x = case.inputs(size, np.float32)
    wide = cast(x, np.float64)
    got, slopes = case.forward(x), case.backward(x)
    assert all(a.dtype == np.float32 for a in (*got.values(), *slopes.values()))
    case.results32.check(got, case.forward(wide))
    case.gradients32.check(slopes, case.backward(wide))


@every_dtype
@every("shared")
def test_the_same_bits_for_every_number_of_threads(case, size, dtype):
    x, results = case.inputs(size, dtype), []
    for n in (1, 2, 3, 5):
        fwm_py.set_num_threads(n)
        assert fwm_py.get_num_threads() == n
        results.append(case.bits(x))
    assert all(result == results[0] for result in results[1:])


@pytest.mark.parametrize("n_threads", [1, 2])
@every_case
def test_many_callers_at_once(case, n_threads):
    """Python threads that call at the same time get what each gets alone, of this case and of its neighbour."""
    fwm_py.set_num_threads(n_threads)
    both = (case, CASES[CASES.index(case) - 1])
    work = [(each, each.inputs(each.busy, np.float32, seed)) for seed in range(4) for each in both]
    expected = [each.bits(x) for each, x in work]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda one: one[0].bits(one[1]), work)) == expected


@every_case
def test_subnormal_numbers_are_the_callers_again(case):
    case.bits(case.inputs(case.busy, np.float32))
    assert np.float32(1e-40) * np.ones(64, np.float32).sum() > 0
