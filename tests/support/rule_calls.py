"""Good calls of the rules: all functions of all rows of `_core.RULES`, all kinds of gate and state."""

import inspect
from typing import NamedTuple

import numpy as np
import pytest

from fwm_py import _core, rules


class Call(NamedTuple):
    """A function of fwm_py.rules with the kind of gate and state that it is called with."""

    row: dict
    gate: str  # "", "scalar", "channel"
    normalize: bool
    backward: bool

    def __str__(self):
        both = self.row["scalar_gate"] and self.row["channel_gate"]
        return self.function.__name__ + (f"-{self.gate}" if both else "") + ("-normalize" if self.normalize else "")

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
            return (S, z) if self.normalize else S

        values = {
            "q": uniform(B, T, HQ, K),
            "k": uniform(B, T, H, K),
            "v": uniform(B, T, HV, V),
            "g": -uniform(*(B, T, HV, K)[: 3 if self.gate == "scalar" else 4]),
            "beta": uniform(B, T, HV),
            "b": uniform(B, T, HV, K),
            "w": uniform(B, T, HV, V),
            "do": uniform(B, T, max(HQ, HV), V),
            "scale": 0.5,
            "qk_norm": "l2",
            "normalize": self.normalize,
            "eps": 1e-6,
            "clamp_first": True,
            "initial_state": state(),
            "dfinal_state": state(),
            "output_final_state": True,
            "method": "chunked",
            "cu_seqlens": np.array([0, T - 2, T - 2, T]) if packed else None,
            "out": None,
        }
        return {name: values[name] for name in self.parameters}

    def __call__(self, arguments):
        return self.function(**arguments)

    def out(self, arguments):
        """Arrays for the results of a forward."""
        o, state = self({**arguments, "out": None, "output_final_state": True})
        return np.full_like(o, 7), tuple(np.full_like(a, 7) for a in state) if self.normalize else np.full_like(
            state, 7
        )


def forms(row):
    gates = [gate for gate in ("scalar", "channel") if row[f"{gate}_gate"]] or [""]
    return [(gate, normalize) for gate in gates for normalize in ((False, True) if row["normalizes"] else (False,))]


CALLS = [Call(row, *form, backward) for row in _core.RULES for form in forms(row) for backward in (False, True)]
FORWARDS = [call for call in CALLS if not call.backward]
every_call = pytest.mark.parametrize("call", CALLS, ids=str)
every_forward = pytest.mark.parametrize("call", FORWARDS, ids=str)


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
            for i in range(2):

                def put(given, name=name, value=value, i=i):
                    return {**arguments, name: (*value[:i], given, *value[i + 1 :])}

                yield name, value[i], put
