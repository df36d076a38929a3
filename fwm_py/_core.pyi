from collections.abc import Callable
from typing import Any, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt

_Real = npt.NDArray[np.floating[Any]]
_Int64 = npt.NDArray[np.int64]
_StateLike = npt.ArrayLike | tuple[npt.ArrayLike, npt.ArrayLike]
_Sequences = tuple[_Int64, _Int64, _Int64, _Int64]

class _MapRow(TypedDict):
    name: str
    function: str
    argument: str  # what it is called, "" if there is none
    positive: bool
    takes_omega: bool
    summary: str

class _ReadoutRow(TypedDict):
    name: str
    function: str
    uses_map: bool
    uses_beta: bool
    summary: str

class _RuleRow(TypedDict):
    name: str
    function: str
    scalar_gate: bool
    channel_gate: bool
    strength: Literal["", "beta", "b, w"]
    normalizes: bool
    has_qk_norm: bool
    clamps: bool
    summary: str

class _BuildInfo(TypedDict):
    variant: str
    variants: tuple[str, ...]
    compiler: str
    openmp: bool
    threads: int

MAPS: tuple[_MapRow, ...]
RULES: tuple[_RuleRow, ...]
READOUTS: tuple[_ReadoutRow, ...]

def build_info() -> _BuildInfo: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def set_threads_here(n: int, /) -> None: ...  # of calls from this thread; 0: what set_num_threads says
def tensor_array(  # a tensor's memory, which is kept alive
    tensor: object, dtype: np.dtype[Any], read_only: bool
) -> npt.NDArray[Any]: ...
def tensor_arrays(  # to be read; None where one is not contiguous, on the CPU, and of the dtype
    tensors: tuple[object, ...], tensor_dtype: object, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any] | None, ...] | None: ...

# None: some tensor is of another type, device or layout, or has no memory; else whether one requires a gradient
def plain_tensors(given: tuple[object, ...], kinds: tuple[type, ...], strided: object) -> bool | None: ...
def map_features(function: str, d: int, argument: int) -> int: ...
def map_forward(
    function: str,
    /,
    *,
    x: npt.ArrayLike,
    argument: int | None = None,
    omega: npt.ArrayLike | None = None,
    out: _Real | None = None,
) -> _Real: ...
def map_backward(
    function: str,
    /,
    *,
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    argument: int | None = None,
    omega: npt.ArrayLike | None = None,
    out: tuple[_Real] | None = None,
) -> tuple[_Real]: ...
def readout_forward(
    function: str,
    /,
    *,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    beta: npt.ArrayLike | None = None,
    query: npt.ArrayLike,
    n_values: int,
    out: _Real | None = None,
) -> _Real: ...
def readout_backward(
    function: str,
    /,
    *,
    dy: npt.ArrayLike,
    keys: npt.ArrayLike,
    values: npt.ArrayLike,
    beta: npt.ArrayLike | None = None,
    query: npt.ArrayLike,
    n_values: int,
    out: tuple[_Real, ...] | None = None,
) -> tuple[Any, ...]: ...
def rule_forward(  # states are arrays, or pairs of them with normalize
    function: str,
    /,
    *,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    b: npt.ArrayLike | None = None,
    w: npt.ArrayLike | None = None,
    initial_state: _StateLike | None = None,
    scale: float | None = None,
    qk_norm: str | None = None,
    normalize: bool = False,
    eps: float = ...,
    clamp_first: bool = ...,
    cu_seqlens: npt.ArrayLike | None = None,
    state_v_first: bool = False,
    state_indices: npt.ArrayLike | None = None,
    method: str,
    output_final_state: bool = False,
    return_states_every: int | None = None,
    out: _Real | tuple[_Real, Any] | None = None,
) -> tuple[Any, ...]: ...
def rule_backward(
    function: str,
    /,
    *,
    do: npt.ArrayLike,
    dfinal_state: _StateLike | None = None,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    g: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
    b: npt.ArrayLike | None = None,
    w: npt.ArrayLike | None = None,
    initial_state: _StateLike | None = None,
    scale: float | None = None,
    qk_norm: str | None = None,
    normalize: bool = False,
    eps: float = ...,
    clamp_first: bool = ...,
    state_v_first: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    method: str,
    out: tuple[Any, ...] | None = None,
) -> tuple[Any, ...]: ...
@overload
def attention_forward(
    *,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    key_lengths: npt.ArrayLike | None = None,
    causal: bool,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    out: _Real | None = None,
) -> _Real: ...
@overload
def attention_forward(
    *,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    key_lengths: npt.ArrayLike | None = None,
    causal: bool,
    scale: float | None = None,
    return_lse: bool,
    out: _Real | None = None,
) -> _Real | tuple[_Real, _Real]: ...
def attention_backward(
    *,
    do: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    key_lengths: npt.ArrayLike | None = None,
    causal: bool,
    scale: float | None = None,
    o: npt.ArrayLike | None = None,
    lse: npt.ArrayLike | None = None,
    out: tuple[_Real, _Real, _Real] | None = None,
) -> tuple[_Real, _Real, _Real]: ...
def noncausal_forward(  # states are arrays, or pairs of them with normalize
    *,
    normalize: bool,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    key_lengths: npt.ArrayLike | None = None,
    initial_state: _StateLike | None = None,
    scale: float | None = None,
    eps: float,
    output_final_state: bool = False,
    out: Any = None,
) -> tuple[_Real, Any]: ...
def noncausal_backward(
    *,
    normalize: bool,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    key_lengths: npt.ArrayLike | None = None,
    initial_state: _StateLike | None = None,
    scale: float | None = None,
    eps: float,
    do: npt.ArrayLike,
    dfinal_state: _StateLike | None = None,
    out: tuple[Any, ...] | None = None,
) -> tuple[Any, ...]: ...
def convolution_forward(
    *,
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    activation: str | None = None,
    initial_state: npt.ArrayLike | None = None,
    output_final_state: bool = False,
    cu_seqlens: npt.ArrayLike | None = None,
    out: _Real | tuple[_Real, _Real] | None = None,
) -> tuple[_Real, _Real | None]: ...
def convolution_update_forward(
    *,
    x: npt.ArrayLike,
    conv_state: _Real,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    activation: str | None = None,
    conv_state_indices: npt.ArrayLike | None = None,
    cache_seqlens: npt.ArrayLike | None = None,
    out: _Real | None = None,
) -> _Real: ...
def convolution_backward(
    *,
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    activation: str | None = None,
    initial_state: npt.ArrayLike | None = None,
    cu_seqlens: npt.ArrayLike | None = None,
    dfinal_state: npt.ArrayLike | None = None,
    out: tuple[_Real | None, ...] | None = None,
) -> tuple[_Real, _Real, _Real | None, _Real | None]: ...
def norm_forward(
    *,
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    activation: str,
    eps: float,
    out: _Real | None = None,
) -> _Real: ...
def norm_backward(
    *,
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    gate: npt.ArrayLike | None = None,
    activation: str,
    eps: float,
    out: tuple[_Real | None, ...] | None = None,
) -> tuple[_Real, _Real, _Real | None]: ...
def draw_omega(d: int, m: int, generator: Philox | MT19937) -> npt.NDArray[np.float32]: ...

class Philox:
    def __init__(self, seed: int) -> None: ...
    @property
    def seed(self) -> int: ...
    @property
    def blocks_drawn(self) -> int: ...
    def normal(self, n: int) -> npt.NDArray[np.float32]: ...

class MT19937:
    def __init__(self, seed: int) -> None: ...
    def uint32(self, n: int) -> npt.NDArray[np.uint32]: ...
    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> npt.NDArray[np.float32]: ...
    def normal(self, n: int) -> npt.NDArray[np.float32]: ...
    def bounded(self, max: int) -> int: ...
    def permutation(self, n: int) -> _Int64: ...
    def choice(self, n: int, size: int, replace: bool) -> _Int64: ...

class Stream:
    def __init__(self, seed: int, n_keys: int, batch_size: int, replace: bool) -> None: ...
    def batch(self) -> _Sequences: ...
    def evaluation(self) -> list[_Sequences]: ...
    def recall(self) -> list[_Sequences]: ...

class Model:
    def __init__(
        self,
        *,
        n_keys: int,
        hidden_size: int,
        map: str | None,
        argument: int,
        readout: str,
        replace: bool,
        batch_size: int,
        seed: int,
        favor_generator: str,
        redraws: bool,
        dtype: str,
    ) -> None: ...
    @property
    def parameters(self) -> dict[str, _Real]: ...
    @property
    def steps(self) -> int: ...
    def snapshot(self) -> dict[str, _Real]: ...
    def get_state(self) -> bytes: ...
    def set_state(self, state: bytes, /) -> None: ...
    def loss(
        self,
        *,
        keys: npt.ArrayLike,
        values: npt.ArrayLike,
        query: npt.ArrayLike,
        answer: npt.ArrayLike,
        omega: npt.ArrayLike | None = None,
    ) -> float: ...
    def loss_and_gradients(
        self,
        *,
        keys: npt.ArrayLike,
        values: npt.ArrayLike,
        query: npt.ArrayLike,
        answer: npt.ArrayLike,
        omega: npt.ArrayLike | None = None,
    ) -> tuple[float, dict[str, _Real]]: ...
    def step(
        self,
        *,
        keys: npt.ArrayLike,
        values: npt.ArrayLike,
        query: npt.ArrayLike,
        answer: npt.ArrayLike,
        omega: npt.ArrayLike | None = None,
        lr: float,
    ) -> float: ...
    def read_out(
        self, *, keys: npt.ArrayLike, values: npt.ArrayLike, query: npt.ArrayLike, omega: npt.ArrayLike | None = None
    ) -> _Real: ...
    def evaluate(self, stream: Stream, /) -> float: ...
    def recall(self, stream: Stream, /) -> tuple[float, float, float]: ...  # loss, right, worst
    def train(
        self,
        *,
        stream: Stream,
        lr: float,
        max_steps: int,
        criterion: Literal["published", "recall"],
        on_evaluation: Callable[[int, float], object] | Callable[[int, float, float, float], object] | None,
        on_progress: Callable[[int, float], object] | None,
    ) -> None: ...
