"""The whole model: initial parameters, loss, gradients, Adam, evaluation and training, against oracle.py."""

import copy
import math

import numpy as np
import pytest
from support import cases, oracle, training_oracle

from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.stream import Batch, Stream
from fwm_py.experiments.retrieval.train import train
from fwm_py.feature_maps import draw_omega
from fwm_py.random import Philox

SIZES = [(2, 1, False), (2, 2, True), (3, 3, True), (5, 8, False), (6, 17, True), (20, 16, True), (20, 64, False)]
ONE_OF_EACH = [next(case for case in cases.MODEL_CASES if case.rule_row is row) for row in cases._core.READOUTS]


def every_model(function):
    return pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)(function)


def make(case, dtype=np.float64, **settings):
    """Settings, a Model of them, the first batch of their Stream, and a fixed Omega or None."""
    settings = case.settings(**settings)
    return settings, Model(settings, dtype), Stream(settings).batch(), case.omega(settings)


def as_float64(parameters):
    return {name: a.astype(np.float64) for name, a in parameters.items()}


# --- initial parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("n_keys, d", [(2, 1), (3, 2), (4, 3), (5, 8), (20, 64), (33, 17)])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_initial_parameters(case, n_keys, d, seed):
    model = Model(case.settings(n_keys=n_keys, hidden_size=d, seed=seed))
    expected = training_oracle.initial_parameters(n_keys, d, case.map_row is None, training_oracle.TorchCpu(seed))
    assert set(model.parameters) == set(expected)
    for name, array in expected.items():
        ours = model.parameters[name]
        assert ours.dtype == np.float32 and ours.shape == array.shape
        if name == "embeddingK.weight":  # normals: sin, cos and log may differ in the last bit
            np.testing.assert_allclose(ours, array, atol=1e-6, rtol=0)
        else:
            np.testing.assert_array_equal(ours, array, name)


def test_parameters_are_views():
    _, model, batch, _ = make(ONE_OF_EACH[0])
    before, parameters = model.loss(batch), model.parameters
    parameters["W_q.weight"] *= 2
    np.testing.assert_array_equal(model.parameters["W_q.weight"], parameters["W_q.weight"])
    assert model.loss(batch) != before
    kept = parameters["W_k.weight"].copy()
    del model
    np.testing.assert_array_equal(parameters["W_k.weight"], kept)  # a view keeps its memory


# --- loss and read-out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_keys, d, replace", SIZES)
@every_model
def test_loss_is_the_equation(case, n_keys, d, replace):
    settings, model, batch, omega = make(case, n_keys=n_keys, hidden_size=d, replace=replace, batch_size=5)
    arguments, batch0 = case.oracle_arguments(settings), cases.zero_based(batch, n_keys)
    y = model.read_out(batch, omega)
    expected = oracle.read_out(model.parameters, *arguments, *batch0[:3])
    assert y.shape == (5, n_keys) and y.dtype == np.float64
    cases.assert_near(y, expected, 1e-9)
    exact = oracle.loss(model.parameters, *arguments, batch0)
    assert model.loss(batch, omega) == pytest.approx(exact, rel=1e-9, nan_ok=True)
    assert model.loss_and_gradients(batch, omega)[0] == pytest.approx(exact, rel=1e-9, nan_ok=True)


@every_model
def test_float32_follows_float64(case):
    """As far as it can: sums near zero, of a map of both signs, leave it as many digits as parameters that are moved
    by its rounding leave float64."""
    settings, model, batch, omega = make(case, np.float32, n_keys=20, replace=True)
    wide, moved = Model(settings, np.float64), Model(settings, np.float64)
    for array in moved.parameters.values():
        array *= 1 + np.finfo(np.float32).eps * np.random.default_rng(0).standard_normal(array.shape)
    loss, gradients = model.loss_and_gradients(batch, omega)
    exact, slopes = wide.loss_and_gradients(batch, omega)
    exact_moved, slopes_moved = moved.loss_and_gradients(batch, omega)
    cases.assert_near(loss, exact, 1e-5, 10 * abs(exact_moved - exact))
    largest = max(np.abs(slope).max() for slope in slopes.values())
    for name, slope in slopes.items():
        assert gradients[name].dtype == np.float32
        if largest < np.finfo(np.float32).max:
            noise = 10 * np.abs(slopes_moved[name] - slope).max()
            cases.assert_near(gradients[name], slope, 1e-3, 1e-5 * largest + noise, name)


@every_model
def test_a_smaller_batch(case):
    """An evaluation's last chunk has fewer sequences than the batches that the model was made for."""
    _, model, batch, omega = make(case, n_keys=6, hidden_size=8, replace=True, batch_size=7)
    alone = [model.read_out(type(batch)(*(a[i : i + 1] for a in batch)), omega)[0] for i in range(7)]
    np.testing.assert_allclose(alone, model.read_out(batch, omega), rtol=1e-9, atol=1e-12)


# --- gradients -----------------------------------------------------------------------------------------------------


def is_smooth(case, settings, parameters, batch0, h=1e-5):
    """Whether difference quotients of the equation are its slopes, along random directions: no kink is near, and
    nothing is divided by nearly nothing."""
    k, _, q = oracle.project(parameters, None, None, *batch0[:3])
    if min(np.abs(k).min(), np.abs(q).min()) < 1e-3:  # of maps, at 0
        return False
    random = np.random.default_rng(0)

    def loss(name, move):
        return oracle.loss({**parameters, name: parameters[name] + move}, *case.oracle_arguments(settings), batch0)

    for name in oracle.trained_names(settings.rule):
        directions = [random.standard_normal(parameters[name].shape) for _ in range(5)]
        slopes = np.array([loss(name, 1e-30j * x).imag / 1e-30 for x in directions])
        quotients = np.array([(loss(name, h * x) - loss(name, -h * x)) / (2 * h) for x in directions])
        if not np.abs(quotients - slopes).max() <= 1e-7 * np.abs(slopes).max() + 1e-9:
            return False
    return True


def make_smooth(case, **other):
    """`make` with the first seed that keeps away from the kinks, and whose gradients are no rounding noise."""
    for seed in range(500):
        settings, model, batch, omega = make(case, seed=seed, **other)
        gradients = model.loss_and_gradients(batch, omega)[1]
        sizes = [np.abs(g).max() for name, g in gradients.items() if (settings.rule, name) != ("softmax", "W_k.bias")]
        if not min(sizes) > 1e-3 * max(sizes):
            continue
        if is_smooth(case, settings, dict(model.parameters), cases.zero_based(batch, settings.n_keys)):
            return settings, model, batch, omega
    raise AssertionError("no seed keeps away from the kinks")


@every_model
def test_gradient_by_central_differences(case):
    settings, model, batch, omega = make_smooth(case, n_keys=4, hidden_size=5, replace=True, batch_size=2)
    _, gradients = model.loss_and_gradients(batch, omega)
    assert list(gradients) == oracle.trained_names(settings.rule)
    for name, gradient in gradients.items():
        slopes = cases.central_differences(lambda: model.loss(batch, omega), model.parameters[name])
        if (settings.rule, name) == ("softmax", "W_k.bias"):
            assert np.all(gradient == 0) and np.abs(slopes).max() < 1e-9
        else:
            cases.assert_gradient(gradient, slopes, name=name)


def slopes_of(case, settings, model, batch):
    batch0 = cases.zero_based(batch, settings.n_keys)
    return oracle.loss_gradient(dict(model.parameters), *case.oracle_arguments(settings), batch0)


def assert_gradients_near(gradients, slopes):
    scale = max(np.abs(slope).max(initial=0, where=~np.isnan(slope)) for slope in slopes.values())
    assert list(gradients) == list(slopes)
    for name, slope in slopes.items():
        cases.assert_near(gradients[name], slope, 1e-9, 1e-13 * scale, name)


@pytest.mark.parametrize("n_keys, d, replace", [(2, 1, False), (3, 2, True), (5, 3, True), (6, 4, False)])
@every_model
def test_gradient_of_the_equation(case, n_keys, d, replace):
    settings, model, batch, omega = make(case, n_keys=n_keys, hidden_size=d, replace=replace, batch_size=3)
    slopes = slopes_of(case, settings, model, batch)
    assert_gradients_near(model.loss_and_gradients(batch, omega)[1], slopes)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("case", [case for case in cases.MODEL_CASES if str(case).startswith("dpfp-")], ids=str)
def test_keys_without_features(case, d):
    """DPFP-1 makes none of one number, nor of three that change their sign. A rule that divides by their sum has no
    answer then, for such a sequence and not for another."""
    settings, model, batch, _ = make(case, n_keys=3, hidden_size=d, batch_size=8, attn_arg=1)
    y, batch0 = model.read_out(batch), cases.zero_based(batch, settings.n_keys)
    cases.assert_near(y, oracle.read_out(model.parameters, *case.oracle_arguments(settings), *batch0[:3]), 1e-9)
    assert_gradients_near(model.loss_and_gradients(batch)[1], slopes_of(case, settings, model, batch))
    if settings.rule == "ours":
        unanswered = np.isnan(y).any(1)
        assert unanswered.any() and unanswered.all() == (d == 1)


@every_model
def test_gradient_of_a_smaller_batch(case):
    """The mean is over the sequences of the batch, not over those that the model has room for."""
    _, model, batch, omega = make(case, n_keys=6, hidden_size=8, replace=True, batch_size=7)
    small = Batch(*(part[:3] for part in batch))
    fitting = Model(case.settings(n_keys=6, hidden_size=8, replace=True, batch_size=3), np.float64)
    loss, gradients = model.loss_and_gradients(small, omega)
    expected_loss, expected = fitting.loss_and_gradients(small, omega)
    assert loss == pytest.approx(expected_loss, rel=1e-12, nan_ok=True)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-9, atol=1e-14, err_msg=name)
    if omega is None:  # else a step draws its own
        fitting.step(small, 0.01)
        model.step(small, 0.01)
        for name, array in model.parameters.items():
            np.testing.assert_allclose(array, fitting.parameters[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("n_keys, replace", [(20, True), (37, False)])
@every_model
def test_gradient_along_directions(case, n_keys, replace):
    """At the size of the experiments: the gradient's product with a direction is the exact slope along it."""
    settings, model, batch, omega = make(case, n_keys=n_keys, replace=replace, batch_size=9)
    parameters, arguments = dict(model.parameters), case.oracle_arguments(settings)
    batch0, random = cases.zero_based(batch, n_keys), np.random.default_rng(1)
    for name, gradient in model.loss_and_gradients(batch, omega)[1].items():
        direction = random.standard_normal(gradient.shape)
        moved = {**parameters, name: parameters[name] + 1e-30j * direction}
        slope = oracle.loss(moved, *arguments, batch0).imag / 1e-30
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs((gradient * direction).sum() - slope) <= 1e-10 * scale + 1e-14, name


@every_model
def test_only_rows_of_keys_have_gradients(case):
    _, model, batch, omega = make(case, n_keys=6, hidden_size=4, replace=True, batch_size=1)
    gradient = model.loss_and_gradients(batch, omega)[1]["embeddingK.weight"]
    used = np.unique(batch.keys)
    assert len(used) < 6 and gradient[used].any()
    assert not np.delete(gradient, used, axis=0).any()


# --- Adam and the loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_model
def test_steps_are_adam_on_the_gradients(case, dtype):
    settings, model, _, omega = make(case, dtype, n_keys=5, hidden_size=6, replace=True, batch_size=3)
    if omega is not None:
        pytest.skip("a step draws its own Omega: see the runs below")
    stream, tolerance = Stream(settings), 1e-12 if dtype == np.float64 else 2e-6
    ours = as_float64(model.parameters)
    trained = {name: ours[name] for name in oracle.trained_names(settings.rule)}
    adam = training_oracle.Adam(trained)
    for step in range(12):
        batch = stream.batch()
        loss, gradients = model.loss_and_gradients(batch)
        adam.update(trained, as_float64(gradients), 0.01)
        np.testing.assert_equal(model.step(batch, 0.01), loss)
        for name, array in model.parameters.items():
            np.testing.assert_allclose(array, ours[name], rtol=0, atol=tolerance, err_msg=f"{name} in step {step + 1}")


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_steps_move_every_number_of_a_large_matrix(case):
    """Adam takes 4096 numbers at a time: each matrix has several times as many, and its last rows are looked at."""
    settings, model, _, _ = make(case, n_keys=280, hidden_size=32, batch_size=3)
    stream, ours = Stream(settings), {name: array.copy() for name, array in model.parameters.items()}
    trained = {name: ours[name] for name in oracle.trained_names(settings.rule)}
    adam = training_oracle.Adam(trained)
    for _ in range(2):
        batch = stream.batch()
        adam.update(trained, model.loss_and_gradients(batch)[1], 0.01)
        model.step(batch, 0.01)
    for name, array in model.parameters.items():
        assert array.size > 2 * 4096 or array.ndim == 1 or name == "W_b.weight"
        np.testing.assert_allclose(array, ours[name], rtol=0, atol=1e-9, err_msg=name)


@every_model
def test_a_run_is_the_oracles_run(case):
    """Losses of 100 steps and the evaluation after them, in float64."""
    sizes = dict(n_keys=3, hidden_size=2, replace=True, batch_size=2, seed=2, favor_generator="mt19937")
    settings, model, _, omega = make(case, **sizes)
    map_name, argument, rule = case.oracle_arguments(settings)
    if omega is not None:
        argument = settings.attn_arg
    losses, rows = training_oracle.train(3, 2, map_name, argument, rule, True, 2, 2, settings.resolved_lr, 100)
    generator = training_oracle.TorchCpu(2)
    for name, array in training_oracle.initial_parameters(3, 2, case.map_row is None, generator).items():
        model.parameters[name][...] = array  # ours may differ in the last bit of a normal
    stream = Stream(settings)
    ours = [model.step(stream.batch()) for _ in range(100)]
    tolerance = 1e-4 if omega is not None else 1e-9  # the normals of Omega, too
    np.testing.assert_allclose(ours, losses, rtol=tolerance)
    assert model.evaluate(stream) == pytest.approx(float(rows[0][1]), rel=max(tolerance, 2e-7), nan_ok=True)


@every_model
def test_the_loop_in_c_is_the_loop_in_python(case):
    """To the bit: train() does what step() and evaluate() do."""
    settings, model, _, _ = make(case, np.float32, n_keys=9, hidden_size=8, max_steps=230, batch_size=4)
    stream, rows = Stream(settings), []
    for step in range(1, 231):
        model.step(stream.batch())
        if step % 100 == 0:
            rows.append((step, model.evaluate(stream)))
    seen, trained = [], Model(settings)
    result = train(settings, on_evaluation=lambda step, loss: seen.append((step, loss)), model=trained)
    np.testing.assert_equal(seen, result)
    np.testing.assert_equal(rows[: len(result)], result)
    assert len(result) > 0
    if len(result) == 2:  # no row ended the run before its last step
        for name, array in trained.parameters.items():
            np.testing.assert_array_equal(array, model.parameters[name], name)


def ended_by_the_rule(losses):
    """Whether a run may end with these evaluations: at most 0.001, or eleven in a row that beat nothing."""
    best, strikes = math.inf, 0
    for loss in losses:
        if loss <= 0.001:
            return loss is losses[-1]
        best, strikes = (loss, 0) if loss < best else (best, strikes + 1)
        if strikes == 11:
            return loss is losses[-1]
    return False


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_where_a_run_ends(case, seed):
    settings = case.settings(n_keys=4, hidden_size=8, replace=seed % 2 == 1, seed=seed, batch_size=4, max_steps=6000)
    losses = [loss for _, loss in train(settings)]
    assert all(np.float32(loss) == loss for loss in losses)
    assert ended_by_the_rule(losses) or (len(losses) == 60 and not ended_by_the_rule(losses[:-1]))


EXACTLY_GOOD_ENOUGH = np.float32(0.001)


def model_that_evaluates_to(settings, stream, wanted):
    """A softmax model of that evaluation loss: its queries find their keys the better, the longer the keys are."""
    model = Model(settings, np.float64)
    for array in model.parameters.values():
        array[...] = 0
    N = settings.n_keys
    model.parameters["W_k.weight"][:, N:] = model.parameters["W_q.weight"][...] = np.eye(
        settings.hidden_size, int(2 * N * 1.1)
    )
    keys = np.zeros(model.parameters["embeddingK.weight"].shape)
    keys[:N, :N] = np.diag(1 + 0.01 * np.arange(N))
    low, high = 1.0, 20.0
    for _ in range(200):
        length = (low + high) / 2
        model.parameters["embeddingK.weight"][...] = length * keys
        loss = model.evaluate(copy.deepcopy(stream))
        if loss == wanted:
            return model
        low, high = (length, high) if loss > wanted else (low, length)
    raise AssertionError("no length gives this loss")


@pytest.mark.parametrize(
    "loss, rows",
    [
        (np.nextafter(EXACTLY_GOOD_ENOUGH, np.float32(0)), 1),
        (EXACTLY_GOOD_ENOUGH, 1),
        (np.nextafter(EXACTLY_GOOD_ENOUGH, np.float32(1)), 3),
    ],
)
def test_a_loss_of_exactly_a_thousandth_ends_a_run(loss, rows):
    """With steps too small to move a number, every evaluation is of the model that was given."""
    settings = Settings(n_keys=7, hidden_size=16, batch_size=4, lr=1e-300, max_steps=300)
    stream = Stream(settings)
    for _ in range(100):
        stream.batch()
    losses = [evaluation for _, evaluation in train(settings, model=model_that_evaluates_to(settings, stream, loss))]
    assert losses[0] == loss and len(losses) == rows


def test_eleven_nans_end_a_run():
    settings, model, _, _ = make(ONE_OF_EACH[0], np.float32, n_keys=4, hidden_size=4)
    model.parameters["W_q.bias"][...] = np.nan
    rows = train(settings, model=model)
    assert [step for step, _ in rows] == list(range(100, 1200, 100)) and all(math.isnan(loss) for _, loss in rows)


def test_ties_are_strikes():
    """Features that underflow answer 0, every loss is 0.5: a best row, then eleven that only equal it."""
    case = next(case for case in cases.MODEL_CASES if str(case) == "linear-sum")
    settings, model, _, _ = make(case, np.float32, n_keys=4, hidden_size=4, max_steps=3000)
    for name in ("W_k.bias", "W_q.bias"):
        model.parameters[name][...] = -1000
    assert train(settings, model=model) == [(step, 0.5) for step in range(100, 1300, 100)]


@pytest.mark.parametrize("max_steps, n_rows", [(0, 0), (99, 0), (100, 1), (199, 1), (200, 2)])
def test_max_steps(max_steps, n_rows):
    settings = ONE_OF_EACH[0].settings(n_keys=20, hidden_size=4, max_steps=max_steps)
    assert [step for step, _ in train(settings)] == [100, 200][:n_rows]


# --- FAVOR+'s Omega ------------------------------------------------------------------------------------------------

FAVOR_CASES = [case for case in cases.MODEL_CASES if case.map_row and case.map_row["argument"] == "m"]


@pytest.mark.parametrize("case", FAVOR_CASES, ids=str)
def test_every_forward_pass_draws_an_omega(case):
    """In order, those of training and those of evaluation, one a chunk."""
    settings, model, batch, _ = make(case, n_keys=7, hidden_size=4, batch_size=3)
    generator = Philox(settings.seed)

    def next_omega():
        return draw_omega(4, settings.attn_arg, generator)

    for evaluate in (lambda: model.loss(batch), lambda: model.loss_and_gradients(batch)[0]):
        assert evaluate() == pytest.approx(model.loss(batch, next_omega()), rel=1e-6)
    assert model.read_out(batch)[0] == pytest.approx(model.read_out(batch, next_omega())[0], rel=1e-5)
    model.evaluate(Stream(settings))
    for _ in range(20 * 3):  # 7 queries in chunks of 3
        next_omega()
    assert model.loss(batch) == pytest.approx(model.loss(batch, next_omega()), rel=1e-6)


@pytest.mark.parametrize("case", FAVOR_CASES, ids=str)
@pytest.mark.parametrize("d", [2, 3, 4, 8])
def test_omega_of_a_run_on_a_cpu(case, d):
    """mt19937 goes on where the initialisation stopped, its kept normal (d < 4) included."""
    settings, model, batch, _ = make(case, n_keys=3, hidden_size=d, favor_generator="mt19937", seed=11)
    generator = training_oracle.TorchCpu(11)
    training_oracle.initial_parameters(3, d, False, generator)
    for _ in range(3):
        omega = oracle.draw_omega(d, settings.attn_arg, generator.normal)
        assert model.loss(batch) == pytest.approx(model.loss(batch, omega), rel=1e-4)


def test_subnormal_numbers_are_flushed_for_the_sum_rule_only_while_it_works():
    """FAVOR+ at N = 120: many features are subnormal. The caller's thread has such numbers before and after."""
    settings = Settings(n_keys=120, attn_name="favor", attn_arg=64, max_steps=100)
    tiny = np.float32(1e-39)
    assert tiny * np.float32(0.5) > 0
    train(settings)
    assert tiny * np.float32(0.5) > 0 and np.float32(2e-38) * np.float32(0.25) > 0


@pytest.mark.parametrize("n_keys", [120, 200])
def test_features_that_are_flushed_decide_nothing(n_keys):
    """Float32 against float64, in which the same features are normal numbers."""
    settings = Settings(n_keys=n_keys, attn_name="favor", attn_arg=64)
    batch, omega = Stream(settings).batch(), draw_omega(64, 64, Philox(1))
    single, double = (Model(settings, dtype).loss_and_gradients(batch, omega) for dtype in (np.float32, np.float64))
    assert single[0] == pytest.approx(double[0], rel=1e-6)
    for name, expected in double[1].items():
        np.testing.assert_allclose(single[1][name], expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_a_nan_reaches_tokens_that_have_no_features():
    """FAVOR+ at N = 600: nearly all tokens are left out, but not where 0 times their gradient is NaN."""
    settings = Settings(n_keys=600, attn_name="favor", attn_arg=16, batch_size=2)
    model, batch, omega = Model(settings), Stream(settings).batch(), draw_omega(64, 16, Philox(1))
    model.parameters["W_k.weight"][:, 3] = np.nan  # of one value, which is in both sequences once, as all are
    loss, gradients = model.loss_and_gradients(batch, omega)
    assert np.isnan(loss) and np.isnan(gradients["W_k.weight"][:, :600]).all()
