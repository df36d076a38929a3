"""The model that recalls: embedding, a gated short convolution, a layer with a memory, and the embedding again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fwm_py.torch as fwm
from fwm_py.experiments.recall.settings import Settings
from fwm_py.torch.nn import FastWeightAttention, RMSNorm

WIDTH = 3
"""Tokens that the gated convolution sees."""


class GatedConvolution(nn.Module):
    """y = W_o ((h * W_a x) . W_b x): a causal filter h of each channel over three tokens, times a gate.

    It can bring a key beside its value, which a layer of memory has to write together.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.a_proj, self.b_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.weight = nn.Parameter(torch.empty(d_model, WIDTH))
        self.bias = nn.Parameter(torch.empty(d_model))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(WIDTH**-0.5), WIDTH**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d_model)"""
        filtered, _ = fwm.causal_conv1d(self.a_proj(x), self.weight, self.bias)
        y: Tensor = self.o_proj(filtered * self.b_proj(x))
        return y


class Model(nn.Module):
    """Pre-norm residual layers between an embedding and itself.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        d = settings.d_model
        self.embed = nn.Embedding(settings.vocab_size, d)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.convolution = GatedConvolution(d)
        self.memory = FastWeightAttention(d, settings.heads, **settings.layer_options)
        self.norms = nn.ModuleList([RMSNorm(d, 1e-5) for _ in range(3)])

    def forward(self, tokens: Tensor, asked: Tensor) -> Tensor:
        """Logits (B, D, V) at the places `asked` (B, D) of tokens (B, T)."""
        x = self.embed(tokens)
        for norm, layer in zip(self.norms, (self.convolution, self.memory)):
            x = x + layer(norm(x))
        x = x.take_along_dim(asked[..., None], 1)
        logits: Tensor = self.norms[2](x) @ self.embed.weight.T
        return logits


@torch.no_grad()
def numbers_of_state(model: Model, seq_len: int) -> int:
    """How many numbers the memory holds after seq_len tokens: S and z, or the keys and values of softmax."""
    x = torch.zeros(1, seq_len, model.embed.weight.shape[1])
    state = model.memory(x, return_state=True)[1]
    return sum(part.numel() for name, part in state.tensors().items() if name in ("S", "z", "keys", "values"))
