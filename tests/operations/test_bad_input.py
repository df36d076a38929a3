"""Bad arguments of the functions on arrays and of Model: each raises an exception that begins with the argument's name.

A case is (function, argument, what is given instead, exception); every other argument of the call is good.
"""

import dataclasses
import inspect
import re

import numpy as np
import pytest
from support import cases

import fwm_py
from fwm_py import feature_maps, random, readouts
from fwm_py.experiments.retrieval import sweep
from fwm_py.experiments.retrieval.logs import log_name
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.stream import Batch, Stream
from fwm_py.experiments.retrieval.train import train

HUGE = 10**30

# --- good arguments ------------------------------------------------------------------------------------------------


def map_functions():
    """{function: its good arguments} for every map of the table and its gradient."""
    functions = {}
    for row in cases._core.MAPS:
        case = cases.MapCase(row, cases.ARGUMENTS[row["argument"]][-1])
        x, dy = np.ones((2, 3, 4)), np.ones((2, 3, case.width(4)))
        for name, arrays in ((row["function"], {"x": x}), (row["function"] + "_backward", {"dy": dy, "x": x})):
            function = getattr(feature_maps, name)
            functions[function] = dict(
                zip(inspect.signature(function).parameters, [*arrays.values(), *case.argument(4)], strict=True)
            )
            assert list(functions[function])[: len(arrays)] == list(arrays)
    return functions


def rule_functions():
    functions = {}
    for case in cases.RULE_CASES:
        inputs = cases.rule_inputs(2, 3, 4, 5)
        for name, arrays in ((case.row["function"], []), (case.row["function"] + "_backward", [np.ones((2, 5))])):
            function = getattr(readouts, name)
            functions[function] = dict(
                zip(inspect.signature(function).parameters, [*arrays, *case.arguments(inputs)], strict=True)
            )
    return functions


MAP_FUNCTIONS, RULE_FUNCTIONS = map_functions(), rule_functions()

# --- what may be given instead -------------------------------------------------------------------------------------


def bad_array(good):
    """For an array of floats: (given, exception)."""
    yield from (
        (given, TypeError)
        for given in (
            None,
            "text",
            object(),
            good.astype(np.int64),
            good.astype(bool),
            good.astype(np.float16),
            good.astype(np.complex128),
            good.astype(object),
            good.astype(str),
            good.astype("M8[s]"),
        )
    )
    if np.longdouble != np.float64:
        yield good.astype(np.longdouble), TypeError
    yield from bad_masks(good)
    yield from bad_shapes(good)


def bad_masks(good):
    """NumPy's conversion would forget a mask, also in lists."""
    mask = np.zeros(good.shape, bool)
    mask.flat[-1] = True
    yield np.ma.array(good, mask=mask), ValueError
    if good.ndim:
        yield [*good[:-1], np.ma.array(good[-1], mask=mask[-1])], ValueError


def bad_shapes(good):
    yield np.zeros((), good.dtype), ValueError
    yield good[None], ValueError
    yield good[0], ValueError
    for axis in range(good.ndim):
        yield np.concatenate([good, good], axis=axis), ValueError


def bad_indices(good, below):
    """For an array of integers below a bound."""
    yield from (
        (given, TypeError)
        for given in (
            None,
            "text",
            good.astype(np.float64),
            good.astype(bool),
            good.astype(object),
            good.astype("m8[s]"),
        )
    )
    yield from bad_masks(good)
    yield from bad_shapes(good)
    for number, dtype in (
        (-1, np.int64),
        (-1, np.int8),
        (below, np.int64),
        (below, np.uint8),
        (2**31, np.int64),
        (2**32, np.int64),
        (2**32, np.uint64),
        (-(2**63), np.int64),
        (2**64 - 1, np.uint64),
    ):
        wrong = good.astype(dtype)
        wrong.flat[-1] = number
        yield wrong, ValueError


def bad_count(low=1):
    """For a whole number."""
    yield from ((given, TypeError) for given in (None, "2", 2.0, 2.5, float("nan"), [2], np.float64(2)))
    yield from ((given, ValueError) for given in (low - 1, -5, -HUGE, HUGE, 2**63, 2**64))


def bad_positive():
    """For a finite number above 0."""
    yield from ((given, TypeError) for given in ("1", [1.0], 1j))
    yield from ((given, ValueError) for given in (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 10**400))


# --- the table -----------------------------------------------------------------------------------------------------


def map_cases():
    for function, arguments in MAP_FUNCTIONS.items():
        first = next(iter(arguments))
        for name, good in arguments.items():
            if name == "nu":
                instead = bad_count()
            elif name == "omega":
                instead = [(given, e) for given, e in bad_array(good) if getattr(given, "shape", None) != (4, 38)]
                instead += [(good[:, :0], ValueError)] if first == "x" else []
            elif name == "x" and first == "x":  # of any leading shape: only its last axis can be wrong
                instead = [(given, e) for given, e in bad_array(good) if e is TypeError]
                instead += [(np.zeros(()), ValueError), (np.zeros((3, 0)), ValueError)]
            elif name == "x":  # it gives the shape that dy must have
                instead = [(given, e) for given, e in bad_array(good) if e is TypeError]
            else:
                instead = bad_array(good)
            for given, exception in instead:
                yield function, name, given, exception


def rule_cases():
    for function, arguments in RULE_FUNCTIONS.items():
        for name, good in arguments.items():
            if name == "n_values":
                instead = bad_count()
            elif name == "values":
                instead = bad_indices(good, below=5)
            elif name == "keys":  # it gives B, L and p
                instead = [(given, e) for given, e in bad_array(good) if e is TypeError or np.ndim(given) != 3]
                instead.append((good[:, :, :0], ValueError))
            else:
                instead = bad_array(good)
            for given, exception in instead:
                yield function, name, given, exception


def other_cases():
    draw = {"d": 3, "m": 4, "generator": random.Philox(1)}
    for name, instead in (
        ("d", bad_count()),
        ("m", bad_count()),
        ("generator", ((given, TypeError) for given in (None, 1, "philox", np.random.RandomState(1)))),
    ):
        for given, exception in instead:
            yield feature_maps.draw_omega, draw, name, given, exception
    for given, exception in bad_count():
        yield fwm_py.set_num_threads, {"n": 1}, "n", given, exception


ALL = [
    (function, (MAP_FUNCTIONS | RULE_FUNCTIONS)[function], name, given, exception)
    for table in (map_cases(), rule_cases())
    for function, name, given, exception in table
] + list(other_cases())


def describe(given):
    if isinstance(given, np.ndarray):
        last = f"-{given.flat[-1]}" if given.dtype.kind in "iu" and given.size else ""
        return f"{given.dtype}{given.shape}{last}".replace(" ", "")
    return repr(given)[:20] if isinstance(given, (type(None), int, float, str, list)) else type(given).__name__


def assert_refused(call, name, exception):
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is exception
    assert re.match(rf"{name}\b", message), f"the message does not begin with {name}: {message}"
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    "function, good, name, given, exception",
    ALL,
    ids=[f"{f.__name__}-{name}-{describe(given)}" for f, _, name, given, _ in ALL],
)
def test_bad_argument(function, good, name, given, exception):
    function(*good.values())
    assert_refused(lambda: function(*{**good, name: given}.values()), name, exception)


@pytest.mark.parametrize("function", [*MAP_FUNCTIONS, *RULE_FUNCTIONS], ids=lambda function: function.__name__)
def test_arrays_of_two_precisions(function):
    """Every array has the dtype of the first one of the call, or the call is refused."""
    good = (MAP_FUNCTIONS | RULE_FUNCTIONS)[function]
    floats = [name for name, a in good.items() if isinstance(a, np.ndarray) and a.dtype == np.float64]
    floats = [name for name in floats if name != "omega"]  # is converted
    for name in floats:
        if len(floats) > 1:
            mixed = {**good, name: good[name].astype(np.float32)}
            with pytest.raises(TypeError) as caught:
                function(**mixed)
            assert any(re.match(rf"{other}\b", str(caught.value)) for other in floats)


@pytest.mark.parametrize("function", [*MAP_FUNCTIONS, *RULE_FUNCTIONS], ids=lambda function: function.__name__)
def test_masked_arrays_without_masked_entries(function):
    good = (MAP_FUNCTIONS | RULE_FUNCTIONS)[function]
    masked = {name: np.ma.array(a, mask=False) if isinstance(a, np.ndarray) else a for name, a in good.items()}
    ours, expected = function(**masked), function(**good)
    for one, other in zip(ours, expected) if isinstance(expected, tuple) else [(ours, expected)]:
        np.testing.assert_array_equal(one, other)


def test_a_list_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises((TypeError, ValueError), match=r"^x\b"):
        feature_maps.elu1(endless)


@pytest.mark.parametrize("function", [*MAP_FUNCTIONS, *RULE_FUNCTIONS], ids=lambda function: function.__name__)
def test_missing_and_unknown_arguments(function):
    good = (MAP_FUNCTIONS | RULE_FUNCTIONS)[function]
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            continue
        with pytest.raises(TypeError, match=name):
            function(**{other: given for other, given in good.items() if other != name})
    with pytest.raises(TypeError, match="surprise"):
        function(**good, surprise=1)


# --- results that cannot be held -----------------------------------------------------------------------------------


def test_results_beyond_all_memory():
    endless = np.broadcast_to(np.float32(1), (2**43, 64))
    for case in cases.MAP_CASES:
        with pytest.raises((MemoryError, ValueError)):
            case.forward(endless)
    for nu in (2**40, 2**62, 2**63 - 1):
        with pytest.raises((MemoryError, ValueError)):
            feature_maps.dpfp(np.ones((1, 4)), nu)
    for case in cases.RULE_CASES:
        inputs = cases.rule_inputs(2, 3, 4, 5)
        for n_values in (2**45, 2**61, 2**63 - 1):
            with pytest.raises((MemoryError, ValueError)):
                case.forward(inputs._replace(n_values=n_values))


# --- Model ---------------------------------------------------------------------------------------------------------

MODEL_USES = {
    "loss": lambda model, batch, omega: model.loss(batch, omega),
    "loss_and_gradients": lambda model, batch, omega: model.loss_and_gradients(batch, omega),
    "read_out": lambda model, batch, omega: model.read_out(batch, omega),
    "step": lambda model, batch, omega: model.step(batch),
}


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
    settings = cases.MODEL_CASES[0].settings(n_keys=6, hidden_size=4, batch_size=3)
    model, batch = Model(settings), Stream(settings).batch()
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
    settings = cases.MODEL_CASES[0].settings(n_keys=6, hidden_size=4, batch_size=3)
    model, batch = Model(settings), Stream(settings).batch()
    for larger in (
        Batch(*(np.concatenate([a, a]) for a in batch)),
        batch._replace(keys=np.tile(batch.keys, 2), values=np.tile(batch.values, 2)),
    ):
        assert_refused(lambda: MODEL_USES[use](model, larger, None), "keys", ValueError)


def test_bad_learning_rates():
    settings = cases.MODEL_CASES[0].settings(n_keys=6, hidden_size=4, batch_size=3)
    model, batch = Model(settings), Stream(settings).batch()
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
    refused += [
        ("text", TypeError),
        (object(), TypeError),
        (good * 1e39, ValueError),
        *bad_masks(good),
        *bad_shapes(good),
    ]
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
    settings = cases.MODEL_CASES[0].settings(n_keys=6, hidden_size=4, batch_size=3)
    model, batch = Model(settings), Stream(settings).batch()
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

BATCH = np.ones((1, 2, 1, 4))
FLAGS = {
    "return_lse": lambda flag: fwm_py.softmax_attention(BATCH, BATCH, BATCH, return_lse=flag),
    "causal": lambda flag: fwm_py.softmax_attention(BATCH, BATCH, BATCH, causal=flag),
    "normalize": lambda flag: fwm_py.linear_attention(BATCH, BATCH, BATCH, normalize=flag),
    "output_final_state": lambda flag: fwm_py.linear_attention(BATCH, BATCH, BATCH, output_final_state=flag),
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


# --- numbers that float32 cannot hold ------------------------------------------------------------------------------

NARROW = BATCH.astype(np.float32)
NUMBERS = {
    "scale": [
        lambda x, n: fwm_py.softmax_attention(x, x, x, scale=n),
        lambda x, n: fwm_py.linear_attention(x, x, x, scale=n),
        lambda x, n: fwm_py.softmax_attention_backward(x, x, x, x, scale=n),
    ],
    "eps": [
        lambda x, n: fwm_py.rms_norm(x, x[0, 0, 0], eps=n),
        lambda x, n: fwm_py.linear_attention(x, x, x, eps=n),
        lambda x, n: fwm_py.rms_norm_backward(x, x, x[0, 0, 0], eps=n),
    ],
}


@pytest.mark.parametrize("given", [1e39, -1e39, 1e-60])
@pytest.mark.parametrize("name, use", [(name, use) for name, uses in NUMBERS.items() for use in uses])
def test_numbers_that_float32_cannot_hold(name, use, given):
    assert_refused(lambda: use(NARROW, given), name, ValueError)
    if given > 0:
        use(BATCH, given)
