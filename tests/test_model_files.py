"""Saving and loading models, and training a given one."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from fwm_py.retrieval import Model, Settings, Stream, train

SMALL = Settings(n_keys=5, attn_name="dpfp", attn_arg=2, update_rule="ours", hidden_size=6, batch_size=4, max_steps=20)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.of.mine"
    Model(SMALL).save(path)
    return path


def rewrite(path, change):
    """Apply `change` to the arrays of a model file."""
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def set_header(**changes):
    def change(arrays):
        arrays["fwm_py"] = np.array(json.dumps(json.loads(str(arrays["fwm_py"])) | changes))
    return change


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_loaded_model_is_the_saved_one(tmp_path, dtype):
    model = Model(SMALL, dtype)
    train(SMALL, model=model)
    path = tmp_path / "model.of.mine"
    model.save(path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = Model.load(str(path))
    assert loaded.settings == SMALL
    assert loaded.parameters.keys() == model.parameters.keys()
    for name, parameter in model.parameters.items():
        assert loaded.parameters[name].dtype == dtype
        np.testing.assert_array_equal(loaded.parameters[name], parameter)
    batch = Stream(SMALL).batch()
    assert loaded.loss(batch) == model.loss(batch)


@pytest.mark.parametrize("change, message", [
    (lambda arrays: arrays.pop("fwm_py"), "not a model file of fwm_py"),
    (lambda arrays: arrays.update(fwm_py=np.array("{")), "not a model file of fwm_py"),
    (lambda arrays: arrays.update(fwm_py=np.array("[1]")), "not a model file of fwm_py"),
    (set_header(version=2), "got version 2, expected 1"),
    (set_header(settings={"n_keys": 1}), "n_keys: got 1, expected an integer in 2..2000"),
    (set_header(settings={"keys": 5}), "keys"),
    (set_header(settings=dataclasses.asdict(SMALL) | {"hidden_size": 7}), "got float32 (6"),
    (set_header(settings=dataclasses.asdict(SMALL) | {"attn_name": "softmax"}), "got the parameters embeddingV.weight"),
    (lambda arrays: arrays.pop("W_q.bias"), "W_q.bias"),
    (lambda arrays: arrays.update(extra=np.zeros(1)), "extra"),
    (lambda arrays: arrays.update({"W_q.bias": np.zeros(5, np.float32)}), "W_q.bias: got float32 (5,)"),
    (lambda arrays: arrays.update({"W_q.bias": np.zeros(6, np.int64)}), "W_q.bias: got int64 (6,)"),
    (lambda arrays: arrays.update({"W_k.weight": arrays["W_k.weight"].astype(np.float16)}), "or float64"),
    (lambda arrays: arrays.update({"W_q.bias": np.array([None])}), "not a model file of fwm_py"),  # pickled
])
def test_files_that_are_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError) as error:
        Model.load(saved)
    assert str(error.value).startswith(f"{saved}: ") and message in str(error.value)


@pytest.mark.parametrize("data", [b"", b"step,eval-loss\r\n", b"PK\x03\x04 and no more", b"\x93NUMPY\x01"])
def test_foreign_files_are_refused(tmp_path, data):
    path = tmp_path / "model.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a model file of fwm_py"):
        Model.load(path)


def test_half_a_file_is_refused(saved):
    data = saved.read_bytes()
    saved.write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="not a model file of fwm_py"):
        Model.load(saved)


def test_a_bare_array_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    shutil.move(tmp_path / "array.npy", tmp_path / "model.npz")
    with pytest.raises(ValueError, match="not a model file of fwm_py"):
        Model.load(tmp_path / "model.npz")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Model.load(tmp_path / "model.npz")


def test_a_given_model_is_trained_in_place_as_a_new_one_is():
    settings = dataclasses.replace(SMALL, max_steps=100)
    model = Model(settings)
    rows = train(settings, model=model)
    assert rows == train(settings)
    assert not np.array_equal(model.parameters["W_k.weight"], Model(settings).parameters["W_k.weight"])


@pytest.mark.parametrize("change", [
    {"n_keys": 6}, {"hidden_size": 5}, {"batch_size": 5}, {"replace": True}, {"update_rule": "fwm"},
    {"attn_name": "linear"}, {"attn_name": "softmax"}, {"attn_arg": 1},
])
def test_a_model_that_does_not_fit_is_refused(change):
    with pytest.raises(ValueError, match="^model: got one with "):
        train(SMALL, model=Model(dataclasses.replace(SMALL, **change)))


def test_rows_are_what_the_callback_gets():
    got = []
    settings = dataclasses.replace(SMALL, max_steps=300)
    rows = train(settings, on_evaluation=lambda step, loss: got.append((step, loss)))
    assert rows == got and [step for step, _ in rows] == [100, 200, 300]
    assert all(type(step) is int and type(loss) is float and loss == np.float32(loss) for step, loss in rows)
