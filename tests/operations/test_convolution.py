"""The causal convolution beyond the contract: SiLU, packed sequences, states, NaN, PyTorch, messages."""

import itertools

import numpy as np
import pytest
from support.contract import assert_close, bits, without
from support.convolution_cases import OPTIONAL, backward, everything, forward, inputs
from support.refusals import assert_refused

import fwm_py
from fwm_py.convolution import causal_conv1d, causal_conv1d_backward

every_activation = pytest.mark.parametrize("activation", [None, "silu"])
every_width = pytest.mark.parametrize("W", [2, 3, 4])
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# --- what is computed ----------------------------------------------------------------------------------------------


@every_dtype
def test_silu_of_every_size(dtype):
    """Within 4 ulp from the smallest to the largest number, and its slope."""
    sizes = np.logspace(np.log10(np.finfo(dtype).tiny) + 1, np.log10(np.finfo(dtype).max) - 2, 1000)
    z = np.concatenate([-sizes, [0], sizes]).astype(dtype)
    weight = np.tile(np.array([0, 1], dtype), (z.size, 1))
    wide = z.astype(np.longdouble)
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-wide))
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).tiny
    y, _ = causal_conv1d(z[None, None], weight, activation="silu")
    assert (np.abs(y[0, 0] - wide * s) <= 4 * eps * np.abs(wide * s) + 100 * tiny).all()
    slope = causal_conv1d_backward(np.ones((1, 1, z.size), dtype), z[None, None], weight, activation="silu").dx[0, 0]
    assert (np.abs(slope - s * (1 + wide * (1 - s))) <= 20 * eps).all()


def test_swish_is_silu():
    silu, swish, none = (bits(everything(inputs(), activation=name)) for name in ("silu", "swish", None))
    assert swish == silu != none


@every_activation
@every_width
@pytest.mark.parametrize("with_bias", [True, False])
def test_torch(W, activation, with_bias):
    torch = pytest.importorskip("torch")
    arrays = without(inputs(2, 40, 17, W), "initial_state", "dfinal_state", *([] if with_bias else ["bias"]))
    layer = torch.nn.Conv1d(17, 17, W, groups=17, padding=W - 1, bias=with_bias, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(arrays["weight"])[:, None])
        if with_bias:
            layer.bias.copy_(torch.from_numpy(arrays["bias"]))
    x = torch.from_numpy(arrays["x"]).transpose(1, 2).requires_grad_()
    y = layer(x)[..., :40]
    y = y if activation is None else torch.nn.functional.silu(y)
    y.backward(torch.from_numpy(arrays["dy"]).transpose(1, 2))
    gradients = backward(arrays, activation=activation)
    assert_close(forward(arrays, activation=activation)[0], y.detach().transpose(1, 2).numpy(), 1e-12)
    assert_close(gradients.dx, x.grad.transpose(1, 2).numpy(), 1e-12)
    assert_close(gradients.dweight, layer.weight.grad.squeeze(1).numpy(), 1e-12)
    if with_bias:
        assert_close(gradients.dbias, layer.bias.grad.numpy(), 1e-12)


@every_activation
@pytest.mark.parametrize("behind", [0, 16, 48], ids="output {} bytes behind a cache line".format)
@pytest.mark.parametrize("D", [2000, 2001])
def test_outputs_past_the_caches(D, behind, activation):
    """From 16 MB on, if rows are whole cache lines: the same bits as of parts that are smaller."""
    offsets = (0, 1000, 2100)
    arrays = without(inputs(1, offsets[-1], D, 4, np.float32, n=2), *OPTIONAL[-1])
    buffer = np.full(arrays["x"].size + 64, np.nan, np.float32)
    at = (-buffer.ctypes.data % 64 + behind) // 4
    out = buffer[at : at + arrays["x"].size].reshape(arrays["x"].shape)
    assert out.nbytes >= 16 << 20 and out.ctypes.data % 64 == behind

    def part(start, end):
        return {name: array[:, start:end] if name in ("dy", "x") else array for name, array in arrays.items()}

    def gradients(arrays, **options):
        arrays = {name: array for name, array in arrays.items() if not name.endswith("_state")}
        return causal_conv1d_backward(**arrays, activation=activation, **options)

    def y(arrays, **options):
        arrays = {name: array for name, array in arrays.items() if name != "dy" and not name.endswith("_state")}
        return causal_conv1d(**arrays, activation=activation, **options)[0]

    parts = [part(start, end) for start, end in itertools.pairwise(offsets)]
    y(arrays, cu_seqlens=offsets, out=out)
    np.testing.assert_array_equal(out, np.concatenate([y(arrays) for arrays in parts], 1))
    whole = gradients(arrays, cu_seqlens=offsets)
    whole = gradients(arrays, cu_seqlens=offsets, out=type(whole)(out, *whole[1:]))
    assert whole.dx is out
    np.testing.assert_array_equal(out, np.concatenate([gradients(arrays).dx for arrays in parts], 1))
    assert np.isnan(buffer[:at]).all() and np.isnan(buffer[at + out.size :]).all()


# --- sequences and states ------------------------------------------------------------------------------------------

OFFSETS = [(0,), (0, 0), (0, 9), (0, 0, 4, 4, 6, 7, 9, 9), tuple(range(10)), (0, 254, 257, 258, 600)]


@every_dtype
@every_activation
@every_width
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
@pytest.mark.parametrize("left_out", OPTIONAL, ids=str)
def test_packed_is_apart(offsets, left_out, W, activation, dtype):
    """To the bit, but for the sums over all sequences."""
    n, D = len(offsets) - 1, 33
    arrays = without(inputs(1, offsets[-1], D, W, dtype, n=n), *left_out)
    y, state = forward(arrays, activation=activation, cu_seqlens=offsets)
    gradients = backward(arrays, activation=activation, cu_seqlens=np.array(offsets, np.int32))
    sums = np.zeros((D, W)), np.zeros(D)
    for i, (start, end) in enumerate(itertools.pairwise(offsets)):
        alone = {
            name: array[:, start:end] if name in ("dy", "x") else array[i : i + 1] if name.endswith("_state") else array
            for name, array in arrays.items()
        }
        y_alone, state_alone = forward(alone, activation=activation)
        dx, dweight, dbias, dinitial_state = backward(alone, activation=activation)
        np.testing.assert_array_equal(y[:, start:end], y_alone)
        np.testing.assert_array_equal(state[i], state_alone[0])
        np.testing.assert_array_equal(gradients.dx[:, start:end], dx)
        if dinitial_state is not None:
            np.testing.assert_array_equal(gradients.dinitial_state[i], dinitial_state[0])
        sums[0][...] += dweight
        sums[1][...] += 0 if dbias is None else dbias
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    assert state.shape == (n, W - 1, D)
    assert_close(gradients.dweight, sums[0], tolerance)
    if gradients.dbias is not None:
        assert_close(gradients.dbias, sums[1], tolerance)


@every_activation
@every_width
@pytest.mark.parametrize("at", [0, 1, 2, 3, 256, 299, 300])
def test_two_parts_are_the_whole(at, W, activation):
    """The state, and back the gradient of it, is handed on."""
    arrays = inputs(2, 300, 20, W)
    y, state = forward(arrays, activation=activation)
    gradients = backward(arrays, activation=activation)
    first = {name: array[:, :at] if name in ("dy", "x") else array for name, array in arrays.items()}
    second = {name: array[:, at:] if name in ("dy", "x") else array for name, array in arrays.items()}
    y_first, second["initial_state"] = forward(first, activation=activation)
    y_second, state_second = forward(second, activation=activation)
    np.testing.assert_array_equal(np.concatenate([y_first, y_second], axis=1), y)
    np.testing.assert_array_equal(state_second, state)
    back = backward(second, activation=activation)
    first["dfinal_state"] = back.dinitial_state
    front = backward(first, activation=activation)
    assert_close(np.concatenate([front.dx, back.dx], axis=1), gradients.dx, 1e-12)
    assert_close(front.dweight + back.dweight, gradients.dweight, 1e-12)
    assert_close(front.dbias + back.dbias, gradients.dbias, 1e-12)
    assert_close(front.dinitial_state, gradients.dinitial_state, 1e-12)


@every_dtype
@every_activation
@every_width
def test_one_token_at_a_time(W, activation, dtype):
    """In place: the state is the initial state of the next token."""
    arrays = inputs(3, 12, 37, W, dtype)
    y, final = forward(arrays, activation=activation)
    state, out = arrays["initial_state"].copy(), np.empty((3, 1, 37), dtype)
    for t in range(12):
        token = arrays | {"x": arrays["x"][:, t : t + 1], "initial_state": state}
        result = forward(token, activation=activation, output_final_state=False, out=(out, state))
        assert result[0] is out and result[1] is state
        np.testing.assert_array_equal(out[:, 0], y[:, t])
    np.testing.assert_array_equal(state, final)


@every_width
@pytest.mark.parametrize("T", [0, 1, 2, 3, 300])
def test_states_in_place(T, W):
    arrays = inputs(2, T, 20, W)
    y, final = forward(arrays)
    state, out = arrays["initial_state"].copy(), np.empty_like(y)
    assert forward(arrays | {"initial_state": state}, out=(out, state))[1] is state
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(state, final)


def test_packed_states_in_place_where_a_sequence_crosses_blocks():
    offsets = (0, 255, 255, 600)
    arrays = inputs(1, 600, 600, 4, n=3)
    y, final = forward(arrays, cu_seqlens=offsets)
    for threads in (1, 3):
        fwm_py.set_num_threads(threads)
        state, out = arrays["initial_state"].copy(), np.empty_like(y)
        forward(arrays | {"initial_state": state}, cu_seqlens=offsets, out=(out, state))
        np.testing.assert_array_equal(out, y)
        np.testing.assert_array_equal(state, final)


@pytest.mark.parametrize("B, T, offsets", [(0, 5, None), (3, 0, None), (0, 0, None), (1, 0, (0,)), (1, 0, (0, 0, 0))])
def test_empty(B, T, offsets):
    n = B if offsets is None else len(offsets) - 1
    arrays = inputs(B, T, 5, 3, n=n)
    y, state = forward(arrays, cu_seqlens=offsets)
    assert y.shape == (B, T, 5)
    np.testing.assert_array_equal(state, arrays["initial_state"])
    gradients = backward(arrays, cu_seqlens=offsets)
    assert gradients.dx.shape == (B, T, 5) and not gradients.dweight.any() and not gradients.dbias.any()
    np.testing.assert_array_equal(gradients.dinitial_state, arrays["dfinal_state"])
    bare = without(arrays, "bias", "initial_state", "dfinal_state")
    assert forward(bare, cu_seqlens=offsets)[1].tobytes() == bytes(8 * n * 2 * 5)
    assert not backward(bare, cu_seqlens=offsets).dweight.any()


# --- numbers that are not finite -----------------------------------------------------------------------------------


@every_dtype
@every_activation
@every_width
def test_nan_reaches_those_who_see_it(W, activation, dtype):
    """Tokens, and gradients of tokens, as if NaN were not there keep their bits."""
    offsets = (0, 20, 40, 320)
    arrays = inputs(1, 320, 40, W, dtype, n=3)
    y, _ = forward(arrays, activation=activation, cu_seqlens=offsets)
    dx = backward(arrays, activation=activation, cu_seqlens=offsets).dx
    for name, at in itertools.product(("x", "dy"), (0, 18, 19, 20, 39, 40, 255, 256, 319)):
        changed = arrays | {name: arrays[name].copy()}
        changed[name][0, at, 7] = np.nan
        end = next(end for end in offsets if end > at)
        start = max(start for start in offsets if start <= at)
        z = {at} if name == "dy" else set(range(at, min(at + W, end)))
        if name == "x":
            assert set(np.argwhere(np.isnan(forward(changed, activation=activation, cu_seqlens=offsets)[0]))[:, 1]) == z
        sees = {t for u in z for t in range(max(start, u - W + 1), u + 1)} if name == "dy" or activation else set()
        got = backward(changed, activation=activation, cu_seqlens=offsets).dx
        assert {tuple(i) for i in np.argwhere(np.isnan(got))} == {(0, t, 7) for t in sees}
        np.testing.assert_array_equal(got[~np.isnan(got)], dx[~np.isnan(got)])
    changed = arrays | {"initial_state": arrays["initial_state"].copy()}
    changed["initial_state"][1, W - 2, 7] = np.nan
    got = forward(changed, activation=activation, cu_seqlens=offsets)[0]
    assert {tuple(i) for i in np.argwhere(np.isnan(got))} == {(0, t, 7) for t in range(20, 20 + W - 1)}
    np.testing.assert_array_equal(got[~np.isnan(got)], y[~np.isnan(got)])


# --- arguments -----------------------------------------------------------------------------------------------------


def test_lists():
    assert causal_conv1d([[[1.0], [2.0]]], [[10.0, 1.0]], [100.0])[0].tolist() == [[[101.0], [112.0]]]


GOOD = inputs(2, 3, 5, 4)


def refused(instead, name, exception):
    """By the backward, and by the forward unless the argument is the backward's."""
    assert_refused(lambda: backward(GOOD | instead), name, exception)
    if name not in ("dy", "dfinal_state"):
        assert_refused(lambda: forward(GOOD | instead), name, exception)


def test_sizes():
    for W in (0, 17, 40):
        refused({"weight": np.ones((5, W))}, "weight", ValueError)
    refused(
        {name: GOOD[name][..., :0] for name in GOOD if name != "weight"} | {"weight": GOOD["weight"][:0]},
        "x",
        ValueError,
    )
    with pytest.raises(ValueError, match=r"^weight: got W = 17, expected 1 to 16"):
        causal_conv1d(GOOD["x"], np.ones((5, 17)))
    with pytest.raises(TypeError, match=r"^weight: got float64, expected float32, as x has"):
        causal_conv1d(GOOD["x"].astype(np.float32), GOOD["weight"])
    with pytest.raises(ValueError, match=r"^initial_state: got shape .*, expected \(n, W - 1, D\)"):
        causal_conv1d(GOOD["x"], GOOD["weight"], initial_state=np.ones((2, 4, 5)))
