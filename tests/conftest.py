"""Every test starts on one thread, the fastest for small arrays; test_threads.py compares numbers of threads."""

import pytest

import fwm_py


@pytest.fixture(autouse=True)
def one_thread():
    before = fwm_py.get_num_threads()
    fwm_py.set_num_threads(1)
    yield
    fwm_py.set_num_threads(before)
