"""The calls by which compare_commits.py compares two builds, and the process that makes them in one of these.

    python benchmarks/comparison.py variants             prints the variants of the kernels that this machine runs
    python benchmarks/comparison.py bits                 makes every call and prints digests of the results
    python benchmarks/comparison.py times THREADS        answers requests, a line of JSON each, with seconds

The build is the one that PYTHONPATH names. It is called by its public functions alone, and nothing of its tests is
read, so that one table serves commits with other names inside; where public names differ, `public` finds either.
"""

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import fwm_py

TURN = 0.02  # seconds of calls in blocks, three of them at least, of which the shortest counts
F32, F64 = DTYPES = (np.float32, np.float64)


# ---- public names -----------------------------------------------------------------------------------------------


def public(*names):
    """The first that the build has of some modules or functions of fwm_py."""
    for name in names:
        with contextlib.suppress(ImportError, AttributeError):
            return pkgutil.resolve_name(f"fwm_py.{name}")
    raise LookupError(f"fwm_py has none of {', '.join(names)}")


RULES, RETRIEVAL = public("rules", "kernels"), public("experiments.retrieval", "retrieval")
MAPS, RANDOM = public("feature_maps"), public("random")


def with_backward(name, *also):
    return [public(*(each + end for each in (name, *also))) for end in ("", "_backward")]


def settings(map, argument, readout, n_keys, replace=False, **sizes):
    names = dict(attn_name=map, attn_arg=argument, update_rule=readout)
    return RETRIEVAL.Settings(n_keys=n_keys, replace=replace, **names, **sizes)


# ---- calls of one operation -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    function: Callable[..., Any]
    arguments: tuple = ()
    options: dict = field(default_factory=dict)

    def __call__(self):
        return self.function(*self.arguments, **self.options)


class Draw:
    """Arrays of one dtype, the same for every case."""

    def __init__(self, dtype):
        self.dtype, self.random = dtype, np.random.default_rng(0)

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(self.dtype)

    def uniform(self, *shape):
        return self.random.uniform(0.1, 1, shape).astype(self.dtype)


def rule(sizes, dtype, form, states, method):
    draw, (B, T, H, HV, HQ, K, V, *packed), (name, inputs, options) = Draw(dtype), sizes, form
    positive = options.get("normalize") or options.get("qk_norm") == "sum"
    n = len(packed[0]) - 1 if packed else B
    shapes = {"beta": (B, T, HV), "b": (B, T, HV, K), "w": (B, T, HV, V), "g": (B, T, HV), "G": (B, T, HV, K)}
    q, k = ((draw.uniform if positive else draw.normal)(B, T, heads, K) for heads in (HQ, H))
    arguments = [q, k / np.linalg.norm(k, axis=-1, keepdims=True), draw.normal(B, T, HV, V)]
    arguments += [draw.uniform(*shapes[each]) * (-1 if each in "gG" else 1) for each in inputs.split()]
    initial, dfinal = ((draw.normal(n, HV, K, V), draw.uniform(n, H, K)) for _ in range(2))
    if not options.get("normalize"):
        initial, dfinal = initial[0], dfinal[0]
    options = options | {"method": method} | ({"initial_state": initial} if states else {})
    options |= {"cu_seqlens": np.array(packed[0])} if packed else {}
    forward, backward = with_backward(name)
    yield Case("forward", forward, (*arguments,), options | {"output_final_state": states})
    do, gradient = draw.normal(B, T, max(HQ, HV), V), {"dfinal_state": dfinal} if states else {}
    yield Case("backward", backward, (do, *arguments), options | gradient)


def attention(sizes, dtype, causal, scale):
    draw, (B, T, S, HQ, H, K, V) = Draw(dtype), sizes
    arguments = draw.normal(B, T, HQ, K), draw.normal(B, S, H, K), draw.normal(B, S, H, V)
    options = {"causal": causal, "scale": scale}
    forward, backward = with_backward("softmax_attention")
    yield Case("forward", forward, arguments, options)
    yield Case("backward", backward, (draw.normal(B, T, HQ, V), *arguments), options)
    o, lse = forward(*arguments, **options, return_lse=True)
    yield Case("lse", lambda: lse)
    yield Case("backward of o and lse", backward, (o, *arguments), options | {"o": o, "lse": lse})


def convolution(sizes, dtype, width, bias, states, activation):
    draw, (B, T, D, *packed) = Draw(dtype), sizes
    state = draw.normal(len(packed[0]) - 1 if packed else B, width - 1, D)
    arguments = draw.normal(B, T, D), draw.normal(D, width), draw.normal(D) if bias else None
    options = {"activation": activation} | ({"initial_state": state} if states else {})
    options |= {"cu_seqlens": np.array(packed[0])} if packed else {}
    forward, backward = with_backward("causal_conv1d")
    yield Case("forward", forward, arguments, options | {"output_final_state": states})
    gradient = {"dfinal_state": state[::-1]} if states else {}
    yield Case("backward", backward, (draw.normal(B, T, D), *arguments), options | gradient)


def norm(shape, dtype, activation):
    draw = Draw(dtype)
    arguments = draw.normal(*shape), draw.normal(shape[-1]), draw.normal(*shape) if activation else None
    options = {"activation": activation} if activation else {}
    forward, backward = with_backward("rms_norm")
    yield Case("forward", forward, arguments, options)
    yield Case("backward", backward, (draw.normal(*shape), *arguments), options)


def feature_map(shape, dtype, name, argument):
    draw = Draw(dtype)
    forward, backward = with_backward(f"feature_maps.{name}")
    if name == "favor":
        argument = MAPS.draw_omega(shape[-1], argument, RANDOM.Philox(7)).astype(dtype)
    arguments = (draw.normal(*shape), *([] if argument is None else [argument]))
    yield Case("forward", forward, arguments)
    yield Case("backward", backward, (draw.normal(*forward(*arguments).shape), *arguments))


def readout(sizes, dtype, name):
    draw, (B, L, p, N) = Draw(dtype), sizes
    keys, values = draw.uniform(B, L, p) / dtype(p**0.5 / 1.6), draw.random.integers(0, N, (B, L))
    beta = [draw.uniform(B, L)] if name in ("delta", "fwm") else []
    forward, backward = with_backward(f"readouts.{name}", f"readouts.{name}_rule")
    arguments = (keys, values, *beta, draw.uniform(B, p), N)
    yield Case("forward", forward, arguments)
    yield Case("backward", backward, (draw.normal(B, N), *arguments))


def numbers(size):
    yield Case("Philox", lambda: RANDOM.Philox(3).normal(size))
    for name in ("uint32", "uniform", "normal", "permutation"):
        yield Case(f"MT19937 {name}", lambda: getattr(RANDOM.MT19937(3), name)(size))


def omega(d, m):
    for generator in (RANDOM.Philox, RANDOM.MT19937):
        yield Case(generator.__name__, MAPS.draw_omega, (d, m, generator(3)))


# ---- the retrieval experiment -----------------------------------------------------------------------------------


def training(sizes, dtype, model):
    """All that a model computes over three steps."""
    chosen = settings(*model, **sizes)

    def steps():
        stream, model = RETRIEVAL.Stream(chosen), RETRIEVAL.Model(chosen, dtype)
        batches = [stream.batch() for _ in range(3)]
        first = [*batches, *model.loss_and_gradients(batches[0]), model.read_out(batches[0])]
        losses = [model.step(batch) for batch in batches]
        return [*first, losses, dict(model.parameters), model.evaluate(stream), model.loss(batches[0])]

    yield Case("three steps", steps)


def run(flags):
    """The log that a run writes: its name, steps and evaluation losses."""

    def train():
        with tempfile.TemporaryDirectory() as folder:
            words = f"-m fwm_py train {flags} --log_folder . --threads {fwm_py.get_num_threads()}".split()
            subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
            return [log.name.encode() + log.read_bytes() for log in Path(folder).glob("*.csv")]

    yield Case("log", train)


def step(map, argument, readout, n_keys, replace=False):
    chosen = settings(map, argument, readout, n_keys, replace)
    model, batch = RETRIEVAL.Model(chosen), RETRIEVAL.Stream(chosen).batch()
    yield Case("", model.step, (batch, 1e-30))  # so short that every step is the same work


# ---- all calls --------------------------------------------------------------------------------------------------


NORMS = [{}, {"qk_norm": "l2"}, {"qk_norm": "sum", "scale": 1.3}]
FORMS = [  # a rule, what it takes after q, k and v (G: a gate for each channel), options
    *(("linear_attention", "", options) for options in ({}, {"normalize": True}, {"normalize": True, "eps": 0.5})),
    ("gated_linear_attention", "g", {"scale": 0.7}),
    ("gated_linear_attention", "G", {}),
    *(("delta_rule", "beta", options) for options in NORMS),
    *(("gated_delta_rule", "g beta", options) for options in NORMS),
    *(("kimi_delta_rule", "G beta", options) for options in NORMS),
    *(("gated_delta_rule_2", "G b w", options) for options in NORMS),
    *(("fast_weight_memory", "beta", options) for options in (*NORMS, {"clamp_first": False})),
]
MODEL_MAPS = [("linear", 0), ("tanh", 0), ("dpfp", 2), ("favor", 6)]
MODELS = [("softmax", 0, "sum"), *((*map, readout) for map in MODEL_MAPS for readout in ("sum", "ours", "fwm"))]
RUNS = ["softmax", "linear", "dpfp --attn_arg 1 --update_rule ours --replace", "tanh --update_rule fwm --replace"]
RUNS += ["favor --attn_arg 64", "favor --attn_arg 16 --update_rule ours --favor_generator mt19937"]
# The first of the sizes are those of the calls that `variations` makes again.
RULE_SIZES = [(1, 37, 1, 2, 4, 17, 33), (1, 1, 1, 1, 1, 1, 1), (2, 1, 1, 2, 4, 16, 17), (2, 3, 1, 1, 1, 5, 3)]
RULE_SIZES += [(1, 15, 1, 8, 1, 7, 9), (2, 16, 2, 2, 2, 16, 16), (1, 129, 2, 4, 2, 64, 65), (1, 300, 1, 1, 1, 33, 31)]
RULE_SIZES += [(1, 70, 2, 4, 2, 9, 20, (0, 0, 1, 18, 18, 50, 70, 70))]
ATTENTION_SIZES = [(1, 17, 40, 4, 2, 17, 33), (1, 1, 1, 1, 1, 1, 1), (2, 3, 3, 1, 1, 5, 3), (1, 130, 130, 2, 1, 64, 64)]
ATTENTION_SIZES += [(2, 1, 700, 4, 2, 32, 32), (1, 70, 200, 2, 2, 80, 24)]
CONVOLUTION_SIZES = [(1, 40, 17), (1, 1, 1), (2, 1, 70), (2, 3, 5), (2, 300, 70)]
CONVOLUTION_SIZES += [(1, 70, 33, (0, 0, 1, 18, 50, 70, 70))]
READOUT_SIZES = [(2, 40, 24, 11), (1, 1, 1, 1), (3, 5, 7, 4), (4, 33, 64, 40), (2, 200, 128, 100)]
SHAPES = [(2, 7, 64), (1, 1), (3, 5), (300, 33)]
READOUTS = ("sum", "delta", "fwm", "softmax")
YES_NO = (True, False)

CALLS = [  # what makes the calls, and the values of each of its arguments: all combinations are called
    (rule, RULE_SIZES, DTYPES, FORMS, YES_NO, ("chunked", "recurrent")),
    (attention, ATTENTION_SIZES, DTYPES, YES_NO, (None, 0.3)),
    (convolution, CONVOLUTION_SIZES, DTYPES, (2, 3, 4), YES_NO, YES_NO, (None, "silu")),
    (norm, [(2, 5, 33), (1, 1), (16,), (300, 128)], DTYPES, (None, "silu", "sigmoid")),
    (feature_map, SHAPES, DTYPES, ["elu1", "tanh"], [None]),
    (feature_map, SHAPES, DTYPES, ["dpfp"], [1, 3]),
    (feature_map, SHAPES, DTYPES, ["favor"], [4, 19, 64]),
    (readout, READOUT_SIZES, DTYPES, READOUTS),
    (numbers, [1, 7, 1000]),
    (omega, [1, 5, 64], [1, 19, 70]),
    (training, [dict(n_keys=6, hidden_size=8, batch_size=4), dict(n_keys=40, replace=True)], DTYPES, MODELS),
    (run, [f"--attn_name {flags} --max_steps 300" for flags in RUNS]),
]


def named(make, *arguments):
    """The calls that `make` yields, with all that tells them from others in their names."""
    words = [make.__name__, *(getattr(value, "__name__", str(value)) for value in arguments)]
    return [replace(case, name=" ".join(filter(None, [*words, case.name]))) for case in make(*arguments)]


def changed(change, value):
    """A value with every array of real numbers in it changed."""
    if isinstance(value, tuple):
        return tuple(changed(change, part) for part in value)
    if isinstance(value, dict):
        return {name: changed(change, part) for name, part in value.items()}
    return change(value) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def view(a, shape, *index):
    """`a` in a part of an array of another shape."""
    part = np.zeros(shape, a.dtype)[index]
    part[...] = a
    return part


def first_row(value, a):
    a = a.copy()
    a.reshape(-1, a.shape[-1])[0] = value
    return a


CHANGES = {
    "every second number": lambda a: view(a, [2 * n for n in a.shape], *[slice(None, None, 2)] * a.ndim),
    "part of wider rows": lambda a: view(a, (*a.shape[:-1], a.shape[-1] + 3), ..., slice(1, -2)),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "small": lambda a: a * np.sqrt(np.finfo(a.dtype).tiny),  # products are subnormal
    "subnormal": lambda a: a * np.finfo(a.dtype).tiny,
    "a row of zeros": functools.partial(first_row, 0),
    "a row of infinities": functools.partial(first_row, np.inf),
}


def blank(result):
    """An `out` for a result: of a forward call that returns no state the output alone."""
    if isinstance(result, tuple):
        parts = tuple(map(blank, result))
        return parts[0] if type(result) is tuple and parts[1] is None else parts
    return None if result is None else np.full_like(result, 7)


def into_out(function, *arguments, **options):
    out = blank(function(*arguments, **options))
    function(*arguments, **options, out=out)
    return out


def in_place(function, *arguments, initial_state, **options):
    """A forward call that leaves its states where they started."""
    o, state = blank(function(*arguments, **options))[0], changed(np.copy, initial_state)
    function(*arguments, initial_state=state, **options, out=(o, state))
    return o, state


def variations(case):
    """The same call on arrays of other makes and numbers, and with `out`."""
    for name, change in CHANGES.items():
        arguments, options = changed(change, (case.arguments, case.options))
        yield Case(f"{case.name}, {name}", case.function, arguments, options)
    if "out" in inspect.signature(case.function).parameters:
        into = replace(case, arguments=(case.function, *case.arguments))
        yield replace(into, name=f"{case.name}, out", function=into_out)
        if {"output_final_state", "initial_state"} <= case.options.keys():
            yield replace(into, name=f"{case.name}, in place", function=in_place)


def all_cases():
    for make, first, *others in CALLS:
        for arguments in itertools.product(first, *others):
            for case in named(make, *arguments):
                yield case
                if case.arguments and arguments[0] is first[0] and DTYPES in others:
                    yield from variations(case)


# ---- bits -------------------------------------------------------------------------------------------------------


def digests(result):
    """A digest of dtype, shape and bytes of each array, in order; one NaN is as good as another."""
    if isinstance(result, dict):
        result = [result[name] for name in sorted(result)]
    if isinstance(result, (tuple, list)):
        return [digest for part in result for digest in digests(part)]
    array = np.asarray(b"" if result is None else result)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return [hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()).hexdigest()]


def bits():
    """{name: digests, or the error if the call raises one}."""
    results = {}
    for threads in (1, 2):
        fwm_py.set_num_threads(threads)
        for case in all_cases():
            name = f"{case.name}, {threads} threads"
            assert name not in results, name
            try:
                results[name] = digests(case())
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"
    return results


# ---- times ------------------------------------------------------------------------------------------------------


def on_page(array):
    """A copy that begins with a page."""
    room = np.empty(array.nbytes + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def on_pages(case):
    """The same call, of arrays where both builds have them: the place of large states is worth a fifth of a token."""
    arguments, options = changed(on_page, (case.arguments, case.options))
    return replace(case, options=options | {"out": changed(on_page, case())}, arguments=arguments)


def timed_cases():
    """Tiny calls, most of which is the way from Python into C; middling and large ones; training steps."""
    plain = {form[:2]: form for form in reversed(FORMS)}  # the first of each rule and its inputs
    gated, kimi = plain["gated_delta_rule", "g beta"], plain["kimi_delta_rule", "G beta"]
    yield named(rule, (1, 1, 1, 1, 1, 16, 16), F32, gated, True, "chunked")[0]
    yield named(attention, (1, 1, 16, 1, 1, 16, 16), F32, True, None)[0]
    yield named(convolution, (1, 1, 16), F32, 4, True, True, "silu")[0]
    yield named(norm, (16,), F32, None)[0]
    yield named(feature_map, (8,), F32, "elu1", None)[0]
    yield named(readout, (1, 4, 8, 4), F32, "delta")[0]
    middling, large = (1, 256, 4, 4, 4, 64, 64), (1, 512, 8, 16, 8, 128, 128)
    for form in plain.values():
        yield from named(rule, middling, F32, form, False, "chunked")
    yield from named(rule, middling, F32, gated, False, "recurrent")
    yield from named(rule, middling, F64, gated, False, "chunked")
    yield from named(rule, large, F32, gated, True, "chunked")
    yield from named(rule, large, F32, kimi, True, "chunked")
    yield on_pages(named(rule, (1, 1, 16, 32, 16, 128, 128), F32, gated, True, "chunked")[0])
    yield from named(attention, (1, 512, 512, 4, 2, 64, 64), F32, True, None)[:2]
    yield from named(convolution, (1, 512, 512), F32, 4, True, False, "silu")
    yield from named(norm, (2048, 128), F32, "silu")
    for form in ("elu1", None), ("dpfp", 1), ("favor", 64):
        yield from named(feature_map, (1024, 64), F32, *form)
    for name in READOUTS:
        yield from named(readout, (8, 40, 128, 20), F32, name)
    steps = [("dpfp", 1, "sum", 600), ("softmax", 0, "sum", 600), ("dpfp", 1, "ours", 200, True)]
    for step_of in [*steps, ("tanh", 0, "fwm", 60, True), ("favor", 128, "sum", 200)]:
        yield from named(step, *step_of)


def seconds(case, calls):
    """Of a call, in the shortest of some blocks of so many calls."""
    blocks, end = [], time.perf_counter() + TURN
    while len(blocks) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            case.function(*case.arguments, **case.options)
        blocks.append(time.perf_counter() - start)
    return min(blocks) / calls


def answer(threads):
    """The names of the calls, then seconds for each request [name, calls]."""
    fwm_py.set_num_threads(threads)
    cases = {case.name: case for case in timed_cases()}
    print(json.dumps(list(cases)), flush=True)
    for request in sys.stdin:
        name, calls = json.loads(request)
        print(json.dumps(seconds(cases[name], calls)), flush=True)


if __name__ == "__main__":
    np.seterr(all="ignore")
    if sys.argv[1] == "times":
        answer(int(sys.argv[2]))
    else:
        what = {"variants": lambda: [fwm_py.__file__, *fwm_py.build_info()["variants"]], "bits": bits}[sys.argv[1]]
        print(json.dumps(what()))
