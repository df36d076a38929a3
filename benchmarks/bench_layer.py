"""What surrounds the rule in a layer of transformers' Qwen3-Next, against what the model calls, as a Markdown table.

    python benchmarks/bench_layer.py [--threads 2] [--repeats 7] [--json FILE] [--quick]

The causal convolution with SiLU, the gated RMS norm, and softmax attention, on tensors, each forward, and forward and
backward by autograd; float32. Both sides run in turn; times are medians over repetitions, ratios medians of the
repetitions' ratios. Beside them stands the time to move each input and each result once, at the rate of a = b + s c
with arrays as large together, or that of attention's products at the rate of torch.matmul, if longer. Nobody is timed
before all results agree to 1e-5 of the largest. Each row has a process of its own, which keeps the memory that it has
had (glibc): the time of new pages, as long as the work, comes and goes otherwise.
"""

import argparse
import ctypes
import json
import multiprocessing
import platform
from pathlib import Path

import roofline
import torch
from bench_kernels import alternate, ms, print_table, ratio
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

import fwm_py
import fwm_py.transformers as bridge

TOLERANCE = 1e-5
PASSES = ("forward", "forward + backward")


class AttentionLayer(torch.nn.Module):
    is_causal, num_key_value_groups = True, 8


# Each makes, for T tokens, the inputs, the least FLOP where products are most of the work, and what looks up, like the
# model, the function to call, in whose place `enable` puts ours.


def convolution(T):
    def found():
        function = qwen3_next.causal_conv1d_fn
        return lambda x, weight: function(x.transpose(1, 2), weight, None, activation="silu")

    return (torch.randn(1, T, 8192), torch.randn(8192, 4)), 0, found


def gated_norm(T):
    norm = qwen3_next.Qwen3NextRMSNormGated(128)
    return (torch.randn(32 * T, 128), torch.randn(32 * T, 128)), 0, lambda: norm.forward


def softmax_attention(T):
    inputs = torch.randn(1, 16, T, 256), torch.randn(1, 2, T, 256), torch.randn(1, 2, T, 256)

    def found():
        function = qwen3_next.ALL_ATTENTION_FUNCTIONS["sdpa"]
        return lambda q, k, v: function(AttentionLayer(), q, k, v, None)[0]

    return inputs, 16 * T * (T + 1) // 2 * 4 * 256, found


ROWS = {
    "convolution, T 2048, D 8192, W 4": convolution,
    "gated RMS norm, 65536 rows of 128": gated_norm,
    "softmax attention, T 2048, 16 and 2 heads of 256": softmax_attention,
}


def call_of(function, inputs, backward):
    """What runs once, and returns all that it computed. The gradient that comes in lies as the result does."""
    inputs = [x.detach().requires_grad_(backward) for x in inputs]
    with torch.no_grad():
        y = function(*inputs)
    dy = torch.empty_like(y).copy_(torch.linspace(-1, 1, y.numel()).view(y.shape))

    def call():
        if not backward:
            with torch.no_grad():
                return [function(*inputs)]
        y = function(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, dy)]

    return call


def keep_memory():
    """Nothing is given back to the system, and nothing is mapped by itself."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, everything = -1, -3, 2**30
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        ctypes.CDLL(None).mallopt(option, everything)


def measure(make, T, backward, threads, repeats):
    """Seconds of both sides by repetition, and the least by the machine's rates."""
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    inputs, flop, found = make(T)
    theirs = call_of(found(), inputs, backward)
    with bridge.enabled():  # what is put there goes back to theirs when it is no longer held
        ours = call_of(found(), inputs, backward)
        results = ours()
        for mine, wanted in zip(results, theirs(), strict=True):
            error = ((mine - wanted).abs().max() / wanted.abs().max()).item()
            if not error <= TOLERANCE:
                raise RuntimeError(f"{make.__name__}: differs from theirs by {error:.1e} of the largest")
        seconds = alternate([ours, theirs], repeats)
    moved = (
        [*inputs, *results, results[0], *inputs] if backward else [*inputs, *results]
    )  # dy is like y; inputs are read twice
    n_bytes = sum(4 * x.numel() for x in moved)
    least = max(
        n_bytes / roofline.triad_rate(threads, n_bytes),
        (3.5 if backward else 1) * flop / roofline.product_rate(threads),
    )
    return {"seconds": seconds, "at these rates": least}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all that was measured, in seconds")
    parser.add_argument("--quick", action="store_true", help="few tokens, two repetitions: does it run?")
    args = parser.parse_args()
    print(
        f"{roofline.cpu_model()}; {args.threads} threads; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, fwm_py {fwm_py.__version__} ({fwm_py.build_info()['variant']})."
    )
    rows = {}
    for name, make in ROWS.items():
        for direction in PASSES:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                arguments = (
                    make,
                    64 if args.quick else 2048,
                    direction != PASSES[0],
                    args.threads,
                    2 if args.quick else args.repeats,
                )
                rows[f"{name}: {direction}"] = pool.apply(measure, arguments)
    lines = [
        [name, *map(ms, row["seconds"]), ratio(*reversed(row["seconds"])), f"{1e3 * row['at these rates']:.3g}"]
        for name, row in rows.items()
    ]
    print_table(
        "Times and ratios of alternating calls.",
        ["work", "ours, ms", "theirs, ms", "theirs / ours", "at these rates, ms"],
        lines,
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
