"""What the tests iterate over: every map, every rule and every model of the tables of `fwm_py._core`.

A new row of a table is a new case of every test here. A row without an oracle (a function of the row's name in
oracle.py) stops the collection of the tests.
"""

import itertools
from typing import NamedTuple

import numpy as np

from fwm_py import _core, feature_maps, readouts
from fwm_py.experiments import retrieval
from support import oracle

for _table, *_names in ((_core.MAPS, "MAPS"), (_core.READOUTS, "READOUTS", "GRADIENTS")):
    for _row, _name in itertools.product(_table, _names):
        if _row["name"] not in getattr(oracle, _name):
            raise LookupError(
                f"{_row['name']} has no oracle: write it in tests/support/oracle.py and add it to {_name} there"
            )


def listed(words):
    """As a message says what it expects: a, b or c."""
    *others, last = words
    return f"{', '.join(others)} or {last}"


_UNMAPPED = [row for row in _core.READOUTS if not row["uses_map"]]
ATTN_NAMES = listed([row["name"] for row in (*_core.MAPS, *_UNMAPPED)])
UPDATE_RULES = listed([row["name"] for row in _core.READOUTS if row["uses_map"]])

# --- maps ----------------------------------------------------------------------------------------------------------

# The values of a map's argument that are tested: none, nu of DPFP, m of FAVOR+.
ARGUMENTS = {"": (None,), "nu": (1, 2, 5), "m": (1, 4, 7, 19)}


class MapCase(NamedTuple):
    row: dict
    number: int | None

    def __str__(self):
        return self.row["name"] + (f"-{self.number}" if self.number is not None else "")

    def argument(self, d, dtype=np.float64):
        """What the function takes after x: nothing, nu, or an Omega of `number` columns."""
        if self.row["argument"] != "m":
            return () if self.number is None else (self.number,)
        normal = np.random.default_rng(self.number).standard_normal
        return (oracle.draw_omega(d, self.number, normal).astype(dtype),)

    def forward(self, x):
        return getattr(feature_maps, self.row["function"])(x, *self.argument(x.shape[-1], x.dtype.newbyteorder("=")))

    def backward(self, dy, x):
        function = getattr(feature_maps, self.row["function"] + "_backward")
        return function(dy, x, *self.argument(x.shape[-1], x.dtype.newbyteorder("=")))

    def oracle(self, x):
        return oracle.MAPS[self.row["name"]](x, *self.argument(x.shape[-1]))

    def width(self, d):
        return {"": d, "nu": 2 * d * (self.number or 0), "m": 2 * (self.number or 0)}[self.row["argument"]]


MAP_CASES = [MapCase(row, number) for row in _core.MAPS for number in ARGUMENTS[row["argument"]]]

# --- read-outs -----------------------------------------------------------------------------------------------------


class ReadoutInputs(NamedTuple):
    """keys (B, L, p), values (B, L), beta (B, L), query (B, p), and the number N of values."""

    keys: np.ndarray
    values: np.ndarray
    beta: np.ndarray
    query: np.ndarray
    n_values: int

    def astype(self, dtype):
        return self._replace(**{name: getattr(self, name).astype(dtype) for name in ("keys", "beta", "query")})


class ReadoutCase(NamedTuple):
    row: dict

    def __str__(self):
        return self.row["name"]

    def arguments(self, inputs):
        """The inputs in the order of the public function: beta only where the rule has one."""
        beta = (inputs.beta,) if self.row["uses_beta"] else ()
        return (inputs.keys, inputs.values, *beta, inputs.query, inputs.n_values)

    def forward(self, inputs):
        return getattr(readouts, self.row["function"])(*self.arguments(inputs))

    def backward(self, dy, inputs):
        """Gradients by the name of the input."""
        gradients = getattr(readouts, self.row["function"] + "_backward")(dy, *self.arguments(inputs))
        return dict(zip(self.differentiable(), gradients, strict=True))

    def differentiable(self):
        return ("keys", "beta", "query") if self.row["uses_beta"] else ("keys", "query")

    def oracle(self, inputs):
        return oracle.READOUTS[self.row["name"]](*inputs)


READOUT_CASES = [ReadoutCase(row) for row in _core.READOUTS]


def readout_inputs(B, L, p, N, seed=0, repeat_keys=False):
    """Positive keys and queries, so that no rule divides by a sum near zero, of norm 0.6 to 1.6 so that fwm's clamp
    acts on some tokens and not on others; with repeat_keys a sequence has few different keys."""
    random = np.random.default_rng(seed)
    keys, query = random.uniform(0.1, 1, (B, L, p)), random.uniform(0.1, 1, (B, p))
    if repeat_keys:
        keys = keys[:, np.arange(L) % 3]
    keys *= random.uniform(0.6, 1.6, (B, L, 1)) / np.linalg.norm(keys, axis=-1, keepdims=True)
    values = random.integers(0, N, (B, L))
    values[:, 1:2] = (values[:, :1] + 1) % N  # sum and softmax have no gradient where all values are the same
    return ReadoutInputs(keys, values, random.uniform(0.1, 0.9, (B, L)), query, N)


# --- models --------------------------------------------------------------------------------------------------------

MODEL_ARGUMENTS = {"": 0, "nu": 2, "m": 6}


class ModelCase(NamedTuple):
    map_row: dict | None  # None where the rule takes keys as they are
    rule_row: dict

    def __str__(self):
        return f"{self.map_row['name']}-{self.rule_row['name']}" if self.map_row else self.rule_row["name"]

    def settings(self, **other):
        if self.map_row is None:
            return retrieval.Settings(attn_name=self.rule_row["name"], **other)
        other.setdefault("attn_arg", MODEL_ARGUMENTS[self.map_row["argument"]])
        return retrieval.Settings(attn_name=self.map_row["name"], update_rule=self.rule_row["name"], **other)

    def omega(self, settings):
        """A fixed Omega where the map needs one, so that a loss is a function of the parameters alone."""
        if self.map_row is None or self.map_row["argument"] != "m":
            return None
        normal = np.random.default_rng(3).standard_normal
        return oracle.draw_omega(settings.hidden_size, settings.attn_arg, normal)

    def oracle_arguments(self, settings):
        """map, its argument and the rule, as the functions of oracle.py take them."""
        if self.map_row is None:
            return None, None, self.rule_row["name"]
        argument = {"": None, "nu": settings.attn_arg, "m": self.omega(settings)}[self.map_row["argument"]]
        return self.map_row["name"], argument, self.rule_row["name"]


MODEL_CASES = [
    ModelCase(map_row, rule_row)
    for rule_row in _core.READOUTS
    for map_row in (_core.MAPS if rule_row["uses_map"] else [None])
]


def zero_based(batch, n_keys):
    """A batch of tokens (values N..2N-1) with its values as the oracle counts them (0..N-1)."""
    keys, values, query, answer = batch
    return keys, values - n_keys, query, answer - n_keys


# --- how a gradient is checked -------------------------------------------------------------------------------------


def central_differences(f, array, h=1e-5):
    """df/da for every element of a float64 array, which is moved in place and put back; f() is a real scalar."""
    slopes = np.empty(array.shape)
    for i in np.ndindex(array.shape):
        kept = array[i]
        array[i] = kept + h
        above = f()
        array[i] = kept - h
        slopes[i] = (above - f()) / (2 * h)
        array[i] = kept
    return slopes


def assert_gradient(gradient, reference, tolerance=1e-6, name=""):
    """max |g - reference| <= tolerance max |g|."""
    assert gradient.shape == reference.shape
    worst, scale = np.abs(gradient - reference).max(initial=0), np.abs(gradient).max(initial=0)
    assert worst <= tolerance * scale, f"{name}: off by {worst:.3g} where the largest is {scale:.3g}"


def assert_near(result, expected, tolerance, slack=0.0, name=""):
    """NaN where it is expected; elsewhere max |result - expected| <= tolerance max |expected| + slack."""
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected), name)
    result, expected = (np.asarray(a)[~np.isnan(expected)] for a in (result, expected))
    worst, scale = np.abs(result - expected).max(initial=0), np.abs(expected).max(initial=0)
    assert worst <= tolerance * scale + slack, f"{name}: off by {worst:.3g} where the largest is {scale:.3g}"


# --- the same numbers in arrays of another make --------------------------------------------------------------------


def strided(a):
    big = np.zeros([2 * n for n in a.shape], a.dtype)
    big[tuple(slice(None, None, 2) for _ in a.shape)] = a
    return big[tuple(slice(None, None, 2) for _ in a.shape)]


def backwards(a):
    every = tuple(slice(None, None, -1) for _ in a.shape)
    return a[every].copy()[every]


def swapped_bytes(a):
    return a.astype(a.dtype.newbyteorder())


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    memory = np.zeros(a.nbytes + 1, np.uint8)
    result = memory[1:].view(a.dtype).reshape(a.shape)
    result[...] = a
    return result


def column_major(a):
    return np.asfortranarray(a)


MAKES = (strided, backwards, swapped_bytes, read_only, unaligned, column_major)
