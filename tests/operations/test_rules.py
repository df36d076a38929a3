"""The rules against the recurrence of rule_oracle.py, and their gradients against differences."""

import numpy as np
import pytest
from support import rule_cases
from support.rule_cases import METHODS, RULE_CASES, SIZES, SMALL, Sizes, assert_close

every_case = pytest.mark.parametrize("case", RULE_CASES, ids=str)
every_method = pytest.mark.parametrize("method", METHODS)
GATED = [case for case in RULE_CASES if case.gate]
CLAMPED = [case for case in RULE_CASES if case.function == "fast_weight_memory"]

# --- float64: the equations ----------------------------------------------------------------------------------------


def assert_follows_the_oracle(case, sizes, x, method, results=1e-10, gradients=1e-9):
    assert_close(case.forward(x, sizes, method=method), case.expected(x, sizes), results)
    assert_close(case.backward(x, sizes, method=method), case.expected_gradients(x, sizes), gradients)


@every_method
@pytest.mark.parametrize("sizes", SIZES[3:5] + SIZES[-2:], ids=str)
@every_case
def test_without_states(case, sizes, method):
    """From an empty memory, and with no gradient of the final one; the very first write may be unclamped."""
    x, results, gradients = rule_cases.reference(case, sizes, states=False)
    assert_close(case.forward(x, sizes, method=method), results, 1e-10)
    assert_close(case.forward(x, sizes, method=method, output_final_state=False), {"o": results["o"]}, 1e-10)
    assert_close(case.backward(x, sizes, method=method), gradients, 1e-9)


def test_the_clamp_is_checked_on_both_sides():
    """The differences above see tokens whose memory is divided and others where it is not, none beside the kink."""
    for case in CLAMPED:
        norms = []
        for sizes in SMALL:
            case.expected(case.inputs(sizes, seed=3), sizes, norms=norms)
        norms = np.concatenate([np.ravel(n) for n in norms])
        clamped = norms > 1
        assert 0.1 < clamped.mean() < 0.9 and (norms[clamped] - 1).min() > 1e-4


# --- float32: accuracy ---------------------------------------------------------------------------------------------

LONG = Sizes(1, 4096, 1, 1, 1, 32, 32)
SPREAD, STRONG = (1e-4, 20), (1, 20)  # -g, log-uniform between these


def single_precision(case, sizes, method, x):
    """Results and gradients in float32, as float64."""
    single = {name: array.astype(np.float32) for name, array in x.items()}
    results = case.forward(single, sizes, method=method) | {
        "d" + name: gradient for name, gradient in case.backward(single, sizes, method=method).items()
    }
    assert all(array.dtype == np.float32 for array in results.values())
    return {name: array.astype(np.float64) for name, array in results.items()}


def exact(case, sizes, x):
    """The same of the oracle, from the inputs as float32 has them."""
    x = {name: array.astype(np.float32) for name, array in x.items()}
    gradients = case.expected_gradients(x, sizes)
    return case.expected(x, sizes) | {"d" + name: gradient for name, gradient in gradients.items()}


PLAIN = [case for case in RULE_CASES if case.option("qk_norm") is None]
LONG_CASES = [(case, g) for case in PLAIN for g in ((SPREAD, STRONG) if case.gate else (SPREAD,))]


@pytest.fixture(scope="module", params=LONG_CASES, ids=lambda p: str(p[0]) + ("-strong" if p[1] == STRONG else ""))
def long_sequence(request):
    """A long sequence with keys of length 1, and what the oracle makes of it."""
    case, g = request.param
    x = case.inputs(LONG, g=g)
    return case, x, exact(case, LONG, x)


@every_method
def test_float32_of_a_long_sequence(long_sequence, method):
    """Each tensor relative to its largest; the gradient of a gate also relative to itself, because strong gates have
    small gradients next to large ones."""
    case, x, expected = long_sequence
    results = single_precision(case, LONG, method, x)
    assert_close(results, expected, 1e-4, floor=0)
    if case.gate:
        counts = np.abs(expected["dg"]) > 1e-6 * np.abs(expected["dg"]).max()
        dg, wanted = results["dg"][counts], expected["dg"][counts]
        assert len(wanted) > 1000
        assert np.mean(np.sign(dg) == np.sign(wanted)) >= 0.99
        assert np.median(np.abs(dg / wanted - 1)) < 1e-2


@every_method
@pytest.mark.parametrize("case", [case for case in RULE_CASES if not case.option("normalize")], ids=str)
def test_float32_of_keys_as_they_are(case, method):
    """Keys of length about 1; and positive features divided by their sum, or vectors by their length."""
    sizes = Sizes(1, 256, 1, 2, 1, 64, 40)
    x = case.inputs(sizes, g=SPREAD, raw_keys=case.option("qk_norm") is None)
    assert_close(single_precision(case, sizes, method, x), exact(case, sizes, x), 2e-4, floor=0)


@every_method
@pytest.mark.parametrize("seed", [0, 1])
def test_float32_of_a_gradient_that_fades(seed, method):
    """fast_weight_memory, asked at the last token only: a scalar of its backward that kept its rounding errors would
    bring them to early tokens, where little is left of the gradient."""
    case = next(case for case in RULE_CASES if case.function == "fast_weight_memory" and not case.options)
    sizes = Sizes(1, 128, 1, 1, 1, 16, 16)
    x = case.inputs(sizes, seed, np.float32, states=False)
    x["do"][:, :-1] = 0
    exact = case.backward({name: array.astype(np.float64) for name, array in x.items()}, sizes, method=method)
    for name, gradient in case.backward(x, sizes, method=method).items():
        early, wanted = gradient[:, :64], exact[name][:, :64]
        assert np.abs(wanted).max() < 1e-12, name
        assert np.abs(early - wanted).max() <= 0.02 * np.abs(wanted).max(), name


# --- edges ---------------------------------------------------------------------------------------------------------

EDGE = Sizes(1, 37, 1, 2, 1, 6, 5)


@every_method
@every_case
def test_keys_that_repeat(case, method):
    assert_follows_the_oracle(case, EDGE, case.inputs(EDGE, repeat_keys=True), method)


@every_method
@pytest.mark.parametrize("strength", [0, 1, 2])
@pytest.mark.parametrize("case", [case for case in RULE_CASES if case.strengths], ids=str)
def test_strengths_at_their_ends(case, strength, method):
    """beta = 0 writes nothing, 1 replaces, 2 mirrors (a negative eigenvalue); also where keys repeat."""
    for repeat_keys in (False, True):
        x = case.inputs(EDGE, repeat_keys=repeat_keys)
        for name in case.strengths:
            x[name][...] = strength
        assert_follows_the_oracle(case, EDGE, x, method)


@every_method
@pytest.mark.parametrize("empty", ["B", "T", "both", "packed"])
@every_case
def test_nothing_in(case, empty, method):
    """No sequence gives nothing; no token leaves the state and passes its gradient on."""
    sizes = {
        "B": EDGE._replace(B=0),
        "T": EDGE._replace(B=2, T=0),
        "both": EDGE._replace(B=0, T=0),
        "packed": EDGE._replace(T=0, cu_seqlens=(0, 0, 0)),
    }[empty]
    x = case.inputs(sizes)
    results, gradients = case.forward(x, sizes, method=method), case.backward(x, sizes, method=method)
    assert results["o"].shape == (sizes.B, sizes.T, 2, 5) and results["o"].dtype == np.float64
    for part in ("state", "sum") if case.option("normalize") else ("state",):
        np.testing.assert_array_equal(results[f"final_{part}"], x[f"initial_{part}"])
        np.testing.assert_array_equal(gradients[f"initial_{part}"], x[f"dfinal_{part}"])
    assert all(gradients[name].shape == x[name].shape for name in gradients)
    states = [name for name in x if name.endswith(("_state", "_sum"))]
    alone = {name: array for name, array in x.items() if name not in states}
    assert not case.forward(alone, sizes, method=method)["final_state"].any()
    assert "initial_state" not in case.backward(alone, sizes, method=method)


@every_method
@pytest.mark.parametrize("g", [-30.0, -1000.0, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True], ids=["some", "all"])
@pytest.mark.parametrize("case", GATED, ids=str)
def test_a_gate_that_forgets(case, everywhere, g, method):
    """exp(g) underflows or is 0: all that came before is forgotten, and every number stays finite."""
    x = case.inputs(EDGE, seed=1)
    forgets = np.random.default_rng(2).uniform(size=x["g"].shape) < (1 if everywhere else 0.3)
    x["g"][forgets] = g
    assert_follows_the_oracle(case, EDGE, x, method)
    single = single_precision(case, EDGE, method, x)
    assert_close(single, exact(case, EDGE, x), 1e-4)
    assert all(np.isfinite(array).all() for array in single.values())


@every_method
@pytest.mark.parametrize("case", GATED, ids=str)
def test_a_gate_that_lets_grow(case, method):
    """g > 0 is not refused: exp(g) is what it is."""
    x = case.inputs(EDGE)
    x["g"] = np.random.default_rng(5).uniform(-1.5, 1, x["g"].shape)
    assert_follows_the_oracle(case, EDGE, x, method)
    x["g"] = np.random.default_rng(5).uniform(0, 0.5, x["g"].shape)
    assert_follows_the_oracle(case, EDGE, x, method)


@every_method
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every_case
def test_a_number_that_is_not_finite_propagates(case, bad, method):
    """From the token on that has it, and not to tokens before; gradients: from do and dfinal_state backwards."""
    sizes, t = EDGE._replace(B=2), 20
    for name in case.arguments:
        x = case.inputs(sizes)
        x[name][0, t].flat[0] = bad
        with np.errstate(all="ignore"):
            o, expected = case.forward(x, sizes, method=method)["o"], case.expected(x, sizes)["o"]
        assert not np.isfinite(o[np.isnan(expected)]).any(), name
        assert np.isfinite(o[:, :t]).all() and np.isfinite(o[1]).all(), name
        assert not np.isfinite(o[0]).all(), name
        assert not all(np.isfinite(gradient).all() for gradient in case.backward(x, sizes, method=method).values())
    x = case.inputs(sizes)
    x["do"][0, t, 0, 0] = bad
    gradients, expected = case.backward(x, sizes, method=method), case.expected_gradients(x, sizes)
    for name, gradient in gradients.items():
        assert not np.isfinite(gradient[np.isnan(expected[name])]).any(), name
        if name in case.arguments:
            assert np.isfinite(gradient[:, t + 1 :]).all() and np.isfinite(gradient[1]).all(), name
    assert not np.isfinite(gradients["q"][0, t]).all()
    x = case.inputs(sizes)
    x["dfinal_state"][0, 0, 0, 0] = bad
    assert not np.isfinite(case.backward(x, sizes, method=method)["initial_state"]).all()


# --- in place -------------------------------------------------------------------------------------------------------


def states_of(case, x, which):
    names = [f"{which}_state", f"{which}_sum"] if case.option("normalize") else [f"{which}_state"]
    return tuple(x[name] for name in names) if len(names) > 1 else x[names[0]]


@every_method
@every_case
def test_results_into_given_arrays(case, method):
    """out=(o, state) is filled, and is what is returned; the state may be the initial one itself."""
    x = case.inputs(EDGE)
    expected = case.forward(x, EDGE, method=method)
    given = {name: np.full_like(array, np.nan) for name, array in expected.items()}
    results = case.forward(x, EDGE, method=method, out=(given["o"], states_of(case, given, "final")))
    assert all(results[name] is given[name] and given[name].tobytes() == expected[name].tobytes() for name in expected)
    given["o"][...] = np.nan
    results = case.forward(x, EDGE, method=method, out=(given["o"], states_of(case, x, "initial")))
    assert results["o"] is given["o"] and results["final_state"] is x["initial_state"]
    assert all(results[name].tobytes() == expected[name].tobytes() for name in expected)


@every_method
@every_case
def test_decoding_in_place(case, method):
    """One token a call, the state updated in place, is the whole sequence."""
    x = case.inputs(EDGE)
    expected = case.forward(x, EDGE)
    one, o, state = EDGE._replace(T=1), np.empty((1, 1, 2, 5)), states_of(case, x, "initial")
    for t in range(EDGE.T):
        token = {name: x[name][:, t : t + 1] for name in case.arguments}
        token |= {name: x[name] for name in ("initial_state", "initial_sum") if name in x}
        case.forward(token, one, method=method, out=(o, state))
        np.testing.assert_allclose(o[:, 0], expected["o"][:, t], rtol=1e-10, atol=1e-10)
    for name in set(expected) - {"o"}:
        np.testing.assert_allclose(x[name.replace("final", "initial")], expected[name], rtol=1e-10, atol=1e-10)


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "size"), [(800, 512), (70_000, 8)], ids=["large states", "many tokens"])
def test_so_much_that_little_of_it_is_kept(T, size):
    """The backward keeps few of the states where they are large, and not what was written where tokens are many.

    It gives what its parts give.
    """
    case = next(case for case in RULE_CASES if case.function == "kimi_delta_rule")
    sizes, half = Sizes(1, T, 1, 1, 1, size, size), Sizes(1, T // 2, 1, 1, 1, size, size)
    x = case.inputs(sizes)
    first, second = (
        {name: array[:, tokens] for name, array in x.items() if name in (*case.arguments, "do")}
        for tokens in (slice(0, T // 2), slice(T // 2, T))
    )
    first["initial_state"] = x["initial_state"]
    second["initial_state"], second["dfinal_state"] = case.forward(first, half)["final_state"], x["dfinal_state"]
    late = case.backward(second, half)
    early = case.backward(first | {"dfinal_state": late["initial_state"]}, half)
    whole = {name: np.concatenate([early[name], late[name]], axis=1) for name in case.arguments}
    assert_close(case.backward(x, sizes), whole | {"initial_state": early["initial_state"]}, 1e-10)


POISONED = """
import numpy as np
from support import rule_cases
for case in rule_cases.RULE_CASES:
    for sizes in (*rule_cases.SIZES[3:6], rule_cases.SIZES[8]):
        x, results, gradients = rule_cases.reference(case, sizes)
        x = {name: array.astype(np.float32) for name, array in x.items()}
        for method in rule_cases.METHODS:
            for call, expected in ((case.forward, results), (case.backward, gradients)):
                np.full(1 << 21, np.nan)  # and freed again
                rule_cases.assert_close(call(x, sizes, method=method), expected, 1e-4)
"""


def test_no_number_comes_from_memory_that_was_not_written():
    """What malloc hands out is full of NaN (with glibc, which reuses freed memory if told not to map large blocks)."""
    rule_cases.run_python(POISONED, MALLOC_MMAP_THRESHOLD_=str(1 << 30), MALLOC_TRIM_THRESHOLD_=str(1 << 30))
