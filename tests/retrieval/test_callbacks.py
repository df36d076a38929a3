"""What on_evaluation and on_progress may do with the model that trains: read it, which does not change the run."""

import dataclasses
import sys
import threading

import numpy as np
import pytest
from support import cases

import fwm_py
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.stream import Stream
from fwm_py.experiments.retrieval.train import train

SLOW = Settings(n_keys=20, attn_name="linear", lr=1e-6, max_steps=300)

READS = {
    "evaluate": lambda model, path: model.evaluate(Stream(model.settings)),
    "read_out": lambda model, path: model.read_out(Stream(model.settings).batch()).tolist(),
    "loss": lambda model, path: model.loss(Stream(model.settings).batch()),
    "loss_and_gradients": lambda model, path: model.loss_and_gradients(Stream(model.settings).batch())[0],
    "save": lambda model, path: model.save(path),
    "parameters": lambda model, path: float(model.parameters["W_k.weight"][0, 0]),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_reading_leaves_the_run_as_it_is(case, threads, tmp_path):
    """To the bit, FAVOR+'s draws included; a reading twice in a row is the same."""
    fwm_py.set_num_threads(threads)
    settings = case.settings(n_keys=9, hidden_size=8, max_steps=230, batch_size=4)
    alone, watched, seen = Model(settings), Model(settings), []

    def on_evaluation(step, loss):
        for _ in range(2):
            seen.append([read(watched, tmp_path / "model") for read in READS.values()])

    rows = train(settings, model=alone)
    np.testing.assert_equal(train(settings, on_evaluation, model=watched), rows)
    for name, array in alone.parameters.items():
        np.testing.assert_array_equal(watched.parameters[name], array, name)
    assert len(seen) == 2 * len(rows)
    for one, other in zip(seen[::2], seen[1::2]):
        np.testing.assert_equal(one, other)
    batch = Stream(settings).batch()
    np.testing.assert_equal(watched.loss(batch), alone.loss(batch))


def test_what_is_read_are_the_numbers_of_this_moment(tmp_path):
    model = Model(SLOW)

    def on_evaluation(step, loss):
        model.save(tmp_path / f"{step}")
        for name, array in Model.load(tmp_path / f"{step}").parameters.items():
            np.testing.assert_array_equal(array, model.parameters[name])
        same = Model.load(tmp_path / f"{step}")
        assert same.evaluate(Stream(SLOW)) == model.evaluate(Stream(SLOW))

    assert len(train(SLOW, on_evaluation, model=model)) == 3


def test_on_progress_may_read_too():
    settings = dataclasses.replace(SLOW, n_keys=60, max_steps=3000)
    model, seen = Model(settings), []
    train(settings, on_progress=lambda step, loss: seen.append(model.evaluate(Stream(settings))), model=model)
    assert seen and all(np.isfinite(seen))


CHANGES = {
    "step": lambda model: model.step(Stream(model.settings).batch()),
    "train": lambda model: train(model.settings, model=model),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_model_is_refused_and_says_so(name):
    model, said = Model(SLOW), []

    def on_evaluation(step, loss):
        before = {name: array.copy() for name, array in model.parameters.items()}
        with pytest.raises(RuntimeError) as error:
            CHANGES[name](model)
        said.append(str(error.value))
        for name_, array in before.items():
            np.testing.assert_array_equal(model.parameters[name_], array)

    assert train(SLOW, on_evaluation, model=model) == train(SLOW)
    assert (
        said
        == ["this Model is being trained: on_evaluation and on_progress may read it, but neither step nor train it"] * 3
    )


def test_an_exception_ends_the_training_and_the_model_is_free_again():
    model = Model(SLOW)

    def fail(step, loss):
        with pytest.raises(RuntimeError):
            model.step(Stream(SLOW).batch())
        model.evaluate(Stream(SLOW))
        raise KeyError("enough")

    with pytest.raises(KeyError):
        train(SLOW, fail, model=model)
    model.step(Stream(SLOW).batch())
    assert len(train(SLOW, model=model)) == 3


def test_another_thread_is_refused_meanwhile(tmp_path):
    """Also from a callback's point of view: it is another thread's model."""
    model, said = Model(SLOW), []

    def use():
        for call in (
            lambda: model.evaluate(Stream(SLOW)),
            lambda: model.save(tmp_path / "model"),
            *(lambda change=change: change(model) for change in CHANGES.values()),
        ):
            with pytest.raises(RuntimeError) as error:
                call()
            said.append(str(error.value))

    def on_evaluation(step, loss):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

    train(SLOW, on_evaluation, model=model)
    assert said == ["this Model is in use by another thread"] * 12 and not (tmp_path / "model").exists()


def test_the_stream_of_the_training_is_not_drawn_from(monkeypatch):
    """Nobody sees it but train; in a callback it is refused as what it is."""
    stream, model, said = Stream(SLOW), Model(SLOW), []
    monkeypatch.setattr(sys.modules["fwm_py.experiments.retrieval.train"], "Stream", lambda settings: stream)

    def on_evaluation(step, loss):
        for draw in (stream.batch, stream.evaluation):
            with pytest.raises(RuntimeError) as error:
                draw()
            said.append(str(error.value))

    train(SLOW, on_evaluation, model=model)
    assert said == ["this fwm_py._core.Stream is in use by a call that has not ended"] * 6


def test_more_threads_inside_a_callback():
    """The scratch of the training is of the threads that it began with."""
    fwm_py.set_num_threads(1)
    model, seen = Model(SLOW), []

    def on_evaluation(step, loss):
        fwm_py.set_num_threads(4)
        seen.append(model.evaluate(Stream(SLOW)))

    rows = train(SLOW, on_evaluation, model=model)
    assert rows == train(SLOW) and len(seen) == 3
