"""Saving and loading models, and training a given one."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest

from fwm_py.experiments.retrieval.model import Model, parameter_shapes
from fwm_py.experiments.retrieval.settings import ATTN_NAMES, Settings
from fwm_py.experiments.retrieval.stream import Stream
from fwm_py.experiments.retrieval.train import train

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


@pytest.mark.parametrize(
    "settings",
    [
        Settings(n_keys=n_keys, hidden_size=3, batch_size=1, attn_name=name, attn_arg=2)
        for n_keys in (2, 5, 33)
        for name in ATTN_NAMES
    ],
    ids=repr,
)
def test_shapes_are_those_of_a_model(settings):
    shapes = {name: parameter.shape for name, parameter in Model(settings).parameters.items()}
    assert parameter_shapes(settings) == shapes and list(parameter_shapes(settings)) == list(shapes)


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


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda arrays: arrays.pop("fwm_py"), "not a model file of fwm_py"),
        (lambda arrays: arrays.update(fwm_py=np.array("{")), "not a model file of fwm_py"),
        (lambda arrays: arrays.update(fwm_py=np.array("[1]")), "not a model file of fwm_py"),
        (set_header(version=2), "got version 2, expected 1"),
        (set_header(version=1.0), "got version 1.0, expected 1"),
        (set_header(version=True), "got version True, expected 1"),
        (set_header(version="1"), "got version '1', expected 1"),
        (set_header(settings=[]), "not a model file of fwm_py"),
        (lambda arrays: arrays.update(fwm_py=np.array("[" * 10_000)), "not a model file of fwm_py"),
        (lambda arrays: arrays.update(fwm_py=np.array("1" * 10_000)), "not a model file of fwm_py"),
        (lambda arrays: arrays.update(fwm_py=np.array(" " * 2**20)), "not a model file of fwm_py"),
        (lambda arrays: arrays.update(fwm_py=np.zeros(3)), "not a model file of fwm_py"),
        (lambda arrays: arrays.update({"W_q.bias": arrays["W_q.bias"].byteswap().view(">f4")}), "W_q.bias: got >f4"),
        (set_header(settings={"n_keys": 1}), "n_keys: got 1, expected an integer in 2..2000"),
        (set_header(settings={"keys": 5}), "keys"),
        (set_header(settings=dataclasses.asdict(SMALL) | {"hidden_size": 7}), "got float32 (6"),
        (
            set_header(settings=dataclasses.asdict(SMALL) | {"attn_name": "softmax"}),
            "got the parameters embeddingV.weight",
        ),
        (lambda arrays: arrays.pop("W_q.bias"), "W_q.bias"),
        (lambda arrays: arrays.update(extra=np.zeros(1)), "extra"),
        (lambda arrays: arrays.update({"W_q.bias": np.zeros(5, np.float32)}), "W_q.bias: got float32 (5,)"),
        (lambda arrays: arrays.update({"W_q.bias": np.zeros(6, np.int64)}), "W_q.bias: got int64 (6,)"),
        (lambda arrays: arrays.update({"W_k.weight": arrays["W_k.weight"].astype(np.float16)}), "or float64"),
        (lambda arrays: arrays.update({"W_q.bias": np.array([None])}), "not a model file of fwm_py"),  # pickled
    ],
)
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
    saved.write_bytes(data[: len(data) // 2])
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


@pytest.mark.parametrize(
    "change",
    [
        *({"n_keys": 6}, {"hidden_size": 5}, {"batch_size": 5}, {"replace": True}, {"update_rule": "fwm"}),
        *({"attn_name": "linear"}, {"attn_name": "softmax"}, {"attn_arg": 1}),
    ],
)
def test_a_model_that_does_not_fit_is_refused(change):
    with pytest.raises(ValueError, match="^model: got one with "):
        train(SMALL, model=Model(dataclasses.replace(SMALL, **change)))


def test_rows_are_what_the_callback_gets():
    got = []
    settings = dataclasses.replace(SMALL, max_steps=300)
    rows = train(settings, on_evaluation=lambda step, loss: got.append((step, loss)))
    assert rows == got and [step for step, _ in rows] == [100, 200, 300]
    assert all(type(step) is int and type(loss) is float and loss == np.float32(loss) for step, loss in rows)


# ---- damaged files, and files made to do harm ----

TINY = Settings(n_keys=2, attn_name="tanh", hidden_size=1, batch_size=1)


def damage(data, random):
    """A few bytes changed, taken out, put in, or a piece of the file somewhere else."""
    kind, at, length = random.randrange(5), random.randrange(len(data)), random.choice([1, 1, 2, 4, 30])
    if kind == 0:
        return data[:at] + random.randbytes(length) + data[at + length :]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + random.randbytes(length) + data[at:]
    if kind == 3:
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    other = random.randrange(len(data))
    return data[:other] + data[at : at + length] + data[other + length :]


def load_or_refuse(path, parameters):
    """Whether the file loads, to these parameters; else it is refused by name."""
    try:
        loaded = Model.load(path).parameters
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and len(str(error)) < 800
        return False
    assert loaded.keys() == parameters.keys()
    for name, parameter in parameters.items():
        np.testing.assert_array_equal(loaded[name], parameter, name, strict=True)
    return True


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_file_loads_to_the_same_parameters_or_is_refused(tmp_path, compressed):
    path, generator = tmp_path / "model.npz", random.Random(1)
    model = Model(TINY)
    model.save(path)
    if compressed:
        with np.load(path) as archive, open(tmp_path / "small.npz", "wb") as file:
            np.savez_compressed(file, **archive)
        path = tmp_path / "small.npz"
    data, loaded = path.read_bytes(), 0
    assert load_or_refuse(path, model.parameters)
    for _ in range(3000):
        path.write_bytes(damage(data, generator))
        loaded += load_or_refuse(path, model.parameters)
    assert 0 < loaded < 1500
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        assert not load_or_refuse(path, model.parameters)


def forge(path, change_archive):
    """Rewrite the archive member by member: `change_archive` gets its members' bytes by name."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change_archive(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def npy(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "member",
    [
        npy(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,)}", bytes(2**26)
        ),  # inflates to much, and says more
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", bytes(2**26)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", bytes(23)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-6,)}", bytes(24)),
        npy("{'descr': '<U4', 'fortran_order': False, 'shape': (6,)}", bytes(96)),
        npy("(" * 100),
        npy("-" * 110 + "1"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}"),
        b"",
        b"\x93NUMPY\x03\x00",
    ],
)
def test_numbers_are_not_inflated_before_their_header_is_looked_at(saved, member):
    forge(saved, lambda members: members.update({"W_q.bias.npy": member}))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="^" + re.escape(f"{saved}: ")):
            Model.load(saved)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_large_settings_with_small_arrays_make_no_large_model(saved, monkeypatch):
    rewrite(saved, set_header(settings=dataclasses.asdict(SMALL) | {"n_keys": 2000, "hidden_size": 1024}))
    monkeypatch.setattr("fwm_py._core.Model", lambda **_: pytest.fail("makes it"))
    with pytest.raises(ValueError, match="W_k.weight: got|embeddingV.weight: got"):
        Model.load(saved)


# ---- saving ----


def test_a_save_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError) as error:
                Model(SMALL).save(saved)
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(saved))
        assert saved.read_bytes() == before
    Model(SMALL).save(str(saved))
    assert list(saved.parent.iterdir()) == [saved] and saved.read_bytes() == before


def test_where_a_model_cannot_be_saved(tmp_path):
    for path in (tmp_path / "none" / "model", tmp_path, "/dev/full"):
        with pytest.raises(OSError) as error:
            Model(SMALL).save(path)
        assert error.value.filename == str(path)
    Model(SMALL).save(os.fsencode(tmp_path / "bytes"))
    assert Model.load(os.fsencode(tmp_path / "bytes")).settings == SMALL
