"""Linear attention without a causal mask: the equation in plain NumPy, and its cases."""

from typing import NamedTuple

import numpy as np

from fwm_py.rules import linear_attention, linear_attention_backward
from support.contract import Case, Near, normal, without

# --- the equation --------------------------------------------------------------------------------------------------


def split(x, heads):
    """(B, T, h, ..) -> (B, heads, T, ..): a head of few serves several neighbours of many."""
    return np.repeat(x, heads // x.shape[2], axis=2).swapaxes(1, 2)


def gather(dx, heads):
    """Sums over the neighbours on axis 1."""
    return dx.reshape(len(dx), heads, dx.shape[1] // heads, *dx.shape[2:]).sum(2)


def join(dx, heads):
    """The gradient of `split`."""
    return gather(dx, heads).swapaxes(1, 2)


def matrices(x, key_lengths, normalize, scale, eps):
    """Everything of output heads: q', k, v (B, R, tokens, ..), S and z as they are read, den (B, R, T, 1) or 1."""
    R = max(x["q"].shape[2], x["v"].shape[2])
    N, HV = x["v"].shape[1:3]
    there = np.ones((len(x["q"]), N)) if key_lengths is None else np.arange(N) < np.asarray(key_lengths)[:, None]
    q, k, v = scale * split(x["q"], R), split(x["k"] * there[..., None, None], HV), split(x["v"], HV)
    S = x.get("initial_state", 0) + k.swapaxes(-1, -2) @ v
    z = x.get("initial_sum", 0) + (x["k"] * there[..., None, None]).sum(1)
    of_output = [np.repeat(y, R // y.shape[1], axis=1) for y in (S, z)]
    den = (q @ of_output[1][..., None]) + eps if normalize else 1
    return q, k, v, S, z, *of_output, den, there


def oracle(x, *, key_lengths=None, normalize=False, scale=None, eps=1e-6):
    scale = scale if scale is not None else 1.0 if normalize else x["q"].shape[-1] ** -0.5
    q, _, _, S, z, S_read, _, den, _ = matrices(x, key_lengths, normalize, scale, eps)
    o = (q @ S_read / den).swapaxes(1, 2)
    return {"o": o, "final_state": S} | ({"final_sum": z} if normalize else {})


def oracle_backward(x, *, key_lengths=None, normalize=False, scale=None, eps=1e-6):
    """With y = do / den:  dq' = S y + dden z,  dden = -do . o / den,  dS = sum q' y^T,  dk = S v + dz,  dv = S^T k."""
    scale = scale if scale is not None else 1.0 if normalize else x["q"].shape[-1] ** -0.5
    q, k, v, S, z, S_read, z_read, den, there = matrices(x, key_lengths, normalize, scale, eps)
    y = split(x["do"], q.shape[1]) / den
    dq, dS, dz = y @ S_read.swapaxes(-1, -2), q.swapaxes(-1, -2) @ y, 0
    if normalize:
        dden = -(q * dq).sum(-1, keepdims=True) / den
        dq, dz = dq + dden * z_read[:, :, None], (dden * q).sum(2)
        dz = gather(dz, z.shape[1]) + x.get("dfinal_sum", 0)
    dS = gather(dS, S.shape[1]) + x.get("dfinal_state", 0)
    H, mask = x["k"].shape[2], there[..., None, None]
    dk = join(v @ dS.swapaxes(-1, -2), H) + (dz[:, None] if normalize else 0)
    gradients = {"q": scale * join(dq, x["q"].shape[2]), "k": mask * dk, "v": mask * (k @ dS).swapaxes(1, 2)}
    states = {"initial_state": dS} | ({"initial_sum": dz} if normalize else {})
    return gradients | {name: dx for name, dx in states.items() if name in x}


# --- cases ---------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    B: int
    T: int
    N: int
    HQ: int
    H: int
    HV: int
    K: int
    V: int
    lengths: tuple | None = None
    states: bool = True


# Vectors' widths, and tiles of 64 tokens crossed by one; value heads of a key head, queries of a state; no keys, no
# queries; keys that do not count.
SIZES = (
    Sizes(1, 1, 1, 1, 1, 1, 1, 1),
    Sizes(2, 3, 5, 2, 2, 2, 7, 9, None, False),
    Sizes(2, 63, 65, 2, 2, 4, 16, 17),
    Sizes(1, 65, 64, 8, 2, 4, 33, 31),
    Sizes(2, 130, 129, 4, 2, 2, 8, 64, (129, 0)),
    Sizes(3, 20, 200, 3, 3, 3, 15, 16, (64, 65, 3)),
    Sizes(1, 70, 130, 2, 2, 4, 16, 32),  # rows that need no padding
    Sizes(2, 5, 130, 4, 2, 2, 48, 16, (130, 64)),
    Sizes(2, 4, 0, 2, 2, 4, 5, 6),
    Sizes(2, 0, 4, 2, 1, 2, 5, 6, (2, 4)),
    Sizes(0, 3, 4, 2, 2, 2, 5, 6),
)


class NoncausalCase(Case):
    sizes = SIZES
    small = (Sizes(2, 3, 4, 2, 1, 2, 3, 2, (4, 2)), Sizes(1, 2, 3, 2, 2, 4, 2, 3), Sizes(1, 2, 0, 1, 1, 1, 2, 2))
    float32 = SIZES[2:8]
    shared = (Sizes(3, 200, 300, 4, 2, 4, 20, 24, (300, 1, 200)), Sizes(1, 70, 70, 1, 1, 1, 33, 65))
    busy = Sizes(2, 100, 90, 2, 2, 4, 20, 40, (90, 30))
    results, gradients = Near(1e-12, 1e-3), Near(1e-11, 1e-3)
    results32 = gradients32 = Near(1e-4, 1e-3)

    def __init__(self, **options):
        self.options = options
        self.normalize = options["normalize"]
        self.name = "noncausal" + "".join(f"-{name}={value}" for name, value in options.items())

    def inputs(self, size, dtype=np.float64, seed=0):
        B, T, N, HQ, H, HV, K, V, lengths, states = size
        shapes = {"q": (B, T, HQ, K), "k": (B, N, H, K), "v": (B, N, HV, V), "do": (B, T, max(HQ, HV), V)}
        if states:
            shapes |= {"initial_state": (B, HV, K, V), "dfinal_state": (B, HV, K, V)}
        if states and self.normalize:
            shapes |= {"initial_sum": (B, H, K), "dfinal_sum": (B, H, K)}
        x = normal(shapes, dtype, seed)
        for name in {"q", "k", "initial_sum"} & x.keys() if self.normalize else ():
            x[name] = (0.1 + np.abs(x[name])).astype(dtype)
        return x | {"key_lengths": None if lengths is None else np.array(lengths)}

    def call(self, function, x, prefixes):
        states = {}
        for prefix in prefixes:
            if f"{prefix}_state" in x:
                S = x[f"{prefix}_state"]
                states[f"{prefix}_state"] = (S, x[f"{prefix}_sum"]) if self.normalize else S
        arrays = [x[name] for name in (("do",) if "dfinal" in prefixes else ()) + ("q", "k", "v")]
        return function(*arrays, causal=False, key_lengths=x["key_lengths"], **states, **self.options)

    def forward(self, x):
        def run(*arrays, **options):
            return linear_attention(*arrays, output_final_state=True, **options)

        o, state = self.call(run, x, ["initial"])
        return {"o": o, **dict(zip(("final_state", "final_sum"), state if self.normalize else (state,)))}

    def backward(self, x):
        gradients = self.call(linear_attention_backward, x, ["initial", "dfinal"])._asdict()
        state = gradients.pop("dinitial_state")
        parts = () if state is None else state if self.normalize else (state,)
        states = dict(zip(("initial_state", "initial_sum"), parts))
        return {name[1:]: gradient for name, gradient in gradients.items()} | states

    def expected(self, x):
        return oracle(without(x, "key_lengths"), key_lengths=x["key_lengths"], **self.options)

    def expected_gradients(self, x):
        return oracle_backward(without(x, "key_lengths"), key_lengths=x["key_lengths"], **self.options)


CASES = [
    NoncausalCase(normalize=False),
    NoncausalCase(normalize=True),
    NoncausalCase(normalize=True, eps=0.5, scale=0.7),
]
