"""Softmax attention in tiles, against the equations in plain NumPy."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import cases
from test_bad_input import assert_refused

import fwm_py
from fwm_py.attention import SoftmaxGradients, softmax_attention, softmax_attention_backward

# --- the equations -------------------------------------------------------------------------------------------------


def weights(q, k, causal=True, scale=None):
    """The weights (B, HQ, T, S) and log sum exp (B, T, HQ)."""
    (_, T, HQ, K), S, H = q.shape, *k.shape[1:3]
    scores = np.einsum("bthk,bshk->bhts", q, np.repeat(k, HQ // H, axis=2)) * (K**-0.5 if scale is None else scale)
    if causal:
        scores = np.where(np.arange(S) <= S - T + np.arange(T)[:, None], scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    p = np.exp(scores - largest)
    total = p.sum(axis=-1, keepdims=True)
    return p / total, (largest + np.log(total))[..., 0].transpose(0, 2, 1)


def oracle(q, k, v, **options):
    p, lse = weights(q, k, **options)
    return np.einsum("bhts,bshv->bthv", p, np.repeat(v, q.shape[2] // v.shape[2], axis=2)), lse


def oracle_backward(do, q, k, v, causal=True, scale=None):
    (B, _, HQ, K), S, H = q.shape, *k.shape[1:3]
    p, _ = weights(q, k, causal, scale)
    dp = np.einsum("bthv,bshv->bhts", do, np.repeat(v, HQ // H, axis=2))
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * (K**-0.5 if scale is None else scale)
    dk, dv = np.einsum("bhts,bthk->bshk", ds, q), np.einsum("bhts,bthv->bshv", p, do)
    return SoftmaxGradients(
        np.einsum("bhts,bshk->bthk", ds, np.repeat(k, HQ // H, axis=2)),
        *(x.reshape(B, S, H, HQ // H, -1).sum(axis=3) for x in (dk, dv)),
    )


def inputs(B, T, S, HQ, H, K, V, dtype=np.float64, seed=0):
    """do, q, k, v"""
    normal = np.random.default_rng(seed).standard_normal
    return [normal(shape).astype(dtype) for shape in ((B, T, HQ, V), (B, T, HQ, K), (B, S, H, K), (B, S, H, V))]


def assert_close(got, expected, tolerance):
    """Within tolerance of the tensor's largest value."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= tolerance * max(1, np.abs(expected).max(initial=0))


# --- what is computed ----------------------------------------------------------------------------------------------

# (B, T, S, HQ, H, K, V): vectors' widths and tiles' edges crossed by one, grouped heads, a cache, several blocks.
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 1, 1, 3, 2),
    (1, 15, 15, 2, 2, 16, 15),
    (2, 16, 16, 2, 1, 17, 33),
    (1, 17, 17, 3, 3, 40, 8),
    (1, 31, 31, 1, 1, 4, 5),
    (1, 32, 32, 1, 1, 4, 5),
    (1, 33, 33, 1, 1, 4, 5),
    (1, 63, 63, 2, 2, 8, 8),
    (1, 64, 64, 2, 2, 8, 8),
    (2, 65, 65, 2, 2, 8, 8),
    (1, 127, 127, 2, 1, 24, 20),
    (1, 129, 129, 2, 1, 24, 20),
    (1, 20, 20, 16, 2, 8, 8),
    (2, 37, 37, 8, 1, 5, 9),
    (1, 1, 200, 4, 2, 16, 16),
    (2, 1, 1300, 3, 3, 20, 33),
    (3, 1, 65, 8, 1, 64, 64),
    (1, 3, 70, 2, 2, 16, 16),
    (1, 65, 129, 3, 1, 10, 7),
    (1, 100, 333, 2, 2, 16, 24),
    (1, 255, 257, 1, 1, 16, 16),
    (1, 300, 300, 1, 1, 64, 64),
    (1, 600, 650, 1, 1, 7, 7),
]
OTHER_SIZES = [(1, 70, 50, 2, 2, 8, 8), (2, 300, 1, 4, 2, 8, 8), (1, 5, 300, 4, 1, 17, 3)]  # not causal only
ANY = [(size, True) for size in SIZES] + [(size, False) for size in SIZES[::4] + OTHER_SIZES]


@pytest.mark.parametrize("size, causal", ANY, ids=str)
def test_forward_and_gradient_are_the_equations(size, causal):
    do, *qkv = inputs(*size)
    o, lse = softmax_attention(*qkv, causal=causal, return_lse=True)
    for got, expected in zip((o, lse), oracle(*qkv, causal=causal), strict=True):
        assert got.dtype == np.float64 and got.flags.c_contiguous
        assert_close(got, expected, 1e-12)
    expected_gradients = oracle_backward(do, *qkv, causal)
    for got, expected in zip(softmax_attention_backward(do, *qkv, causal=causal), expected_gradients, strict=True):
        assert got.dtype == np.float64 and got.flags.c_contiguous
        assert_close(got, expected, 1e-11)


@pytest.mark.parametrize("scale", [0, 0.3, -2, np.float32(1.5), 10])
def test_scale(scale):
    do, *qkv = inputs(2, 40, 50, 4, 2, 8, 8)
    assert_close(softmax_attention(*qkv, scale=scale), oracle(*qkv, scale=scale)[0], 1e-12)
    expected_gradients = oracle_backward(do, *qkv, scale=scale)
    for got, expected in zip(softmax_attention_backward(do, *qkv, scale=scale), expected_gradients, strict=True):
        assert_close(got, expected, 1e-11)


@pytest.mark.parametrize(
    "size, causal",
    [
        ((1, 5, 5, 1, 1, 3, 2), True),
        ((2, 7, 9, 4, 2, 3, 4), True),
        ((1, 6, 4, 2, 1, 4, 3), False),
        ((1, 34, 40, 2, 2, 2, 2), True),
    ],
    ids=str,
)
def test_gradient_by_central_differences(size, causal):
    do, *qkv = inputs(*size)
    gradients = softmax_attention_backward(do, *qkv, causal=causal)
    for name, gradient, array in zip("qkv", gradients, qkv, strict=True):
        slopes = cases.central_differences(lambda: (do * softmax_attention(*qkv, causal=causal)).sum(), array)
        cases.assert_gradient(gradient, slopes, name=name)


@pytest.mark.parametrize("size", [(1, 1000, 1000, 2, 2, 64, 64), (1, 700, 1111, 4, 2, 40, 72)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_float32_follows_float64(size, causal):
    do, *qkv = inputs(*size, np.float32)
    wide = [a.astype(np.float64) for a in (do, *qkv)]
    o, lse = softmax_attention(*qkv, causal=causal, return_lse=True)
    got = (o, lse, *softmax_attention_backward(do, *qkv, causal=causal, o=o, lse=lse))
    exact = (*oracle(*wide[1:], causal=causal), *oracle_backward(*wide, causal))
    for narrow, expected in zip(got, exact, strict=True):
        assert narrow.dtype == np.float32
        assert np.abs(narrow - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_with_and_without_what_the_forward_gave(dtype):
    for size in SIZES[::3]:
        do, *qkv = inputs(*size, dtype)
        o, lse = softmax_attention(*qkv, return_lse=True)
        gradients = softmax_attention_backward(do, *qkv), softmax_attention_backward(do, *qkv, o=o, lse=lse)
        for again, kept in zip(*gradients, strict=True):
            np.testing.assert_array_equal(again, kept)


def test_lse_changes_no_bit_of_o():
    _, *qkv = inputs(2, 90, 100, 2, 1, 16, 16, np.float32)
    np.testing.assert_array_equal(softmax_attention(*qkv), softmax_attention(*qkv, return_lse=True)[0])


def test_decoding_with_a_cache_is_the_last_token():
    """Token by token, each with the keys so far, gives the rows of one call."""
    _, q, k, v = inputs(2, 70, 70, 4, 2, 16, 16)
    whole = softmax_attention(q, k, v)
    for t in range(70):
        assert_close(softmax_attention(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1])[:, 0], whole[:, t], 1e-13)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T, S, HQ, H", [(100, 100, 4, 4), (65, 130, 8, 1)])
def test_torch(T, S, HQ, H, causal):
    torch = pytest.importorskip("torch")
    do, *qkv = inputs(2, T, S, HQ, H, 24, 40)
    tensors = [torch.from_numpy(a).transpose(1, 2).requires_grad_() for a in qkv]
    spread = [tensors[0], *(x.repeat_interleave(HQ // H, dim=1) for x in tensors[1:])]
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T) if causal else None
    o = torch.nn.functional.scaled_dot_product_attention(*spread, attn_mask=mask)
    o.backward(torch.from_numpy(do).transpose(1, 2))
    assert_close(softmax_attention(*qkv, causal=causal), o.detach().transpose(1, 2).numpy(), 1e-12)
    for gradient, tensor in zip(softmax_attention_backward(do, *qkv, causal=causal), tensors, strict=True):
        assert_close(gradient, tensor.grad.transpose(1, 2).numpy(), 1e-11)


# --- numbers of every size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-2), (np.float64, 1e-10)])
@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_large_scores(dtype, tolerance, order):
    """Scores up to 1e4, growing or falling from tile to tile: the maximum moves often, or never again."""
    do, q, k, v = inputs(1, 200, 200, 2, 2, 8, 8, dtype)
    q[...] = np.abs(q)
    k[...] = np.linspace(-1, 1, 200, dtype=dtype)[None, ::order, None, None] * np.abs(k)
    k *= dtype(1e4) / np.abs(weights(q, k, causal=False)[1]).max()
    wide = [a.astype(np.float64) for a in (do, q, k, v)]
    o, lse = softmax_attention(q, k, v, return_lse=True)
    assert np.abs(lse).max() > 5e3
    exact = (*oracle(*wide[1:]), *oracle_backward(*wide))
    for got, expected in zip((o, lse, *softmax_attention_backward(do, q, k, v)), exact, strict=True):
        assert np.isfinite(got).all()
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_weights(dtype):
    """One key of score 0 and one of score x <= 0: o = w / (1 + w), w = exp(x), down to where weights end."""
    lowest = np.log(np.finfo(dtype).tiny) + 1
    x = np.concatenate([np.linspace(lowest, 0, 9973), -np.logspace(-12, 0, 999)]).astype(dtype)
    k = np.stack([np.zeros_like(x), x], axis=1)[..., None, None]
    v = np.broadcast_to(np.array([0, 1], dtype)[:, None, None], k.shape)
    o = softmax_attention(np.ones((x.size, 1, 1, 1), dtype), k, v, scale=1)[:, 0, 0, 0]
    w = np.exp(x.astype(np.longdouble))
    # log2(e), and the score times it, are rounded, by half an ulp each: an error of the weight of |x| ulp at most
    assert (np.abs(o / (w / (1 + w)) - 1) <= (1.25 + np.abs(x)) * np.finfo(dtype).eps).all()


def test_equal_keys_share():
    _, q, _, v = inputs(1, 150, 150, 2, 2, 8, 8)
    k = np.tile(np.random.default_rng(5).standard_normal((1, 1, 2, 8)), (1, 150, 1, 1))
    mean = v.cumsum(axis=1) / np.arange(1, 151)[None, :, None, None]
    assert_close(softmax_attention(q, k, v), mean, 1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_reach_those_who_see_them(which, number, dtype):
    """A key or value at any place of a tile changes no bit of what comes before it."""
    _, *qkv = inputs(1, 150, 150, 2, 1, 8, 8, dtype)
    before = softmax_attention(*qkv)
    for at in (0, 1, 63, 64, 100, 149):
        changed = [a.copy() for a in qkv]
        changed["qkv".index(which)][0, at, 0, 3] = number
        o = softmax_attention(*changed)
        np.testing.assert_array_equal(o[:, :at], before[:, :at])
        assert (~np.isfinite(o[:, at:, :, 3] if which == "v" else o[:, at:])).all() or (which, number) == ("k", np.inf)


@pytest.mark.parametrize("name", ["do", "q", "k", "v"])
def test_gradients_of_numbers_that_are_not_finite(name):
    """Tokens that stand to each other as if NaN were not there keep their gradients."""
    arrays = dict(zip(("do", "q", "k", "v"), inputs(1, 100, 100, 1, 1, 8, 8), strict=True))
    before, at = softmax_attention_backward(**arrays), 70
    arrays[name] = arrays[name].copy()
    arrays[name][0, at, 0, 2] = np.nan
    dq, dk, dv = softmax_attention_backward(**arrays)
    np.testing.assert_array_equal(dq[:, :at], before.dq[:, :at])
    if name in ("do", "q"):  # keys behind the query
        np.testing.assert_array_equal(dk[:, at + 1 :], before.dk[:, at + 1 :])
        np.testing.assert_array_equal(dv[:, at + 1 :], before.dv[:, at + 1 :])
        assert np.isnan(dk[:, : at + 1, :, 2]).all() and np.isnan(dq[:, at]).all()
    else:
        assert np.isnan(dk).all(axis=(0, 2, 3))[: at + 1].all() and np.isnan(dq[:, at:]).all()


def test_infinitely_low_scores_vanish():
    _, q, k, v = inputs(1, 80, 100, 1, 1, 4, 4)
    q[..., 0], kept = 1, np.arange(100) % 3 != 1
    k[:, ~kept, :, 0] = -np.inf
    expected = oracle(q[:, -1:], k[:, kept], v[:, kept])[0]
    assert_close(softmax_attention(q, k, v)[:, -1:], expected, 1e-13)
    assert np.isnan(softmax_attention(q, k - np.inf * (k == k), v)).all()  # nothing is left


# --- threads -------------------------------------------------------------------------------------------------------


def everything(do, q, k, v, **options):
    o, lse = softmax_attention(q, k, v, return_lse=True, **options)
    return [
        a.tobytes()
        for a in (
            o,
            lse,
            *softmax_attention_backward(do, q, k, v, **options),
            *softmax_attention_backward(do, q, k, v, o=o, lse=lse, **options),
        )
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "size",
    [
        (1, 1100, 1200, 1, 1, 16, 16),
        (2, 300, 300, 6, 2, 20, 24),
        (1, 600, 600, 20, 20, 8, 8),
        (2, 1, 2500, 4, 2, 16, 16),
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [True, False])
def test_the_same_bits_for_every_number_of_threads(size, causal, dtype):
    arrays, results = inputs(*size, dtype), []
    for n in (1, 2, 3, 5):
        fwm_py.set_num_threads(n)
        results.append(everything(*arrays, causal=causal))
    assert all(result == results[0] for result in results[1:])


def test_many_callers_at_once():
    fwm_py.set_num_threads(2)
    arrays = [inputs(1, 200 + i, 220 + i, 4, 2, 16, 16, np.float32, seed=i) for i in range(8)]
    expected = [everything(*a) for a in arrays]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda a: everything(*a), arrays)) == expected


def test_subnormal_numbers_are_the_callers_again():
    do, *qkv = inputs(1, 20, 20, 1, 1, 4, 4, np.float32)
    softmax_attention(*qkv)
    softmax_attention_backward(do, *qkv)
    assert np.float32(1e-40) * np.ones(64, np.float32).sum() > 0


MEMORY = """
import resource, numpy as np
from fwm_py import set_num_threads
from fwm_py.attention import softmax_attention, softmax_attention_backward
set_num_threads(2)
q = np.ones((1, {T}, 1, 16), np.float32)
softmax_attention(q[:, :64], q[:, :64], q[:, :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
o, lse = softmax_attention(q, q, q, return_lse=True)
softmax_attention_backward(q, q, q, q)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts kilobytes on Linux")
def test_memory_does_not_grow_with_the_square_of_the_length():
    run = subprocess.run([sys.executable, "-c", MEMORY.format(T=8192)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 20_000  # o, dq, dk and dv are 2 MB; a matrix of weights would be 268 MB


# --- arrays of every make, and out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", cases.MAKES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_another_make(make, dtype):
    arrays = inputs(2, 20, 25, 4, 2, 6, 5, dtype)
    expected, made = everything(*arrays), [make(a) for a in arrays]
    before = [a.tobytes() for a in made]
    assert everything(*made) == expected
    assert [a.tobytes() for a in made] == before
    o, lse = softmax_attention(*arrays[1:], return_lse=True)
    kept = softmax_attention_backward(*arrays, o=make(o), lse=make(lse))
    assert [a.tobytes() for a in kept] == expected[-3:]


def test_lists():
    assert softmax_attention([[[[1.0]]]], [[[[2.0]]]], [[[[3.0]]]]).tolist() == [[[[3.0]]]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out(dtype):
    _, *qkv = inputs(2, 30, 40, 4, 2, 8, 12, dtype)
    expected, out = softmax_attention(*qkv), np.full((2, 30, 4, 12), np.nan, dtype)
    assert softmax_attention(*qkv, out=out) is out
    np.testing.assert_array_equal(out, expected)
    o, lse = softmax_attention(*qkv, out=out, return_lse=True)
    assert o is out and lse.shape == (2, 30, 4)


@pytest.mark.parametrize(
    "B, T, S, causal", [(0, 5, 5, True), (2, 0, 5, True), (2, 0, 0, True), (2, 0, 0, False), (0, 3, 0, False)]
)
def test_empty(B, T, S, causal):
    do, *qkv = inputs(B, T, S, 4, 2, 3, 5)
    if (B, S) == (0, 0):  # no sequence, but one without keys all the same
        assert_refused(lambda: softmax_attention(*qkv, causal=causal), "k", ValueError)
        return
    o, lse = softmax_attention(*qkv, causal=causal, return_lse=True)
    assert o.shape == do.shape and lse.shape == (B, T, 4)
    for gradient, a in zip(softmax_attention_backward(do, *qkv, causal=causal), qkv, strict=True):
        assert gradient.shape == a.shape and not gradient.any()


# --- bad arguments -------------------------------------------------------------------------------------------------

GOOD = dict(zip(("do", "q", "k", "v"), inputs(2, 3, 4, 4, 2, 5, 6), strict=True))
GOOD["o"], GOOD["lse"] = softmax_attention(GOOD["q"], GOOD["k"], GOOD["v"], return_lse=True)


def bad_arguments():
    """(the argument that the message names, what is given instead of good arguments, exception)"""
    for name, good in GOOD.items():
        refused = [given for given in (None, "text", object()) if given is not None or name not in ("o", "lse")]
        refused += [good.astype(t) for t in (np.int64, bool, np.float16, np.complex128, object, str, "M8[s]")]
        for given in refused:
            yield name, {name: given}, TypeError
        for given in (np.zeros(()), good[None], good[0]):
            yield name, {name: given}, ValueError
        if name == "q":  # gives B, T, HQ, K and the dtype
            continue
        yield name, {name: good.astype(np.float32)}, TypeError
        for axis in range(good.ndim):
            if (name, axis) not in {("k", 1), ("k", 2), ("v", 3)}:  # k gives S and H, v gives V
                yield name, {name: np.concatenate([good, good], axis=axis)}, ValueError
    q, k, v = (GOOD[name] for name in "qkv")
    for name, given in (
        ("q", {"q": q[:, :, :3]}),
        ("q", {"q": q[:, :, :0]}),
        ("q", {"q": q[..., :0], "k": k[..., :0]}),
        ("k", {"k": k[:, :, :0], "v": v[:, :, :0]}),
        ("v", {"v": v[..., :0]}),
        ("k", {"k": k[:, :2], "v": v[:, :2]}),
        ("k", {"k": k[:, :0], "v": v[:, :0], "causal": False}),
    ):
        yield name, given, ValueError
    for given in ("1", [1.0], 1j, object()):
        yield "scale", {"scale": given}, TypeError
    for given in (np.nan, np.inf, -np.inf, 10**400):
        yield "scale", {"scale": given}, ValueError
    for given in (None, 1, "yes", 0.0, np.array([True])):
        yield "causal", {"causal": given}, TypeError
    yield "lse", {"lse": None}, ValueError
    yield "o", {"o": None}, ValueError


@pytest.mark.parametrize("name, instead, exception", list(bad_arguments()))
def test_bad_arguments(name, instead, exception):
    arguments = GOOD | instead
    assert_refused(lambda: softmax_attention_backward(**arguments), name, exception)
    if name not in ("do", "o", "lse"):
        forward = {other: given for other, given in arguments.items() if other not in ("do", "o", "lse")}
        assert_refused(lambda: softmax_attention(**forward), name, exception)


def test_scales_beyond_float32():
    q = np.ones((1, 2, 1, 3), np.float32)
    assert_refused(lambda: softmax_attention(q, q, q, scale=1e39), "scale", ValueError)
    assert np.isfinite(softmax_attention(*[q.astype(np.float64)] * 3, scale=1e39)).all()


def bad_outs():
    good = GOOD["o"]
    swapped = cases.swapped_bytes(good)
    yield from (
        (given, TypeError) for given in ("text", 1, good.tolist(), good.astype(np.float32), good.astype(int), swapped)
    )
    yield from (
        (given, ValueError)
        for given in (
            good[0],
            good[..., :-1].copy(),
            good[None],
            cases.strided(good),
            cases.backwards(good),
            cases.read_only(good),
            cases.unaligned(good),
            cases.column_major(good),
        )
    )


@pytest.mark.parametrize("out, exception", list(bad_outs()))
def test_bad_outs(out, exception):
    assert_refused(lambda: softmax_attention(GOOD["q"], GOOD["k"], GOOD["v"], out=out), "out", exception)


def test_out_that_overlaps_an_input():
    q = np.ones((2, 3, 4, 5))
    for other in ("q", "k", "v"):
        arrays = dict.fromkeys("qkv", q) | {other: (memory := np.ones((2, 3, 4, 5)))}
        assert_refused(lambda arrays=arrays, memory=memory: softmax_attention(**arrays, out=memory), "out", ValueError)
        arrays[other] = memory[::-1, :, :, ::-1]
        assert_refused(lambda arrays=arrays, memory=memory: softmax_attention(**arrays, out=memory), "out", ValueError)
    assert (memory == 1).all()


def test_missing_and_unknown_arguments():
    q = GOOD["q"]
    with pytest.raises(TypeError):
        softmax_attention(q, q)
    with pytest.raises(TypeError):
        softmax_attention(q, q, q, True)
    with pytest.raises(TypeError):
        softmax_attention_backward(q, q, q, q, surprise=1)
