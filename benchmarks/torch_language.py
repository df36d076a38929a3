"""The language model of fwm-py language in plain PyTorch, with the same parameters under the same names.

Shapes: B sequences of T tokens, H heads, K features of a key, V numbers of a value; C tokens of a chunk.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

CHUNK, EPS = 32, 1e-6


def chunks(x):  # (B, H, T, ..) -> (B, H, T / C, C, ..)
    return x.unflatten(2, (-1, min(CHUNK, x.shape[2])))


def linear(q, k, v, beta):
    """o_t = sum_s<=t (q_t . k_s) v_s / (sum_s<=t q_t . k_s + eps): a column of ones beside v carries the divisor."""
    q, k, v = chunks(q), chunks(k), chunks(F.pad(v, (0, 1), value=1.0))
    written = k.mT @ v
    o = (q @ (written.cumsum(2) - written) + (q @ k.mT).tril() @ v).flatten(2, 3)
    return o[..., :-1] / (o[..., -1:] + EPS)


def delta(q, k, v, beta):
    """By chunks: (I + tril(beta k k^T, -1)) u = beta (v - k S), o = q S + tril(q k^T) u, then S <- S + k^T u."""
    q, k, v, beta = chunks(q), chunks(k), chunks(v), chunks(beta)
    system = (beta * (k @ k.mT)).tril(-1)
    solved = torch.linalg.solve_triangular(system, beta * torch.cat([v, k], -1), upper=False, unitriangular=True)
    of_v, of_k = solved.split([v.shape[-1], k.shape[-1]], -1)
    scores = (q @ k.mT).tril()
    S, outputs = 0 * (k[:, :, 0].mT @ v[:, :, 0]), []
    for i in range(q.shape[2]):
        u = of_v[:, :, i] - of_k[:, :, i] @ S
        outputs.append(q[:, :, i] @ S + scores[:, :, i] @ u)
        S = S + k[:, :, i].mT @ u
    return torch.cat(outputs, 2)


def delta_by_token(q, k, v, beta):
    """lmtool's equations: W <- W + beta (v - W k) k^T, o = W q, a token at a time; W is kept transposed."""
    W, outputs = 0 * (k[:, :, :1].mT @ v[:, :, :1]), []
    for q_t, k_t, v_t, beta_t in zip(*(x.unbind(2) for x in (q, k, v, beta))):
        u = beta_t * (v_t - torch.einsum("bhk,bhkv->bhv", k_t, W))
        W = W + torch.einsum("bhk,bhv->bhkv", k_t, u)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, W))
    return torch.stack(outputs, 2)


SOFTMAX = partial(F.scaled_dot_product_attention, is_causal=True)
MEMORIES = {"softmax": SOFTMAX, "sum": linear, "delta": delta, "delta by token": delta_by_token}


class Attention(nn.Module):
    def __init__(self, d_model, heads, memory):
        super().__init__()
        self.heads, self.memory = heads, memory
        for name in "qkvo":
            self.add_module(f"{name}_proj", nn.Linear(d_model, d_model, bias=False))
        if memory.startswith("delta"):
            self.beta_proj = nn.Linear(d_model, heads)

    def forward(self, x):
        q, k, v = (getattr(self, f"{n}_proj")(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in "qkv")
        if self.memory != "softmax":
            q, k = F.elu(q) + 1, F.elu(k) + 1
        beta = None  # and no mask of softmax
        if self.memory.startswith("delta"):
            q, k = q / q.sum(-1, keepdim=True), k / k.sum(-1, keepdim=True)
            beta = self.beta_proj(x).sigmoid().mT[..., None]
        return self.o_proj(MEMORIES[self.memory](q, k, v, beta).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, d_model, heads, d_ff, memory):
        super().__init__()
        self.memory = Attention(d_model, heads, memory)
        self.memory_norm, self.ff_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.ff = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Dropout(0.0), nn.Linear(d_ff, d_model))

    def forward(self, x):
        x = x + self.memory(self.memory_norm(x))
        return x + self.ff(self.ff_norm(x))


class Decoder(nn.Module):
    def __init__(self, vocab_size, d_model, layers, heads, d_ff, memory):
        super().__init__()
        self.embed, self.norm = nn.Embedding(vocab_size, d_model), nn.LayerNorm(d_model)
        self.layers = nn.ModuleList([Layer(d_model, heads, d_ff, memory) for _ in range(layers)])

    def forward(self, tokens):
        size = self.embed.embedding_dim
        angles = torch.arange(tokens.shape[1])[:, None] / 1e4 ** (torch.arange(0, size, 2) / size)
        x = self.embed(tokens) * size**0.5 + torch.cat([angles.sin(), angles.cos()], 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embed.weight.T
