"""Every test starts from the same number of threads, and leaves it so."""

import pytest

import fwm_py


@pytest.fixture(autouse=True)
def two_threads():
    before = fwm_py.get_num_threads()
    fwm_py.set_num_threads(2)
    yield
    fwm_py.set_num_threads(before)
