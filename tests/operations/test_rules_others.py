"""The rules against programs that others wrote: fla-core, onnx, onnxruntime; and against our own read-outs.

fla-core's functions come by `support.fla_core`. They and the others compute in float32, so tolerances are float32's.
"""

import numpy as np
import pytest
from support import cases, oracle
from support.fla_core import naive
from support.rule_cases import METHODS, RULE_CASES, Sizes, assert_close

from fwm_py import readouts, rules

every_method = pytest.mark.parametrize("method", METHODS)


def plain(function, gate="", **options):
    """The case of a function, with these options."""
    return next(
        case
        for case in RULE_CASES
        if case.function == function and case.gate in (gate, gate or case.gate) and dict(case.options) == options
    )


# --- fla-core ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fla():
    """The function of a rule's naive.py, by the rule and the name."""
    pytest.importorskip("torch")
    return naive


def heads_first(function):
    """Of a function of arrays (B, H, T, ..) one of arrays (B, T, H, ..)."""

    def of_tokens_first(*tensors, **other):
        o, state = function(*(tensor.transpose(1, 2) for tensor in tensors), **other)
        return o.transpose(1, 2), state

    return of_tokens_first


# Our case; their rule and function, how it is called, and the order of its arguments.
FLA = [
    (plain("linear_attention"), "linear_attn", "naive_recurrent_linear_attn", None, "q k v"),
    (plain("gated_linear_attention", "scalar"), "simple_gla", "naive_recurrent_simple_gla", None, "q k v g"),
    (plain("gated_linear_attention", "scalar"), "simple_gla", "naive_chunk_simple_gla", None, "q k v g"),
    (plain("gated_linear_attention", "channel"), "gla", "naive_recurrent_gla", None, "q k v g"),
    (plain("delta_rule"), "delta_rule", "delta_rule_recurrence", heads_first, "q k v beta"),
    (plain("gated_delta_rule"), "gated_delta_rule", "naive_recurrent_gated_delta_rule", None, "q k v beta g"),
    (plain("gated_delta_rule"), "gated_delta_rule", "naive_chunk_gated_delta_rule", None, "q k v g beta"),
    (plain("kimi_delta_rule"), "kda", "naive_recurrent_kda", None, "q k v g beta"),
    (plain("kimi_delta_rule"), "kda", "naive_chunk_kda", None, "q k v g beta"),
    (plain("gated_delta_rule_2"), "gdn2", "naive_recurrent_gdn2", None, "q k v g b w"),
    (plain("gated_delta_rule_2"), "gdn2", "naive_chunk_gdn2", None, "q k v g b w"),
]


def of_torch(function, x, names, state="initial_state"):
    """Their results and, by automatic differentiation, their gradients."""
    import torch

    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in x.items()}
    for name in (*names, state):
        tensors[name].requires_grad_()
    o, final = function(*(tensors[name] for name in names), initial_state=tensors[state], output_final_state=True)
    value = (o * tensors["do"]).sum() + (final * tensors["dfinal_state"]).sum()
    gradients = torch.autograd.grad(value, [tensors[name] for name in (*names, state)])
    results = {"o": o.detach().numpy(), "final_state": final.detach().numpy()}
    return results, {name: gradient.numpy() for name, gradient in zip((*names, state), gradients)}


@every_method
@pytest.mark.parametrize("case, rule, name, adapt, arguments", FLA, ids=[row[2] for row in FLA])
def test_fla(fla, case, rule, name, adapt, arguments, method):
    sizes = Sizes(2, 64, 2, 4 if rule == "kda" else 2, 2, 17, 12)
    x, function = case.inputs(sizes), fla(rule, name)
    results, gradients = of_torch(adapt(function) if adapt else function, x, arguments.split())
    assert_close(case.forward(x, sizes, method=method), results, 1e-5)
    assert_close(
        case.backward(x, sizes, method=method), {name: gradients[name] for name in case.differentiable(x)}, 1e-5
    )


@every_method
def test_fla_normalised(fla, method):
    """Their epsilon is 1e-10, and their sum of keys has an axis of one token."""
    import torch

    case, sizes = plain("linear_attention", normalize=True), Sizes(2, 64, 2, 2, 2, 17, 12)
    x = case.inputs(sizes)
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in x.items()}
    names = ("q", "k", "v", "initial_state", "initial_sum")
    q, k, v, state, z = (tensors[name].requires_grad_() for name in names)
    o, (final, final_z) = fla("linear_attn", "naive_recurrent_linear_attn")(
        q, k, v, scale=1.0, initial_state=(state, z[:, None]), output_final_state=True, normalize=True
    )
    value = sum(
        (tensors[name] * result).sum()
        for name, result in (("do", o), ("dfinal_state", final), ("dfinal_sum", final_z[:, 0]))
    )
    gradients = torch.autograd.grad(value, (q, k, v, state, z))
    results = {"o": o, "final_state": final, "final_sum": final_z[:, 0]}
    assert_close(
        case.forward(x, sizes, method=method, eps=1e-10), {n: a.detach().numpy() for n, a in results.items()}, 1e-5
    )
    assert_close(
        case.backward(x, sizes, method=method, eps=1e-10), {n: a.numpy() for n, a in zip(names, gradients)}, 1e-5
    )


# --- ONNX's operator -----------------------------------------------------------------------------------------------

ONNX = [
    (plain("linear_attention"), "linear"),
    (plain("gated_linear_attention", "scalar"), "gated"),
    (plain("gated_linear_attention", "channel"), "gated"),
    (plain("delta_rule"), "delta"),
    (plain("gated_delta_rule"), "gated_delta"),
    (plain("kimi_delta_rule"), "gated_delta"),
]
ONNX_INPUTS = {"q": "query", "k": "key", "v": "value", "initial_state": "past_state", "g": "decay", "beta": "beta"}


def onnx_call(case, rule, sizes, x, domain):
    """A model of one LinearAttention, and what goes into it: float32, heads packed into the last axis."""
    from onnx import TensorProto, helper

    arrays = {ONNX_INPUTS[name]: x[name].astype(np.float32) for name in ONNX_INPUTS if name in x}
    arrays = {name: a if name == "past_state" else a.reshape(*a.shape[:2], -1) for name, a in arrays.items()}
    order = [name if name in arrays else "" for name in ONNX_INPUTS.values()]
    while not order[-1]:
        order.pop()
    node = helper.make_node(
        "LinearAttention",
        order,
        ["output", "present_state"],
        domain=domain,
        update_rule=rule,
        q_num_heads=sizes.HQ,
        kv_num_heads=sizes.HV,
    )
    graph = helper.make_graph(
        [node],
        "one_operator",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in arrays.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)] if domain else [helper.make_opsetid("", 27)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), arrays


def assert_same_as_onnx(case, sizes, x, method, o, state):
    o = o.reshape(sizes.B, sizes.T, max(sizes.HQ, sizes.HV), sizes.V)
    assert_close(case.forward(x, sizes, method=method), {"o": o, "final_state": state}, 1e-5)


every_onnx_rule = pytest.mark.parametrize("case, rule", ONNX, ids=[str(case) for case, _ in ONNX])


@every_method
@pytest.mark.parametrize("sizes", [Sizes(2, 37, 2, 2, 2, 17, 12), Sizes(2, 37, 2, 2, 6, 17, 12)], ids=str)
@every_onnx_rule
def test_the_reference_of_onnx(case, rule, sizes, method):
    onnx_reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    pytest.importorskip("onnx.reference.ops.op_linear_attention", reason="this onnx has no LinearAttention")
    x = case.inputs(sizes)
    model, arrays = onnx_call(case, rule, sizes, x, domain="")
    assert_same_as_onnx(case, sizes, x, method, *onnx_reference.ReferenceEvaluator(model).run(None, arrays))


@every_method
@pytest.mark.parametrize(
    "sizes", [Sizes(2, 37, 2, 2, 2, 16, 16), Sizes(2, 37, 2, 2, 6, 17, 12), Sizes(1, 80, 1, 4, 1, 32, 48)], ids=str
)
@every_onnx_rule
def test_the_kernel_of_onnxruntime(case, rule, sizes, method):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x = case.inputs(sizes)
    model, arrays = onnx_call(case, rule, sizes, x, domain="com.microsoft")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "is not a registered function/op" in str(error):
            pytest.skip("this onnxruntime has no LinearAttention")
        raise
    assert_same_as_onnx(case, sizes, x, method, *session.run(None, arrays))


# --- the read-outs of the experiments ------------------------------------------------------------------------------


def as_kernel_inputs(inputs):
    """q (only the last token asks), k, one-hot v, beta of the experiments, with an axis for the one head."""
    q = np.zeros(inputs.keys.shape)
    q[:, -1] = inputs.query
    v = np.eye(inputs.n_values)[inputs.values]
    return q[:, :, None], inputs.keys[:, :, None], v[:, :, None], inputs.beta[:, :, None]


@every_method
def test_the_sum_rule_of_the_experiments(method):
    inputs = cases.readout_inputs(3, 40, 12, 5)
    q, k, v, _ = as_kernel_inputs(inputs)
    dy = np.random.default_rng(1).standard_normal((3, 5))
    do = np.zeros((3, 40, 1, 5))
    do[:, -1, 0] = dy
    q[:, :-1, :, 0] = 1  # the others ask something of which no gradient comes back
    o, _ = rules.linear_attention(q, k, v, normalize=True, method=method)
    np.testing.assert_allclose(o[:, -1, 0], readouts.sum_rule(inputs.keys, inputs.values, inputs.query, 5), rtol=1e-11)
    gradients = rules.linear_attention_backward(do, q, k, v, normalize=True, method=method)
    expected = readouts.sum_rule_backward(dy, inputs.keys, inputs.values, inputs.query, 5)
    assert_close(
        {"k": gradients.dk[:, :, 0], "q": gradients.dq[:, -1, 0]}, {"k": expected.dkeys, "q": expected.dquery}, 1e-10
    )


@every_method
def test_the_delta_rule_of_the_experiments(method):
    """Which divides a query by its sum plus 1e-6."""
    inputs = cases.readout_inputs(3, 40, 12, 5)
    q, k, v, beta = as_kernel_inputs(inputs)
    q[:, :-1] = 1
    o, _ = rules.delta_rule(q, k, v, beta, scale=1.0, qk_norm="sum", method=method)
    y = readouts.delta_rule(inputs.keys, inputs.values, inputs.beta, inputs.query, 5)
    total = inputs.query.sum(1, keepdims=True)
    np.testing.assert_allclose(o[:, -1, 0] * total / (total + 1e-6), y, rtol=1e-10, atol=1e-12)


@every_method
def test_the_fast_weight_memory_of_the_experiments(method):
    """Which is read through a layer norm; its first write is unclamped."""
    inputs = cases.readout_inputs(3, 40, 12, 5)
    q, k, v, beta = as_kernel_inputs(inputs)
    o, _ = rules.fast_weight_memory(q, k, v, beta, scale=1.0, clamp_first=False, method=method)
    y = readouts.fwm_rule(inputs.keys, inputs.values, inputs.beta, inputs.query, 5)
    np.testing.assert_allclose(oracle.layer_norm(o[:, -1, 0]), y, rtol=1e-9, atol=1e-10)
