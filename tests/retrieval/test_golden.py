"""Twelve runs of the published program on a CPU, recorded in data/golden.json, against the same runs of ours.

Each records checksums of the initial parameters, the first batch, the first output, the first gradients, 50 training
losses and the first evaluation. FAVOR+ draws from the CPU's generator there. Softmax's gradient of W_k.bias, zero but
for rounding, is left out of the record.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.stream import Stream
from fwm_py.experiments.retrieval.train import train

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden.json").read_text())
NAMES = ("attn_name", "attn_arg", "update_rule", "n_keys", "replace", "seed", "hidden_size")


def settings_of(run, **other):
    return Settings(**{name: run[name] for name in NAMES}, favor_generator="mt19937", **other)


def label(run):
    return f"{run['attn_name']}{run['attn_arg'] or ''}-{run['update_rule']}-{run['n_keys']}" + "R" * run["replace"]


every_run = pytest.mark.parametrize("run", GOLDEN["runs"], ids=label)


def assert_checksums(array, record, tolerance):
    """Sum, root of the sum of squares and first elements, each within tolerance of the size of the whole."""
    array = array.astype(np.float64).ravel()
    norm = np.sqrt(record["sumsq"])
    assert np.linalg.norm(array) == pytest.approx(norm, rel=tolerance)
    assert abs(array.sum() - record["sum"]) <= tolerance * norm * np.sqrt(array.size)
    np.testing.assert_allclose(array[:4], record["head"], rtol=0, atol=tolerance * np.abs(array).max())


@every_run
def test_defaults(run):
    settings = settings_of(run)
    assert (settings.resolved_batch_size, settings.resolved_lr) == (run["batch_size"], run["lr"])


@every_run
def test_initial_parameters(run):
    parameters, records = Model(settings_of(run)).parameters, GOLDEN["init"][run["initial"]]
    assert parameters.keys() == records.keys()
    for name, record in records.items():
        assert list(parameters[name].shape) == record["shape"]
        assert_checksums(parameters[name], record, 1e-7)


@every_run
def test_first_batch(run):
    batch, record = Stream(settings_of(run)).batch(), run["first_batch"]
    for ours, theirs in (
        (batch.keys[0], "keys_row0"),
        (batch.values[0], "values_row0"),
        (batch.query, "queries"),
        (batch.answer, "targets"),
    ):
        np.testing.assert_array_equal(ours, record[theirs])


@every_run
def test_first_output(run):
    settings, record = settings_of(run), np.array(run["first_output_row0"])
    y = Model(settings).read_out(Stream(settings).batch())
    np.testing.assert_allclose(y[0], record, rtol=0, atol=5e-6 * np.abs(record).max())


@every_run
def test_first_gradients(run):
    settings = settings_of(run)
    _, gradients = Model(settings).loss_and_gradients(Stream(settings).batch())
    assert gradients.keys() - run["first_grad"].keys() <= {"W_k.bias"}
    for name, record in run["first_grad"].items():
        assert_checksums(gradients[name], record, 5e-5)


@every_run
def test_training_losses(run):
    settings = settings_of(run)
    model, stream = Model(settings), Stream(settings)
    losses = [model.step(stream.batch()) for _ in run["train_loss"]]
    assert len(losses) == 50
    np.testing.assert_allclose(losses, run["train_loss"], rtol=1e-5)


@every_run
def test_first_evaluation(run):
    rows = train(settings_of(run, max_steps=100))
    assert rows == [(100, pytest.approx(run["eval_loss"][1], rel=1e-3))]
