"""Calls in other processes: each is made, also when processes are killed, and no process outlives its use."""

import os
import signal
import time

import pytest

import fwm_py
from fwm_py.experiments.jobs import ATTEMPTS, WorkerKilled, run_all


def square(x):
    return x * x


def threads_and_process(_):
    return fwm_py.get_num_threads(), os.getpid()


def die_once(path):
    """Is killed the first time."""
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def die_at_three(task):
    folder, number = task
    if number == 3:
        open(os.path.join(folder, f"{time.monotonic_ns()}"), "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return number


def sleep(seconds):
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_every_task_has_its_result(jobs):
    started = []
    assert dict(run_all(square, list(range(7)), jobs, on_start=started.append)) == {x: x * x for x in range(7)}
    assert started == list(range(7))


def test_each_call_has_one_thread_and_the_caller_keeps_its_own():
    fwm_py.set_num_threads(2)
    assert [result for _, result in run_all(threads_and_process, [0], jobs=1)] == [(1, os.getpid())]
    ((_, (threads, process)),) = run_all(threads_and_process, [0], jobs=2)
    assert threads == 1 and process != os.getpid() and fwm_py.get_num_threads() == 2


def test_a_call_whose_process_was_killed_is_made_again(tmp_path):
    assert dict(run_all(die_once, [tmp_path / "a", tmp_path / "b"], jobs=2)) == {0: "lived", 1: "lived"}


def test_a_call_that_always_kills_its_process_is_given_up_and_its_neighbours_are_not(tmp_path):
    results = dict(run_all(die_at_three, [(tmp_path, number) for number in range(6)], jobs=2))
    assert isinstance(results.pop(3), WorkerKilled) and results == {n: n for n in (0, 1, 2, 4, 5)}
    assert len(list(tmp_path.iterdir())) == ATTEMPTS


@pytest.mark.parametrize(
    "jobs, error", [(0, ValueError), (-1, ValueError), ("2", TypeError), (1.0, TypeError), (True, TypeError)]
)
def test_jobs_that_are_no_number_of_processes(jobs, error):
    with pytest.raises(error, match=r"^jobs: got .*, expected an integer in 1\.\.4096"):
        next(run_all(square, [1], jobs))


def test_closing_ends_the_processes():
    calls = run_all(sleep, [0.0, 60.0, 60.0], jobs=2)
    _, process = next(calls)
    started = time.monotonic()
    calls.close()
    while os.path.exists(f"/proc/{process}") and time.monotonic() < started + 5:
        time.sleep(0.05)
    assert time.monotonic() - started < 5
