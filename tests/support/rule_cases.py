"""What the tests and benchmarks of the rules iterate over: every row of `fwm_py._core.RULES`.

A new row is a new case of every test. A row without an oracle (a rule in rule_oracle.py) stops the collection of the
tests. Arrays go by name: q, k, v, and as they apply g, beta, b, w, initial_state, initial_sum; do, dfinal_state,
dfinal_sum; o, final_state, final_sum. A gradient has the name of its input.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fwm_py import _core, rules
from support import rule_oracle
from support.contract import Near

for _row in _core.RULES:
    if _row["function"] not in rule_oracle.RULES:
        raise LookupError(
            f"{_row['function']} has no oracle: write it in tests/support/rule_oracle.py and add it to RULES there"
        )

METHODS = ("chunked", "recurrent")


class Sizes(NamedTuple):
    """Numbers of sequences, tokens, key heads, value heads, query heads; key and value size; what is packed."""

    B: int
    T: int
    H: int
    HV: int
    HQ: int
    K: int
    V: int
    cu_seqlens: tuple | None = None

    def __str__(self):
        packed = "" if self.cu_seqlens is None else "-" + ".".join(map(str, self.cu_seqlens))
        return f"B{self.B}T{self.T}H{self.H}HV{self.HV}HQ{self.HQ}K{self.K}V{self.V}{packed}"

    @property
    def sequences(self):
        return self.B if self.cu_seqlens is None else len(self.cu_seqlens) - 1


class RuleCase(NamedTuple):
    """A function, its gate and its options."""

    function: str
    gate: str  # "", "scalar" or "channel"
    strengths: tuple  # of "beta", "b", "w"
    options: tuple  # of (name, value)

    def __str__(self):
        gate = f"-{self.gate}" if self.function == "gated_linear_attention" else ""
        return self.function + gate + "".join(f"-{name}={value}" for name, value in self.options)

    @property
    def arguments(self):
        """The positional arguments, in the order of the public function; all are differentiable, as are the states."""
        return ("q", "k", "v", *(("g",) if self.gate else ()), *self.strengths)

    def option(self, name):
        return dict(self.options).get(name)

    @property
    def positive(self):
        """Whether keys and queries are features that are never negative, because something is divided by their sum."""
        return bool(self.option("normalize")) or self.option("qk_norm") == "sum"

    # --- the public functions, with arrays by name ---

    def _keywords(self, x, sizes, prefixes, **other):
        keywords = {**dict(self.options), **other}
        for prefix in prefixes:
            if prefix + "_state" in x:
                state = x[prefix + "_state"]
                keywords[prefix + "_state"] = (state, x[prefix + "_sum"]) if self.option("normalize") else state
        if sizes.cu_seqlens is not None:
            keywords["cu_seqlens"] = np.array(sizes.cu_seqlens)
        return keywords

    def forward(self, x, sizes, **other):
        """{"o", "final_state", and with normalize "final_sum"}."""
        other.setdefault("output_final_state", True)
        keywords = self._keywords(x, sizes, ["initial"], **other)
        o, state = getattr(rules, self.function)(*(x[name] for name in self.arguments), **keywords)
        if not other["output_final_state"]:
            assert state is None
            return {"o": o}
        if self.option("normalize"):
            return {"o": o, "final_state": state[0], "final_sum": state[1]}
        return {"o": o, "final_state": state}

    def backward(self, x, sizes, **other):
        """Gradients by the name of the input."""
        keywords = self._keywords(x, sizes, ["initial", "dfinal"], **other)
        function = getattr(rules, self.function + "_backward")
        fields = function(x["do"], *(x[name] for name in self.arguments), **keywords)._asdict()
        assert tuple(fields) == (*("d" + name for name in self.arguments), "dinitial_state")
        state = fields.pop("dinitial_state")
        gradients = {name[1:]: gradient for name, gradient in fields.items()}
        if "initial_state" not in x:
            assert state is None
        elif self.option("normalize"):
            gradients["initial_state"], gradients["initial_sum"] = state
        else:
            gradients["initial_state"] = state
        return gradients

    def differentiable(self, x):
        return [name for name in (*self.arguments, "initial_state", "initial_sum") if name in x]

    # --- the oracle, in float64 ---

    def _oracle(self, function, x, sizes, **other):
        x = {name: self.turned(name, array.astype(np.float64)) for name, array in x.items()}
        options = {name: value for name, value in self.options if name != "state_v_first"}
        with np.errstate(all="ignore"):
            results = function(self.function, x, cu_seqlens=sizes.cu_seqlens, **options, **other)
        return {name: self.turned(name, array) for name, array in results.items()}

    def turned(self, name, array):
        """A state in the call's order of axes from the oracle's, and back."""
        is_turned = name.endswith("_state") and self.option("state_v_first")
        return np.ascontiguousarray(array.swapaxes(-1, -2)) if is_turned else array

    def expected(self, x, sizes, **other):
        return self._oracle(rule_oracle.forward, x, sizes, **other)

    def expected_gradients(self, x, sizes, **other):
        gradients = self._oracle(rule_oracle.backward, x, sizes, **other)
        return {name: gradients[name] for name in self.differentiable(x)}

    # --- inputs ---

    def inputs(self, sizes, seed=0, dtype=np.float64, g=(0.01, 1), states=True, repeat_keys=False, raw_keys=False):
        """Random arrays. Keys have norm 1 (or about 1 with raw_keys; any where qk_norm divides by it), a sequence has
        three different ones with repeat_keys; beta, b and w are in (0, 1); -g is log-uniform between the two numbers
        of g; with states there is an initial state, and the gradients of the final one."""
        random = np.random.default_rng(seed)
        B, T, H, HV, HQ, K, V, _ = sizes
        x = {
            "q": random.standard_normal((B, T, HQ, K)),
            "k": random.standard_normal((B, T, H, K)),
            "v": random.standard_normal((B, T, HV, V)),
        }
        if self.positive:
            x["q"], x["k"] = (0.1 + np.abs(x[name]) for name in ("q", "k"))
        if repeat_keys:
            x["k"] = x["k"][:, np.arange(T) % 3]
        if raw_keys:
            x["k"] = x["k"] / np.sqrt(K)
        elif self.option("qk_norm") is None:
            x["k"] = x["k"] / np.linalg.norm(x["k"], axis=-1, keepdims=True)
        if self.gate:
            shape = (B, T, HV, K) if self.gate == "channel" else (B, T, HV)
            x["g"] = -np.exp(random.uniform(np.log(g[0]), np.log(g[1]), shape))
        shapes = {"beta": (B, T, HV), "b": (B, T, HV, K), "w": (B, T, HV, V)}
        x |= {name: random.uniform(0.02, 0.98, shapes[name]) for name in self.strengths}
        if states:
            x["initial_state"] = random.standard_normal((sizes.sequences, HV, K, V)) / np.sqrt(K * V)
            x["dfinal_state"] = random.standard_normal((sizes.sequences, HV, K, V))
        if states and self.option("normalize"):
            x["initial_sum"] = random.uniform(0.1, 1, (sizes.sequences, H, K))
            x["dfinal_sum"] = random.standard_normal((sizes.sequences, H, K))
        x["do"] = random.standard_normal((B, T, max(HQ, HV), V))
        return {name: self.turned(name, array.astype(dtype)) for name, array in x.items()}


def _cases(row):
    """A case for each gate of a row, each option that changes the mathematics, and the other order of a state."""
    gates = [name for name in ("scalar", "channel") if row[name + "_gate"]] or [""]
    v_first = ("state_v_first", True)
    options = [()]
    if row["normalizes"]:
        options += [(("normalize", True),), (("normalize", True), ("eps", 0.5), ("scale", 0.7), v_first)]
    if row["has_qk_norm"]:
        options += [(("qk_norm", "l2"),), (("qk_norm", "sum"), ("scale", 1.3), v_first)]
    if not row["normalizes"] and not row["has_qk_norm"]:
        options += [(v_first,)]
    if row["clamps"]:
        options += [(("clamp_first", False),)]
    strengths = tuple(row["strength"].split(", ")) if row["strength"] else ()
    return [RuleCase(row["function"], gate, strengths, o) for gate in gates for o in options]


RULE_CASES = [case for row in _core.RULES for case in _cases(row)]

# Sizes around the chunks' 16 tokens and around the vectors' and slabs' 16 and 32 columns.
SIZES = [
    Sizes(1, 1, 1, 1, 1, 1, 1),
    Sizes(2, 3, 1, 1, 1, 5, 3),
    Sizes(1, 15, 1, 8, 1, 7, 9),  # HV = 8 H
    Sizes(2, 16, 2, 2, 2, 16, 16),
    Sizes(1, 17, 1, 2, 4, 17, 33),  # HQ = 2 HV
    Sizes(1, 33, 2, 4, 2, 31, 15),
    Sizes(1, 48, 2, 2, 6, 8, 32),
    Sizes(1, 129, 1, 1, 1, 33, 64),
    Sizes(1, 70, 2, 4, 2, 9, 20, (0, 0, 1, 18, 18, 50, 70, 70)),
    Sizes(1, 65, 1, 2, 4, 16, 17, (0, 32, 65)),
]

# Few numbers, but several chunks: what central differences are taken of.
SMALL = [
    Sizes(2, 1, 1, 1, 1, 3, 2),
    Sizes(1, 40, 1, 1, 1, 5, 3),
    Sizes(1, 35, 1, 2, 4, 3, 2, (0, 17, 17, 35)),
    Sizes(2, 18, 1, 3, 1, 2, 5),
]


@functools.cache
def reference(case, sizes, **other):
    """Inputs with what the oracle makes of them: x, the results, the gradients."""
    x = case.inputs(sizes, **other)
    return x, case.expected(x, sizes), case.expected_gradients(x, sizes)


def assert_close(results, expected, tolerance, floor=1e-3):
    """Each array is off by at most `tolerance` of the largest of the expected one. The largest counts as `floor` where
    it is smaller: gradients may cancel, as that of a normalised key of a single channel does."""
    Near(tolerance, floor).check(results, expected)


def bits(case, x, sizes, method="chunked"):
    results = case.forward(x, sizes, method=method), case.backward(x, sizes, method=method)
    return [(name, array.tobytes()) for part in results for name, array in part.items()]


def run_python(script, *arguments, **environment):
    """What a program prints that imports from `support`, in a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()
