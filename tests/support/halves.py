"""Arrays of 16-bit numbers: NumPy's float16, the bfloat16 of ml_dtypes where it is installed, and the same bits as a
field "bfloat16", which is how `fwm_py.torch` names them."""

import importlib.util
from typing import NamedTuple

import numpy as np

from fwm_py import build_info

FIELD = np.dtype([("bfloat16", np.uint16)])


def bfloat16_bits(x):
    """The upper halves of float32 numbers, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)


class Half(NamedTuple):
    name: str
    dtype: np.dtype

    def __str__(self):
        return self.name

    @property
    def is_bfloat16(self):
        return self.name != "float16"

    def narrow(self, x):
        """In 16 bits, from float32 or float64."""
        with np.errstate(over="ignore"):
            return bfloat16_bits(x).view(self.dtype) if self.is_bfloat16 else np.asarray(x).astype(np.float16)

    def widen(self, x):
        """In float32."""
        if not self.is_bfloat16:
            return x.astype(np.float32)
        return (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32)

    def rounded(self, x):
        return self.widen(self.narrow(x))


def reads_a_rounded_state(function, method="chunked"):
    """Whether a forward on keys and queries in bfloat16 has other bits than one in float32: the state that it reads is
    rounded, where the instruction set multiplies bfloat16."""
    rounds = build_info()["variant"] == "avx512_bf16" and method == "chunked"
    return rounds and function in ("delta_rule", "gated_delta_rule")


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def assert_no_worse_than_rounding(half, got, exact, times=2):
    """The errors of `got` are at most `times` those of `exact`, in float64, rounded: the largest, and on average."""
    rounding, error = half.rounded(exact) - exact, half.widen(got) - exact if got.dtype == half.dtype else got - exact
    assert np.abs(error).max() <= times * np.abs(rounding).max()
    assert rms(error) <= times * rms(rounding)


HALVES = [Half("float16", np.dtype(np.float16)), Half("field", FIELD)]
if importlib.util.find_spec("ml_dtypes"):
    import ml_dtypes

    HALVES.append(Half("bfloat16", np.dtype(ml_dtypes.bfloat16)))
