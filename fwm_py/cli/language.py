"""`fwm-py language`: prepare a text, train a language model on it, evaluate it, let it write, convert it, sweep
variants."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fwm_py.checks import shown
from fwm_py.cli.failure import integer
from fwm_py.cli.models import (
    RESUMES,
    Action,
    Column,
    add_actions,
    add_figures_flags,
    add_run_flags,
    add_sweep_flags,
    add_training_flags,
    draw_sweep,
    number,
    open_data,
    progress,
    run_sweep_command,
    set_threads,
    settings_of,
)
from fwm_py.cli.study import print_table
from fwm_py.experiments.language.settings import PRESETS, Settings

MEANINGS = {
    "rule": ", ".join(Settings.WORDS["rule"]),
    "feature_map": "none, elu1, tanh, dpfpN, favorN",
    "conv_size": "tokens of the memories' short convolutions, 1..16; 0: none",
    "layers": "of memory and feed-forward network",
    "kv_heads": "heads of keys and values",
    "positions": ", ".join(Settings.WORDS["positions"]),
    "seq_len": "tokens of a segment",
    "batch_size": "segments of a part of a batch",
    "max_tokens": "of training",
}
SWITCHES = {
    "normalize": "divide by the sum of weights (sum, delta with a positive map)",
    "redraw": "draw FAVOR+'s features anew in each step",
    "carry": "ordered streams: a segment begins with the state of the one before it",
}


def add_language_flags(parser: argparse.ArgumentParser) -> None:
    add_actions(parser, ACTIONS, "language models", "language")


# ---- prepare ----


def add_prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="files, folders, .gz, .jsonl with a field text, or stdlib"
    )
    parser.add_argument("--vocab", metavar="V", default="2048", help="tokens (default 2048)")
    parser.add_argument("--out", metavar="DATA", required=True, help="a new folder")


def run_prepare(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.data import prepare

    vocab = integer(args.parser, "vocab", args.vocab, 257, 1 << 20)
    data = prepare(args.sources, args.out, vocab=vocab, on_skip=lambda text: print(text, file=sys.stderr))
    rows = [(split, data.documents[split], data.bytes[split], len(data.tokens(split))) for split in data.documents]
    print_table(("", "documents", "bytes", "tokens"), rows)
    floors = ", ".join(f"{name} {perplexity:.1f}" for name, perplexity in data.floors.items())
    print(f"{args.out}: perplexity of valid by counting: {floors}")
    return 0


# ---- train ----


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    add_training_flags(parser, Settings, PRESETS, MEANINGS, SWITCHES)


def run_train(args: argparse.Namespace) -> int:
    settings = settings_of(args, Settings, PRESETS)
    from fwm_py.experiments.language.data import Data
    from fwm_py.experiments.language.run import train
    from fwm_py.experiments.training import processes

    set_threads(args)
    with processes() as first:
        result = train(settings, Data.open(args.data, verify=True), args.out, resume=args.resume, on_log=progress())
        if first:
            scores = "; ".join(
                "{}: perplexity {perplexity:.2f}, {bits_per_byte:.3f} bits a byte".format(split, **result[split])
                for split in ("valid", "test")
            )
            skipped = f", {result['skipped']} skipped" if result["skipped"] else ""
            print(f"{args.out}: {scores}; {result['steps']} steps{skipped}, {result['seconds']:.1f} s")
    return 0


# ---- evaluate, generate ----


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    add_run_flags(parser)
    parser.add_argument("--mode", metavar="MODE", default="segments", help="segments, sliding or carry")
    parser.add_argument("--stride", metavar="S", help="tokens between windows, of sliding")
    parser.add_argument("--seq_len", metavar="T", help="tokens of a segment or window (default: as trained)")


def run_evaluate(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.data import Data
    from fwm_py.experiments.language.model import load_model
    from fwm_py.experiments.language.scores import MODES, evaluate
    from fwm_py.experiments.run import autocast

    parser = args.parser
    if args.mode not in MODES:
        parser.error(f"--mode: got {shown(args.mode)}, expected {', '.join(MODES)}")
    set_threads(args)
    model, settings = load_model(args.run_folder)
    data = open_data(args, Data)
    seq_len = settings.seq_len if args.seq_len is None else integer(parser, "seq_len", args.seq_len, 1, 1 << 24)
    if (args.stride is None) != (args.mode != "sliding"):
        parser.error(f"--stride: got {args.stride} with {args.mode}, expected it with sliding, and only there")
    stride = None if args.stride is None else integer(parser, "stride", args.stride, 1, seq_len)
    if args.mode == "carry" and not settings.carry:
        print(f"{parser.prog}: a state is carried into a model that was not trained so (--carry)", file=sys.stderr)
    rows = []
    for split in ("valid", "test"):
        tokens, n_bytes = data.tokens(split), data.bytes[split]
        with autocast(settings.bf16):  # as it was trained
            score = evaluate(model, tokens, n_bytes, seq_len=seq_len, mode=args.mode, stride=stride)
        rows.append((split, f"{score.perplexity:.3f}", f"{score.bits_per_byte:.4f}", score.tokens))
    print_table(("", "perplexity", "bits a byte", "tokens"), rows)
    return 0


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    add_run_flags(parser)
    parser.add_argument("text", metavar="TEXT", help="what it begins with")
    parser.add_argument("--tokens", metavar="N", default="200", help="how many follow (default 200)")
    parser.add_argument("--temperature", metavar="T", default="0.8", help="0: the most likely each time (default 0.8)")
    parser.add_argument("--top_k", metavar="K", help="draw among so many of the most likely (default: all)")
    parser.add_argument("--seed", metavar="S", help="of the draws (default 1)")


def run_generate(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.data import Data
    from fwm_py.experiments.language.model import load_model
    from fwm_py.experiments.language.sampling import generate
    from fwm_py.experiments.run import autocast

    parser = args.parser
    set_threads(args)
    model, settings = load_model(args.run_folder)
    data = open_data(args, Data)
    n = integer(parser, "tokens", args.tokens, 0, 1 << 40)
    top_k = None if args.top_k is None else integer(parser, "top_k", args.top_k, 1, data.vocab_size)
    temperature = number(parser, "temperature", args.temperature)
    seed = None if args.seed is None else integer(parser, "seed", args.seed, *Settings.LIMITS["seed"])
    if seed is not None and temperature == 0:
        parser.error(f"--seed: got {seed} with temperature 0, expected none: nothing is drawn")
    try:
        args.text.encode()
    except UnicodeEncodeError:
        parser.error(f"text: got {shown(args.text)}, expected UTF-8")
    tokens = data.tokenizer.encode(args.text).ids or [data.end]
    drawn: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "seed": 1 if seed is None else seed}
    with autocast(settings.bf16):
        found = [*tokens, *generate(model, tokens, n, **drawn, end=data.end)]
    print(data.tokenizer.decode(found))
    return 0


def add_convert_flags(parser: argparse.ArgumentParser) -> None:
    add_run_flags(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder")


def run_convert(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.data import Data
    from fwm_py.transformers.convert import convert

    set_threads(args)
    convert(args.run_folder, open_data(args, Data), args.out)
    print(f"{args.out}: AutoModelForCausalLM.from_pretrained({args.out!r}, trust_remote_code=True) loads it")
    return 0


# ---- sweep ----


def run_sweep(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.sweeps import sweep

    others = (
        Column("test perplexity", "test_perplexity"),
        Column("bits a byte", "test_bits", 3),
        Column("numbers of state", "state", 0),
        Column("parameters", "parameters", 0),
    )
    return run_sweep_command(args, sweep, Column("valid perplexity", "valid_perplexity"), others)


def run_figures(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language import figures

    return draw_sweep(args, figures.load, figures.FIGURES)


ACTIONS = {
    "prepare": Action("Make tokens of texts", add_prepare_flags, run_prepare),
    "train": Action("Train a model", add_train_flags, run_train, RESUMES),
    "evaluate": Action("Say how well a model predicts valid and test", add_evaluate_flags, run_evaluate),
    "generate": Action("Let a model go on with a text", add_generate_flags, run_generate),
    "convert": Action("Write a model and its tokenizer for transformers", add_convert_flags, run_convert),
    "sweep": Action("Train variants and seeds", add_sweep_flags, run_sweep),
    "figures": Action("Draw a sweep: curves, and perplexity against the state", add_figures_flags, run_figures),
}
