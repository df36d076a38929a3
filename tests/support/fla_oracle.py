"""The operations of flash-linear-attention in plain float64 PyTorch, token by token, differentiated by PyTorch."""

import itertools

import torch
from torch.nn.functional import softplus


def l2(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def recurrence(q, k, v, g=None, erase=None, write=None, *, scale=None, l2norm=False, state=None, bounds=None):
    """o (B, T, HV, V) and the final states (n, HV, K, V).

    S <- exp(g) S;  S <- S + k (write v - S^T (erase k))^T;  o = scale S^T q. g, erase and write (B, T, HV, 1 or more).
    """
    (B, T, H, K), (HV, V) = k.shape, v.shape[2:]
    if l2norm:
        q, k = l2(q), l2(k)
    q, k = (x.repeat_interleave(HV // H, 2) for x in (q, k))
    rows = [(b, 0, T) for b in range(B)] if bounds is None else [(0, *pair) for pair in itertools.pairwise(bounds)]
    outputs, states = [], []
    for i, (b, start, end) in enumerate(rows):
        S = v.new_zeros(HV, K, V) if state is None else state[i]
        for t in range(start, end):
            if g is not None:
                S = g[b, t].exp()[..., None] * S
            u = v[b, t] if write is None else write[b, t] * v[b, t]
            if erase is not None:
                u = u - torch.einsum("hkv,hk->hv", S, erase[b, t] * k[b, t])
            S = S + torch.einsum("hk,hv->hkv", k[b, t], u)
            outputs.append(torch.einsum("hkv,hk->hv", S, q[b, t]) * (K**-0.5 if scale is None else scale))
        states.append(S)
    return torch.stack(outputs).reshape(v.shape), torch.stack(states)


def gate(g, A_log, dt_bias, lower_bound=None):
    """Of g (B, T, HV) or (B, T, HV, K), A_log of HV numbers, and dt_bias of as many as a token of g."""
    x = g if dt_bias is None else g + dt_bias.reshape(g.shape[2:])
    rate = 1.0 if A_log is None else A_log.reshape(-1, *[1] * (g.dim() - 3)).exp()
    return -rate * softplus(x) if lower_bound is None else lower_bound * torch.sigmoid(rate * x)


def convolve(x, weight, bias, cache, activation):
    """y (T, D) of one sequence x (T, D), and its new cache (D, W)."""
    D, W = weight.shape
    cache = x.new_zeros(D, W) if cache is None else cache
    tokens = torch.cat([cache.T, x])
    y = [(tokens[t + 1 : W + t + 1] * weight.T).sum(0) for t in range(len(x))]
    y = torch.stack(y) + (0 if bias is None else bias)
    return (y if activation is None else y * torch.sigmoid(y)), tokens[len(tokens) - W :].T


def rms_norm(x, weight, bias=None, gate=None, activation=None, eps=1e-5):
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y * (1 if weight is None else weight) + (0 if bias is None else bias)
    if gate is None:
        return y
    return y * torch.sigmoid(gate) * (1 if activation == "sigmoid" else gate)
