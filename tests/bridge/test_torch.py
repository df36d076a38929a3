"""fwm_py.torch: the same numbers as on arrays, gradients, and what PyTorch does with operators."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support import rule_cases  # noqa: E402
from support.contract import without  # noqa: E402
from support.halves import reads_a_rounded_state  # noqa: E402
from support.noncausal_cases import NoncausalCase  # noqa: E402
from support.rule_cases import RULE_CASES, SIZES, SMALL, Sizes  # noqa: E402
from support.torch_cases import (  # noqa: E402, F401
    MAPS,
    conv_inputs,
    convolve,
    forward,
    gated_inputs,
    gradients,
    map_arguments,
    norm_inputs,
    softmax_inputs,
    tensors,
    torch_threads,
)

import fwm_py  # noqa: E402
import fwm_py.torch as fwm  # noqa: E402
from fwm_py import _core, attention, convolution, feature_maps, norm  # noqa: E402
from fwm_py.torch import _arrays, _library, _operators  # noqa: E402

OPERATORS = torch.ops.fwm_py
every_case = pytest.mark.parametrize("case", RULE_CASES, ids=str)


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES[3:5] + SIZES[-2:], ids=str)
@every_case
def test_the_bits_of_the_functions_on_arrays(case, sizes, dtype):
    x = case.inputs(sizes, dtype=dtype)
    results, expected = forward(case, tensors(x), sizes), case.forward(x, sizes)
    assert results.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(results[name].numpy(), array), name
    for name, array in case.backward(x, sizes).items():
        assert np.array_equal(gradients(case, tensors(x, requires_grad=True), sizes)[name].numpy(), array), name


@every_case
def test_without_states(case):
    sizes = SIZES[4]
    x = tensors(case.inputs(sizes, states=False), requires_grad=True)
    o, state = getattr(fwm, case.function)(*(x[name] for name in case.arguments), **dict(case.options))
    assert state is None
    o.sum().backward()
    assert all(x[name].grad.isfinite().all() for name in case.arguments)


@pytest.mark.parametrize("sizes", SMALL[1:3], ids=str)
@every_case
def test_gradcheck(case, sizes):
    x = tensors(case.inputs(sizes, seed=3), requires_grad=True)
    names = case.differentiable(x)

    def function(*inputs):
        return tuple(forward(case, x | dict(zip(names, inputs)), sizes).values())

    assert torch.autograd.gradcheck(function, [x[name] for name in names])


def test_softmax_convolution_and_norm():
    q, k, v = softmax_inputs()
    assert torch.autograd.gradcheck(lambda *x: fwm.softmax_attention(*x), (q, k, v))
    o, lse = fwm.softmax_attention(q, k, v, return_lse=True)
    expected = attention.softmax_attention(*(x.detach().numpy() for x in (q, k, v)), return_lse=True)
    assert np.array_equal(o.detach(), expected[0]) and np.array_equal(lse, expected[1]) and not lse.requires_grad
    assert torch.autograd.gradcheck(convolve, conv_inputs())
    x, weight, bias, state = (x.detach().numpy() for x in conv_inputs())
    expected = convolution.causal_conv1d(
        x, weight, bias, activation="silu", initial_state=state, output_final_state=True
    )
    assert all(np.array_equal(got.detach(), array) for got, array in zip(convolve(*conv_inputs()), expected))
    cu_seqlens = torch.tensor([0, 3, 3, 7])
    packed, _ = fwm.causal_conv1d(conv_inputs()[0][:1], *conv_inputs()[1:3], cu_seqlens=cu_seqlens)
    assert np.array_equal(
        packed.detach(), convolution.causal_conv1d(x[:1], weight, bias, cu_seqlens=cu_seqlens.numpy())[0]
    )
    for n, options in ((3, {}), (3, {"activation": "sigmoid", "eps": 0.1}), (2, {})):
        expected = norm.rms_norm(*(x.detach().numpy() for x in norm_inputs()[:n]), **options)
        assert np.array_equal(fwm.rms_norm(*norm_inputs()[:n], **options).detach(), expected)
        assert torch.autograd.gradcheck(lambda *x: fwm.rms_norm(*x, **options), norm_inputs()[:n])


@pytest.mark.parametrize("name", MAPS)
def test_feature_maps(name):
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    arguments = map_arguments(MAPS[name])
    given = [y for y in arguments if y is not None]

    def phi(x):
        return _operators.feature_map(name, x, *arguments)

    assert np.array_equal(phi(x).detach(), getattr(feature_maps, name)(x.detach().numpy(), *map(np.asarray, given)))
    assert torch.autograd.gradcheck(phi, x)
    assert phi(x.detach().half()).dtype == torch.float16
    if name in fwm.__all__:
        assert torch.equal(getattr(fwm, name)(x, *given), phi(x))


def test_every_rule_of_the_table_is_there():
    assert {row["function"] for row in _core.RULES} < set(fwm.__all__)


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_case
def test_half_outside_and_float32_inside(case, dtype):
    sizes = SIZES[8]
    half = tensors(case.inputs(sizes), dtype, requires_grad=True)
    single = {name: x.detach().float().requires_grad_() for name, x in half.items()}
    ours, exact = forward(case, half, sizes), forward(case, single, sizes)
    if dtype == torch.bfloat16 and reads_a_rounded_state(case.function):
        torch.testing.assert_close(ours["o"].float(), exact["o"], rtol=0, atol=0.02 * exact["o"].abs().max().item())
    else:
        assert torch.equal(ours["o"], exact["o"].to(dtype))
        assert torch.equal(ours["final_state"], exact["final_state"])
    assert ours["final_state"].dtype == torch.float32
    (ours["o"].float() * single["do"].detach()).sum().backward()
    (exact["o"] * single["do"].detach()).sum().backward()
    for name in case.arguments:
        assert half[name].grad.dtype == dtype
        off = (half[name].grad.float() - single[name].grad).abs().max()
        assert off <= 0.02 * single[name].grad.abs().max(), name  # do is rounded


@pytest.mark.parametrize("method", rule_cases.METHODS)
@every_case
def test_half_tokens_are_read_where_they_lie(case, method, monkeypatch):
    """Nothing is converted before or after a forward."""
    read, rule_forward = [], _core.rule_forward
    monkeypatch.setattr(
        _core, "rule_forward", lambda *args, **named: read.append(named) or rule_forward(*args, **named)
    )
    sizes = Sizes(2, 70, 2, 4, 2, 9, 17)
    half = tensors(case.inputs(sizes), torch.bfloat16)
    for wanted in (True, False):
        o = forward(case, half, sizes, method=method, output_final_state=wanted)["o"]
        arguments = read.pop()
        out = arguments["out"][0] if wanted else arguments["out"]
        assert not read and out.ctypes.data == o.data_ptr()
        assert all(arguments[name].ctypes.data == half[name].data_ptr() for name in case.arguments)
    with pytest.raises(ValueError, match=r"k: got shape"):
        forward(case, half | {"k": half["k"][:, :69]}, sizes, method=method)


def test_a_mixture():
    """As models have it under autocast: gates in float32, the rest in bfloat16."""
    case = next(case for case in RULE_CASES if case.function == "gated_delta_rule")
    x = tensors(case.inputs(SIZES[5]), torch.bfloat16)
    x["g"], x["initial_state"] = x["g"].float(), x["initial_state"].float()
    x["g"].requires_grad_(), x["q"].requires_grad_()
    results = forward(case, x, SIZES[5])
    assert results["o"].dtype == torch.bfloat16 and results["final_state"].dtype == torch.float32
    results["o"].float().sum().backward()
    assert x["g"].grad.dtype == torch.float32 and x["q"].grad.dtype == torch.bfloat16
    x["v"] = x["v"].double()
    assert forward(case, x, SIZES[5])["final_state"].dtype == torch.float64


def test_a_norm_in_half_precision():
    x, weight, gate = norm_inputs(torch.float32)
    exact = fwm.rms_norm(x.bfloat16().float(), weight, gate.bfloat16().float())
    y = fwm.rms_norm(x.bfloat16(), weight, gate.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())
    y.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_contiguous_tensors_are_not_copied(dtype):
    x = torch.randn(2, 3, 4, 5, dtype=dtype, requires_grad=True)
    array = _arrays.to_array(x, dtype)
    assert array.ctypes.data == x.data_ptr()


def test_any_strides():
    case = next(case for case in RULE_CASES if case.function == "delta_rule")
    x = tensors(case.inputs(SIZES[3]))
    turned = {name: y.transpose(0, -1).contiguous().transpose(0, -1) for name, y in x.items()}
    assert all(
        torch.equal(a, b) for a, b in zip(forward(case, x, SIZES[3]).values(), forward(case, turned, SIZES[3]).values())
    )


def test_views_of_a_projection():
    """The same bits, and no copy for a forward."""
    case = next(case for case in RULE_CASES if case.function == "gated_delta_rule")
    x = tensors(case.inputs(SIZES[3]))
    together = torch.cat([x[name].flatten(2) for name in ("q", "k", "v")], dim=2)
    views = dict(zip(("q", "k", "v"), together.split([x[name][0, 0].numel() for name in ("q", "k", "v")], dim=2)))
    views = {name: view.view(x[name].shape) for name, view in views.items()}
    assert all(_arrays.to_tokens(view, view.dtype).ctypes.data == view.data_ptr() for view in views.values())
    assert all(
        torch.equal(a, b)
        for a, b in zip(forward(case, x, SIZES[3]).values(), forward(case, x | views, SIZES[3]).values())
    )
    single = _arrays.to_tokens(views["q"], torch.float32)
    assert single.dtype == np.float32 and single.flags.c_contiguous


# --- PyTorch's tools --------------------------------------------------------------------------------------------------


def operator_arguments(case, x, sizes):
    """The arguments of fwm_py::rule, from the inputs on, without output_final_state."""
    names = ("q", "k", "v", "g", "beta", "b", "w", "initial_state", "initial_sum")
    cu_seqlens = None if sizes.cu_seqlens is None else torch.tensor(sizes.cu_seqlens)
    scale, norm, normalize = (case.option(name) for name in ("scale", "qk_norm", "normalize"))
    clamp_first = case.option("clamp_first") is not False
    return (
        *(x.get(name) for name in names),
        scale,
        norm,
        bool(normalize),
        case.option("eps") or 1e-6,
        clamp_first,
        bool(case.option("state_v_first")),
        cu_seqlens,
        "chunked",
    )


@pytest.mark.parametrize("sizes", SMALL[1:3], ids=str)
@every_case
def test_opcheck(case, sizes):
    x = tensors(case.inputs(sizes), requires_grad=True)
    torch.library.opcheck(OPERATORS.rule.default, (case.function, *operator_arguments(case, x, sizes), True))
    x = {name: y.detach() for name, y in x.items()}
    dfinal = x["dfinal_state"], x.get("dfinal_sum")
    torch.library.opcheck(
        OPERATORS.rule_backward.default, (case.function, x["do"], *dfinal, *operator_arguments(case, x, sizes))
    )


def test_opcheck_of_the_others():
    q, k, v = softmax_inputs(torch.float32)
    for key_lengths in (None, torch.tensor([3, 5])):
        torch.library.opcheck(OPERATORS.softmax_attention.default, (q, k, v, key_lengths, True, None))
    case = NoncausalCase(normalize=True)
    x = tensors(without(case.inputs(case.small[0], np.float32), "key_lengths"), requires_grad=True)
    states = (x["initial_state"], x["initial_sum"], torch.tensor([4, 2]))
    for given in (states, (None, None, None)):
        torch.library.opcheck(OPERATORS.noncausal.default, (x["q"], x["k"], x["v"], *given, None, True, 1e-6, True))
    options = (None, None, True, 1e-6, True, False, None, "chunked")
    S, z = (y.detach().clone() for y in states[:2])
    arguments = ("linear_attention", x["q"].detach()[:, :3], x["k"].detach()[:, :3], x["v"].detach()[:, :3])
    for pool, numbers in (((S, z), None), ((torch.cat([S, S]), torch.cat([z, z])), torch.tensor([3, 0]))):
        given = (*arguments, None, None, None, None, *pool, *options, numbers)
        torch.library.opcheck(OPERATORS.rule_in_place.default, given)
    x, weight, bias, state = conv_inputs(torch.float32)
    torch.library.opcheck(OPERATORS.causal_conv1d.default, (x, weight, bias, state, None, "silu", True))
    x, weight, gate = norm_inputs(torch.float32)
    torch.library.opcheck(OPERATORS.rms_norm.default, (x, weight, gate, "silu", 1e-6))
    torch.library.opcheck(OPERATORS.rms_norm.default, (x, weight, None, "silu", 1e-6))
    x, weight, gate = (y.detach().bfloat16() for y in (x, weight, gate))
    torch.library.opcheck(OPERATORS.rms_norm_backward.default, (x, x, weight, gate, "silu", 1e-6))
    torch.library.opcheck(OPERATORS.rms_norm_backward.default, (x, x, weight, None, "silu", 1e-6))
    x, weight, bias, state = conv_inputs(torch.float32)
    torch.library.opcheck(
        OPERATORS.causal_conv1d.default, (x[:1], weight, None, None, torch.tensor([0, 2, 7]), None, False)
    )
    x, weight, bias, state = conv_inputs(torch.float32, requires_grad=False)
    torch.library.opcheck(OPERATORS.causal_conv1d_update.default, (x[:, :1], state, weight, bias, None, None, "silu"))
    for name, row in MAPS.items():
        torch.library.opcheck(OPERATORS.feature_map.default, (name, x, *map_arguments(row)))


@pytest.mark.parametrize("function", ["gated_delta_rule", "linear_attention"])
def test_compiled(function):
    """One graph, forward and backward."""
    case = [case for case in RULE_CASES if case.function == function][1]
    x, again = (tensors(case.inputs(SIZES[5], dtype=np.float32), requires_grad=True) for _ in range(2))
    expected, compiled = gradients(case, x, SIZES[5]), torch.compile(forward, fullgraph=True, backend="aot_eager")
    results = compiled(case, again, SIZES[5])
    sum((again["d" + name] * result).sum() for name, result in results.items()).backward()
    for name, gradient in expected.items():
        assert torch.allclose(again[name].grad, gradient, rtol=1e-5, atol=1e-6), name


class Layer(torch.nn.Module):
    def forward(self, q, k, v, g, beta):
        return fwm.gated_delta_rule(q, k, v, g, beta, qk_norm="l2")[0]


def test_exported():
    inputs = gated_inputs()
    exported = torch.export.export(Layer(), tuple(inputs))
    assert "fwm_py.rule" in str(exported.graph)
    assert torch.equal(exported.module()(*inputs), Layer()(*inputs))


def test_autocast():
    q, k, v, g, beta = gated_inputs()
    weight = torch.eye(k.shape[-1])
    with torch.autocast("cpu", torch.bfloat16):
        assert (k @ weight).dtype == torch.bfloat16
        o = Layer()(q @ weight, k @ weight, v, g, beta)
    assert o.dtype == torch.bfloat16
    assert torch.allclose(o.float(), Layer()(q, k, v, g, beta), atol=0.05)


def test_checkpointing():
    inputs = [x.requires_grad_() for x in gated_inputs()]
    expected = torch.autograd.grad(Layer()(*inputs).square().sum(), inputs)
    o = torch.utils.checkpoint.checkpoint(Layer(), *inputs, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(o.square().sum(), inputs), expected))


def test_no_second_derivatives():
    inputs = [x.requires_grad_() for x in gated_inputs()]
    (dq,) = torch.autograd.grad(Layer()(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        dq.sum().backward()


def test_no_derivatives_in_forward_mode():
    inputs = gated_inputs()
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(Layer(), tuple(inputs), tuple(inputs))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode"):
        fwm.tanh(torch.autograd.forward_ad.make_dual(inputs[0], inputs[0]))


def test_vmap():
    inputs = [torch.stack([x, x.flip(1), 0.5 * x]) for x in gated_inputs()]
    expected = torch.stack([Layer()(*(x[i] for x in inputs)) for i in range(3)])
    assert torch.allclose(torch.vmap(Layer())(*inputs), expected, atol=1e-6)


def test_inference_mode_and_meta_tensors():
    inputs = gated_inputs()
    with torch.inference_mode():
        assert torch.equal(Layer()(*inputs), Layer()(*inputs))
    assert Layer()(*(x.to("meta") for x in inputs)).shape == Layer()(*inputs).shape


# --- threads and processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_those_of_torch(threads):
    torch.set_num_threads(threads)
    before = fwm_py.get_num_threads()
    assert _library.run(_core.get_num_threads) == threads
    with pytest.raises(ZeroDivisionError):
        _library.run(lambda: 1 / 0)
    assert fwm_py.get_num_threads() == before


def test_the_same_bits_for_every_number_of_threads():
    case = next(case for case in RULE_CASES if case.function == "kimi_delta_rule")
    sizes = Sizes(2, 70, 2, 4, 2, 16, 40)
    several = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        several.append(gradients(case, tensors(case.inputs(sizes, dtype=np.float32), requires_grad=True), sizes))
    for name in several[0]:
        assert torch.equal(several[0][name], several[1][name]) and torch.equal(several[0][name], several[2][name])


LOADER = """
import torch, fwm_py.torch as fwm

def rule(seed=0):
    q, k, v = torch.randn(3, 1, 40, 2, 8, generator=torch.Generator().manual_seed(seed)).unbind()
    return fwm.delta_rule(q, k, v, torch.full((1, 40, 2), 0.5), qk_norm="l2")[0]

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return rule(i)[0]

if __name__ == "__main__":
    expected = torch.cat([rule(i) for i in range(4)])
    loader = torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    print(torch.equal(next(iter(loader)), expected))
"""


def test_workers_that_were_forked():
    assert rule_cases.run_python(LOADER) == "True"


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input():
    q, k, v, g, beta = gated_inputs()
    with pytest.raises(ValueError, match="^beta: got shape"):
        fwm.gated_delta_rule(q, k, v, g, beta[:, :-1])
    with pytest.raises(TypeError, match="^q: got torch.int64, expected floating point"):
        fwm.gated_delta_rule(q.long(), k, v, g, beta)
    with pytest.raises(TypeError, match="^omega: got torch.int64"):
        fwm.favor(q, torch.ones(q.shape[-1], 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="^initial_state: got a tensor on meta, expected one on cpu, as q is"):
        fwm.gated_delta_rule(q, k, v, g, beta, initial_state=torch.empty(1, 1, 33, 64, device="meta"))
    with pytest.raises(ValueError, match="^cu_seqlens: got a tensor on meta"):
        fwm.gated_delta_rule(q, k, v, g, beta, cu_seqlens=torch.empty(2, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="^weight: got a tensor on meta"):
        fwm.causal_conv1d(q[:, :, 0], torch.empty(q.shape[-1], 4, device="meta"))
    with pytest.raises(ValueError, match="^activation: got 'relu'"):
        fwm.rms_norm(q, q[0, 0, 0], q, activation="relu")
    with pytest.raises(TypeError, match="^gate: got torch.int64"):
        fwm.rms_norm(q, q[0, 0, 0], q.long())
    with pytest.raises(ValueError, match="^qk_norm: got 'l3'"):
        fwm.gated_delta_rule(q, k, v, g, beta, qk_norm="l3")
    with pytest.raises(TypeError, match=r"^initial_state: got Tensor, expected a tuple \(S, z\)"):
        fwm.linear_attention(q, k, v, normalize=True, initial_state=q)
    with pytest.raises(TypeError, match="^initial_state: got a tuple"):
        fwm.linear_attention(q, k, v, initial_state=(q, q))
    with pytest.raises(TypeError, match="^cu_seqlens: got torch.float32, expected integers"):
        fwm.gated_delta_rule(q, k, v, g, beta, cu_seqlens=torch.tensor([0.0, 33.0]))


def test_without_torch_it_says_what_to_install():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import fwm_py.torch\nexcept ImportError as error:\n    print(error)"
    )
    assert "pip install 'fwm_py[torch]'" in rule_cases.run_python(script)


def test_fwm_py_alone_does_not_import_torch():
    assert rule_cases.run_python("import sys, fwm_py; print('torch' in sys.modules)") == "False"
