"""A layer: multi-head attention whose memory is a fast weight matrix, with any feature map and any rule of `fwm_py`."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fwm_py.torch as fwm
from fwm_py import _core, feature_maps
from fwm_py.random import Philox
from fwm_py.torch import _operators
from fwm_py.torch._arrays import check_flag, n_sequences, shown
from fwm_py.torch.nn.checks import (
    MAPS,
    NONCAUSAL,
    POSITIVE,
    POSITIVE_MAPS,
    RULES,
    WIDTHS,
    check_heads,
    check_number,
    check_sizes,
    check_state,
    check_time_constants,
    check_word,
    maps_of,
)
from fwm_py.torch.nn.parts import RMSNorm, ShortConvolution, rotated
from fwm_py.torch.nn.state import AttentionState, KeyCache, Memory

__all__ = ["FastWeightAttention"]


def split(y: Tensor, size: int) -> Tensor:
    """(B, T, heads size) -> (B, T, heads, size)"""
    return y.reshape(*y.shape[:-1], y.shape[-1] // size, size)


class FastWeightAttention(nn.Module):
    """Multi-head attention: every head writes its keys and values into a memory, which its queries read.

    q, k, v = W_q x, W_k x, W_v x, each convolved over some tokens if conv_size says so, and split into heads; phi(q),
    phi(k) by the feature map; the rule's strengths and gates are projected from x too: beta, b, w = sigmoid(W x), g =
    -exp(A) softplus(W x + dt). What the heads read is normed and gated if output_norm and output_gate say so, joined,
    and projected to d_model.

    Parameters
    ----------
    d_model : int
        Size of a token.
    heads : int
    kv_heads : int, optional
        Heads of keys and values, each with a memory that heads // kv_heads query heads read: heads if not given.
    head_dim, value_dim : int, optional
        Sizes of a head's keys, before the map, and values: d_model // heads if not given.
    feature_map : str, optional
        phi, a function of `fwm_py.feature_maps`: none if not given.
    nu : int, optional
        Of DPFP: 3 if not given.
    features : int, optional
        m of FAVOR+, whose omega is drawn from PyTorch's generator: head_dim if not given.
    redraw : bool
        Draw FAVOR+'s omega anew for each forward of training that begins without a state. In evaluation it stays.
    rule : str
        A function of `fwm_py.rules`, or "softmax_attention".
    gate : "scalar" or "channel", optional
        One gate a head or one a feature, where the rule leaves it open (gated_linear_attention): "scalar" if not given.
    qk_norm : None, "l2", "sum" or "auto"
        Of delta rules; "auto": "sum" for a positive map (the paper's), else "l2". "sum" needs a positive map, one
        whose features are never negative. Other rules normalise nothing.
    normalize : bool or "auto"
        Divide by the sum of weights (linear_attention, delta_rule); needs a positive map, and of a delta rule no
        qk_norm. "auto": linear_attention where there is a positive map.
    eps : float, optional
        Of that division: 1e-6 if not given, so that outputs fade to 0 where weights are as small: one token of 8 elu1
        features of
        -10 weighs 0.016 in place of 1, and FAVOR+ at |x| = 8 (x scaled by head_dim**-1/4) about 0.002 or less.
    scale : float, optional
        Multiplies the queries; if not given, 1 where keys are normalised by sums or weights are, else features**-0.5.
    causal : bool
        False (linear_attention, softmax_attention): every query reads all keys, as in encoders and cross attention.
    conv_size : int, optional
        1 to 16: q, k and v are convolved over so many tokens each, then SiLU. Not with causal=False.
    output_norm : bool
        RMS norm of what each head reads, with a weight for each of its numbers.
    output_gate : bool
        Times SiLU of a gate that is projected from x; needs output_norm.
    norm_eps : float, optional
        Of the norm: 1e-5 if not given.
    time_constants : pair of floats, optional
        Of gated rules: how much a head forgets in a token at first, from the least to the most; heads spread evenly
        between them in the logarithm, and one head lies in the middle. (1e-3, 1e-1) if not given. The projection of
        the gate begins at zero.
    rotary : bool
        Rotary positions: q and k are turned by their place (Su et al. 2021), after a convolution and before the map.
        Needs an even head_dim; not with packed sequences, nor with a context.
    dropout : float
        Of the output, in training.
    bias : bool
        Biases of q, k, v and of the output.

    Raises
    ------
    TypeError
        For sizes that are no integers, numbers that are none, and flags that are no bool.
    ValueError
        For words other than these, sizes below 1, heads that do not divide d_model where they must, and options that
        the rule or the map does not have.

    Notes
    -----
    On the meta device omega is not drawn; `reset_parameters` draws it, with the parameters, once there is memory
    (`to_empty`). It is part of the state_dict.

    References
    ----------
    Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174.

    Examples
    --------
    >>> import torch
    >>> from fwm_py.torch.nn import FastWeightAttention
    >>> layer = FastWeightAttention(256, heads=4, feature_map="dpfp", rule="delta_rule")
    >>> x = torch.randn(2, 11, 256)
    >>> y = layer(x)
    >>> y.shape
    torch.Size([2, 11, 256])
    >>> prompt, state = layer(x[:, :10], return_state=True)
    >>> last, state = layer(x[:, 10:], state, return_state=True)  # token by token from here
    >>> torch.allclose(last, y[:, 10:], atol=1e-5)
    True
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        feature_map: str | None = None,
        nu: int | None = None,
        features: int | None = None,
        redraw: bool = False,
        rule: str = "delta_rule",
        gate: Literal["scalar", "channel"] | None = None,
        qk_norm: Literal["l2", "sum", "auto"] | None = "auto",
        normalize: bool | Literal["auto"] = "auto",
        eps: float | None = None,
        scale: float | None = None,
        causal: bool = True,
        conv_size: int | None = None,
        output_norm: bool = False,
        output_gate: bool = False,
        norm_eps: float | None = None,
        time_constants: tuple[float, float] | None = None,
        rotary: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            {"d_model": d_model, "heads": heads},
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            nu=nu,
            features=features,
            conv_size=conv_size,
        )
        check_word("feature_map", feature_map, (None, *MAPS))
        check_word("rule", rule, (*RULES, "softmax_attention"))
        check_word("gate", gate, (None, "scalar", "channel"))
        check_word("qk_norm", qk_norm, (None, "l2", "sum", "auto"))
        if normalize is not True and normalize is not False:
            check_word("normalize", normalize, (True, False, "auto"))
        flags = {"bias": bias, "redraw": redraw, "causal": causal}
        flags |= {"output_norm": output_norm, "output_gate": output_gate, "rotary": rotary}
        for name, flag in flags.items():
            check_flag(name, flag)
        for name, number in (("eps", eps), ("norm_eps", norm_eps)):
            if number is not None:
                check_number(name, number, 0, sys.float_info.max, "a finite number, at least 0")
        if scale is not None:
            check_number("scale", scale, -sys.float_info.max, sys.float_info.max, "a finite number")
        check_number("dropout", dropout, 0, 1, "0 to 1")
        check_heads(d_model, heads, kv_heads, head_dim, value_dim)
        self.heads, self.kv_heads, self.rule, self.feature_map = heads, kv_heads or heads, rule, feature_map
        self.redraw, self.causal, self.scale, self.dropout = redraw, causal, scale, float(dropout)
        self.conv_size, self.output_gate, self.rotary = conv_size, output_gate, rotary
        self.eps = 1e-6 if eps is None else float(eps)
        self.row: Any = RULES.get(rule, {})
        self.map_argument = MAPS[feature_map]["argument"] if feature_map else ""
        self.gated = bool(self.row and (self.row["scalar_gate"] or self.row["channel_gate"]))
        self._settle(gate, qk_norm, normalize)
        self._refuse_idle(nu=nu, features=features, gate=gate, qk_norm=qk_norm, normalize=normalize, eps=eps)
        self._refuse_others(conv_size, output_norm, output_gate, norm_eps, time_constants)
        self.time_constants = check_time_constants(time_constants)
        self.head_dim = d_model // heads if head_dim is None else head_dim
        self.value_dim = d_model // heads if value_dim is None else value_dim
        if rotary and self.head_dim % 2:
            raise ValueError(f"rotary: got True with head_dim {self.head_dim}, expected an even head_dim")
        self.nu = 3 if nu is None else nu
        m = self.head_dim if features is None else features
        argument = {"": 0, "nu": self.nu, "m": m}[self.map_argument]
        self.features = _core.map_features(feature_map, self.head_dim, argument) if feature_map else self.head_dim
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self._make_projections(d_model, bias, made)
        for name, x in (("q", self.q_proj), ("k", self.k_proj), ("v", self.v_proj)):
            convolution = None if conv_size is None else ShortConvolution(x.out_features, conv_size, **made)
            self.add_module(f"{name}_conv1d", convolution)
        self.o_norm = RMSNorm(self.value_dim, 1e-5 if norm_eps is None else norm_eps, **made) if output_norm else None
        if self.map_argument == "m":
            self.omega: Tensor
            self.register_buffer("omega", torch.empty(self.head_dim, m, **made))
        self.reset_parameters()

    def _make_projections(self, d_model: int, bias: bool, made: dict[str, Any]) -> None:
        heads, kv_heads = self.heads, self.kv_heads
        self.q_proj = nn.Linear(d_model, heads * self.head_dim, bias=bias, **made)
        self.k_proj = nn.Linear(d_model, kv_heads * self.head_dim, bias=bias, **made)
        self.v_proj = nn.Linear(d_model, kv_heads * self.value_dim, bias=bias, **made)
        self.o_proj = nn.Linear(heads * self.value_dim, d_model, bias=bias, **made)
        strength = self.row.get("strength", "")
        if strength == "beta":
            self.beta_proj = nn.Linear(d_model, kv_heads, **made)
        elif strength:
            self.b_proj = nn.Linear(d_model, kv_heads * self.features, **made)
            self.w_proj = nn.Linear(d_model, kv_heads * self.value_dim, **made)
        if self.gated:
            gates = kv_heads * self.features if self.channel_gate else kv_heads
            self.g_proj = nn.Linear(d_model, gates, bias=False, **made)
            self.A_log = nn.Parameter(torch.empty(kv_heads, **made))
            self.dt_bias = nn.Parameter(torch.empty(gates, **made))
        if self.output_gate:
            self.gate_proj = nn.Linear(d_model, heads * self.value_dim, bias=False, **made)

    def _settle(self, gate: str | None, qk_norm: str | None, normalize: bool | str) -> None:
        """What "auto" stands for."""
        self.has = {"scalar_gate": False, "channel_gate": False, "has_qk_norm": False, "normalizes": False} | self.row
        self.positive = self.feature_map in POSITIVE_MAPS
        if normalize == "auto":
            normalize = self.rule == "linear_attention" and self.positive
        if qk_norm == "auto":
            qk_norm = ("sum" if self.positive else "l2") if self.has["has_qk_norm"] and not normalize else None
        self.channel_gate = self.has["channel_gate"] and (gate == "channel" or not self.has["scalar_gate"])
        self.qk_norm: Any = qk_norm
        self.normalize = bool(normalize)

    def _refuse_idle(self, **given: Any) -> None:
        """Options are refused that this map or this rule does not have."""
        has = self.has
        if given["qk_norm"] == "auto":
            given["qk_norm"] = None
        given["normalize"] = True if given["normalize"] is True else None
        normalizing = " or ".join(f"rule={name!r}" for name, row in RULES.items() if row["normalizes"])
        for name, fits, expected in (
            ("nu", self.map_argument == "nu", maps_of("nu")),
            ("features", self.map_argument == "m", maps_of("m")),
            ("gate", has["scalar_gate"] and has["channel_gate"], "rule='gated_linear_attention'"),
            ("qk_norm", has["has_qk_norm"], "a delta rule"),
            ("qk_norm", self.positive or given["qk_norm"] != "sum", POSITIVE),
            ("qk_norm", not self.normalize, "None where normalize is True"),
            ("normalize", has["normalizes"], normalizing),
            ("normalize", self.positive, POSITIVE),
            ("eps", self.normalize, "None where normalize is not True"),
        ):
            if given[name] is not None and not fits:
                raise ValueError(
                    f"{name}: got {given[name]!r} with {self.feature_map!r} and {self.rule}, expected {expected}"
                )

    def _refuse_others(
        self, conv_size: int | None, output_norm: bool, output_gate: bool, norm_eps: float | None, constants: Any
    ) -> None:
        for name, got, fits, expected in (
            ("redraw", self.redraw or None, self.map_argument == "m", maps_of("m")),
            ("causal", None if self.causal else False, self.rule in NONCAUSAL, f"rule={' or '.join(NONCAUSAL)}"),
            ("conv_size", conv_size, self.causal, "None where causal is False"),
            ("conv_size", conv_size, conv_size in (None, *WIDTHS), f"{WIDTHS[0]} to {WIDTHS[-1]}"),
            ("output_gate", output_gate or None, output_norm, "False where output_norm is False"),
            ("norm_eps", norm_eps, output_norm, "None where output_norm is False"),
            ("time_constants", constants, self.gated, "None with a rule that has no gate"),
        ):
            if got is not None and not fits:
                raise ValueError(f"{name}: got {shown(got)}, expected {expected}")

    def reset_parameters(self) -> None:
        """Draw the parameters, and FAVOR+'s directions, anew."""
        children: dict[str, Any] = dict(self.named_children())
        for name, module in children.items():
            if not isinstance(module, nn.Linear):
                module.reset_parameters()
                continue
            nn.init.xavier_uniform_(module.weight, gain=2**-0.5 if name in ("q_proj", "k_proj", "v_proj") else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.gated:
            with torch.no_grad():
                self.g_proj.weight.zero_()
                self.A_log.zero_()
                low, high = map(math.log, self.time_constants)
                spread = torch.arange(self.kv_heads, device=self.dt_bias.device, dtype=torch.float64)
                middle = (spread + 0.5) / self.kv_heads if self.kv_heads == 1 else spread / (self.kv_heads - 1)
                dt = (low + (high - low) * middle).exp().repeat_interleave(len(self.dt_bias) // self.kv_heads)
                self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        if self.map_argument == "m" and not self.omega.is_meta:
            self.omega.copy_(self._drawn_omega())

    def _drawn_omega(self) -> Tensor:
        seed = int(torch.randint(2**32, (), device="cpu"))
        omega = feature_maps.draw_omega(self.head_dim, self.omega.shape[1], Philox(seed))
        return torch.from_numpy(omega).to(self.omega)

    def _map(self, x: Tensor) -> Tensor:
        if self.feature_map is None:
            return x
        if self.map_argument == "m":
            return _operators.feature_map(self.feature_map, x * self.head_dim**-0.25, None, self.omega)
        nu = self.nu if self.map_argument == "nu" else None
        return _operators.feature_map(self.feature_map, x, nu, None)

    def _convolved(
        self, name: str, x: Tensor, state: AttentionState | None, place: int, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        y = getattr(self, f"{name}_proj")(x)
        if self.conv_size is None:
            return y, None
        before = None if state is None or state.convolution is None else state.convolution[place]
        result: tuple[Tensor, Tensor | None] = getattr(self, f"{name}_conv1d")(y, before, **options)
        return result

    def _strengths(self, x: Tensor) -> list[Tensor]:
        """g, beta, or b and w, of what writes."""
        inputs = []
        if self.gated:
            dt = F.softplus(self.g_proj(x) + self.dt_bias)
            A = -self.A_log.exp()
            inputs.append(A[:, None] * split(dt, self.features) if self.channel_gate else A * dt)
        if hasattr(self, "beta_proj"):
            inputs.append(self.beta_proj(x).sigmoid())
        if hasattr(self, "b_proj"):
            inputs += [split(self.b_proj(x).sigmoid(), self.features), split(self.w_proj(x).sigmoid(), self.value_dim)]
        return inputs

    def forward(
        self,
        x: Tensor,
        state: AttentionState | None = None,
        *,
        context: Tensor | None = None,
        key_lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, AttentionState]:
        """Attend.

        Parameters
        ----------
        x : tensor (B, T, d_model)
        state : AttentionState, optional
            What an earlier call returned, of the tokens before. With causal=False queries read it, and what context
            adds to it: without a context nothing is written, as in cross attention while decoding.
        context : tensor (B, N, d_model), optional
            Only with causal=False: keys and values come from it instead of x.
        key_lengths : tensor (B,) of integers, optional
            How many keys of each row there are, 0 .. N (or T); the others are padding. With causal=False, and with
            softmax_attention.
        cu_seqlens : tensor (n + 1,), optional
            Packs n sequences into one row, as in `fwm_py.rules`; neither with softmax nor with causal=False.
        return_state : bool

        Returns
        -------
        tensor (B, T, d_model), and with return_state the state after the last token
        """
        self._check_call(x, state, context, key_lengths, cu_seqlens, return_state)
        if self.redraw and self.training and state is None:
            self.omega = self._drawn_omega()
        reads_only = not self.causal and state is not None and context is None
        source = x if context is None else context
        first = 0 if state is None else state.tokens
        options = {"cu_seqlens": cu_seqlens, "return_state": return_state}
        q, q_state = self._convolved("q", x, state, 0, **options)
        q = self._map(self._turned(q, first))
        if reads_only:
            k, v = (q.new_empty(x.shape[0], 0, self.kv_heads, size) for size in (self.features, self.value_dim))
            convolution: Any = None
        else:
            k, k_state = self._convolved("k", source, state, 1, **options)
            v, v_state = self._convolved("v", source, state, 2, **options)
            k, v = self._map(self._turned(k, first)), split(v, self.value_dim)
            convolution = (q_state, k_state, v_state) if self.conv_size and return_state else None
        before: Any = None if state is None else state.memory
        if self.rule == "softmax_attention":
            memory: Memory | KeyCache
            o, memory = self._softmax(q, k, v, before, key_lengths)
        else:
            where = {"cu_seqlens": cu_seqlens} if self.causal else {"causal": False, "key_lengths": key_lengths}
            o, memory = self._write_and_read(
                (q, k, v, *self._strengths(source)), initial_state=before, output_final_state=return_state, **where
            )
        y = self._output(x, o)
        tokens = first + x.shape[1] if self.rotary else 0
        return (y, AttentionState(memory, convolution, tokens)) if return_state else y

    def _turned(self, x: Tensor, first: int) -> Tensor:
        """(B, T, heads head_dim) -> (B, T, heads, head_dim), with rotary positions if the layer has them."""
        x = split(x, self.head_dim)
        return rotated(x, first) if self.rotary else x

    def _check_call(
        self,
        x: Tensor,
        state: AttentionState | None,
        context: Tensor | None,
        key_lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        return_state: bool,
    ) -> None:
        check_flag("return_state", return_state)
        softmax = self.rule == "softmax_attention"
        for name, got, fits, expected in (
            ("context", context, not self.causal, "None where causal is True"),
            ("key_lengths", key_lengths, softmax or not self.causal, "None with a causal rule"),
            ("key_lengths", key_lengths, context is not None or state is None, "None with a state and no context"),
            (
                "key_lengths",
                key_lengths,
                not (softmax and state is not None),
                "None with softmax_attention and a state",
            ),
            ("key_lengths", key_lengths, not (softmax and self.causal and return_state), "None with return_state"),
            ("cu_seqlens", cu_seqlens, not softmax and self.causal, "None with softmax_attention and causal=False"),
            ("cu_seqlens", cu_seqlens, not self.rotary, "None with rotary positions"),
            ("context", context, not self.rotary, "None with rotary positions"),
        ):
            if got is not None and not fits:
                raise ValueError(f"{name}: got a tensor, expected {expected}")
        for name, given in (("x", x), ("context", context)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"{name}: got {shown(given)}, expected a tensor")
            if given is not None and (given.dim() != 3 or given.shape[-1] != self.q_proj.in_features):
                shape = tuple(given.shape)
                raise ValueError(f"{name}: got shape {shape}, expected (B, T, {self.q_proj.in_features})")
        if context is not None and context.shape[0] != x.shape[0]:
            raise ValueError(f"context: got {context.shape[0]} rows, expected {x.shape[0]}, as x has")
        if state is not None:
            check_state(self, state, n_sequences(x, cu_seqlens) if isinstance(cu_seqlens, Tensor) else x.shape[0])

    def _softmax(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KeyCache | None, key_lengths: Tensor | None
    ) -> tuple[Tensor, KeyCache]:
        if cache is None:
            cache = KeyCache.of(k, v, key_lengths)
        elif k.shape[1]:
            cache = cache.append(k, v, q.requires_grad)
        keys, values, lengths, causal = cache.keys, cache.values, cache.key_lengths, self.causal
        if causal and q.shape[1] == 1 and not keys.is_contiguous():
            # one token sees every key: those of the buffers, which are not copied, up to where they end
            keys, values = cache.buffers
            lengths, causal = torch.full((q.shape[0],), cache.length, dtype=torch.int64), False
        o = fwm.softmax_attention(q, keys, values, causal=causal, key_lengths=lengths, scale=self.scale)
        return o, cache

    def _write_and_read(self, inputs: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, Memory]:
        options["scale"] = 1.0 if self.qk_norm == "sum" and self.scale is None else self.scale
        if self.has["normalizes"]:
            options |= {"normalize": self.normalize, "eps": self.eps}
        if self.has["has_qk_norm"]:
            options["qk_norm"] = self.qk_norm
        result: tuple[Tensor, Memory] = getattr(fwm, self.rule)(*inputs, **options)
        return result

    def _output(self, x: Tensor, o: Tensor) -> Tensor:
        """From what the heads read (B, T, heads, value_dim) to the layer's output."""
        if self.o_norm is not None:
            gate = split(self.gate_proj(x), self.value_dim) if self.output_gate else None
            o = self.o_norm(o, gate)
        y: Tensor = self.o_proj(o.flatten(2))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def extra_repr(self) -> str:
        words = [f"heads={self.heads}", f"feature_map={self.feature_map!r}", f"rule={self.rule!r}"]
        words += [f"qk_norm={self.qk_norm!r}"] if self.has["has_qk_norm"] and not self.normalize else []
        words += ["normalize=True"] if self.normalize else []
        words += [f"kv_heads={self.kv_heads}"] if self.kv_heads != self.heads else []
        words += [f"conv_size={self.conv_size}"] if self.conv_size else []
        return ", ".join([*words, *([] if self.causal else ["causal=False"])])
