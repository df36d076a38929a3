"""What a server asks of states, in one call of ours and by hand, for bench_kernels.py.

A piece of work says which sides do it; sides are made and called as those of alternatives.py.

    InPlace        one call of fwm_py on states that are value first, or those of a pool by number
    Transposed     the plain call, between copies of its states into the usual order and back, by PyTorch's threads
    Gathered       the plain call, between torch.index_select and index_copy_
    OnTheWay       one call of fwm_py that returns states after every so many tokens
    InPieces       a call for every so many tokens, each of which writes its state where the next one reads it
    Update         fwm_py.causal_conv1d_update, on the states of a pool or on rings
    TorchUpdate    PyTorch as in causal-conv1d's reference, whose arrays are (B, D, T); a pool as in Gathered
"""

from dataclasses import dataclass

import numpy as np
import torch
from alternatives import Ours, Work

import fwm_py


@dataclass(frozen=True)
class ValueFirst(Work):
    """A token, with states (B, HV, V, K)."""

    def draw(self):
        drawn = super().draw()
        return drawn | {"initial_state": drawn["initial_state"].swapaxes(2, 3).copy()}

    def states(self):
        return {"state_v_first": True}

    def sides(self, backward):
        return [InPlace, Transposed]


@dataclass(frozen=True)
class Pooled(Work):
    """A token of each of B sequences, whose states are in a pool of so many."""

    pool: int = 0

    def draw(self):
        state = np.random.default_rng(1).standard_normal((self.pool, self.HV, self.K, self.V), np.float32)
        return super().draw() | {"initial_state": state}

    def states(self):
        return {"state_indices": np.random.default_rng(2).permutation(self.pool)[: self.B]}

    def sides(self, backward):
        return [InPlace, Gathered]


@dataclass(frozen=True)
class Kept(Work):
    """A sequence of whole pieces of so many tokens, after each of which the state is kept."""

    every: int = 0

    def states(self):
        return {"return_states_every": self.every}

    def sides(self, backward):
        return [OnTheWay, InPieces]


class InPlace(Ours):
    def __init__(self, work, inputs, backward, threads):
        super().__init__(work, inputs, backward, threads)
        self.options |= work.states()


class ByHand(Ours):
    name = "by hand"

    def __init__(self, work, inputs, backward, threads):
        super().__init__(work, inputs, backward, threads)
        torch.set_num_threads(threads)
        self.kept = torch.from_numpy(self.state)
        self.state = np.empty((work.B, work.HV, work.K, work.V), np.float32)
        self.plain = torch.from_numpy(self.state)

    def __call__(self):
        self.fetch()
        super().__call__()
        self.put_back()

    def arrays(self):
        return self.results | {"final_state": self.kept.numpy()}


class Transposed(ByHand):
    def fetch(self):
        self.plain.copy_(self.kept.mT)

    def put_back(self):
        self.kept.copy_(self.plain.mT)


class Gathered(ByHand):
    def __init__(self, work, inputs, backward, threads):
        super().__init__(work, inputs, backward, threads)
        self.numbers = torch.from_numpy(work.states()["state_indices"])

    def fetch(self):
        torch.index_select(self.kept, 0, self.numbers, out=self.plain)

    def put_back(self):
        self.kept.index_copy_(0, self.numbers, self.plain)


class OnTheWay(InPlace):
    def __call__(self):
        _, _, states = self.forward(*self.inputs, out=self.out, **self.options)
        self.results = {"o": self.out, "states": states}


class InPieces(Ours):
    name = "by hand"

    def __init__(self, work, inputs, backward, threads):
        super().__init__(work, inputs, backward, threads)
        self.states = np.empty((work.B, work.T // work.every, work.HV, work.K, work.V), np.float32)
        self.results = {"o": self.out, "states": self.states}

    def __call__(self):
        state = None
        for i in range(self.states.shape[1]):
            piece = slice(i * self.work.every, (i + 1) * self.work.every)
            inputs, out = [x[:, piece] for x in self.inputs], (self.out[:, piece], self.states[:, i])
            _, state = self.forward(*inputs, initial_state=state, out=out, **self.options)


@dataclass(frozen=True)
class Convolution:
    """A token of each of B sequences through W taps of D channels; states are those of a pool, or rings of L tokens."""

    B: int
    D: int
    W: int
    pool: int = 0
    L: int = 0
    T: int = 1

    decodes = True

    def sizes(self):
        return f"B {self.B} T {self.T} D {self.D} W {self.W}"

    def flop(self, backward):
        return 2 * self.W * self.D * self.B * self.T

    def draw(self):
        random = np.random.default_rng(0)
        shapes = {"x": (self.B, self.T, self.D), "weight": (self.D, self.W), "bias": (self.D,)}
        shapes["conv_state"] = (self.pool or self.B, self.L or self.W - 1, self.D)
        drawn = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        if self.pool:
            return drawn | {"conv_state_indices": random.permutation(self.pool)[: self.B]}
        return drawn | {"cache_seqlens": random.integers(self.L, 10000, self.B)}

    def sides(self, backward):
        return [Update, TorchUpdate]


class Update:
    name = "ours"

    def __init__(self, work, inputs, backward, threads):
        fwm_py.set_num_threads(threads)
        self.work, self.state, self.y = work, inputs["conv_state"].copy(), np.empty_like(inputs["x"])
        self.inputs = inputs | {"conv_state": self.state}

    def __call__(self):
        fwm_py.causal_conv1d_update(**self.inputs, activation="silu", out=self.y)

    def arrays(self):
        return {"y": self.y, "conv_state": self.state}


class TorchUpdate:
    name = "torch"

    def __init__(self, work, inputs, backward, threads):
        torch.set_num_threads(threads)
        x = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self.x, self.state = x["x"].mT.contiguous(), x["conv_state"].mT.clone(memory_format=torch.contiguous_format)
        self.weight, self.bias, self.numbers = x["weight"].unsqueeze(1), x["bias"], x.get("conv_state_indices")
        if self.numbers is None:
            rows = (x["cache_seqlens"][:, None] + torch.arange(1 - work.W, 1)).remainder(work.L)
            self.rows = rows[:, None].expand(-1, work.D, -1)  # of the last tokens, and of this one

    def __call__(self):
        if self.numbers is None:
            tokens = torch.cat([self.state.gather(2, self.rows[..., :-1]), self.x], 2)
            self.state.scatter_(2, self.rows[..., -1:], self.x)
        else:
            tokens = torch.cat([self.state.index_select(0, self.numbers), self.x], 2)
            self.state.index_copy_(0, self.numbers, tokens[..., 1:])
        z = torch.nn.functional.conv1d(tokens, self.weight, self.bias, groups=len(self.weight))
        self.y = torch.nn.functional.silu(z)

    def arrays(self):
        return {"y": self.y.mT.numpy(), "conv_state": self.state.mT.numpy()}
