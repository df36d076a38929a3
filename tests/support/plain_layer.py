"""FastWeightAttention written out in plain PyTorch, from the equations, token by token."""

import numpy as np
import torch
import torch.nn.functional as F

from fwm_py import _core
from support import oracle

MAP_ROWS = {row["function"]: row for row in _core.MAPS}


class Phi(torch.autograd.Function):
    """The map of oracle.py; its gradient by the complex step."""

    @staticmethod
    def forward(ctx, x, name, arguments):
        phi, x = oracle.MAPS[name], x.detach().numpy()
        steps = 1e-30j * np.eye(x.shape[-1])
        ctx.jacobian = torch.from_numpy(phi(x[..., None, :] + steps, *arguments).imag / 1e-30)  # (..., d, p)
        return torch.from_numpy(phi(x, *arguments))

    @staticmethod
    def backward(ctx, dy):
        return (ctx.jacobian @ dy[..., None])[..., 0], None, None


def phi(layer, x):
    if layer.feature_map is None:
        return x
    row = MAP_ROWS[layer.feature_map]
    if row["takes_omega"]:
        return Phi.apply(x * layer.head_dim**-0.25, row["name"], (layer.omega.numpy(),))
    return Phi.apply(x, row["name"], (layer.nu,) if row["argument"] == "nu" else ())


def normalised(x):
    """x / sum(x); nothing of no features."""
    total = x.sum(-1, keepdim=True)
    return torch.where(total == 0, 0, x / torch.where(total == 0, 1, total))


def projected(layer, name, x, heads):
    """(B, T, heads, size), convolved if the layer does."""
    y = getattr(layer, f"{name}_proj")(x)
    if layer.conv_size:
        weight = getattr(layer, f"{name}_conv1d").weight
        padded = F.pad(y.transpose(1, 2), (layer.conv_size - 1, 0))
        y = F.silu(F.conv1d(padded, weight[:, None], groups=len(weight))).transpose(1, 2)
    return y.unflatten(-1, (heads, -1))


def turned(layer, x):
    """Rotary positions: numbers i and i + K/2 as a complex number, times exp(i t 10000^(-2 i / K))."""
    if not layer.rotary:
        return x
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None, None] * 10000.0 ** (
        -2 * torch.arange(half, dtype=torch.float64) / (2 * half)
    )
    y = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([y.real, y.imag], -1).to(x.dtype)


def keys_and_queries(layer, x, source):
    q = phi(layer, turned(layer, projected(layer, "q", x, layer.heads)))
    k = phi(layer, turned(layer, projected(layer, "k", source, layer.kv_heads)))
    if layer.qk_norm == "l2":
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    if layer.qk_norm == "sum":
        q, k = normalised(q), normalised(k)
    K, copies = k.shape[-1], layer.heads // layer.kv_heads
    scale = layer.scale if layer.scale is not None else 1.0 if layer.qk_norm == "sum" or layer.normalize else K**-0.5
    return scale * q.unflatten(2, (layer.kv_heads, copies)), k


def strengths(layer, x, k, v):
    """e, u and g, (B, T, kv_heads, ..) each."""
    split = (layer.kv_heads, -1)
    g = torch.zeros_like(k[..., :1])
    if layer.gated:
        g = -layer.A_log.exp()[:, None] * F.softplus(layer.g_proj(x) + layer.dt_bias).unflatten(-1, split)
    if hasattr(layer, "b_proj"):
        return layer.b_proj(x).sigmoid().unflatten(-1, split) * k, layer.w_proj(x).sigmoid().unflatten(-1, split) * v, g
    beta = layer.beta_proj(x).sigmoid()[..., None] if hasattr(layer, "beta_proj") else torch.ones_like(k[..., :1])
    return beta * k if hasattr(layer, "beta_proj") else torch.zeros_like(k), beta * v, g


def softmax(layer, q, k, v, there):
    """q (B, T, H, R, K), scaled"""
    T, S = q.shape[1], k.shape[1]
    scores = torch.einsum("bthrk,bshk->bhrts", q, k)
    seen = there[:, None, None, None, :].expand(scores.shape)
    if layer.causal:
        seen = seen & torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = torch.where(seen.any(-1, keepdim=True), scores.masked_fill(~seen, -torch.inf).softmax(-1), 0)
    return torch.einsum("bhrts,bshv->bthrv", weights.nan_to_num(), v)


def memory(layer, q, k, v, source, there):
    """Token by token; without the causal mask all keys at once."""
    B, N, H, K = k.shape
    if not layer.causal:
        k = k * there[..., None, None]
        S, z = torch.einsum("bnhk,bnhv->bhkv", k, v), k.sum(1)
        o = torch.einsum("bhkv,bthrk->bthrv", S, q)
        return o / (torch.einsum("bhk,bthrk->bthr", z, q)[..., None] + layer.eps) if layer.normalize else o
    erase, write, g = strengths(layer, source, k, v)
    S, z, out = k.new_zeros(B, H, K, v.shape[-1]), k.new_zeros(B, H, K), []
    for t in range(N):
        S = g[:, t].exp()[..., None] * S
        e = erase[:, t]
        if layer.normalize and hasattr(layer, "beta_proj"):
            e = e / ((z * k[:, t]).sum(-1, keepdim=True) + layer.eps)
        S = S + k[:, t, :, :, None] * (write[:, t] - torch.einsum("bhkv,bhk->bhv", S, e))[:, :, None]
        if layer.rule == "fast_weight_memory":
            S = S / S.square().sum((-2, -1), keepdim=True).sqrt().clamp(min=1)
        z = z + k[:, t]
        o = torch.einsum("bhkv,bhrk->bhrv", S, q[:, t])
        out.append(o / ((z[:, :, None] * q[:, t]).sum(-1, keepdim=True) + layer.eps) if layer.normalize else o)
    return torch.stack(out, 1)


def plain(layer, x, context=None, key_lengths=None):
    """What the layer computes of x (B, T, d_model)."""
    source = x if context is None else context
    q, k = keys_and_queries(layer, x, source)
    v = projected(layer, "v", source, layer.kv_heads)
    there = torch.ones(k.shape[:2], dtype=torch.bool)
    if key_lengths is not None:
        there = torch.arange(k.shape[1]) < key_lengths[:, None]
    read = softmax(layer, q, k, v, there) if layer.rule == "softmax_attention" else None
    o = (memory(layer, q, k, v, source, there) if read is None else read).flatten(2, 3)
    if layer.o_norm is not None:
        o = o / (o.square().mean(-1, keepdim=True) + layer.o_norm.eps).sqrt() * layer.o_norm.weight
    if layer.output_gate:
        o = o * F.silu(layer.gate_proj(x).unflatten(-1, (layer.heads, -1)))
    return layer.o_proj(o.flatten(2))
