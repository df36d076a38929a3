"""`fwm-py translation`: prepare parallel texts, train a model on them, let it translate, score it, sweep variants."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure, integer
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
from fwm_py.experiments.translation.settings import NONCAUSAL, PLACES, PRESETS, Settings

MEANINGS = {
    "rule": " or ".join(NONCAUSAL) + ", of all memories",
    "feature_map": "none, elu1, tanh, dpfpN, favorN: of all memories but those of softmax (elu1)",
    **{f"{place}_rule": f"of the memories of the {place}" for place in PLACES},
    **{f"{place}_map": f"of the memories of the {place}" for place in PLACES},
    "decoder_rule": "of the decoder's own memories: also delta, gated_delta, ..",
    "encoder_layers": "of memory and feed-forward network",
    "decoder_layers": "of two memories and feed-forward network",
    "attention_dropout": "of what memories answer",
    "label_smoothing": "of the loss that is trained on",
    "batch_tokens": "of a part of a batch, with padding",
    "max_steps": "of training",
    "average": "the model is the mean of those of so many last checkpoints",
}
SWITCHES = {"redraw": "draw FAVOR+'s features anew in each step"}
LINES = 1000
"""Read before they are translated, so that those of about the same length go together."""


def add_translation_flags(parser: argparse.ArgumentParser) -> None:
    add_actions(parser, ACTIONS, "translations", "translation")


# ---- prepare ----


def add_prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", metavar="FILE", required=True, help="sentences of training, one a line")
    parser.add_argument("--target", metavar="FILE", required=True, help="their translations, line by line")
    for split in ("valid", "test"):
        parser.add_argument(
            f"--{split}", metavar=("SOURCE", "TARGET"), nargs=2, help="if not given, some of the training's"
        )
    parser.add_argument("--vocab", metavar="V", default="4000", help="tokens of both sides together (default 4000)")
    parser.add_argument("--max_length", metavar="N", default="256", help="tokens of a side of training (default 256)")
    parser.add_argument(
        "--max_ratio", metavar="R", default="4", help="of the tokens of both sides of training (default 4)"
    )
    parser.add_argument("--out", metavar="DATA", required=True, help="a new folder")


def run_prepare(args: argparse.Namespace) -> int:
    from fwm_py.experiments.translation.data import prepare

    parser = args.parser
    data = prepare(
        args.source,
        args.target,
        args.out,
        valid=args.valid,
        test=args.test,
        vocab=integer(parser, "vocab", args.vocab, 257, 1 << 20),
        max_length=integer(parser, "max_length", args.max_length, 2, 1 << 20),
        max_ratio=number(parser, "max_ratio", args.max_ratio),
    )
    print_table(("", "pairs", "source tokens", "target tokens"), [(split, *n) for split, n in data.counts.items()])
    left_out = ", ".join(f"{n} {why}" for why, n in data.facts["left_out"].items())
    known = ", ".join(f"{n} pairs of {split}" for split, n in data.facts["known"].items() if n)
    floors = ", ".join(f"{name} {bleu:.1f}" for name, bleu in data.floors.items())
    print(f"{args.out}: left out: {left_out}; BLEU of test without a model: {floors}")
    if known:
        print(f"{args.parser.prog}: training has {known} too", file=sys.stderr)
    return 0


# ---- train ----


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    add_training_flags(parser, Settings, PRESETS, MEANINGS, SWITCHES)


def run_train(args: argparse.Namespace) -> int:
    settings = settings_of(args, Settings, PRESETS)
    from fwm_py.experiments.training import processes
    from fwm_py.experiments.translation.data import Data
    from fwm_py.experiments.translation.run import train

    set_threads(args)
    with processes() as first:
        result = train(settings, Data.open(args.data, verify=True), args.out, resume=args.resume, on_log=progress())
        if first:
            skipped = f", {result['skipped']} skipped" if result["skipped"] else ""
            print(
                f"{args.out}: valid: perplexity {result['valid']['perplexity']:.2f}; "
                f"test: {told(result['test'])}; {result['steps']} steps{skipped}, {result['seconds']:.1f} s"
            )
    return 0


def told(score: dict[str, Any]) -> str:
    return "BLEU {bleu:.1f}, chrF {chrf:.1f}, {exact:.1%} exact".format(**score)


# ---- translate, score ----


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    add_run_flags(parser)
    parser.add_argument("--beam", metavar="K", default="4", help="beginnings that are followed; 1: greedy (default 4)")
    parser.add_argument("--length_penalty", metavar="A", default="1", help="scores are divided by length^A (default 1)")


def searching(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The model, the data, and the options of the search."""
    options = {
        "beam": integer(args.parser, "beam", args.beam, 1, 1 << 10),
        "length_penalty": number(args.parser, "length_penalty", args.length_penalty),
    }
    from fwm_py.experiments.translation.data import Data
    from fwm_py.experiments.translation.model import load_model

    set_threads(args)
    model, _ = load_model(args.run_folder)
    return model, open_data(args, Data), options


def lines_of_input(file: BinaryIO) -> Iterator[str]:
    for number_, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number_ == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise Failure(2, f"line {number_}: got no UTF-8 at byte {error.start}, expected text") from None


def run_translate(args: argparse.Namespace) -> int:
    from fwm_py.experiments.translation.scores import translate_texts

    for name, file in (("input", sys.stdin), ("output", sys.stdout)):
        if file is None:
            raise Failure(2, f"standard {name}: got none, expected a file, a pipe or a terminal")
    model, data, options = searching(args)
    at_once, lines = 1 if sys.stdin.isatty() else LINES, lines_of_input(sys.stdin.buffer)
    while texts := [text for _, text in zip(range(at_once), lines)]:
        for translation in translate_texts(model, data, texts, **options):
            sys.stdout.buffer.write(f"{translation}\n".encode())  # UTF-8 as the input, whatever the locale
        sys.stdout.flush()
    return 0


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    add_search_flags(parser)
    parser.add_argument("--split", metavar="SPLIT", default="test", help="test or valid (default test)")


def run_score(args: argparse.Namespace) -> int:
    from fwm_py.experiments.translation.scores import score

    if args.split not in ("test", "valid"):
        args.parser.error(f"--split: got {shown(args.split)}, expected test or valid")
    model, data, options = searching(args)
    found = score(model, data, args.split, **options)
    print(f"{args.run_folder}: {args.split}: {told(found._asdict())}")
    print(found.signature)
    return 0


# ---- sweep ----


def run_sweep(args: argparse.Namespace) -> int:
    from fwm_py.experiments.translation.sweeps import sweep

    others = Column("chrF", "chrf"), Column("valid perplexity", "valid_perplexity")
    return run_sweep_command(args, sweep, Column("BLEU", "bleu"), others)


def run_figures(args: argparse.Namespace) -> int:
    from fwm_py.experiments.translation import figures

    return draw_sweep(args, figures.load, figures.FIGURES)


ACTIONS = {
    "prepare": Action("Make tokens of parallel texts", add_prepare_flags, run_prepare),
    "train": Action("Train a model", add_train_flags, run_train, RESUMES),
    "translate": Action("Translate the lines of the standard input", add_search_flags, run_translate),
    "score": Action("Translate test or valid, and compare", add_score_flags, run_score),
    "sweep": Action("Train variants and seeds", add_sweep_flags, run_sweep),
    "figures": Action("Draw a sweep: curves, and BLEU of each variant", add_figures_flags, run_figures),
}
