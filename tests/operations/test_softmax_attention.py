"""Softmax attention beyond the contract: scales, decoding, numbers of every size, NaN, PyTorch, memory, sizes."""

import subprocess
import sys

import numpy as np
import pytest
from support.attention_cases import LONG, SIZES, inputs, oracle, oracle_backward, weights
from support.contract import assert_close, without
from support.refusals import assert_refused

from fwm_py.attention import softmax_attention, softmax_attention_backward

# --- what is computed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0, 0.3, -2, np.float32(1.5), 10])
def test_scale(scale):
    do, *qkv = inputs(2, 40, 50, 4, 2, 8, 8)
    assert_close(softmax_attention(*qkv, scale=scale), oracle(*qkv, scale=scale)[0], 1e-12)
    expected_gradients = oracle_backward(do, *qkv, scale=scale)
    for got, expected in zip(softmax_attention_backward(do, *qkv, scale=scale), expected_gradients, strict=True):
        assert_close(got, expected, 1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_with_and_without_what_the_forward_gave(dtype):
    for size in (*SIZES[::3], *LONG):
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


# --- memory --------------------------------------------------------------------------------------------------------

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


# --- arguments -----------------------------------------------------------------------------------------------------


def test_lists():
    assert softmax_attention([[[[1.0]]]], [[[[2.0]]]], [[[[3.0]]]]).tolist() == [[[[3.0]]]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_beside_lse(dtype):
    _, *qkv = inputs(2, 30, 40, 4, 2, 8, 12, dtype)
    out = np.full((2, 30, 4, 12), np.nan, dtype)
    o, lse = softmax_attention(*qkv, out=out, return_lse=True)
    assert o is out and lse.shape == (2, 30, 4)
    np.testing.assert_array_equal(out, softmax_attention(*qkv))


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


GOOD = dict(zip(("do", "q", "k", "v"), inputs(2, 3, 4, 4, 2, 5, 6), strict=True))
GOOD["o"], GOOD["lse"] = softmax_attention(GOOD["q"], GOOD["k"], GOOD["v"], return_lse=True)


REFUSED = [  # the argument that the message names, and what is given instead of good ones
    ("q", {"q": GOOD["q"][:, :, :3]}),
    ("q", {"q": GOOD["q"][:, :, :0]}),
    ("q", {"q": GOOD["q"][..., :0], "k": GOOD["k"][..., :0]}),
    ("k", {"k": GOOD["k"][:, :, :0], "v": GOOD["v"][:, :, :0]}),
    ("v", {"v": GOOD["v"][..., :0]}),
    ("k", {"k": GOOD["k"][:, :2], "v": GOOD["v"][:, :2]}),
    ("k", {"k": GOOD["k"][:, :0], "v": GOOD["v"][:, :0], "causal": False}),
    ("lse", {"lse": None}),
    ("o", {"o": None}),
]


@pytest.mark.parametrize("name, instead", REFUSED)
def test_sizes_that_do_not_go_together(name, instead):
    arguments = GOOD | instead
    assert_refused(lambda: softmax_attention_backward(**arguments), name, ValueError)
    if name in "qkv":
        assert_refused(lambda: softmax_attention(**without(arguments, "do", "o", "lse")), name, ValueError)
