"""The operations of flash-linear-attention: fwm_py.torch.fla, against plain float64 and against fla-core's own."""

import ast
import functools
import inspect
import itertools

import pytest

torch = pytest.importorskip("torch")

from support import fla_oracle  # noqa: E402
from support.fla_core import naive, naive_gate, path_of  # noqa: E402
from support.halves import reads_a_rounded_state  # noqa: E402
from support.refusals import assert_refused  # noqa: E402
from support.torch_cases import torch_threads  # noqa: E402, F401

from fwm_py.torch import fla  # noqa: E402

B, T, H, HV, K, V = 2, 19, 2, 4, 5, 3
BOUNDS = [0, 2, 2, 19]
PREFIXES = ("fused_recurrent_", "fused_chunk_", "chunk_", "parallel_")
OPERATIONS = [name for name in fla.__all__ if name.startswith(PREFIXES)]

# A rule's inputs, in the order of its chunk_ function.
INPUTS = {
    "delta_rule": "q k v beta",
    "gated_delta_rule": "q k v g beta",
    "kda": "q k v gk beta",
    "gdn2": "q k v gk b w",
    "linear_attn": "q k v",
    "simple_gla": "q k v g",
    "gla": "q k v gk",
    "retention": "q k v",
    "lightning_attn": "q k v",
}
LAYER = {"layer_idx": 1, "num_layers": 3}

SIGMOID = {"use_beta_sigmoid_in_kernel": True}
GATE = {"use_gate_in_kernel": True}
BOUND = {**GATE, "lower_bound": -4.0}
L2 = {"use_qk_l2norm_in_kernel": True}
EVERY = [{}, {"scale": 0.3}]
SPEED = [{"chunk_size": 64, "disable_recompute": True, "chunk_indices": torch.zeros(3, 2, dtype=torch.int64)}]
V_FIRST = [{"state_v_first": True}]
SCALAR_GATES = [{**GATE, "with": "A_log"}, {**GATE, "with": "A_log dt_bias"}]
CHANNEL_GATES = [
    *SCALAR_GATES,
    {**BOUND, "with": "A_log dt_bias", "safe_gate": True},
    {**BOUND, "with": "dt_bias"},
    {**BOUND, "with": ""},
    {"safe_gate": True},
]
STRENGTHS = [SIGMOID, {**SIGMOID, "allow_neg_eigval": True}]
OPTIONS = {
    "delta_rule": [L2, {"without": "beta"}, *SPEED],
    "gated_delta_rule": [
        {**L2, **GATE, **STRENGTHS[1], **V_FIRST[0], "with": "A_log dt_bias"},
        *SCALAR_GATES,
        *STRENGTHS,
        *V_FIRST,
        *SPEED,
    ],
    "kda": [L2, *CHANNEL_GATES, *STRENGTHS, *V_FIRST, *SPEED],
    "gdn2": [L2, *CHANNEL_GATES, *V_FIRST, *SPEED],
    "linear_attn": SPEED,
    "simple_gla": [{"without": "g"}, {"with": "g_gamma"}, {"without": "g", "with": "g_gamma"}, *V_FIRST, *SPEED],
    "gla": [*V_FIRST, *SPEED],
    "retention": SPEED,
    "lightning_attn": SPEED,
}


def rule_of(name):
    return next(name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix))


def parameters(name):
    return inspect.signature(getattr(fla, name)).parameters


DISTINCT = list({getattr(fla, name): name for name in reversed(OPERATIONS)}.values())  # some names are one function's


def cases():
    for name in DISTINCT:
        for options in [*EVERY, *OPTIONS[rule_of(name)]]:
            parallel_or_not = "state_v_first", "g_gamma"
            if name.startswith("parallel") and any(n in (*options, options.get("with")) for n in parallel_or_not):
                continue
            yield pytest.param(name, options, id="-".join([name, *options, *options.get("with", "").split()]))


def tensors(names, packed, dtype=torch.float64, T=T, bounds=BOUNDS):
    """Inputs by name, and what states begin with."""
    random = torch.Generator().manual_seed(0)
    rows = 1 if packed else B
    shapes = {
        "q": (rows, T, H, K),
        "k": (rows, T, H, K),
        "v": (rows, T, HV, V),
        "g": (rows, T, HV),
        "gk": (rows, T, HV, K),
        "beta": (rows, T, HV),
        "b": (rows, T, HV, K),
        "w": (rows, T, HV, V),
        "A_log": (HV,),
        "dt_bias": (HV * K,) if "gk" in names else (HV,),
        "g_gamma": (HV,),
        "initial_state": (len(bounds) - 1 if packed else B, HV, K, V),
    }
    made = {
        name: torch.randn(shapes[name], generator=random, dtype=torch.float64) for name in [*names, "initial_state"]
    }
    for name in ("g", "gk", "g_gamma"):
        if name in made:
            made[name] = -made[name].abs() / 4
    return {name: x.to(dtype).requires_grad_() for name, x in made.items()}


def plain(rule, x, options, packed):
    """The same in plain float64: o and states."""
    gate = x.get("g", x.get("gk"))
    heads = torch.arange(HV, dtype=torch.float32)
    if options.get("use_gate_in_kernel"):
        gate = fla_oracle.gate(gate, x.get("A_log"), x.get("dt_bias"), options.get("lower_bound"))
    if "g_gamma" in x:
        gate = x["g_gamma"].expand(x["v"].shape[:3]) + (0 if gate is None else gate)
    if rule == "retention":
        gate = (1 - 2 ** (-5 - heads)).log().double().expand(x["v"].shape[:3])
    if rule == "lightning_attn":
        gate = (-(8 / HV) * (1 - 1 / 3) * heads).double().expand(x["v"].shape[:3])
    if gate is not None and gate.dim() == 3:
        gate = gate[..., None]
    beta = x.get("beta")
    if options.get("use_beta_sigmoid_in_kernel"):
        beta = torch.sigmoid(beta) * (2 if options.get("allow_neg_eigval") else 1)
    erase, write = x.get("b"), x.get("w")
    if rule in ("delta_rule", "gated_delta_rule", "kda"):
        erase = write = torch.ones_like(x["v"][..., :1]) if beta is None else beta[..., None]
    return fla_oracle.recurrence(
        x["q"],
        x["k"],
        x["v"],
        gate,
        erase,
        write,
        scale=options.get("scale"),
        l2norm=options.get("use_qk_l2norm_in_kernel", False),
        state=x["initial_state"],
        bounds=BOUNDS if packed else None,
    )


def assert_same(given, expected, tolerance=1e-9):
    assert given.shape == expected.shape
    assert (given - expected).abs().max() <= tolerance * expected.abs().max() + 1e-300


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("name, options", list(cases()))
def test_an_operation_and_its_gradients(name, options, packed):
    rule, options = rule_of(name), dict(options)
    without, extra = options.pop("without", "").split(), options.pop("with", "").split()
    names = [n for n in INPUTS[rule].split() if n not in without] + extra
    x = tensors(names, packed)
    if name.startswith("parallel"):
        x["initial_state"] = torch.zeros_like(x["initial_state"])
    expected, states = plain(rule, x, options, packed)

    v_first, with_states = options.get("state_v_first", False), not name.startswith("parallel")
    given = {"gk" if n == "gk" and "gk" in parameters(name) else "g" if n == "gk" else n: x[n] for n in names}
    given |= options | (LAYER if rule == "lightning_attn" else {})
    if rule == "linear_attn":
        given["normalize"] = False
    if packed:
        given["cu_seqlens"] = torch.tensor(BOUNDS)
    if with_states:
        given |= {"initial_state": x["initial_state"].mT if v_first else x["initial_state"], "output_final_state": True}
    o, state = getattr(fla, name)(**given)
    assert_same(o, expected)
    value, expected_value = (
        (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)).sum()
        for y in (o, expected)
    )
    if with_states:
        state = state.mT if v_first else state
        assert_same(state, states)
        value, expected_value = value + state.square().sum(), expected_value + states.square().sum()
    else:
        assert state is None
    leaves = [leaf for n, leaf in x.items() if n != "initial_state" or with_states]
    for a, b in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected_value, leaves)):
        assert_same(a, b)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.endswith("linear_attn")])
def test_normalised_reading(name):
    x = {n: (y.detach().abs() + 0.1) for n, y in tensors(["q", "k", "v"], False).items()}
    q, k, v = x["q"], x["k"], x["v"][:, :, :H]
    weights = torch.einsum("bthk,bshk->bhts", q * K**-0.5, k).tril()
    expected = torch.einsum("bhts,bshv->bthv", weights / (weights.sum(-1, keepdim=True) + 1e-10), v)
    function = getattr(fla, name)
    o, (S, z) = function(q, k, v, normalize=True, output_final_state=True)
    assert_same(o, expected)
    assert z.shape == (B, 1, H, K) and torch.allclose(z[:, 0], k.sum(1))
    half = 8
    first, state = function(q[:, :half], k[:, :half], v[:, :half], normalize=True, output_final_state=True)
    rest, _ = function(q[:, half:], k[:, half:], v[:, half:], normalize=True, initial_state=state)
    assert_same(torch.cat([first, rest], 1), expected)
    for start in (torch.zeros_like(S), (torch.zeros_like(S), None)):
        assert torch.equal(function(q, k, v, normalize=True, initial_state=start)[0], o)


def test_gates_of_channels_and_heads_together():
    x = tensors(["q", "k", "v", "g", "gk", "beta", "A_log", "dt_bias"], False)
    dt_bias = x["dt_bias"][:HV]
    gates = fla_oracle.gate(x["g"], x["A_log"], dt_bias)[..., None] + x["gk"]
    beta = x["beta"][..., None]
    expected, _ = fla_oracle.recurrence(x["q"], x["k"], x["v"], gates, beta, beta)
    o, _ = fla.fused_recurrent_gated_delta_rule(
        *(x[name] for name in ("q", "k", "v", "g", "gk")),
        beta=x["beta"],
        use_gate_in_kernel=True,
        A_log=x["A_log"],
        dt_bias=dt_bias,
    )
    assert_same(o, expected)


# --- states before chunks --------------------------------------------------------------------------------------------

STATES = [
    ("chunk_kda", {}),
    ("chunk_kda", {"chunk_size": 32}),
    ("chunk_kda", {"chunk_size": None, **L2, **STRENGTHS[1], **V_FIRST[0]}),
    ("chunk_kda", {**GATE, "with": "A_log dt_bias"}),
    ("chunk_gdn2", {"without": "initial_state"}),
    ("chunk_gdn2", {**L2, **BOUND, **V_FIRST[0], "with": "A_log dt_bias"}),
]
LENGTHS = {"rows": (150, None), "whole chunks": (128, None), "packed": (290, [0, 0, 64, 65, 193, 290, 290])}


def states_before_chunks(rule, x, options, bounds, size):
    """Of sequence after sequence, the states that all tokens before each chunk leave."""
    T, states = x["q"].shape[1], []
    rows = [(b, 0, T) for b in range(B)] if bounds is None else [(0, *pair) for pair in itertools.pairwise(bounds)]
    for state, (b, start, end) in zip(x["initial_state"], rows, strict=True):
        for t in range(start, end, size):
            before = {n: y[b : b + 1, start:t] if y.dim() > 2 else y for n, y in x.items()}
            before["initial_state"] = state[None]
            states.append(state if t == start else plain(rule, before, options, False)[1][0])
    return torch.stack(states)


@pytest.mark.parametrize("T, bounds", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name, options", STATES)
def test_states_before_chunks(name, options, T, bounds):
    rule, options = rule_of(name), dict(options)
    names = INPUTS[rule].split() + options.pop("with", "").split()
    x = {n: y.detach() for n, y in tensors(names, bounds is not None, T=T, bounds=bounds).items()}
    given = {"g" if n == "gk" else n: y for n, y in x.items()}
    if options.pop("without", None):
        x["initial_state"] = torch.zeros_like(given.pop("initial_state"))
    expected = states_before_chunks(rule, x, options, bounds, options.get("chunk_size") or 64)
    given |= options | {"output_final_state": True}
    given |= {} if bounds is None else {"cu_seqlens": torch.tensor(bounds)}
    if "state_v_first" in options:
        given["initial_state"], expected = given["initial_state"].mT, expected.mT
    function = getattr(fla, name)
    o, state, h = function(**given, return_intermediate_states=True)
    assert all(map(torch.equal, (o, state), function(**given)))
    assert_same(h, expected.unflatten(0, (len(x["q"]), -1)))


@pytest.mark.parametrize("name", ["chunk_kda", "chunk_gdn2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_states_before_chunks_of_any_dtype(name, dtype):
    """They have k's, whatever v has."""
    x = {n: y.detach() for n, y in tensors(INPUTS[rule_of(name)].split(), False, dtype, T=100).items()}
    x = {"g" if n == "gk" else n: y for n, y in x.items() if n != "initial_state"}
    x["v"] = x["v"].float()
    with torch.inference_mode():
        o, state, h = getattr(fla, name)(**x, return_intermediate_states=True)
    first = {n: y[:, :64] for n, y in x.items()}
    _, expected = getattr(fla, name)(**first, output_final_state=True)
    assert state is None and o.dtype is h.dtype is dtype
    assert h.shape[1] == 2
    assert_same(h[:, 1].double(), expected.double(), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("rows, T, bounds", [(0, 70, None), (2, 0, None), (1, 0, [0, 0]), (1, 0, [0])])
def test_no_states_before_no_chunks(rows, T, bounds):
    shapes = ((H, K), (H, K), (HV, V), (HV, K), (HV,))
    packed = None if bounds is None else torch.tensor(bounds)
    _, _, h = fla.chunk_kda(
        *(torch.zeros(rows, T, *shape) for shape in shapes), return_intermediate_states=True, cu_seqlens=packed
    )
    assert h.shape == (rows, -(-T // 64), HV, K, V)


@pytest.mark.parametrize("name", ["q", "beta", "A_log", "initial_state"])
def test_states_before_chunks_have_no_gradient(name):
    x = tensors(["q", "k", "v", "gk", "beta", "A_log"], False)
    x = {"g" if n == "gk" else n: y if n == name else y.detach() for n, y in x.items()}
    call = functools.partial(fla.chunk_kda, **x, **GATE, return_intermediate_states=True)
    with pytest.raises(ValueError, match="^return_intermediate_states: got True, expected False where a gradient is w"):
        call()
    with torch.no_grad():
        call()


# --- fla-core ------------------------------------------------------------------------------------------------------

NAIVE = [
    ("chunk_delta_rule", {}, "delta_rule", "delta_rule_recurrence"),
    ("chunk_gated_delta_rule", {}, "gated_delta_rule", "naive_recurrent_gated_delta_rule"),
    ("chunk_gated_delta_rule", SCALAR_GATES[1], "gated_delta_rule", "naive_recurrent_gated_delta_rule"),
    ("chunk_kda", {}, "kda", "naive_recurrent_kda"),
    ("chunk_kda", CHANNEL_GATES[1], "kda", "naive_recurrent_kda"),
    ("chunk_kda", CHANNEL_GATES[2], "kda", "naive_recurrent_kda"),
    ("chunk_kda", CHANNEL_GATES[3], "kda", "naive_recurrent_kda"),
    ("chunk_gdn2", CHANNEL_GATES[1], "gdn2", "naive_recurrent_gdn2"),
    ("chunk_gla", {}, "gla", "naive_recurrent_gla"),
    ("chunk_simple_gla", {}, "simple_gla", "naive_recurrent_simple_gla"),
    ("chunk_linear_attn", {}, "linear_attn", "naive_recurrent_linear_attn"),
    ("chunk_retention", {}, "retention", "naive_retention"),
]


def naive_gates(x, options):
    """x with the gate that fla-core's reference makes of A_log and dt_bias."""
    if not options.get("use_gate_in_kernel"):
        return x
    x, A_log, dt_bias = dict(x), x.get("A_log"), x.get("dt_bias")
    if "g" in x:
        x["g"] = naive_gate("gated_delta_rule", "naive_gdn_gate")(x["g"], A_log, dt_bias)
    elif "lower_bound" in options:
        x["gk"] = naive_gate("kda", "naive_kda_lowerbound_gate")(x["gk"], A_log, dt_bias, options["lower_bound"])
    else:
        x["gk"] = naive_gate("kda", "naive_kda_gate")(x["gk"], A_log, dt_bias)
    return x


@pytest.mark.parametrize("name, options, rule, reference", NAIVE)
def test_fla_core(name, options, rule, reference):
    options, inputs = dict(options), INPUTS[rule].split()
    x = tensors(inputs + options.pop("with", "").split(), False, torch.float32)
    if rule != "kda":  # the others' references have as many heads of keys
        x = {n: y.repeat_interleave(HV // H, 2).detach().requires_grad_() if n in "qk" else y for n, y in x.items()}
    given = {"g" if n == "gk" else n: y for n, y in x.items() if n != "initial_state"}
    with_gates = naive_gates(x, options)
    arguments = {("gk" if n == "gk" and rule == "gla" else "g" if n == "gk" else n): with_gates[n] for n in inputs}
    if rule in ("delta_rule", "retention"):
        arguments = {n: y.transpose(1, 2) for n, y in arguments.items()}
    expected = naive(rule, reference)(**arguments)
    expected = expected[0] if isinstance(expected, tuple) else expected
    if rule in ("delta_rule", "retention"):
        expected = expected.transpose(1, 2)
    o, _ = getattr(fla, name)(**given, **options, **({"normalize": False} if rule == "linear_attn" else {}))
    assert_same(o, expected, 1e-5)
    leaves = list(given.values())
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(torch.autograd.grad((o * do).sum(), leaves), torch.autograd.grad((expected * do).sum(), leaves)):
        assert_same(a, b, 2e-5)


@pytest.mark.parametrize("name", DISTINCT)
def test_arguments_stand_in_upstreams_order(name):
    rule = rule_of(name)
    prefix = name.removesuffix("_" + rule)
    tree = ast.parse(path_of(rule, f"{prefix}.py").read_text())
    upstream = next(
        [argument.arg for argument in node.args.args]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    ours = [p.name for p in parameters(name).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert ours[: len(upstream)] == upstream[: len(ours)]
    assert set(upstream[len(ours) :]) <= {"chunk_indices", "cp_context", "use_graph", "max_num_seqs"}


def test_names_of_one_function():
    assert (
        fla.chunk_gdn is fla.chunk_gated_delta_rule and fla.fused_recurrent_gdn is fla.fused_recurrent_gated_delta_rule
    )
    assert fla.fused_chunk_gla is fla.chunk_gla and fla.fused_recurrent_delta_rule is fla.chunk_delta_rule


# --- what is refused -----------------------------------------------------------------------------------------------


def good_call(name, **other):
    names = INPUTS[rule_of(name)].split() if name in DISTINCT else []
    x = {n: y.detach() for n, y in tensors(names, False, torch.float32).items() if n != "initial_state"}
    given = {"gk" if n == "gk" and "gk" in parameters(name) else "g" if n == "gk" else n: y for n, y in x.items()}
    given |= LAYER if rule_of(name) == "lightning_attn" else {}
    return getattr(fla, name)(**given | ({"normalize": False} if "normalize" in parameters(name) else {}) | other)


@pytest.mark.parametrize("name", DISTINCT)
def test_options_that_are_not_there_are_refused(name):
    options = ["head_first", "cp_context", "use_graph", "output_attentions", "reverse"]
    if "return_intermediate_states" not in parameters(name):
        options.append("return_intermediate_states")
    for option in options:
        assert_refused(lambda option=option: good_call(name, **{option: True}), option, NotImplementedError)
        good_call(name, **{option: False})
    with pytest.raises(NotImplementedError, match="^gv: got a tensor, which fwm_py does not have"):
        good_call(name, gv=torch.ones(B, T, HV, V))
    assert_refused(lambda: good_call(name, chunk_size=48), "chunk_size", ValueError)
    assert_refused(lambda: good_call(name, chunk_size=32.0), "chunk_size", TypeError)
    assert_refused(lambda: good_call(name, disable_recompute=1), "disable_recompute", TypeError)
    assert_refused(lambda: good_call(name, chunk_indices=3), "chunk_indices", TypeError)


NUMBERS = torch.zeros(7)
REFUSED = [
    ("chunk_kda", {"A_log": NUMBERS[:HV]}, "A_log", ValueError),
    ("chunk_kda", {"dt_bias": NUMBERS}, "dt_bias", ValueError),
    ("chunk_kda", GATE, "A_log", ValueError),
    ("chunk_kda", {**GATE, "A_log": NUMBERS}, "A_log", ValueError),
    ("chunk_kda", {**GATE, "A_log": 1.0}, "A_log", TypeError),
    ("chunk_kda", {**GATE, "A_log": NUMBERS[:HV], "dt_bias": NUMBERS}, "dt_bias", ValueError),
    ("chunk_kda", {**GATE, "A_log": NUMBERS[:HV], "safe_gate": True}, "lower_bound", ValueError),
    ("chunk_kda", {**GATE, "safe_gate": True, "lower_bound": -6.0}, "lower_bound", ValueError),
    ("chunk_kda", {**GATE, "lower_bound": 0.0}, "lower_bound", ValueError),
    ("chunk_kda", {**GATE, "lower_bound": float("nan")}, "lower_bound", ValueError),
    ("chunk_kda", {**GATE, "lower_bound": NUMBERS}, "lower_bound", TypeError),
    ("chunk_kda", {"use_gate_in_kernel": 1}, "use_gate_in_kernel", TypeError),
    ("chunk_kda", {"chunk_size": 16}, "chunk_size", ValueError),
    ("chunk_gdn2", {"chunk_size": 32}, "chunk_size", ValueError),
    ("chunk_kda", {"return_intermediate_states": 1}, "return_intermediate_states", TypeError),
    ("chunk_gdn2", {"return_intermediate_states": None}, "return_intermediate_states", TypeError),
    ("chunk_kda", {"return_intermediate_states": True, "disable_recompute": True}, "disable_recompute", ValueError),
    ("chunk_kda", {"return_intermediate_states": True, "q": "text"}, "q", TypeError),
    ("chunk_kda", {"allow_neg_eigval": True}, "allow_neg_eigval", ValueError),
    ("chunk_kda", {"state_v_first": 1}, "state_v_first", TypeError),
    ("chunk_kda", {"state_v_first": True, "transpose_state_layout": True}, "transpose_state_layout", ValueError),
    ("chunk_kda", {"state_v_first": True, "initial_state": torch.zeros(B, HV, K, V)}, "initial_state", ValueError),
    ("chunk_kda", {"use_qk_l2norm_in_kernel": None}, "use_qk_l2norm_in_kernel", TypeError),
    ("fused_recurrent_gated_delta_rule", {**GATE, "g": None, "A_log": NUMBERS}, "g", ValueError),
    ("fused_recurrent_gated_delta_rule", {**SIGMOID, "beta": None}, "beta", ValueError),
    ("chunk_delta_rule", {"state_v_first": True}, "state_v_first", NotImplementedError),
    ("chunk_simple_gla", {"g_gamma": NUMBERS}, "g_gamma", ValueError),
    ("chunk_lightning_attn", {"num_layers": 0}, "num_layers", ValueError),
    ("chunk_lightning_attn", {"layer_idx": NUMBERS}, "layer_idx", TypeError),
]


@pytest.mark.parametrize("name, options, refused, exception", REFUSED)
def test_bad_options(name, options, refused, exception):
    assert_refused(lambda: good_call(name, **options), refused, exception)


def test_the_old_name_of_state_v_first():
    options = {"output_final_state": True}
    _, state = good_call("chunk_kda", state_v_first=True, **options)
    with pytest.warns(DeprecationWarning, match="state_v_first"):
        _, older = good_call("chunk_kda", transpose_state_layout=True, **options)
    assert state.shape == (B, HV, V, K) and torch.equal(state, older)


def test_half_precision():
    """Gates and strengths are computed in float32, results have q's dtype, states float32."""
    x = tensors(["q", "k", "v", "g", "beta", "A_log", "dt_bias"], False, torch.bfloat16)
    o, state = fla.chunk_gated_delta_rule(
        *(x[n] for n in ("q", "k", "v", "g", "beta")),
        **GATE,
        **SIGMOID,
        A_log=x["A_log"],
        dt_bias=x["dt_bias"],
        output_final_state=True,
    )
    wide = {n: y.detach().double() for n, y in x.items()} | {"initial_state": torch.zeros(B, HV, K, V).double()}
    expected, states = plain("gated_delta_rule", wide, {**GATE, **SIGMOID}, False)
    assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert_same(state, states.float(), 4e-3 if reads_a_rounded_state("gated_delta_rule") else 1e-5)
    assert_same(o.float(), expected.float(), 4e-3)
    o.float().sum().backward()
    assert x["A_log"].grad.dtype == torch.bfloat16
