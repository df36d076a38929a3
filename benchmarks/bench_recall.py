"""A training step of fwm-py recall against the same model in plain PyTorch, its rule token by token.

    python benchmarks/bench_recall.py [--threads 1] [--repeats 9]

Both models have the same parameters, and nobody is timed before their logits agree to 1e-4. A step is forward,
backward and AdamW, float32; sides run in turn, medians over repetitions, ratios of the pairs.
"""

import argparse
import copy
import platform
import statistics
import time

import torch
import torch.nn.functional as F

import fwm_py
from fwm_py.experiments.recall import Model, Settings, Task

STEPS = 10  # of a repetition
RULES = ("delta", "gated_delta")


def normed(x, norm):
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)


def convolved(x, weight, bias=None):
    """A causal filter of each channel; x (B, T, D), weight (D, W)."""
    padded = F.pad(x.mT, (weight.shape[1] - 1, 0))
    return F.conv1d(padded, weight[:, None], bias, groups=len(weight)).mT


def delta(q, k, v, beta, decay):
    """S <- e^g S, S <- S + beta k (v - S^T k)^T, o = S^T q, a token at a time; one head, (B, T, size) each."""
    S, outputs = q.new_zeros(len(q), k.shape[-1], v.shape[-1]), []
    for t in range(q.shape[1]):
        S = S if decay is None else decay[:, t, :, None] * S
        u = beta[:, t] * (v[:, t] - torch.einsum("bk,bkv->bv", k[:, t], S))
        S = S + k[:, t, :, None] * u[:, None]
        outputs.append(torch.einsum("bk,bkv->bv", q[:, t], S))
    return torch.stack(outputs, 1)


class Plain(torch.nn.Module):
    """The model by PyTorch's own functions, on the parameters of ours."""

    def __init__(self, model):
        super().__init__()
        self.ours = copy.deepcopy(model)

    def memory(self, x):
        layer = self.ours.memory
        q, k, v = (
            F.silu(convolved(getattr(layer, f"{name}_proj")(x), getattr(layer, f"{name}_conv1d").weight))
            for name in "qkv"
        )
        q, k = (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6) for y in (q, k))
        gate = -layer.A_log.exp() * F.softplus(layer.g_proj(x) + layer.dt_bias) if layer.gated else None
        o = delta(q * q.shape[-1] ** -0.5, k, v, layer.beta_proj(x).sigmoid(), gate.exp() if layer.gated else None)
        return layer.o_proj(normed(o, layer.o_norm))

    def forward(self, tokens, asked):
        ours, gated = self.ours, self.ours.convolution
        x = ours.embed(tokens)
        y = normed(x, ours.norms[0])
        x = x + gated.o_proj(convolved(gated.a_proj(y), gated.weight, gated.bias) * gated.b_proj(y))
        x = x + self.memory(normed(x, ours.norms[1]))
        return normed(x.take_along_dim(asked[..., None], 1), ours.norms[2]) @ ours.embed.weight.T


def stepper(model, questions):
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    tokens, asked, answers = questions

    def steps():
        started = time.perf_counter()
        for _ in range(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(model(tokens, asked).flatten(0, 1), answers.flatten()).backward()
            optimiser.step()
        return (time.perf_counter() - started) / STEPS

    return steps


def row(rule, T, repeats):
    torch.manual_seed(0)
    settings = Settings(rule=rule, num_kv_pairs=T // 4, seq_len=T)
    ours = Model(settings)
    plain = Plain(ours)
    questions = tuple(map(torch.from_numpy, Task(settings, [0]).questions(settings.batch_size)))
    with torch.no_grad():
        torch.testing.assert_close(ours(*questions[:2]), plain(*questions[:2]), rtol=1e-4, atol=1e-4)
    sides = stepper(ours, questions), stepper(plain, questions)
    for side in sides:
        side()
    pairs = [[side() for side in sides] for _ in range(repeats)]
    here, there = (statistics.median(side) * 1e3 for side in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    return f"| {rule}, T {T} | {here:.2f} | {there:.1f} | {ratio:.1f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fwm_py.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}; {args.threads} threads; PyTorch {torch.__version__}\n")
    print("| width 32, batch 32 | here, ms | plain PyTorch, ms | ratio |\n|---|---:|---:|---:|")
    for rule in RULES:
        for T in (64, 128):
            print(row(rule, T, args.repeats))


if __name__ == "__main__":
    main()
