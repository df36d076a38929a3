"""Good calls of every public function of an operation: CALLS, what the contract of arguments and `out` runs for.

A call has its function; good arguments by name; the array that `leads`, of which the others must have the sizes and the
dtype; names that are `optional`; axes of which an array alone `gives` the size; and arguments that are `beyond` memory.

A rule is in CALLS by its row of the table. Another operation joins by a function like `norm_calls` below, in OTHERS.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import fwm_py
from fwm_py import _core, feature_maps, readouts, rules
from support import attention_cases, convolution_cases, noncausal_cases, norm_cases
from support.cases import MAP_CASES, READOUT_CASES, readout_inputs
from support.contract import without


class RuleCall(NamedTuple):
    """A function of fwm_py.rules with the kind of gate and state that it is called with."""

    row: dict
    gate: str  # "", "scalar", "channel"
    normalize: bool
    backward: bool
    states: bool = True

    def __str__(self):
        both = self.row["scalar_gate"] and self.row["channel_gate"]
        form = (f"-{self.gate}" if both else "") + ("-normalize" if self.normalize else "")
        return self.function.__name__ + form + ("" if self.states else "-no state")

    @property
    def function(self):
        return getattr(rules, self.row["function"] + ("_backward" if self.backward else ""))

    @property
    def parameters(self):
        return inspect.signature(self.function).parameters

    def arrays(self):
        """The names of the arguments that are arrays, in the order of the call; dq belongs to q."""
        gate = ["g"] if self.gate else []
        return ["q", "k", "v", *gate, *filter(None, self.row["strength"].split(", "))]

    def good(self, dtype=np.float64, packed=False, B=2, T=3, HQ=2, H=2, HV=4, K=3, V=5, seed=0):
        """Good arguments for all parameters; packed: three sequences in one row of 2 T tokens, the second empty."""
        random = np.random.default_rng(seed)
        B, T, n = (1, 2 * T, 3) if packed else (B, T, B)

        def uniform(*shape):
            return random.uniform(0.1, 1, shape).astype(dtype)

        def state():
            S, z = uniform(n, HV, K, V), uniform(n, H, K)
            return None if not self.states else (S, z) if self.normalize else S

        values = {
            "q": uniform(B, T, HQ, K),
            "k": uniform(B, T, H, K),
            "v": uniform(B, T, HV, V),
            "g": -uniform(*(B, T, HV, K)[: 3 if self.gate == "scalar" else 4]),
            "beta": uniform(B, T, HV),
            "b": uniform(B, T, HV, K),
            "w": uniform(B, T, HV, V),
            "do": uniform(B, T, max(HQ, HV), V),
            "causal": True,
            "key_lengths": None,
            "scale": 0.5,
            "qk_norm": None if self.normalize else "l2",
            "normalize": self.normalize,
            "eps": 1e-6,
            "clamp_first": True,
            "initial_state": state(),
            "dfinal_state": state(),
            "output_final_state": True,
            "state_v_first": False,
            "state_indices": None,
            "return_states_every": None,
            "method": "chunked",
            "cu_seqlens": np.array([0, T - 2, T - 2, T]) if packed else None,
            "out": None,
        }
        return {name: values[name] for name in self.parameters}

    def __call__(self, arguments):
        return self.function(**arguments)

    leads, packs = "q", True
    optional, gives = ("initial_state", "dfinal_state"), {"k": (2,), "v": (2, 3)}

    def beyond(self):
        letters = {"q": "BTHK", "k": "BTHK", "v": "BTGV", "g": "BTGK"[: 3 if self.gate == "scalar" else 4]}
        letters |= {"beta": "BTG", "b": "BTGK", "w": "BTGV", "do": "BTGV"}
        good = self.good(B=1, T=1, HQ=1, H=1, HV=1, K=1, V=1)
        for sizes in ({"B": 2**40}, {"T": 2**41}, {"K": 2**45, "T": 0}, {"V": 2**58, "T": 0}, {"G": 2**50, "T": 0}):
            large = {"B": 1, "T": 1, "H": 1, "G": 1, "K": 1, "V": 1, **sizes}
            if large["T"] or not self.backward:  # no gradients, no memory
                shapes = {name: [large[letter] for letter in letters[name]] for name in letters if name in good}
                yield good | spread(shapes) | dict.fromkeys(good.keys() & set(self.optional))


def forms(row):
    gates = [gate for gate in ("scalar", "channel") if row[f"{gate}_gate"]] or [""]
    return [(gate, normalize) for gate in gates for normalize in ((False, True) if row["normalizes"] else (False,))]


BOTH = (False, True)
RULE_CALLS = [RuleCall(row, *form, backward) for row in _core.RULES for form in forms(row) for backward in BOTH]
RULE_FORWARDS, RULE_BACKWARDS = ([call for call in RULE_CALLS if call.backward is backward] for backward in BOTH)

# --- the other operations ------------------------------------------------------------------------------------------


def spread(shapes):
    """Arrays of any size that take no memory."""
    return {name: np.broadcast_to(1.0, shape) for name, shape in shapes.items()}


class Call(NamedTuple):
    function: Callable
    make: Callable  # (dtype, seed, packed where it packs) -> arguments by name, in the order of the function
    leads: str
    form: str = ""
    optional: tuple = ()
    gives: dict = {}  # noqa: RUF012
    large: tuple = ()  # arguments
    packs: bool = False

    def __str__(self):
        return self.function.__name__ + self.form

    @property
    def parameters(self):
        return inspect.signature(self.function).parameters

    def good(self, dtype=np.float64, packed=False, seed=0, **_):
        arguments = self.make(dtype, seed, *[packed][: self.packs])
        return {name: arguments[name] for name in self.parameters if name in arguments}

    def __call__(self, arguments):
        return self.function(**arguments)

    def beyond(self):
        return self.large


def map_calls(case):
    def make(dtype, seed):
        normal = np.random.default_rng(seed).standard_normal
        own = dict(zip([case.row["argument"].replace("m", "omega")], case.argument(4, dtype)))
        return {"x": normal((2, 3, 4)).astype(dtype), "dy": normal((2, 3, case.width(4))).astype(dtype), **own}

    endless = make(np.float32, 0) | {"x": np.broadcast_to(np.float32(1), (2**47, 4))}
    large = [{name: endless[name] for name in endless if name != "dy"}]
    large += [{"x": np.ones((1, 4)), "nu": nu} for nu in (2**40, 2**62, 2**63 - 1) if "nu" in endless]
    function, form = case.row["function"], "" if case.number is None else f"-{case.number}"
    yield Call(getattr(feature_maps, function), make, "x", form, gives={"omega": (1,)}, large=large)
    yield Call(getattr(feature_maps, function + "_backward"), make, "x", form, gives={"omega": (1,)})


def readout_calls(case):
    def make(dtype, seed):
        dy = np.random.default_rng(seed).standard_normal((3, 5)).astype(dtype)
        return {"dy": dy, **readout_inputs(3, 6, 7, 5, seed).astype(dtype)._asdict()}

    good = without(readout_inputs(2, 3, 4, 5)._asdict(), *(() if case.row["uses_beta"] else ("beta",)))
    large = [good | {"n_values": n} for n in (2**45, 2**61, 2**63 - 1)]
    yield Call(getattr(readouts, case.row["function"]), make, "keys", "-read-out", large=large)
    yield Call(getattr(readouts, case.row["function"] + "_backward"), make, "keys", "-read-out")


def attention_calls():
    def make(dtype, seed):
        x = attention_cases.AttentionCase(True).inputs((2, 20, 25, 4, 2, 6, 5), dtype, seed)
        return x | dict(zip(("o", "lse"), fwm_py.softmax_attention(x["q"], x["k"], x["v"], return_lse=True)))

    large = [spread(dict.fromkeys("qkv", shape)) for shape in ((2**40, 1, 1, 1), (1, 2**41, 1, 1))]
    gives = {"k": (1, 2), "v": (3,)}
    yield Call(fwm_py.softmax_attention, make, "q", "", (), gives, large)
    for form, left_out in (("", ()), ("-no o", ("o", "lse"))):
        yield Call(
            fwm_py.softmax_attention_backward,
            lambda dtype, seed, left_out=left_out: without(make(dtype, seed), *left_out),
            *("q", form, ("o", "lse"), gives, [arguments | {"do": arguments["q"]} for arguments in large]),
        )


def padded_calls():
    """Attention and sums over keys that have lengths."""

    def make(dtype, seed):
        return {"causal": False, **attention_cases.PaddedCase(False).inputs((2, 5, 7, 4, 2, 6, 3), dtype, seed)}

    yield Call(fwm_py.softmax_attention, make, "q", "-padded", (), {"k": (1, 2), "v": (3,)})
    yield Call(fwm_py.softmax_attention_backward, make, "q", "-padded", (), {"k": (1, 2), "v": (3,)})
    for case in noncausal_cases.CASES[:2]:

        def summed(dtype, seed, case=case):
            x = case.inputs(case.small[0], dtype, seed) | {"causal": False, "output_final_state": True}
            for name in ("initial", "dfinal"):
                x[f"{name}_state"] = (x[f"{name}_state"], x[f"{name}_sum"]) if case.normalize else x[f"{name}_state"]
            return x | case.options

        gives, optional = {"k": (1, 2), "v": (2, 3)}, ("initial_state", "dfinal_state")
        for function in (fwm_py.linear_attention, fwm_py.linear_attention_backward):
            yield Call(function, summed, "q", f"-not causal{'-normalize' if case.normalize else ''}", optional, gives)


def convolution_calls():
    shapes = [{"x": x, "weight": (x[2], 4)} for x in ((2**40, 1, 1), (1, 2**41, 1), (2**40, 0, 1), (1, 1, 2**45))]
    large = [spread(of) | {"output_final_state": True} for of in shapes]
    of_backward = [spread(of | {"dy": of["x"]}) for of in shapes if of["x"][1]]
    optional = ("bias", "initial_state", "dfinal_state")
    for form, left_out in (("", ()), ("-no state", optional)):

        def make(dtype, seed, packed, left_out=left_out):
            sizes, n, offsets = ((1, 6), 3, {"cu_seqlens": np.array([0, 4, 4, 6])}) if packed else ((2, 20), 2, {})
            x = without(convolution_cases.inputs(*sizes, 21, 4, dtype, seed, n), *left_out)
            return x | offsets | {"activation": "silu", "output_final_state": True}

        gives = {"weight": (1,)}
        yield Call(fwm_py.causal_conv1d, make, "x", form, optional, gives, large, packs=True)
        yield Call(fwm_py.causal_conv1d_backward, make, "x", form, optional, gives, of_backward, packs=True)


def norm_calls():
    shapes = [{"x": x, "gate": x, "weight": x[-1:]} for x in ((1, 2**41), (2**40, 4), (2**20, 2**22))]
    for form, activation in (("", "silu"), ("-no gate", None)):

        def make(dtype, seed, activation=activation):
            x = norm_cases.NormCase(activation, 1e-6).inputs((4, 3, 20), dtype, seed)
            return x | {"activation": activation or "silu", "eps": 1e-6}

        yield Call(fwm_py.rms_norm, make, "x", form, ("gate",), {}, [spread(of) for of in shapes])
        large = [spread(of | {"dy": of["x"]}) for of in shapes]
        yield Call(fwm_py.rms_norm_backward, make, "x", form, ("gate",), {}, large)


OTHERS = [call for case in MAP_CASES for call in map_calls(case)]
OTHERS += [call for case in READOUT_CASES for call in readout_calls(case)]
OTHERS += [*attention_calls(), *padded_calls(), *convolution_calls(), *norm_calls()]
CALLS = [*OTHERS, *RULE_CALLS, *(call._replace(states=False) for call in RULE_BACKWARDS)]

# --- arrays in arguments and results -------------------------------------------------------------------------------


def flat(result):
    """The arrays of a result, pairs opened, without None."""
    if result is None:
        return []
    return [result] if isinstance(result, np.ndarray) else [a for part in result for a in flat(part)]


def bits(result):
    return [(a.dtype, a.shape, a.tobytes()) for a in flat(result)]


def array_arguments(call, arguments):
    """(name, array, function that puts another in its place) of every array, those in pairs one by one."""
    for name, value in arguments.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            yield name, value, lambda given, name=name: {**arguments, name: given}
        elif isinstance(value, tuple):
            for i in range(len(value)):

                def put(given, name=name, value=value, i=i):
                    return {**arguments, name: (*value[:i], given, *value[i + 1 :])}

                yield name, value[i], put


def replaced(result, old, new):
    """The result with another object in the place of one of its arrays."""
    if not isinstance(result, tuple):
        return new if result is old else result
    return tuple(replaced(x, old, new) for x in result)


def like(result, make):
    """The result with `make` of its arrays in their places."""
    if isinstance(result, tuple):
        return tuple(like(x, make) for x in result)
    return None if result is None else make(result)


def overlapping(a, b, offset, behind=True):
    """A copy of an array, and room for another in the same memory: `offset` numbers behind its end, or before it."""
    memory = np.zeros(a.size + b.size + abs(offset), a.dtype)
    of_a, of_b = (0, a.size + offset) if behind else (b.size + offset, 0)
    first, second = memory[of_a:][: a.size].reshape(a.shape), memory[of_b:][: b.size].reshape(b.shape)
    first[...] = a
    return first, second
