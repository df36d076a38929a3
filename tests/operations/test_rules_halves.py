"""The rules on tokens in 16 bits: what is read is widened, what is written is rounded once, states are float32."""

import numpy as np
import pytest
from support.halves import FIELD, HALVES, assert_no_worse_than_rounding, reads_a_rounded_state
from support.rule_cases import METHODS, RULE_CASES, SIZES, Sizes

import fwm_py
from fwm_py import rules

every_case = pytest.mark.parametrize("case", RULE_CASES, ids=str)
every_half = pytest.mark.parametrize("half", HALVES, ids=str)
every_method = pytest.mark.parametrize("method", METHODS)

MIXED = Sizes(2, 37, 1, 2, 2, 9, 20)
GATED = next(case for case in RULE_CASES if case.function == "gated_delta_rule" and case.option("qk_norm") == "l2")
CHANNELS = next(case for case in RULE_CASES if case.function == "kimi_delta_rule" and case.option("qk_norm") == "l2")


def is_state(name):
    return name.endswith(("_state", "_sum"))


def halved(half, x):
    """A call's arrays with its tokens in 16 bits, and the same numbers in float32."""
    narrow = {name: a.astype(np.float32) if is_state(name) else half.narrow(a) for name, a in x.items()}
    return narrow, {name: a if is_state(name) else half.widen(a) for name, a in narrow.items()}


def rounds_the_state(case, half, method="chunked"):
    return half.is_bfloat16 and reads_a_rounded_state(case.function, method)


def assert_like_float32(case, half, got, exact, method="chunked"):
    """A forward: to the bit, unless it reads a rounded state."""
    if not rounds_the_state(case, half, method):
        assert_rounded(half, got, exact)
        return
    for name, array in got.items():
        assert array.dtype == (np.float32 if is_state(name) else half.dtype), name
        wide = array if is_state(name) else half.widen(array)
        assert np.abs(wide - exact[name]).max(initial=0) <= 0.02 * np.abs(exact[name]).max(initial=1e-3), name


def assert_rounded(half, got, exact):
    """Tokens in 16 bits with the bits of `exact`, rounded, and states in float32 with its bits."""
    assert got.keys() == exact.keys()
    for name, array in got.items():
        assert array.dtype == (np.float32 if is_state(name) else half.dtype), name
        expected = exact[name] if is_state(name) else half.narrow(exact[name])
        assert array.tobytes() == expected.tobytes(), name


@every_half
@every_method
@pytest.mark.parametrize("sizes", [*SIZES[:1], *SIZES[4:6], *SIZES[-2:]], ids=str)
@every_case
def test_has_the_bits_of_float32(case, sizes, method, half):
    narrow, wide = halved(half, case.inputs(sizes, dtype=np.float32))
    results, exact = (case.forward(x, sizes, method=method) for x in (narrow, wide))
    assert_like_float32(case, half, results, exact, method)
    assert_rounded(half, case.backward(narrow, sizes, method=method), case.backward(wide, sizes, method=method))


@every_half
@every_case
def test_tokens_in_float32_beside_them(case, half):
    """As models have gates, and as they have the gradient of a sum in float32."""
    narrow, wide = halved(half, case.inputs(MIXED, dtype=np.float32))
    kept = {"g", "beta", "b", "w", "v", "do"}
    mixed = {name: wide[name] if name in kept else array for name, array in narrow.items()}
    assert_like_float32(case, half, case.forward(mixed, MIXED), case.forward(wide, MIXED))
    gradients, exact = case.backward(mixed, MIXED), case.backward(wide, MIXED)
    for name in {"q", "k"}:
        assert gradients[name].tobytes() == half.narrow(exact[name]).tobytes()
    for name in kept & gradients.keys():
        assert gradients[name].dtype == np.float32 and np.array_equal(gradients[name], exact[name])


def parts_of_one_array(half, *arrays):
    """The arrays as parts of each token of one, as one projection makes them."""
    B, T = arrays[0].shape[:2]
    whole = np.concatenate([a.view(np.uint16).reshape(B, T, -1) for a in arrays], axis=2).view(half.dtype)
    parts, at = [], 0
    for a in arrays:
        size = a[0, 0].size
        parts.append(whole[:, :, at : at + size].reshape(a.shape))
        assert np.shares_memory(parts[-1], whole)
        at += size
    return parts


@every_half
def test_where_they_lie_does_not_matter(half):
    sizes = Sizes(1, 70, 2, 4, 2, 33, 20)
    narrow, _ = halved(half, GATED.inputs(sizes, dtype=np.float32))
    names = ("q", "k", "v", "beta")
    parts = parts_of_one_array(half, *(narrow[name] for name in names))
    backwards = {name: np.ascontiguousarray(narrow[name][:, ::-1])[:, ::-1] for name in names}
    expected = GATED.forward(narrow, sizes)
    for other in (dict(zip(names, parts)), backwards):
        for name, array in GATED.forward(narrow | other, sizes).items():
            assert array.tobytes() == expected[name].tobytes()


@every_half
def test_out_and_states_on_the_way(half):
    sizes = Sizes(1, 70, 2, 4, 2, 24, 20)
    narrow, wide = halved(half, GATED.inputs(sizes, dtype=np.float32))
    arguments, exact_arguments = ([x[name] for name in GATED.arguments] for x in (narrow, wide))
    state, exact_state = narrow["initial_state"].copy(), wide["initial_state"].copy()
    out = np.empty((1, 70, 4, 20), half.dtype)
    o, final, kept = rules.gated_delta_rule(
        *arguments, initial_state=state, return_states_every=32, out=(out, state), qk_norm="l2"
    )
    exact_results = rules.gated_delta_rule(
        *exact_arguments, initial_state=exact_state, return_states_every=32, output_final_state=True, qk_norm="l2"
    )
    assert o is out and final is state and kept.dtype == np.float32
    results, expected = ({"o": a, "final_state": b, "kept_state": c} for a, b, c in ((o, state, kept), exact_results))
    assert_like_float32(GATED, half, results, expected)


@every_half
def test_states_of_a_pool(half):
    sizes = Sizes(3, 1, 2, 4, 2, 24, 20)
    narrow, wide = halved(half, GATED.inputs(sizes, dtype=np.float32))
    pools, indices, outputs = [np.zeros((5, 4, 24, 20), np.float32) for _ in range(2)], [4, 0, 2], []
    for x, pool in zip((narrow, wide), pools):
        pool[indices] = x["initial_state"]
        out = np.empty((3, 1, 4, 20), x["q"].dtype)
        arguments = [x[name] for name in GATED.arguments]
        rules.gated_delta_rule(*arguments, initial_state=pool, state_indices=indices, out=(out, pool), qk_norm="l2")
        outputs.append(out)
    assert np.array_equal(*pools) and outputs[0].tobytes() == half.narrow(outputs[1]).tobytes()


@every_half
def test_any_number_of_threads(half):
    sizes = Sizes(1, 100, 2, 4, 2, 40, 70)
    narrow, _ = halved(half, GATED.inputs(sizes, dtype=np.float32))
    before, bits = fwm_py.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            fwm_py.set_num_threads(threads)
            results = [*GATED.forward(narrow, sizes).values(), *GATED.backward(narrow, sizes).values()]
            bits.append([array.tobytes() for array in results])
    finally:
        fwm_py.set_num_threads(before)
    assert all(other == bits[0] for other in bits)


@every_half
def test_without_tokens(half):
    x = [half.narrow(np.zeros((2, 0, 2, 3))) for _ in range(3)]
    state = np.ones((2, 2, 3, 3), np.float32)
    o, final = rules.linear_attention(*x, initial_state=state, output_final_state=True)
    assert o.shape == (2, 0, 2, 3) and o.dtype == half.dtype and np.array_equal(final, state)


# --- how far off ------------------------------------------------------------------------------------------------------

NONE, WEAK, MILD, STRONG = None, (1e-4, 1e-3), (0.01, 1), (1, 20)  # -g, log-uniform between these


def case_of(gate, norm="l2"):
    function = "delta_rule" if gate is None else "gated_delta_rule"
    return next(c for c in RULE_CASES if c.function == function and c.options[:1] == (("qk_norm", norm),))


def narrow_and_wide(case, sizes, gate):
    """Inputs in bfloat16, gates in float32; and all of the same numbers in float64."""
    half, x = HALVES[1], case.inputs(sizes, g=gate or MILD, states=False)
    narrow = {name: a.astype(np.float32) if name == "g" else half.narrow(a) for name, a in x.items()}
    wide = {name: (half.widen(a) if a.dtype == half.dtype else a).astype(np.float64) for name, a in narrow.items()}
    return narrow, wide


@pytest.mark.parametrize("gate", [NONE, WEAK, MILD, STRONG], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1, 2048, 1, 1, 1, 128, 128),
        Sizes(1, 700, 2, 4, 2, 64, 64),
        Sizes(1, 300, 1, 1, 3, 32, 40),  # three queries of a state
        Sizes(1, 400, 1, 2, 1, 33, 70, (0, 1, 1, 130, 131, 400)),
        Sizes(2, 300, 1, 1, 1, 1, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("norm", ["l2", "sum"])
def test_at_most_twice_the_error_of_rounding(sizes, gate, norm):
    case = case_of(gate, norm)
    got, exact = (case.forward(x, sizes) for x in narrow_and_wide(case, sizes, gate))
    for name in got:
        assert_no_worse_than_rounding(HALVES[1], got[name], exact[name])


@pytest.mark.parametrize("gate", [NONE, MILD], ids=str)
def test_gradients_have_at_most_twice_the_error_of_rounding(gate):
    case, sizes = case_of(gate), Sizes(1, 300, 1, 2, 1, 64, 64)
    got, exact = (case.backward(x, sizes) for x in narrow_and_wide(case, sizes, gate))
    for name in got:
        assert_no_worse_than_rounding(HALVES[1], got[name], exact[name])


def test_the_state_is_rounded_where_bfloat16_is_multiplied():
    """That the tests above have two ways to test, and that FWM_PY_ISA chooses."""
    half, sizes = HALVES[1], Sizes(1, 64, 1, 1, 1, 64, 64)
    for case, rounds in ((GATED, reads_a_rounded_state(GATED.function)), (CHANNELS, False)):
        narrow, wide = halved(half, case.inputs(sizes, dtype=np.float32))
        got, exact = case.forward(narrow, sizes)["o"], half.narrow(case.forward(wide, sizes)["o"])
        assert (got.tobytes() != exact.tobytes()) == rounds
        got, exact = (case.forward(x, sizes, method="recurrent")["o"] for x in (narrow, wide))
        assert got.tobytes() == half.narrow(exact).tobytes()


@every_half
@pytest.mark.parametrize("name", ["q", "k", "v", "beta", "initial_state"])
def test_nan_stays_where_float32_has_it(half, name):
    sizes = Sizes(1, 70, 1, 2, 1, 33, 20)
    x = GATED.inputs(sizes, dtype=np.float32)
    x[name][(0, 37, 0) if name == "beta" else (0, 1, 2, 3) if name == "initial_state" else (0, 37, 0, 3)] = np.nan
    narrow, wide = halved(half, x)
    got, exact = GATED.forward(narrow, sizes), GATED.forward(wide, sizes)
    is_nan = np.isnan(exact["o"])
    assert is_nan.any() and not is_nan.all()
    assert np.array_equal(np.isnan(half.widen(got["o"])), is_nan)
    assert np.array_equal(np.isnan(got["final_state"]), np.isnan(exact["final_state"]))


@every_half
def test_zeros(half):
    """Keys and queries without a direction, and a state of nothing."""
    sizes = Sizes(1, 70, 1, 2, 1, 33, 20)
    for norm in ("l2", "sum"):
        case = case_of(MILD, norm)
        x = case.inputs(sizes, dtype=np.float32, states=False)
        x["k"][:, 10:20] = x["q"][:, 15:30] = 0
        narrow, wide = halved(half, x)
        got, exact = case.forward(narrow, sizes), case.forward(wide, sizes)
        assert_like_float32(case, half, got, exact)
        assert not half.widen(got["o"])[:, 15:30].any()


# --- the numbers -----------------------------------------------------------------------------------------------------


def through(half, v):
    """o = v, of one token whose key and query are 1."""
    one = half.narrow(np.ones((1, 1, 1, 1)))
    o, state = rules.linear_attention(one, one, v.reshape(1, 1, 1, -1), scale=1.0, output_final_state=True)
    return o.ravel(), state.ravel()


@every_half
def test_every_number_is_read_and_written(half):
    """Beyond the smallest normal number of float32, to which a bfloat16 below it need not be kept."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = half.widen(bits.view(half.dtype))
    bits = bits[np.isnan(numbers) | (np.abs(numbers) >= np.finfo(np.float32).tiny) | (numbers == 0)]
    numbers = half.widen(bits.view(half.dtype))
    o, state = through(half, bits.view(half.dtype))
    assert np.array_equal(state, numbers, equal_nan=True)
    assert np.array_equal(half.widen(o), numbers, equal_nan=True) and np.isnan(numbers).any()


@every_half
def test_rounds_to_nearest_even(half):
    """Any float32 numbers, those halfway between two of 16 bits, and those beside the halfway ones."""
    random = np.random.default_rng(1)
    some = random.integers(0, 1 << 32, 20000, dtype=np.uint32).view(np.float32)
    near = half.rounded(random.standard_normal(2000) * np.exp2(random.integers(-26, 17, 2000))).view(np.uint32)
    halfway = near + np.uint32(1 << 15 if half.is_bfloat16 else 1 << 12)
    x = np.concatenate([some, *((halfway + np.uint32(d)).view(np.float32) for d in (-1 % (1 << 32), 0, 1))])
    x = x[~(np.abs(x) < np.finfo(np.float32).tiny)]
    o, _ = through(half, x)
    assert np.array_equal(half.widen(o), half.rounded(x), equal_nan=True) and np.isnan(x).any()


# --- what is refused -------------------------------------------------------------------------------------------------


@every_half
def test_refusals(half):
    x = half.narrow(np.ones((1, 2, 2, 3)))
    wide, name = half.widen(x), "bfloat16" if half.is_bfloat16 else "float16"
    other = next(h for h in HALVES if h.is_bfloat16 != half.is_bfloat16)
    state = np.zeros((1, 2, 3, 3))
    cases = [
        ((x, wide.astype(np.float64), x), {}, rf"^k: got float64, expected {name} or float32, as q has {name}$"),
        ((x, x, other.narrow(wide)), {}, rf"^v: got .*, expected {name} or float32, as q has {name}$"),
        ((wide, x, wide), {}, r"^k: got .*, expected float32, as q has$"),
        ((wide.astype(int), x, x), {}, r"^q: got int64, expected float32, float64, bfloat16 or float16$"),
        ((x, x, x), {"initial_state": state}, rf"^initial_state: got float64, expected float32, as q has {name}$"),
        ((x, x, x), {"initial_state": half.narrow(state)}, rf"^initial_state: got .*, as q has {name}$"),
        ((x, x, x), {"out": np.zeros((1, 2, 2, 3), np.float32)}, rf"^out: got float32, expected {name} in native"),
        ((wide, wide, wide), {"out": x.copy()}, r"^out: got .*, expected float32 in native"),
    ]
    for arguments, keywords, message in cases:
        with pytest.raises(TypeError, match=message):
            rules.linear_attention(*arguments, **keywords)
    with pytest.raises(TypeError, match=rf"^out\[1\]: got float32, expected {name} in native byte order, as k has$"):
        rules.linear_attention_backward(x, x, x, x, out=(x.copy(), wide.copy(), x.copy(), None))
    for function, options in ((fwm_py.softmax_attention, {}), (rules.linear_attention, {"causal": False})):
        with pytest.raises(TypeError, match=r"^q: got .*, expected float32 or float64$"):
            function(x, x, x, **options)


def test_other_structures_are_no_numbers():
    for dtype in ([("bfloat16", np.int16)], [("half", np.uint16)], [("bfloat16", ">u2")], [("bfloat16", "V2")], "V2"):
        x = np.zeros((1, 2, 2, 3), dtype)
        with pytest.raises(TypeError, match=r"^q: got .*, expected float32, float64, bfloat16 or float16$"):
            rules.linear_attention(x, x, x)
    assert rules.linear_attention(*[np.zeros((1, 2, 2, 3), FIELD)] * 3)[0].dtype == FIELD
