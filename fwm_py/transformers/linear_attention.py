"""Linear attention in the place of softmax in all attentions of a model, by the names that `register_attention` gives.

A mask has one of four forms, none of which grows with queries times keys:

    None            nothing is hidden but by causal order, which has T queries and T keys, or one query
    (B, n + T)      causal: which keys count, n of them from a cache; keys behind these are room of the cache
    (B, 1, S)       which keys count, for every query
    (sequences + 1) causal within each sequence of those packed in B rows of T tokens: cu_seqlens
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    causal_mask_function,
    find_packed_sequence_indices,
    prepare_padding_mask,
    sdpa_mask,
)
from transformers.modeling_utils import AttentionInterface

import fwm_py.torch as fwm
from fwm_py.torch._arrays import shown
from fwm_py.transformers.packed import blank, boundaries, in_one_row, packed_by

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu1": fwm.elu1}
FEATURE_MAPS |= {f"dpfp{nu}": partial(fwm.dpfp, nu=nu) for nu in (1, 2, 3)}

# Arguments that change the weights of softmax, or ask for them.
REFUSED = {"block_indices", "cache", "indices", "output_attentions", "position_bias", "s_aux", "sinks"}
REFUSED |= {"sliding_window", "softcap"}


def register_attention() -> tuple[str, ...]:
    """Register linear attention for `attn_implementation` of transformers' models, on the CPU.

    The query q of a head reads sum_j w_j v_j / (sum_j w_j + 1e-6), w_j = phi(q).phi(k_j), over the keys k_j that
    softmax attention would see: with padding on any side, in cross attention, behind a cache, in packed sequences. phi
    is a feature map without parameters: elu1, or DPFP with nu = 1, 2, 3, which makes 2 nu K features of K numbers. A
    query that sees no key reads 0. The factor that the model puts before the softmax cancels, and is left out. Caches
    keep keys and values, as for softmax.

    Calling it again changes nothing; `enable()` and `disable()` have no part in it.

    Returns
    -------
    tuple of str
        The names, for `from_pretrained` and `from_config` (attn_implementation=) and `set_attn_implementation`.

    Raises
    ------
    ValueError
        Later, where a model asks for what these sums cannot give: dropout of attention weights in training, sliding
        windows, chunks, softcap, sinks, position bias, output_attentions, masks (B, 1, T, S), tensors that are not on
        the CPU; and where a model makes masks by this name, but has its attention written into its layers.

    References
    ----------
    Katharopoulos, Vyas, Pappas, Fleuret 2020, arXiv 2006.16236; Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174.

    Examples
    --------
    >>> import torch, fwm_py.transformers
    >>> from transformers import MarianConfig, MarianMTModel
    >>> fwm_py.transformers.register_attention()
    ('fwm_elu1', 'fwm_dpfp1', 'fwm_dpfp2', 'fwm_dpfp3')
    >>> layers = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    >>> sizes = dict(vocab_size=90, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0)
    >>> config = MarianConfig(**sizes, **layers, decoder_start_token_id=0, eos_token_id=1, forced_eos_token_id=1)
    >>> model = MarianMTModel._from_config(config, attn_implementation="fwm_dpfp1")
    >>> model.generate(torch.tensor([[5, 6, 1], [7, 1, 0]]), num_beams=3, max_new_tokens=4).shape[0]
    2
    """
    for name, attention in ATTENTIONS.items():
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, key_mask)
    return tuple(ATTENTIONS)


def key_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **others: Any,
) -> Tensor | None:
    """The mask of T queries and S keys, n = q_offset of them from a cache, with the arguments of transformers' masks.

    attention_mask (B, up to n + T), or (B, S) without order, says which keys are no padding.
    """
    if local_size is not None or kv_offset != 0:
        raise ValueError(f"sliding_window or attention_chunk_size: got {shown(local_size)}, expected None")
    check_looks_up(config)
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(f"attention_mask: got shape {tuple(attention_mask.shape)}, expected (B, S)")
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        if attention_mask is not None or q_length != kv_length:
            raise ValueError("mask_function: got one with padding or a cache, expected the causal or bidirectional one")
        full: Any = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            mask_function=mask_function,
            allow_is_causal_skip=False,
            device=device,
            **others,
        )
        return packed_in(full)
    causal = mask_function is causal_mask_function
    n_keys = int(q_offset) + q_length if causal else kv_length
    if attention_mask is not None and attention_mask.shape[1] > n_keys:
        raise ValueError(f"attention_mask: got {attention_mask.shape[1]} keys, expected {n_keys}")
    padded = prepare_padding_mask(attention_mask, n_keys, 0)
    counts = torch.ones(batch_size, n_keys, dtype=torch.bool, device=device) if padded is None else padded
    may_be_none = allow_is_causal_skip and n_keys == kv_length and q_length in (1, n_keys)
    if may_be_none if causal else allow_is_bidirectional_skip:
        if padded is None or not (torch.compiler.is_compiling() or not counts.all()):  # a graph does not ask
            return None
    return counts if causal else counts.unsqueeze(1)


def packed_in(full: Tensor) -> Tensor:
    """cu_seqlens of the sequences that a mask (B, 1, T, T) keeps apart, causal within each; others are refused."""
    full = full[:, 0]
    T = full.shape[-1]
    goes_on = full.diagonal(-1, 1, 2)  # token t sees token t - 1
    sequences = torch.nn.functional.pad((~goes_on).cumsum(-1), (1, 0))[:, :T]
    same = sequences[:, :, None] == sequences[:, None]
    if not torch.equal(full, same.tril()):
        raise ValueError("mask_function: got another pattern, expected causal order, alone or within packed sequences")
    return boundaries(sequences)


def check_looks_up(config: Any) -> None:
    """Refuse a family that makes masks by name, but not attention: softmax would get ours, or None for causal order."""
    name = type(config).__module__.replace(".configuration_", ".modeling_")
    module = sys.modules.get(name)
    if config is None or module is None or hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == name]
    if any("Attention" in kind.__name__ and issubclass(kind, torch.nn.Module) for kind in own):
        raise ValueError(
            f"attn_implementation: got {config._attn_implementation!r}, expected 'eager' or 'sdpa' for "
            f"{config.model_type}, whose attention does not look functions up"
        )


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    feature_map: Callable[[Tensor], Tensor],
    **others: Any,
) -> tuple[Tensor, None]:
    """query (B, HQ, T, K), key (B, H, S, K), value (B, H, S, V) -> (B, T, HQ, V); scaling would cancel."""
    check_asked(query, dropout, others)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    T, S = query.shape[2], key.shape[2]
    check_mask(attention_mask, query.shape[0], T, S, causal)
    packed = packed_rows(attention_mask, query.shape[0], T, S, causal, others)
    hidden = None if attention_mask is None or attention_mask.dim() == 1 else ~attention_mask.flatten(1)
    n_keys = S if hidden is None else hidden.shape[1]
    q = feature_map(query.transpose(1, 2))
    k = blank(feature_map(key[:, :, :n_keys].transpose(1, 2)), hidden)
    v = blank(value[:, :, :n_keys].transpose(1, 2), hidden)
    o: Tensor
    if packed is not None:
        rows = (in_one_row(x, packed) for x in (q, k, v))
        o = fwm.linear_attention(*rows, normalize=True, cu_seqlens=packed)[0]
        return o.view(*q.shape[:3], -1), None
    if T == 1 or not causal:
        return fwm.linear_attention(q, k, v, causal=False, normalize=True)[0], None
    n, state = n_keys - T, None
    if n:
        cached = (q[:, :0], k[:, :n], v[:, :n])
        state = fwm.linear_attention(*cached, causal=False, normalize=True, output_final_state=True)[1]
    return fwm.linear_attention(q, k[:, n:], v[:, n:], normalize=True, initial_state=state)[0], None


def check_asked(query: Tensor, dropout: float, others: dict[str, Any]) -> None:
    if query.device.type != "cpu":
        raise ValueError(f"query: got a tensor on {query.device}, expected one on the CPU")
    if dropout:
        raise ValueError(
            f"dropout: got {dropout}, expected 0: there are no weights to drop (attention_dropout, attn_pdrop "
            "or the like of the configuration)"
        )
    for name in sorted(REFUSED & others.keys()):
        asked = others[name]
        if asked is not None and asked is not False:
            raise ValueError(f"{name}: got {shown(asked)}, expected None or False")


def check_mask(mask: Any, B: int, T: int, S: int, causal: bool) -> None:
    """Whether `key_mask` made it, for such a layer."""
    if mask is None:
        if causal and T not in (1, S):
            raise ValueError(f"attention_mask: got None with {T} queries and {S} keys, expected (B, n + T)")
        return
    shape = tuple(mask.shape)
    if len(shape) == 1:
        fits = causal and T == S and mask.dtype == torch.int64
    elif len(shape) == 2:
        fits = causal and shape[0] == B and T <= shape[1] <= S and mask.dtype == torch.bool
    else:
        fits = (T == 1 or not causal) and shape == (B, 1, S) and mask.dtype == torch.bool
    if not fits:
        raise ValueError(
            f"attention_mask: got {mask.dtype} of shape {shape} in a layer that is {'' if causal else 'not '}causal, "
            f"expected which keys of (B, S) = {(B, S)} count, as the model makes it of such a mask"
        )


def packed_rows(mask: Tensor | None, B: int, T: int, S: int, causal: bool, others: dict[str, Any]) -> Tensor | None:
    """cu_seqlens of packed sequences, which the mask has, or the arguments say, or positions that begin anew.

    The mask hears of such positions only where there is no cache, which models make in training too.
    """
    if mask is not None and mask.dim() == 1:
        return mask
    packed = packed_by(None, others.get("cu_seq_lens_q"), others.get("seq_idx"))
    if packed is not None:
        if not causal or T != S:
            name = "seq_idx" if others.get("cu_seq_lens_q") is None else "cu_seq_lens_q"
            raise ValueError(f"{name}: got a tensor, expected None with a cache and in layers that are not causal")
        return packed
    positions = others.get("position_ids")
    if mask is not None or not causal or T == 1 or not isinstance(positions, Tensor) or positions.dim() != 2:
        return None
    if torch.compiler.is_compiling():  # a graph does not ask, but stops
        torch._assert_async(
            (positions.diff() == 1).all(), "position_ids: got packed sequences, expected use_cache=False"
        )
        return None
    sequences = find_packed_sequence_indices(positions)
    return None if sequences is None else boundaries(sequences.expand(B, -1))


ATTENTIONS: dict[str, Callable[..., Any]] = {
    f"fwm_{word}": partial(attend, feature_map=feature_map) for word, feature_map in FEATURE_MAPS.items()
}
