"""Many calls side by side: one process a core, by joblib; or the workers of a Dask cluster.

A call whose process is killed is made again. The workers end when the process that started them does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import fwm_py
from fwm_py.checks import integer

if TYPE_CHECKING:
    from distributed import Client

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS = 3
MAX_JOBS = 4096
WATCH_SECONDS = 0.5


class WorkerKilled(Exception):
    """Every process that tried this call was killed."""


def run_all(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    jobs: int | None = None,
    client: Client | None = None,
    on_start: Callable[[int], object] | None = None,
) -> Generator[tuple[int, Result | WorkerKilled], None, None]:
    """Call `function` on every task, in other processes, each on one thread.

    Parameters
    ----------
    function : callable
        Importable, and should not raise: an exception ends everything.
    tasks : sequence
        Started in this order.
    jobs : int, optional
        Processes; one is this process itself. None: as many as cores this process may use.
    client : distributed.Client, optional
        Where to run instead; `jobs` is then how many calls are out at once (None: the cluster's cores).
    on_start : callable, optional
        Called with the index of each task that is handed out, again if it is handed out again.

    Yields
    ------
    (int, result)
        Index and result of each task, in the order in which they end. A task whose process was killed `ATTEMPTS` times
        has a `WorkerKilled` for its result. Closing the generator ends the processes.
    """
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if jobs is not None:
        jobs = integer("jobs", jobs, 1, MAX_JOBS)
    killed: Counter[int] = Counter()
    left = dict.fromkeys(range(len(tasks)))
    while left:
        out: set[int] = set()
        # a killed process takes its neighbours' calls along: a call whose last attempt it is runs alone, so that it is
        # known to be the cause
        alone = [index for index in left if killed[index] == ATTEMPTS - 1][:1]
        try:
            for index, result in _pass(
                function, tasks, alone or list(left), 2 if alone else jobs, client, on_start, out
            ):
                out.discard(index)
                del left[index]
                yield index, result
        except TerminatedWorkerError:
            killed.update(out)
            for index in out:
                if killed[index] == ATTEMPTS:
                    del left[index]
                    yield index, WorkerKilled(f"its process was killed {ATTEMPTS} times")


def _pass(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    indices: Sequence[int],
    jobs: int | None,
    client: Client | None,
    on_start: Callable[[int], object] | None,
    out: set[int],
) -> Iterator[tuple[int, Result]]:
    """Hand out the tasks until all have ended, or one of the processes is killed."""
    from joblib import Parallel, delayed, parallel_config

    parent = os.getpid() if client is None else None

    def calls() -> Iterator[Any]:
        for index in indices:
            out.add(index)
            if on_start is not None:
                on_start(index)
            yield delayed(_call)(function, index, tasks[index], parent)

    if client is None:
        where = contextlib.nullcontext()
        jobs = jobs or fwm_py.get_num_threads()
    else:
        where = parallel_config(backend="dask", client=client, wait_for_workers_timeout=60)
        jobs = jobs or sum(client.ncores().values()) or 1
    warnings.filterwarnings(
        "ignore", r"\d+ tasks which were still being processed"
    )  # of joblib, when they are not wanted
    with where:
        # a call is handed out when a worker is free, and not before, so that `out` are those that run
        parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch=jobs, batch_size=1)
        yield from parallel(calls())


def _call(function: Callable[[Task], Result], index: int, task: Task, parent: int | None) -> tuple[int, Result]:
    if parent not in (None, os.getpid()):  # with one job the call is made where it was asked for
        _end_with(parent)
    threads = fwm_py.get_num_threads()
    fwm_py.set_num_threads(1)
    try:
        return index, function(task)
    finally:
        fwm_py.set_num_threads(threads)


_watched: set[int] = set()


def _end_with(parent: int) -> None:
    """End this process when `parent`, which started it, is no more: nobody wants its results."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    if parent not in _watched:
        _watched.add(parent)
        threading.Thread(target=watch, daemon=True, name="fwm_py-watch-parent").start()
