"""Softmax attention: the equations in plain NumPy, and its cases."""

import numpy as np

from fwm_py.attention import SoftmaxGradients, softmax_attention, softmax_attention_backward
from support.contract import Case, Near, by_input, normal, without

# --- the equations -------------------------------------------------------------------------------------------------


def heads_first(x, copies=1):
    """(B, heads, length, size) of (B, length, heads, size), each head so many times."""
    return np.repeat(x, copies, axis=2).swapaxes(1, 2)


def weights(q, k, causal=True, scale=None, key_lengths=None):
    """The weights (B, HQ, T, S) and log sum exp (B, T, HQ); 0 and -inf of a query that sees no key."""
    (_, T, HQ, K), S, H = q.shape, *k.shape[1:3]
    scores = heads_first(q) @ heads_first(k, HQ // H).swapaxes(2, 3) * (K**-0.5 if scale is None else scale)
    if causal:
        scores = np.where(np.arange(S) <= S - T + np.arange(T)[:, None], scores, -np.inf)
    if key_lengths is not None:
        scores = np.where(np.arange(S) < key_lengths[:, None, None, None], scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True)
    largest = np.where(largest == -np.inf, 0, largest)
    p = np.exp(scores - largest)
    total = p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (largest + np.log(total))[..., 0].transpose(0, 2, 1)
    return p / np.where(total == 0, 1, total), lse


def oracle(q, k, v, **options):
    p, lse = weights(q, k, **options)
    return (p @ heads_first(v, q.shape[2] // v.shape[2])).swapaxes(1, 2), lse


def oracle_backward(do, q, k, v, causal=True, scale=None, key_lengths=None):
    (B, _, HQ, K), S, H = q.shape, *k.shape[1:3]
    p, _ = weights(q, k, causal, scale, key_lengths)
    dp = heads_first(do) @ heads_first(v, HQ // H).swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * (K**-0.5 if scale is None else scale)
    dk, dv = ds.swapaxes(2, 3) @ heads_first(q), p.swapaxes(2, 3) @ heads_first(do)  # of each query head
    return SoftmaxGradients(
        (ds @ heads_first(k, HQ // H)).swapaxes(1, 2),
        *(x.reshape(B, H, HQ // H, S, x.shape[-1]).sum(axis=2).swapaxes(1, 2) for x in (dk, dv)),
    )


# --- cases ---------------------------------------------------------------------------------------------------------

# (B, T, S, HQ, H, K, V): vectors' widths and tiles' edges crossed by one, grouped heads, a cache, several blocks.
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 1, 1, 3, 2),
    (1, 15, 15, 2, 2, 16, 15),
    (2, 16, 16, 2, 1, 17, 33),
    (1, 17, 17, 3, 3, 40, 8),
    (1, 31, 31, 1, 1, 4, 5),
    (1, 32, 32, 1, 1, 4, 5),
    (1, 33, 33, 1, 1, 4, 5),
    (1, 63, 63, 2, 2, 8, 8),
    (1, 64, 64, 2, 2, 8, 8),
    (2, 65, 65, 2, 2, 8, 8),
    (1, 127, 127, 2, 1, 24, 20),
    (1, 129, 129, 2, 1, 24, 20),
    (1, 20, 20, 16, 2, 8, 8),
    (2, 37, 37, 8, 1, 5, 9),
    (1, 1, 200, 4, 2, 16, 16),
    (2, 1, 1300, 3, 3, 20, 33),
    (3, 1, 65, 8, 1, 64, 64),
    (1, 3, 70, 2, 2, 16, 16),
    (1, 65, 129, 3, 1, 10, 7),
    (1, 100, 333, 2, 2, 16, 24),
    (1, 255, 257, 1, 1, 16, 16),
    (1, 300, 300, 1, 1, 64, 64),
    (1, 600, 650, 1, 1, 7, 7),
]
OTHER_SIZES = [(1, 70, 50, 2, 2, 8, 8), (2, 300, 1, 4, 2, 8, 8), (1, 5, 300, 4, 1, 17, 3)]  # not causal only
EMPTY = [(0, 5, 5, 4, 2, 3, 5), (2, 0, 5, 4, 2, 3, 5)]
LONG = [(1, 1000, 1000, 2, 2, 64, 64), (1, 700, 1111, 4, 2, 40, 72)]


def inputs(B, T, S, HQ, H, K, V, dtype=np.float64, seed=0):
    """do, q, k, v"""
    return list(AttentionCase(True).inputs((B, T, S, HQ, H, K, V), dtype, seed).values())


class AttentionCase(Case):
    gradients = Near(1e-11)
    results32 = gradients32 = Near(1e-5, 0)
    float32 = LONG
    shared = (
        *((1, 1100, 1200, 1, 1, 16, 16), (2, 300, 300, 6, 2, 20, 24)),
        *((1, 600, 600, 20, 20, 8, 8), (2, 1, 2500, 4, 2, 16, 16)),
    )
    busy = (1, 200, 220, 4, 2, 16, 16)

    def __init__(self, causal):
        self.causal, self.name = causal, "attention" if causal else "attention-not causal"
        self.sizes = [*(SIZES if causal else SIZES[::4] + OTHER_SIZES), *EMPTY, *LONG]
        causal_sizes = ((1, 5, 5, 1, 1, 3, 2), (2, 7, 9, 4, 2, 3, 4), (1, 34, 40, 2, 2, 2, 2))
        self.small = causal_sizes if causal else (*causal_sizes, (1, 6, 4, 2, 1, 4, 3))

    def inputs(self, size, dtype=np.float64, seed=0):
        B, T, S, HQ, H, K, V = size
        return normal({"do": (B, T, HQ, V), "q": (B, T, HQ, K), "k": (B, S, H, K), "v": (B, S, H, V)}, dtype, seed)

    def forward(self, x):
        o, lse = softmax_attention(**without(x, "do"), causal=self.causal, return_lse=True)
        return {"o": o, "lse": lse}

    def backward(self, x):
        return by_input(softmax_attention_backward(**x, causal=self.causal))

    def expected(self, x):
        return dict(zip(("o", "lse"), oracle(**without(x, "do"), causal=self.causal)))

    def expected_gradients(self, x):
        return by_input(oracle_backward(**x, causal=self.causal))

    def bits(self, x):
        """With what the forward kept, too."""
        kept = self.forward(x)
        again = {f"{name} from lse": gradient.tobytes() for name, gradient in self.backward(x | kept).items()}
        return super().bits(x) | again


class PaddedCase(AttentionCase):
    """Keys behind a sequence's length are not seen: none of the first one's, all of the last one's."""

    sizes = ((1, 3, 5, 2, 1, 4, 3), (3, 17, 33, 2, 2, 16, 17), (4, 70, 150, 4, 2, 8, 8), (3, 1, 1100, 4, 2, 20, 33))
    small = ((3, 4, 6, 2, 1, 3, 2), (2, 1, 5, 1, 1, 2, 2))
    float32 = ((3, 300, 700, 4, 2, 40, 24),)
    shared = ((3, 300, 600, 6, 2, 20, 24), (3, 1, 2500, 4, 2, 16, 16))
    busy = (3, 100, 120, 4, 2, 16, 16)

    def __init__(self, causal):
        self.causal, self.name = causal, "attention-padded" if causal else "attention-padded-not causal"

    def inputs(self, size, dtype=np.float64, seed=0):
        B, S = size[0], size[2]
        return super().inputs(size, dtype, seed) | {"key_lengths": np.linspace(0, S, B).astype(int)}

    def forward(self, x):
        return self.finite(super().forward(x))

    def expected(self, x):
        return self.finite(super().expected(x))

    @staticmethod
    def finite(results):
        return results | {"lse": np.where(results["lse"] == -np.inf, -1e3, results["lse"])}

    def bits(self, x):
        return Case.bits(self, x)


CASES = [kind(causal) for kind in (AttentionCase, PaddedCase) for causal in (True, False)]
