"""Every test starts on one thread, the fastest for small arrays; tests of threads ask for more."""

import signal

import pytest

import fwm_py

pytest.register_assert_rewrite("support")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """A shell starts programs in the background with Ctrl-C ignored, and their children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def one_thread():
    before = fwm_py.get_num_threads()
    fwm_py.set_num_threads(1)
    yield
    fwm_py.set_num_threads(before)
