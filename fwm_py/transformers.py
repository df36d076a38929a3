"""The kernels of `fwm_py` in the models of transformers, on the CPU.

Models of the DeltaNet family look their rule and their causal convolution up by name in their modelling file, and on a
CPU find reference functions in PyTorch, correct but slow, which refuse packed sequences. `enable()` puts faster
functions under those names, with the same arguments and results, for models loaded before and after alike, and in the
place of what surrounds the rule: RMS norms, gated and not, and softmax attention ("sdpa") without dropout and with no
mask but the causal one:

>>> import fwm_py.transformers
>>> fwm_py.transformers.enable()

Prefill, cached decoding and training work as before; the gradients are those of `fwm_py.torch`. In these layers
sequences packed into one row are kept apart, by `cu_seq_lens_q` or by `seq_idx`, where -1 marks padding: such tokens
give 0, nobody sees them, and there is no state of theirs. What a model's softmax layers see is transformers' business
(with use_cache=False they keep them apart in all families but glm5_next). Tensors that are not on the CPU, subclasses
of Tensor (DTensor), torch.func's transforms, convolutions of other widths than 2 to 4, softmax attention with another
mask or for one token, and norms of a few numbers go to the function that was there before. Hooks of accelerate
(device_map, offloading) may be put on before `enable()` or after it; a layer whose own forward somebody has replaced
keeps that, as one does whose hook was removed before. Gradients cannot be differentiated again. Where a package for
GPUs is installed but no GPU is there, its functions fail on the CPU; these do not.

FAMILIES says which models there are. Needs transformers 5.23 or newer: pip install 'fwm_py[transformers]'.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType
from typing import Any

import fwm_py.torch as fwm
from fwm_py.torch._arrays import PLAIN

try:
    import transformers as _transformers
except ImportError as error:
    raise ImportError("fwm_py.transformers needs transformers: pip install 'fwm_py[transformers]'") from error

import torch
from torch import Tensor
from torch.autograd import forward_ad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

__all__ = ["FAMILIES", "disable", "enable", "enabled"]

FAMILIES = (
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
    "olmo_hybrid",
    "kimi_linear",
    "glm5_next",
    "bailing_hybrid",
)

WIDTHS = (2, 3, 4)  # of the convolution; others are left to the original
FEW_NUMBERS = 65536  # fewer are left to the original by a norm without a gate: the call would take longer than the work
_MORE_THAN_SDPA = ("cache", "output_attentions", "position_bias", "softcap")  # left to the original, or to its refusal

Changed = dict[str, tuple[str, ...]]
_Place = tuple[ModuleType | type, str]


# ---- boundaries of packed sequences ----------------------------------------------------------------------------------


def _boundaries(seq_idx: Tensor) -> Tensor:
    """cu_seqlens of the rows of seq_idx (B, T), one behind the other: a sequence ends where the number changes."""
    B, T = seq_idx.shape
    begins = torch.ones(B, T, dtype=torch.bool)
    begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return torch.cat([begins.flatten().nonzero().flatten(), torch.tensor([B * T])])


def _packed(cu_seqlens: Tensor | None, cu_seq_lens_q: Tensor | None, seq_idx: Tensor | None) -> Tensor | None:
    """Where sequences begin and end, however it was said."""
    if cu_seqlens is None:
        cu_seqlens = cu_seq_lens_q
    return _boundaries(seq_idx) if cu_seqlens is None and seq_idx is not None else cu_seqlens


def _padding(seq_idx: Tensor | None) -> Tensor | None:
    """Tokens (B, T) whose number is negative; None if there are none."""
    if seq_idx is None:
        return None
    padding = seq_idx < 0
    return padding if torch.compiler.is_compiling() or padding.any() else None  # a graph does not ask


def _blank(x: Tensor, padding: Tensor | None) -> Tensor:
    """x (B, T, ..) with zeros for padding, whatever it holds."""
    return x if padding is None else x.masked_fill(padding.reshape(*padding.shape, *[1] * (x.dim() - 2)), 0)


def _in_one_row(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Rows behind one another, as packed sequences lie."""
    return x if cu_seqlens is None or x.shape[0] == 1 else x.flatten(0, 1).unsqueeze(0)


def _has_tokens(packed: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Which of the sequences that seq_idx packs are not padding; None if all."""
    return None if padding is None or packed is None else ~padding.flatten()[packed[:-1].long()]


def _spread(states: Tensor | None, to: Tensor | None) -> Tensor | None:
    """States (n, ..) at the places of the sequences that have tokens, zeros between them."""
    if states is None or to is None:
        return states
    return states.new_zeros(to.shape[0], *states.shape[1:]).index_put((to,), states)


# ---- the functions that models call ----------------------------------------------------------------------------------


def _rule(function: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The rule with the models' arguments, which come by name from initial_state on."""

    def rule(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        g: Tensor,
        beta: Tensor,
        *,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        cu_seqlens: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        packed, padding = _packed(cu_seqlens, cu_seq_lens_q, seq_idx), _padding(seq_idx)
        rows = [_in_one_row(_blank(x, padding), packed) for x in (query, key, value, g, beta)]
        with_states = initial_state is not None or output_final_state
        kept = _has_tokens(packed, padding) if with_states and cu_seqlens is None and cu_seq_lens_q is None else None
        o, state = function(
            *rows,
            qk_norm="l2" if use_qk_l2norm_in_kernel else None,
            cu_seqlens=packed,
            initial_state=_spread(initial_state, kept),
            output_final_state=output_final_state,
        )
        o = _blank(o.reshape(*query.shape[:2], *o.shape[2:]), padding)
        return o, state if state is None or kept is None else state[kept]

    return rule


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, packed: Tensor | None = None
) -> Tensor:
    """x (B, T, D); an activation that the kernel does not have comes behind it."""
    inside = activation in (None, "silu", "swish")
    y, _ = fwm.causal_conv1d(x, weight, bias, activation=activation if inside else None, cu_seqlens=packed)
    return y if inside else _transformers.activations.ACT2FN[activation](y)


def _causal_conv1d_fn(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    seq_idx: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """hidden_states (B, D, T)."""
    B, D, T = hidden_states.shape
    packed = _packed(cu_seqlens, cu_seq_lens_q, seq_idx)
    if weight.shape[-1] not in WIDTHS and packed is None:  # the original would let packed sequences run into each other
        return NotImplemented
    padding = _padding(seq_idx)
    x = _blank(hidden_states.transpose(1, 2), padding)
    y = _convolve(_in_one_row(x, packed), weight, bias, activation, packed)
    return _blank(y.reshape(B, T, D), padding).transpose(1, 2)


def _causal_conv1d_update(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **others: Any,
) -> Tensor:
    """hidden_states (B, D, T), as a rule one token; conv_state (B, D, ..): the last inputs, changed in place."""
    T, W = hidden_states.shape[-1], weight.shape[-1]
    if W not in WIDTHS:
        return NotImplemented
    window = torch.cat([conv_state, hidden_states], dim=-1)
    conv_state.copy_(window[..., -conv_state.shape[-1] :])
    y = _convolve(window[..., -(T + W - 1) :].transpose(1, 2), weight, bias, activation)
    return y[:, -T:].transpose(1, 2).to(hidden_states.dtype)


def _gated_norm(norm: torch.nn.Module, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
    """forward of the models' RMSNormGated."""
    if gate is None or gate.shape != hidden_states.shape or norm.weight.shape != hidden_states.shape[-1:]:
        return NotImplemented
    if norm.activation not in ("silu", "swish", "sigmoid"):
        return NotImplemented
    return fwm.rms_norm(hidden_states, norm.weight, gate, activation=norm.activation, eps=norm.variance_epsilon)


def _norm(norm: torch.nn.Module, *args: Tensor, **options: Tensor) -> Tensor:
    """forward of the models' RMSNorm, whose weight counts from 0 in the Qwen families, which call their epsilon eps."""
    given = (*args, *options.values())  # under names that differ
    if len(given) != 1:
        return NotImplemented
    hidden_states, weight = given[0], norm.weight
    few = not torch.compiler.is_compiling() and hidden_states.numel() < FEW_NUMBERS  # a graph may serve many lengths
    if few or weight.shape != hidden_states.shape[-1:] or getattr(norm, "group_size", None) is not None:
        return NotImplemented
    if hasattr(norm, "eps"):
        return fwm.rms_norm(
            hidden_states, 1 + weight.to(torch.promote_types(weight.dtype, torch.float32)), eps=norm.eps
        )
    if weight.dtype != hidden_states.dtype:  # theirs has the dtype that both promote to
        return NotImplemented
    return fwm.rms_norm(hidden_states, weight, eps=norm.variance_epsilon)


def _sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query (B, HQ, T, K), key (B, H, S, K), value (B, H, S, V) -> (B, T, HQ, V).

    Each key head becomes a sequence of its own, since that is how its tokens lie.
    """
    (B, HQ, T, _), (_, H, S, _) = query.shape, key.shape
    more = [
        name for name, asked in others.items() if name in _MORE_THAN_SDPA and asked is not None and asked is not False
    ]
    if attention_mask is not None or dropout or more or T == 1:  # a single token costs more to call than to compute
        return NotImplemented
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if key.shape[0] != B or value.shape[:3] != key.shape[:3] or HQ % H or S < (T if causal else 1):
        return NotImplemented
    if causal:
        key, value = key[:, :, :T], value[:, :, :T]  # what lies behind is the room of a static cache
    rows = query.unflatten(1, (H, HQ // H)).transpose(2, 3).flatten(0, 1)
    o = fwm.softmax_attention(
        rows, key.flatten(0, 1).unsqueeze(2), value.flatten(0, 1).unsqueeze(2), causal=causal, scale=scaling
    )
    return o.unflatten(0, (B, H)).transpose(1, 2).flatten(2, 3).contiguous(), None


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch_chunk_gated_delta_rule": _rule(fwm.gated_delta_rule),
    "torch_recurrent_gated_delta_rule": _rule(fwm.gated_delta_rule),
    "chunk_kimi_delta_attention": _rule(fwm.kimi_delta_rule),
    "recurrent_kimi_delta_attention": _rule(fwm.kimi_delta_rule),
    "causal_conv1d_fn": _causal_conv1d_fn,
    "causal_conv1d_update": _causal_conv1d_update,
}


# ---- putting them in place -------------------------------------------------------------------------------------------

_lock = threading.RLock()
_replaced: dict[_Place, tuple[Any, Any]] = {}  # what was there, and ours
_holders: set[object] = set()  # `enable`, and every with statement: ours stay as long as there is one
_on = False  # whether there is one; asked by what somebody has kept of ours


def _is_ours(given: Iterable[Any]) -> bool:
    """Plain tensors on the CPU, and not inside torch.func's transforms or derivatives in forward mode, which know no
    operators like ours."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    if not tensors or forward_ad._current_level >= 0:
        return False
    if any(type(x) not in PLAIN or x.device.type != "cpu" for x in tensors):
        return False
    return torch.compiler.is_dynamo_compiling() or torch._C._functorch.peek_interpreter_stack() is None


def _chosen(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def chosen(*args: Any, **options: Any) -> Any:
        if _on and _is_ours((*args, *options.values())):
            result = ours(*args, **options)
            if result is not NotImplemented:
                return result
        return original(*args, **options)

    return chosen


def _of(kind: type, ours: Callable[..., Any]) -> Callable[..., Any]:
    """Ours for this class, and not for those made from it, which may norm otherwise."""

    def of(norm: torch.nn.Module, *args: Any, **options: Any) -> Any:
        if type(norm) is not kind or type(getattr(norm, "weight", None)) not in PLAIN:
            return NotImplemented
        return ours(norm, *args, **options)

    return of


class _Kept:
    """The forward that a hook of accelerate has found in a norm and keeps in it: ours in the place of the class's."""

    name = "_old_forward"

    def __init__(self, original: Callable[..., Any], ours: Callable[..., Any]) -> None:
        self.original, self.ours = original, ours

    def __get__(self, norm: torch.nn.Module | None, kind: type) -> Any:
        if norm is None:
            return self
        if self.name not in vars(norm):
            raise AttributeError(self.name)
        kept = vars(norm)[self.name]
        return MethodType(self.ours, norm) if getattr(kept, "__func__", None) is self.original else kept

    def __set__(self, norm: torch.nn.Module, kept: Any) -> None:
        vars(norm)[self.name] = kept

    def __delete__(self, norm: torch.nn.Module) -> None:
        if vars(norm).pop(self.name, None) is None:
            raise AttributeError(self.name)


class _Attention(AttentionInterface):
    """A model's attention functions, registered before or later, with ours in the place of transformers' own sdpa."""

    def __init__(self, original: AttentionInterface) -> None:
        self._local_mapping = original._local_mapping
        self._sdpa = _chosen(sdpa_attention_forward, _sdpa)

    def __getitem__(self, key: str) -> Callable[..., Any]:
        function = super().__getitem__(key)
        return self._sdpa if function is sdpa_attention_forward else function


def _modelling_files() -> Iterator[ModuleType]:
    for family in FAMILIES:
        if importlib.util.find_spec(f"transformers.models.{family}"):
            yield importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def _functions_of(module: ModuleType) -> Iterator[tuple[_Place, Any, Any]]:
    """Where a modelling file has something that we replace, what is there, and ours."""
    for name, ours in _FUNCTIONS.items():
        if hasattr(module, name):
            original = getattr(module, name)
            yield (module, name), original, _chosen(original, ours)
    for kind in vars(module).values():
        if (
            not isinstance(kind, type)
            or kind.__module__ != module.__name__
            or kind.__name__.endswith("UnweightedRMSNorm")
        ):
            continue
        for ending, ours in (("RMSNorm", _norm), ("RMSNormGated", _gated_norm)):
            if kind.__name__.endswith(ending):
                original, chosen = kind.forward, _chosen(kind.forward, _of(kind, ours))
                yield (kind, "forward"), original, chosen
                yield (kind, _Kept.name), None, _Kept(original, chosen)
    functions = getattr(module, "ALL_ATTENTION_FUNCTIONS", None)
    if isinstance(functions, AttentionInterface):
        yield (module, "ALL_ATTENTION_FUNCTIONS"), functions, _Attention(functions)


def _names(keys: Iterable[_Place]) -> Changed:
    changed: Changed = {}
    for owner, name in keys:
        if name == _Kept.name:
            continue
        module, name = (
            (owner.__name__, name) if isinstance(owner, ModuleType) else (owner.__module__, f"{owner.__name__}.{name}")
        )
        family = module.rpartition("modeling_")[2]
        changed[family] = (*changed.get(family, ()), name)
    return changed


def _hold(holder: object) -> Changed:
    """Put ours in place, as long as this holder or another does not let go."""
    global _on
    places = []
    with _lock:
        for module in list(_modelling_files()):  # all are there before one is changed
            for place, original, ours in list(_functions_of(module)):
                if place not in _replaced:
                    _replaced[place] = original, ours
                    setattr(*place, ours)
                    places.append(place)
        _holders.add(holder)
        _on = True
    return _names(places)


def _let_go(holder: object) -> Changed:
    global _on
    restored = []
    with _lock:
        _holders.discard(holder)
        _on = bool(_holders)
        while not _on and _replaced:
            place, (original, ours) = _replaced.popitem()
            if getattr(*place) is not ours:  # somebody has replaced it since
                continue
            if original is None:
                delattr(*place)
            else:
                setattr(*place, original)
            restored.append(place)
    return _names(reversed(restored))


def enable() -> Changed:
    """Let models on the CPU use the kernels of `fwm_py`, until `disable()`.

    Returns
    -------
    dict
        The functions that this call has replaced, for each family of models that the installed transformers has.
    """
    return _hold(enable)


def disable() -> Changed:
    """End what `enable()` began, however often it was called, and put back what was there before.

    Inside a `with enabled()`, of any thread, the kernels stay until the last of those ends.

    Returns
    -------
    dict
        The functions that this call has put back.
    """
    return _let_go(enable)


@contextmanager
def enabled() -> Iterator[Changed]:
    """The kernels for the time of a with statement, for all threads.

    They go when nobody holds them any more: neither `enable()` nor another `with enabled()`, in whatever order.
    """
    holder = object()
    changed = _hold(holder)
    try:
        yield changed
    finally:
        _let_go(holder)
