"""Threads and processes: the same bits for every number of threads, forks, busy objects, Ctrl-C, torch beside us."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support import cases

import fwm_py
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.stream import Stream
from fwm_py.experiments.retrieval.train import train

THREADS = (1, 2, 3, 5)


def with_every_number_of_threads(function):
    """What function() returns, with 1, 2, 3 and 5 threads."""
    results = []
    for n in THREADS:
        fwm_py.set_num_threads(n)
        assert fwm_py.get_num_threads() == n
        results.append(function())
    return results


def assert_all_equal(results):
    assert all(result == results[0] for result in results[1:])


# --- bit for bit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [dict(n_keys=20, batch_size=32), dict(n_keys=75, batch_size=33, hidden_size=40)], ids=["20", "75"]
)
@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_gradients_do_not_depend_on_threads(case, sizes):
    settings = case.settings(replace=True, **sizes)
    batch, omega = Stream(settings).batch(), case.omega(settings)

    def run():
        loss, gradients = Model(settings).loss_and_gradients(batch, omega)
        return repr(loss), {name: g.tobytes() for name, g in gradients.items()}

    assert_all_equal(with_every_number_of_threads(run))


@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_training_does_not_depend_on_threads(case):
    settings = case.settings(n_keys=21, replace=case.rule_row["uses_beta"], max_steps=100, batch_size=32)

    def run():
        model = Model(settings)
        rows = train(settings, model=model)
        return repr(rows), {name: a.tobytes() for name, a in model.parameters.items()}

    assert_all_equal(with_every_number_of_threads(run))


# --- processes -----------------------------------------------------------------------------------------------------

FORK = """
import os, signal, sys
import fwm_py
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.train import train
settings = Settings(n_keys=20, attn_name="dpfp", attn_arg=1, batch_size=64, max_steps=100)
fwm_py.set_num_threads(2)
before = train(settings)                 # the parent has been in a parallel region
child = os.fork()
if child == 0:
    signal.alarm(60)                     # a hang ends the child, and fails
    os._exit(0 if train(settings) == before and fwm_py.get_num_threads() == 1 else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert fwm_py.get_num_threads() == 2 and train(settings) == before
print("done")
"""

POOL = """
import multiprocessing
import fwm_py
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.train import train

def run(seed):
    return train(Settings(n_keys=20, attn_name="linear", batch_size=64, max_steps=100, seed=seed))

if __name__ == "__main__":
    fwm_py.set_num_threads(2)
    ours = [run(seed) for seed in range(3)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(run, range(3)).get(60) == ours
    print("done")
"""

TORCH = """
import sys
{imports}
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.train import train

def multiply():
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(2)
        a = torch.ones(600, 600)
        assert float((a @ a).sum()) == 600.0**3

fwm_py.set_num_threads(2)
multiply()
rows = train(Settings(n_keys=20, attn_name="dpfp", attn_arg=1, batch_size=64, max_steps=100))
multiply()
print(rows)
"""


def run_script(script):
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("script", [FORK, POOL], ids=["fork", "pool"])
def test_a_forked_child_works(script):
    assert run_script(script) == "done"


def test_torch_may_come_first_or_second():
    pytest.importorskip("torch")
    alone = run_script(TORCH.format(imports="import fwm_py"))
    assert run_script(TORCH.format(imports="import torch, fwm_py")) == alone
    assert run_script(TORCH.format(imports="import fwm_py, torch")) == alone


# --- a run in progress ---------------------------------------------------------------------------------------------


def long_run():
    """Settings of a run that goes on for a minute unless it is stopped, its Model."""
    settings = cases.MODEL_CASES[0].settings(n_keys=100, replace=True)
    return settings, Model(settings)


class Enough(Exception):
    pass


def test_an_exception_of_a_callback_ends_the_run():
    settings, model = long_run()

    def stop(step, loss):
        assert step > 0 and loss > 0
        raise Enough

    with pytest.raises(Enough):
        train(settings, on_progress=stop, model=model)
    with pytest.raises(Enough):
        train(settings, on_evaluation=stop, model=model)
    assert np.isfinite(model.loss(Stream(settings).batch()))  # and leaves the model to others


def test_a_busy_model_is_refused_to_a_second_thread():
    settings, model = long_run()
    stream = Stream(settings)
    batch, started, tried, errors = stream.batch(), threading.Event(), threading.Event(), []

    def wait(step, loss):
        started.set()
        assert tried.wait(60)
        raise Enough

    def run():
        with pytest.raises(Enough):
            train(settings, on_progress=wait, model=model)

    runner = threading.Thread(target=run)
    runner.start()
    assert started.wait(60)
    for use in (
        lambda: model.loss(batch),
        lambda: model.loss_and_gradients(batch),
        lambda: model.step(batch),
        lambda: model.read_out(batch),
        lambda: model.evaluate(stream),
        lambda: train(settings, model=model),
    ):
        with pytest.raises(RuntimeError) as caught:
            use()
        errors.append(str(caught.value))
    tried.set()
    runner.join(60)
    assert not runner.is_alive()
    assert all("Model" in error or "model" in error for error in errors)
    model.loss(batch)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_stops_a_run_within_a_second():
    settings, model = long_run()
    rows, sent = [], []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def keep(step, loss):
        rows.append((step, loss))
        if len(rows) == 1:
            threading.Timer(0.3, interrupt).start()

    with pytest.raises(KeyboardInterrupt):
        train(settings, on_evaluation=keep, model=model)
    assert time.monotonic() - sent[0] < 1
    assert [step for step, _ in rows] == [100 * (i + 1) for i in range(len(rows))]
    assert rows[0] == train(dataclasses.replace(settings, max_steps=100))[0]


def test_two_threads_train_two_models_at_once():
    settings = cases.MODEL_CASES[0].settings(n_keys=20, replace=True, max_steps=300)
    alone, rows = train(settings), [None, None]

    def run(i):
        rows[i] = train(settings)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert rows == [alone, alone]
