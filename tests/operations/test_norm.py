"""RMS norm beyond the contract: long rows, gates of every size, rows of zeros, NaN, PyTorch, messages."""

import numpy as np
import pytest
from support.contract import Near, assert_close, bits
from support.norm_cases import NormCase
from support.refusals import assert_refused

from fwm_py.norm import rms_norm, rms_norm_backward

FORMS = {form: NormCase(form, 1e-6) for form in ("silu", "sigmoid", None)}
SILU = FORMS["silu"]
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])

# --- what is computed ----------------------------------------------------------------------------------------------


def test_rows_longer_than_a_block():
    """Gradients by the difference along a direction."""
    x, change = SILU.inputs((2, 20000)), SILU.inputs((2, 20000), seed=1)
    SILU.results.check(SILU.forward(x), SILU.expected(x))
    for name, gradient in SILU.backward(x).items():
        losses = [(x["dy"] * SILU.forward(x | {name: x[name] + h * change[name]})["y"]).sum() for h in (1e-4, -1e-4)]
        assert (gradient * change[name]).sum() == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-6)


@every_dtype
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_gates_of_every_size(activation, dtype):
    """Within some ulp from the smallest to the largest number, for x = 1, whose root mean square is 1."""
    sizes = np.logspace(np.log10(np.finfo(dtype).tiny) + 1, np.log10(np.finfo(dtype).max) - 2, 1000)
    z = np.concatenate([-sizes, [0], sizes]).astype(dtype)
    one, wide, eps, tiny = np.ones(z.size, dtype), z.astype(np.longdouble), np.finfo(dtype).eps, np.finfo(dtype).tiny
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-wide))
    expected = wide * s if activation == "silu" else s
    y = rms_norm(one, one, z, activation=activation, eps=0)
    assert (np.abs(y - expected) <= 5 * eps * np.abs(expected) + 100 * tiny).all()
    slope = s * (1 + wide * (1 - s)) if activation == "silu" else s * (1 - s)
    assert (np.abs(rms_norm_backward(one, one, one, z, activation=activation, eps=0).dgate - slope) <= 20 * eps).all()


def test_rows_of_zeros():
    """eps is what keeps them finite; without it the equation has 0 / 0."""
    x = SILU.inputs((2, 5)) | {"x": np.zeros((2, 5))}
    made = SILU.everything(x)
    assert not made["y"].any() and not made["dgate"].any() and not made["dweight"].any()
    s = 1 / (1 + np.exp(-x["gate"]))
    assert_close(made["dx"], x["dy"] * x["weight"] * x["gate"] * s * 1e3, 1e-12)
    assert np.isnan(rms_norm(x["x"], x["weight"], x["gate"], eps=0)).all()


def test_swish_is_silu_and_the_default():
    x = SILU.inputs((2, 3, 5))

    def of(**options):
        y = rms_norm(x["x"], x["weight"], x["gate"], **options)
        return bits({"y": y, **rms_norm_backward(**x, **options)._asdict()})

    assert of(activation="swish") == of() == of(activation="silu")
    assert of(activation="sigmoid") != of()
    assert of(eps=1e-6) == of() != of(eps=1e-5)


@every_form
def test_torch(form):
    torch = pytest.importorskip("torch")
    case = NormCase(form, 1e-3)
    x = case.inputs((40, 3, 17))
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in x.items()}
    y = torch.nn.functional.rms_norm(tensors["x"], (17,), tensors["weight"], eps=1e-3)
    if form:
        y = y * getattr(torch.nn.functional, form)(tensors["gate"])
    y.backward(tensors["dy"])
    expected = {"d" + name: tensors[name].grad.numpy() for name in x if name != "dy"}
    Near(1e-12).check(case.everything(x), {"y": y.detach().numpy(), **expected})


# --- numbers that are not finite -----------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(
    "form, name", [(form, name) for form in FORMS for name in ("x", "gate", "dy") if form or name != "gate"]
)
def test_nan_stays_in_its_row(form, name, dtype):
    case = FORMS[form]
    x = case.inputs((700, 33), dtype)
    before = case.everything(x)
    x[name][300, 7] = np.nan
    every, own = range(33), [7]
    seen = {"y": {"x": every, "gate": own, "dy": []}[name], "dx": every, "dgate": every if name == "x" else own}
    made = case.everything(x)
    assert set(np.flatnonzero(np.isnan(made.pop("dweight")))) == set(every if name == "x" else own)
    for result, got in made.items():
        assert {tuple(at) for at in np.argwhere(np.isnan(got))} == {(300, i) for i in seen[result]}
        np.testing.assert_array_equal(np.delete(got, 300, axis=0), np.delete(before[result], 300, axis=0))


# --- arguments -----------------------------------------------------------------------------------------------------


def test_lists():
    assert rms_norm([3.0, -3.0], [1.0, 2.0], eps=0).tolist() == [1.0, -2.0]
    assert rms_norm([3.0, -3.0], [1.0, 2.0], [0.0, 0.0], activation="sigmoid", eps=0).tolist() == [0.5, -1.0]


def test_sizes():
    good = SILU.inputs((2, 3, 5))
    empty = {name: array[..., :0] for name, array in good.items()}
    assert_refused(lambda: SILU.backward(empty), "x", ValueError)
    assert_refused(lambda: SILU.forward(empty), "x", ValueError)
    assert_refused(lambda: NormCase("silu", -1e-6).backward(good), "eps", ValueError)
    assert_refused(lambda: NormCase("silu", -1e-6).forward(good), "eps", ValueError)
    with pytest.raises(ValueError, match=r"^gate: got shape \(2, 3, 4\), expected \(\.\.\., D\), here \(2, 3, 5\)"):
        SILU.forward(good | {"gate": good["gate"][..., :4]})
    with pytest.raises(TypeError, match=r"^weight: got float64, expected float32, as x has"):
        rms_norm(good["x"].astype(np.float32), good["weight"])
