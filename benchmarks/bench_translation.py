"""Beam search from states, against the same search that computes all tokens again for each one that is added.

    python benchmarks/bench_translation.py [--sentences 1000] [--threads 1] [--beam 4] [--longest 1]

The model has the sizes of the study (`--preset study` of fwm-py translation) and drawn parameters, sentences of 5 to 30
tokens; no translation ends before its longest length (twice that of its source and 20, or --longest tokens more than
its source), so that both searches make the same steps. Nobody is timed before both find the same translations of some
of the sentences.
"""

import argparse
import platform
import time

import numpy as np
import torch

import fwm_py
from fwm_py.experiments.translation import PRESETS, Settings, make_model, search, translate

VOCAB = 4000
MEMORIES = {"softmax": {"rule": "softmax"}, "elu + 1": {}, "elu + 1, delta in the decoder": {"decoder_rule": "delta"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--longest", type=int, help="tokens of a translation beyond those of its source")
    args = parser.parse_args()
    if args.longest is not None:
        search.longest_translation = lambda n: n + args.longest
    torch.set_num_threads(args.threads)
    fwm_py.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}; {args.threads} threads; PyTorch {torch.__version__}\n")
    print(f"| beam {args.beam}, {args.sentences} sentences | from states, s | again each token, s | ratio |")
    print("|---|---:|---:|---:|")
    random = np.random.default_rng(0)
    sources = [
        np.append(random.integers(1, VOCAB, length), 0) for length in random.integers(5, 31, size=args.sentences)
    ]
    for name, memories in MEMORIES.items():
        torch.manual_seed(0)
        model = make_model(Settings(**PRESETS["study"], **memories), VOCAB).eval()
        with torch.no_grad():
            model.embed.weight[0] = 0  # the end is never likely
        some = [translate(model, sources[:8], beam=args.beam, use_states=use) for use in (True, False)]
        assert [found.tokens for found in some[0]] == [found.tokens for found in some[1]]
        times = []
        for use in (True, False):
            started = time.perf_counter()
            translate(model, sources, beam=args.beam, use_states=use)
            times.append(time.perf_counter() - started)
        print(f"| {name} | {times[0]:.1f} | {times[1]:.1f} | {times[1] / times[0]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
