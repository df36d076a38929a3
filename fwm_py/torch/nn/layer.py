"""A layer: multi-head attention whose memory is a fast weight matrix, with any feature map and any rule of `fwm_py`."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fwm_py.torch as fwm
from fwm_py import _core, feature_maps
from fwm_py.random import Philox
from fwm_py.torch import _operators
from fwm_py.torch._arrays import check_flag, shown

__all__ = ["FastWeightAttention"]

State = Tensor | tuple[Tensor, Tensor]

RULES = {row["function"]: row for row in _core.RULES}
MAPS = {row["function"]: row for row in _core.MAPS}
POSITIVE_MAPS = tuple(name for name, row in MAPS.items() if row["positive"])  # a sum of features is a sum of weights
POSITIVE = f"a positive map: {', '.join(POSITIVE_MAPS)}"


def maps_of(argument: str) -> str:
    """As a message says which maps take it."""
    return "feature_map=" + " or ".join(repr(name) for name, row in MAPS.items() if row["argument"] == argument)


def check_sizes(d_model: Any, heads: Any, **others: Any) -> None:
    for name, size in {"d_model": d_model, "heads": heads, **others}.items():
        if size is None and name in others:
            continue
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise TypeError(f"{name}: got {shown(size)}, expected an integer")
        if size < 1:
            raise ValueError(f"{name}: got {size}, expected at least 1")


def check_word(name: str, got: Any, words: tuple[Any, ...]) -> None:
    if not (got is None or isinstance(got, str)) or got not in words:
        raise ValueError(f"{name}: got {shown(got)}, expected one of {', '.join(map(repr, words))}")


class FastWeightAttention(nn.Module):
    """Causal multi-head attention: every head writes its keys and values into a memory, which its queries read.

    q, k, v = W_q x, W_k x, W_v x, split into heads; phi(q), phi(k) by the feature map; the rule's strengths and gates
    are projected from x too: beta, b, w = sigmoid(W x), g = -exp(A) softplus(W x + dt), which starts with a memory of
    10 to 1000 tokens. The heads' outputs are joined and projected to d_model.

    Parameters
    ----------
    d_model : int
        Size of a token.
    heads : int
    head_dim, value_dim : int, optional
        Sizes of a head's keys, before the map, and values: d_model // heads if not given.
    feature_map : str, optional
        phi, a function of `fwm_py.feature_maps`: none if not given.
    nu : int, optional
        Of DPFP: 3 if not given.
    features : int, optional
        m of FAVOR+, whose omega is drawn anew from PyTorch's generator: head_dim if not given.
    rule : str
        A function of `fwm_py.rules`, or "softmax_attention".
    gate : "scalar" or "channel", optional
        One gate a head or one a feature, where the rule leaves it open (gated_linear_attention): "scalar" if not given.
    qk_norm : None, "l2", "sum" or "auto"
        Of delta rules; "auto": "sum" for a positive map (the paper's), else "l2". "sum" needs a positive map, one
        whose features are never negative. Other rules normalise nothing.
    normalize : bool or "auto"
        Divide by the sum of weights (linear_attention); needs a positive map. "auto": where there is one. The
        division's eps is 1e-6, so that outputs fade to 0 where weights are as small: one token of 8 elu1 features of
        -10 weighs 0.016 in place of 1, and FAVOR+ at |x| = 8 (x scaled by head_dim**-1/4) about 0.002 or less.
    bias : bool
        Biases of q, k, v and of the output.

    Raises
    ------
    TypeError
        For sizes that are no integers, and a bias that is no bool.
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
        head_dim: int | None = None,
        value_dim: int | None = None,
        feature_map: str | None = None,
        nu: int | None = None,
        features: int | None = None,
        rule: str = "delta_rule",
        gate: Literal["scalar", "channel"] | None = None,
        qk_norm: Literal["l2", "sum", "auto"] | None = "auto",
        normalize: bool | Literal["auto"] = "auto",
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d_model=d_model, heads=heads, head_dim=head_dim, value_dim=value_dim, nu=nu, features=features)
        check_word("feature_map", feature_map, (None, *MAPS))
        check_word("rule", rule, (*RULES, "softmax_attention"))
        check_word("gate", gate, (None, "scalar", "channel"))
        check_word("qk_norm", qk_norm, (None, "l2", "sum", "auto"))
        if normalize is not True and normalize is not False:
            check_word("normalize", normalize, (True, False, "auto"))
        check_flag("bias", bias)
        if (head_dim is None or value_dim is None) and d_model % heads:
            raise ValueError(
                f"heads: got {heads}, expected a divisor of d_model = {d_model}, or head_dim and value_dim"
            )
        self.heads, self.rule, self.feature_map = heads, rule, feature_map
        self.row: Any = RULES.get(rule, {})
        self.map_argument = MAPS[feature_map]["argument"] if feature_map else ""
        self._settle(nu, features, gate, qk_norm, normalize)
        self.head_dim = d_model // heads if head_dim is None else head_dim
        self.value_dim = d_model // heads if value_dim is None else value_dim
        self.nu = 3 if nu is None else nu
        m = self.head_dim if features is None else features
        argument = {"": 0, "nu": self.nu, "m": m}[self.map_argument]
        self.features = _core.map_features(feature_map, self.head_dim, argument) if feature_map else self.head_dim
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(d_model, heads * self.head_dim, bias=bias, **made)
        self.k_proj = nn.Linear(d_model, heads * self.head_dim, bias=bias, **made)
        self.v_proj = nn.Linear(d_model, heads * self.value_dim, bias=bias, **made)
        self.o_proj = nn.Linear(heads * self.value_dim, d_model, bias=bias, **made)
        strength = self.row.get("strength", "")
        if strength == "beta":
            self.beta_proj = nn.Linear(d_model, heads, **made)
        elif strength:
            self.b_proj = nn.Linear(d_model, heads * self.features, **made)
            self.w_proj = nn.Linear(d_model, heads * self.value_dim, **made)
        if self.row and (self.row["scalar_gate"] or self.row["channel_gate"]):
            gates = heads * self.features if self.channel_gate else heads
            self.g_proj = nn.Linear(d_model, gates, bias=False, **made)
            self.A_log = nn.Parameter(torch.empty(heads, **made))
            self.dt_bias = nn.Parameter(torch.empty(gates, **made))
        if self.map_argument == "m":
            self.omega: Tensor
            self.register_buffer("omega", torch.empty(self.head_dim, m, **made))
        self.reset_parameters()

    def _settle(
        self, nu: int | None, features: int | None, gate: str | None, qk_norm: str | None, normalize: bool | str
    ) -> None:
        """What "auto" stands for; options are refused that this map or this rule does not have."""
        has = {"scalar_gate": False, "channel_gate": False, "has_qk_norm": False, "normalizes": False} | self.row
        positive = self.feature_map in POSITIVE_MAPS
        if qk_norm == "auto":
            qk_norm = ("sum" if positive else "l2") if has["has_qk_norm"] else None
        if normalize == "auto":
            normalize = has["normalizes"] and positive
        for name, got, fits, expected in (
            ("nu", nu, self.map_argument == "nu", maps_of("nu")),
            ("features", features, self.map_argument == "m", maps_of("m")),
            ("gate", gate, has["scalar_gate"] and has["channel_gate"], "rule='gated_linear_attention'"),
            ("qk_norm", qk_norm, has["has_qk_norm"], "a delta rule"),
            ("qk_norm", qk_norm, positive or qk_norm != "sum", POSITIVE),
            ("normalize", normalize or None, has["normalizes"], "rule='linear_attention'"),
            ("normalize", normalize or None, positive, POSITIVE),
        ):
            if got is not None and not fits:
                raise ValueError(f"{name}: got {got!r} with {self.feature_map!r} and {self.rule}, expected {expected}")
        self.channel_gate = has["channel_gate"] and (gate == "channel" or not has["scalar_gate"])
        self.qk_norm: Any = qk_norm
        self.normalize = bool(normalize)

    def reset_parameters(self) -> None:
        """Draw the parameters, and FAVOR+'s directions, anew."""
        projections: dict[str, Any] = dict(self.named_children())
        for name, module in projections.items():
            nn.init.xavier_uniform_(module.weight, gain=2**-0.5 if name in ("q_proj", "k_proj", "v_proj") else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if hasattr(self, "A_log"):
            with torch.no_grad():
                self.A_log.zero_()
                dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
                self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        if self.map_argument == "m" and not self.omega.is_meta:
            seed = int(torch.randint(2**32, (), device="cpu"))
            omega = feature_maps.draw_omega(self.head_dim, self.omega.shape[1], Philox(seed))
            self.omega.copy_(torch.from_numpy(omega))

    def _map(self, x: Tensor) -> Tensor:
        if self.feature_map is None:
            return x
        if self.map_argument == "m":
            return _operators.feature_map(self.feature_map, x * self.head_dim**-0.25, None, self.omega)
        nu = self.nu if self.map_argument == "nu" else None
        return _operators.feature_map(self.feature_map, x, nu, None)

    def _inputs(self, x: Tensor) -> list[Tensor]:
        """What the rule takes: q, k, v, then g, beta, or b and w."""

        def split(y: Tensor, size: int) -> Tensor:
            return y.reshape(*y.shape[:-1], self.heads, size)

        inputs = [
            self._map(split(self.q_proj(x), self.head_dim)),
            self._map(split(self.k_proj(x), self.head_dim)),
            split(self.v_proj(x), self.value_dim),
        ]
        if hasattr(self, "g_proj"):
            dt = F.softplus(self.g_proj(x) + self.dt_bias)
            inputs.append(
                -self.A_log.exp()[:, None] * split(dt, self.features) if self.channel_gate else -self.A_log.exp() * dt
            )
        if hasattr(self, "beta_proj"):
            inputs.append(self.beta_proj(x).sigmoid())
        if hasattr(self, "b_proj"):
            inputs += [split(self.b_proj(x).sigmoid(), self.features), split(self.w_proj(x).sigmoid(), self.value_dim)]
        return inputs

    def forward(
        self, x: Tensor, state: State | None = None, *, cu_seqlens: Tensor | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Attend.

        Parameters
        ----------
        x : tensor (B, T, d_model)
        state : tensor (n, heads, features, value_dim), or a pair, optional
            What an earlier call returned, of the tokens before: with normalize a pair (S, z), with softmax the keys and
            values.
        cu_seqlens : tensor (n + 1,), optional
            Packs n sequences into one row, as in `fwm_py.rules`; not with softmax.
        return_state : bool

        Returns
        -------
        tensor (B, T, d_model), and with return_state the state after the last token
        """
        check_flag("return_state", return_state)
        inputs = self._inputs(x)
        if self.rule == "softmax_attention":
            if cu_seqlens is not None:
                raise ValueError("cu_seqlens: got a tensor, expected None with softmax_attention")
            q, k, v = inputs
            if state is not None:
                k, v = torch.cat([state[0], k], dim=1), torch.cat([state[1], v], dim=1)
            o, after = fwm.softmax_attention(q, k, v), (k, v)
        else:
            options: dict[str, Any] = {"normalize": self.normalize} if self.row["normalizes"] else {}
            if self.row["has_qk_norm"]:
                options["qk_norm"] = self.qk_norm
            if self.qk_norm == "sum":
                options["scale"] = 1.0
            o, after = getattr(fwm, self.rule)(
                *inputs, initial_state=state, output_final_state=return_state, cu_seqlens=cu_seqlens, **options
            )
        y = self.o_proj(o.flatten(2))
        return (y, after) if return_state else y

    def extra_repr(self) -> str:
        norm = (
            f", qk_norm={self.qk_norm!r}"
            if self.row.get("has_qk_norm")
            else ", normalize=True"
            if self.normalize
            else ""
        )
        return f"heads={self.heads}, feature_map={self.feature_map!r}, rule={self.rule!r}{norm}"
