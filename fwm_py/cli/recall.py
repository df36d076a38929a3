"""`fwm-py recall`: how well memories answer multi-query associative recall."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure, integers, listed, numbers
from fwm_py.cli.study import add_study_flags, print_table, run_study_command
from fwm_py.experiments.recall import Row, Settings, at_best_rates, grid, study
from fwm_py.experiments.recall.settings import LIMITS
from fwm_py.experiments.words import RULES

OUT = "recall.csv"
BEST = "best"
FLAGS = ("normalize", "random_non_queries")
QUICK = {"rule": "softmax,delta,gated_delta,sum", "num_kv_pairs": "4", "seq_len": "16", "vocab_size": "64"}
MEANINGS = {
    "rule": ", ".join(RULES),
    "feature_map": "none, elu1, tanh, dpfpN, favorN",
    "conv_size": "tokens of the memory's short convolutions, 1..16; 0: none",
    "num_kv_pairs": "pairs of a key and its value, D",
    "seq_len": "tokens, T, at least 4 D",
    "vocab_size": "half of them keys, half values",
    "d_model": "width of the model",
    "heads": "of the memory",
    "batch_size": "sequences a step",
    "lr": "highest step sizes of AdamW, or best: for each of the rest, the best that FILE has tried",
    "warmup_steps": "over which the step size rises",
    "max_steps": "last step of a run that has not learned before",
    "seed": "of parameters and data",
}


def add_recall_flags(parser: argparse.ArgumentParser) -> None:
    """Lists are comma-separated; each combination is a run. None where a flag was not given."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name, text in MEANINGS.items():
        parser.add_argument("--" + name, metavar="LIST", help=f"{text} (default {defaults[name]})")
    parser.add_argument(
        "--normalize", action="store_true", help="divide by the sum of weights (sum, delta with a positive map)"
    )
    parser.add_argument(
        "--random_non_queries", action="store_true", help="random tokens where nothing is asked, instead of token 0"
    )
    given = " ".join(f"--{name} {value}" for name, value in QUICK.items())
    parser.add_argument("--quick", action="store_true", help=f"the defaults, but with {given}: less than a minute")
    add_study_flags(parser, OUT)


def run_recall(args: argparse.Namespace) -> int:
    try:
        from fwm_py.experiments.recall import measure  # noqa: F401  says whether PyTorch is there
    except ImportError as error:
        raise Failure(1, str(error)) from None
    return run_study_command(args, functools.partial(study, runs_of(args), args.out), ending, print_rows)


def runs_of(args: argparse.Namespace) -> list[Settings]:
    parser: argparse.ArgumentParser = args.parser
    if args.quick:
        for name, value in QUICK.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    given: dict[str, Any] = {name: getattr(args, name) for name in FLAGS}
    best = args.lr == BEST
    for name in MEANINGS:
        text = getattr(args, name)
        if text is None or (name == "lr" and best):
            continue
        if name in LIMITS:
            given[name] = integers(parser, name, text, *LIMITS[name])
        else:
            given[name] = numbers(parser, name, text) if name == "lr" else listed(text)
    try:
        runs = grid(**given)
        return at_best_rates(runs, args.out) if best else runs
    except (TypeError, ValueError) as error:
        parser.error(f"--{error}")
    except OSError as error:
        parser.error(f"--out: got {shown(args.out)}, expected a study's file ({error.strerror})")


# ---- what is printed ----


def memory_of(row: Row) -> str:
    return " ".join([row.rule, *[row.feature_map] * (row.feature_map != "none"), *["normalized"] * row.normalize])


def name_of(row: Row) -> str:
    return f"{memory_of(row)} D {row.num_kv_pairs} T {row.seq_len} width {row.d_model} lr {row.lr:g} seed {row.seed}"


def ending(row: Row) -> str:
    if row.accuracy is None:
        return f"{name_of(row)}: failed: {row.error}"
    return f"{name_of(row)}: accuracy {row.accuracy:.3f}, step {row.steps}, {row.seconds:.1f} s"


def print_rows(rows: Sequence[Row]) -> None:
    """A line for each memory, task, width and rate, over the seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.accuracy is not None:
            key = (row.num_kv_pairs, row.seq_len, row.d_model, memory_of(row), row.lr)
            groups.setdefault(key, []).append(row)
    lines = []
    for (D, T, width, memory, lr), runs in sorted(groups.items()):
        right = [row.accuracy or 0.0 for row in runs]
        learned = [row.steps_to_90 for row in runs if row.steps_to_90 is not None]
        to_90 = statistics.median(learned) if 2 * len(learned) > len(runs) else None
        lines.append((memory, D, T, width, f"{lr:g}", len(runs), f"{statistics.median(right):.3f}", f"{min(right):.3f}",
                      "-" if to_90 is None else f"{to_90:g}", runs[0].state, runs[0].parameters))  # fmt: skip
    headings = ("memory", "pairs", "T", "width", "lr", "runs", "accuracy", "lowest", "steps to 0.9", "numbers of state",
                "parameters")  # fmt: skip
    print_table(headings, lines)
