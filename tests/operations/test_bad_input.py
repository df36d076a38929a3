"""Bad arguments of what is no operation, above all Model: each is refused by an exception that begins with its name."""

import dataclasses

import numpy as np
import pytest
from support import cases
from support.refusals import assert_refused, bad_count, bad_indices, bad_masks, bad_positive, bad_shapes

import fwm_py
from fwm_py import feature_maps, random
from fwm_py.experiments.retrieval import sweep
from fwm_py.experiments.retrieval.logs import log_name
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.stream import Batch, Stream
from fwm_py.experiments.retrieval.train import train

OTHERS = {
    "d": (lambda given: feature_maps.draw_omega(given, 4, random.Philox(1)), [*bad_count()]),
    "m": (lambda given: feature_maps.draw_omega(3, given, random.Philox(1)), [*bad_count()]),
    "n": (fwm_py.set_num_threads, [*bad_count()]),
    "generator": (
        lambda given: feature_maps.draw_omega(3, 4, given),
        [(given, TypeError) for given in (None, 1, "philox", np.random.RandomState(1))],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_bad_argument(name):
    use, refused = OTHERS[name]
    use(random.Philox(1) if name == "generator" else 1)
    for given, exception in refused:
        assert_refused(lambda: use(given), name, exception)


def test_a_list_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises((TypeError, ValueError), match=r"^x\b"):
        feature_maps.elu1(endless)


# --- Model ---------------------------------------------------------------------------------------------------------

MODEL_USES = {
    "loss": lambda model, batch, omega: model.loss(batch, omega),
    "loss_and_gradients": lambda model, batch, omega: model.loss_and_gradients(batch, omega),
    "read_out": lambda model, batch, omega: model.read_out(batch, omega),
    "step": lambda model, batch, omega: model.step(batch),
}


def small_model():
    settings = cases.MODEL_CASES[0].settings(n_keys=6, hidden_size=4, batch_size=3)
    return settings, Model(settings), Stream(settings).batch()


def batch_cases(batch):
    for name in ("keys", "query"):
        for given, exception in bad_indices(getattr(batch, name), below=6):
            yield name, given, exception
    for name in ("values", "answer"):
        yield name, getattr(batch, name) - 6, ValueError  # 0..N-1 are keys
        for given, exception in bad_indices(getattr(batch, name), below=12):
            yield name, given, exception


@pytest.mark.parametrize("use", MODEL_USES)
def test_bad_batches(use):
    _, model, batch = small_model()
    before = {name: a.tobytes() for name, a in model.parameters.items()}
    for name, given, exception in batch_cases(batch):
        if (use, name) == ("read_out", "answer") or (
            name == "keys" and np.ndim(given) == 2 and exception is ValueError and np.shape(given) != batch.keys.shape
        ):
            continue  # read_out looks at no answer; the shape of keys is what the others are held against
        assert_refused(lambda: MODEL_USES[use](model, batch._replace(**{name: given}), None), name, exception)
    assert {name: a.tobytes() for name, a in model.parameters.items()} == before


@pytest.mark.parametrize("use", MODEL_USES)
def test_batches_larger_than_the_models(use):
    _, model, batch = small_model()
    for larger in (
        Batch(*(np.concatenate([a, a]) for a in batch)),
        batch._replace(keys=np.tile(batch.keys, 2), values=np.tile(batch.values, 2)),
    ):
        assert_refused(lambda: MODEL_USES[use](model, larger, None), "keys", ValueError)


def test_bad_learning_rates():
    settings, model, batch = small_model()
    for given, exception in bad_positive():
        assert_refused(lambda: model.step(batch, given), "lr", exception)
    for dtype, given in ((np.float32, 1e39), (np.float32, 1e38), (np.float32, 1e-60), (np.float64, 1e308)):
        model = Model(settings, dtype)
        before = {name: a.tobytes() for name, a in model.parameters.items()}
        assert_refused(lambda: model.step(batch, given), "lr", ValueError)
        assert_refused(lambda: train(dataclasses.replace(settings, lr=given), model=model), "lr", ValueError)
        assert {name: a.tobytes() for name, a in model.parameters.items()} == before
    for dtype, given in ((np.float32, 3e37), (np.float32, 1e-40), (np.float64, 1e39), (np.float64, 1e-60)):
        model = Model(settings, dtype)
        model.step(batch, given)
        assert all(np.isfinite(a).all() for a in model.parameters.values())


@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_bad_omegas(case):
    settings = case.settings(n_keys=6, hidden_size=4, batch_size=3)
    model, batch, good = Model(settings), Stream(settings).batch(), np.ones((4, 6))
    if case.omega(settings) is None:
        assert_refused(lambda: model.loss(batch, good), "omega", ValueError)
        return
    assert model.loss(batch, good) == model.loss(batch, good.astype(np.float32))
    refused = [(good.astype(dtype), TypeError) for dtype in (np.complex128, object, str, "M8[s]")]
    refused += [("text", TypeError), (object(), TypeError), (good * 1e39, ValueError)]
    refused += [*bad_masks(good), *bad_shapes(good)]
    for given, exception in refused:
        assert_refused(lambda: model.loss(batch, given), "omega", exception)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.complex64, np.longdouble, object, "f4,f4"], ids=str)
def test_bad_precisions(dtype):
    if dtype is np.longdouble and np.longdouble == np.float64:
        pytest.skip("longdouble is float64 here")
    with pytest.raises((TypeError, ValueError), match=r"^dtype\b"):
        Model(cases.MODEL_CASES[0].settings(), dtype)


def test_streams_of_another_size():
    """A stream whose keys the model does not have."""
    case = cases.MODEL_CASES[0]
    model = Model(case.settings(n_keys=6, hidden_size=4, batch_size=3))
    assert_refused(lambda: model.evaluate(Stream(case.settings(n_keys=7, batch_size=3))), "stream", ValueError)


@pytest.mark.parametrize("given", [None, 3, "stream", np.random.RandomState(1)], ids=repr)
def test_what_is_no_stream_no_settings_no_model_and_no_function(given):
    settings = cases.MODEL_CASES[0].settings(n_keys=6, hidden_size=4, batch_size=3, max_steps=0)
    assert_refused(lambda: Model(settings).evaluate(given), "stream", TypeError)
    for use in (Stream, Model, train, log_name):
        assert_refused(lambda: use(given), "settings", TypeError)
    if given is not None:
        assert_refused(lambda: train(settings, model=given), "model", TypeError)
        assert_refused(lambda: train(settings, given), "on_evaluation", TypeError)
        assert_refused(lambda: train(settings, None, given), "on_progress", TypeError)


@pytest.mark.parametrize("use", MODEL_USES)
def test_what_is_no_batch(use):
    _, model, batch = small_model()
    for given in ((batch.keys,), (), tuple(batch[:3]), (*batch, None), [batch]):
        with pytest.raises(
            ValueError, match=rf"^batch: got a (tuple|list) of {len(given)}, expected a Batch: keys, values, "
        ):
            MODEL_USES[use](model, given, None)
    for given in (None, 3, batch.keys, "batch", dict(enumerate(batch))):
        assert_refused(lambda: MODEL_USES[use](model, given, None), "batch", TypeError)
    as_tuple = MODEL_USES[use](model, tuple(batch), None)
    assert as_tuple is not None


# --- flags ---------------------------------------------------------------------------------------------------------

FLAGS = {
    "replace": lambda flag: random.MT19937(1).choice(3, 2, flag),
    "replace of a stream": lambda flag: fwm_py._core.Stream(1, 20, 4, flag),
    "quick": lambda flag: sweep.select(quick=flag),
    "force": lambda flag: sweep.reproduce("never made", force=flag),
    "adopt": lambda flag: sweep.reproduce("never made", adopt=flag),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false(name):
    for given in ("no", "", 0, 1, None, [], 1.0):
        assert_refused(lambda: FLAGS[name](given), name.split()[0], TypeError)
