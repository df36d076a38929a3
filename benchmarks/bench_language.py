"""Tokens a second of training a language model, against the same model in plain PyTorch.

    python benchmarks/bench_language.py [--threads 1] [--repeats 9]

Nobody is timed before the logits agree. A step is forward, cross entropy, backward, clipping and AdamW, float32, by the
same loop; sides run in turn, medians over repetitions, ratios of the pairs. Plain PyTorch takes its own attention for
softmax, and for sum and delta products of chunks (torch_language.py); `by token` is delta as the paper's program has
it in equations, a step of time after the other, at its small model's width, feed-forward network and batch a device.
"""

import argparse
import platform
import statistics
import time

import torch
import torch.nn.functional as F
import torch_language

import fwm_py
from fwm_py.experiments.language import PRESETS, Settings
from fwm_py.experiments.language.model import make_model
from fwm_py.experiments.training import Stepper

STEPS = 3  # of a repetition
STUDY = {"sizes": "study", "vocab_size": 2048} | PRESETS["study"]
LMTOOL = {"sizes": "lmtool", "vocab_size": 8192, "layers": 4, "d_ff": 2048, "batch_size": 8}
ROWS = (
    (STUDY, "softmax", "none", "softmax"),
    (STUDY | {"normalize": True}, "sum", "elu1", "sum"),
    (STUDY, "delta", "elu1", "delta"),
    (STUDY, "delta", "elu1", "delta by token"),
    (LMTOOL | {"normalize": True}, "sum", "elu1", "sum"),
    (LMTOOL, "delta", "elu1", "delta"),
    (LMTOOL, "delta", "elu1", "delta by token"),
)


def stepper(model, settings, tokens, following):
    steps = Stepper(model, settings.lr, (settings.beta1, settings.beta2), settings.weight_decay, settings.clip)

    def loss():
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())

    def run():
        started = time.perf_counter()
        for _ in range(STEPS):
            steps.step(1e-4, [loss])
        return (time.perf_counter() - started) / STEPS

    return run


def row(sizes, rule, feature_map, memory, repeats):
    sizes = dict(sizes)
    name, vocab_size = sizes.pop("sizes"), sizes.pop("vocab_size")
    settings = Settings(rule=rule, feature_map=feature_map, **sizes)
    torch.manual_seed(0)
    ours = make_model(settings, vocab_size)
    plain = torch_language.Decoder(vocab_size, settings.d_model, settings.layers, settings.heads, settings.d_ff, memory)
    plain.load_state_dict(ours.state_dict())
    tokens, following = torch.randint(vocab_size, (2, settings.batch_size, settings.seq_len))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), plain(tokens), rtol=1e-3, atol=1e-3)
    sides = [stepper(model, settings, tokens, following) for model in (ours, plain)]
    for side in sides:
        side()
    pairs = [[side() for side in sides] for _ in range(repeats)]
    here, there = (tokens.numel() / statistics.median(side) for side in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    return f"| {name} | {memory} | {here:,.0f} | {there:,.0f} | {ratio:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    fwm_py.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}; {args.threads} threads; PyTorch {torch.__version__}\n")
    print("| sizes | plain PyTorch | here, tokens/s | there, tokens/s | ratio |\n|---|---|---:|---:|---:|")
    for sizes, *of in ROWS:
        print(row(sizes, *of, args.repeats), flush=True)


if __name__ == "__main__":
    main()
