"""The commands, and the way into each of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import fwm_py
from fwm_py.checks import shown
from fwm_py.cli import capacity, compare, figures, language, recall, reproduce, train, translation
from fwm_py.cli.failure import Failure

PROGRAM = "fwm-py"


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str) -> NoReturn:
        message = " ".join(message.removeprefix("argument ").split())
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (default: the process's arguments) and return its exit status.

    Raises
    ------
    SystemExit
        With status 2 for wrong arguments, 0 for `--help` and `--version`.
    """
    parser = make_parser()
    args, unknown = parser.parse_known_args(argv)
    if args.command is None:
        parser.error(f"command: got none, expected {', '.join(COMMANDS)}")
    if unknown:
        flags = ", ".join(
            action.option_strings[0]
            for action in args.parser._actions
            if action.dest in vars(args) and action.option_strings
        )
        args.parser.error(f"{shown(unknown[0])}: an unknown argument, expected {flags} or --help")
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except Failure as failure:
        print(f"{args.parser.prog}: error: {failure}", file=sys.stderr)
        return failure.status
    except OSError as error:  # of our output: what is still in the buffer must go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(
                f"{args.parser.prog}: error: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr
            )
        return 1


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description=fwm_py.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {fwm_py.__version__}")
    commands = parser.add_subparsers(metavar="command", dest="command", parser_class=Parser)
    for name, (summary, description, epilog, add_flags, run) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog and epilog(),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(parser=command, run=run)
        add_flags(command)
    return parser


COMMANDS: dict[
    str, Any
] = {  # name: summary, description, what its help ends with, flags, what it does or None: actions
    "train": (
        "train and write logs",
        "Train the associative-retrieval experiment for N = begin, begin + step, .., end keys, each N a run "
        "of its own,\n"
        "and write the evaluation losses of each run to a CSV file in the log folder.",
        train.tables,
        train.add_train_flags,
        train.run_train,
    ),
    "reproduce": (
        "make the logs of the paper's 320 runs",
        "Make the logs of the paper's 320 runs, side by side on all cores. Logs that are there already, as\n"
        "<folder>.manifest.csv has them, are not made again: a sweep that was interrupted goes on.",
        None,
        reproduce.add_reproduce_flags,
        reproduce.run_reproduce,
    ),
    "compare": (
        "say how logs agree with the published ones",
        "Compare the logs of a folder with the published ones: first rows, lengths, last losses, and where\n"
        "<folder>.twins.csv has them, the bands in which the last losses of runs scatter. Exit status 1 where they "
        "agree too little.",
        None,
        compare.add_compare_flags,
        compare.run_compare,
    ),
    "capacity": (
        "measure how many associations a memory holds",
        "Train memories with N keys, all combinations of the lists below, until they store no more, and write how\n"
        "many associations each holds: a row of a CSV file, which an interrupted study goes on from. With p features\n"
        "a memory holds p (docs/capacity.md).",
        None,
        capacity.add_capacity_flags,
        capacity.run_capacity,
    ),
    "recall": (
        "measure how well memories answer multi-query recall",
        "Train small models with a memory, all combinations of the lists below, on multi-query associative recall\n"
        "(MQAR), until they answer 99 % of new questions, and write how many each answers: a row of a CSV file, which\n"
        "an interrupted study goes on from (docs/recall.md). Needs pip install 'fwm_py[torch]'.",
        None,
        recall.add_recall_flags,
        recall.run_recall,
    ),
    "language": (
        "prepare texts, train language models, evaluate them",
        "Language models with any feature map and any rule: prepare makes tokens of texts, train trains a model,\n"
        "evaluate says how well it predicts, generate lets it write, sweep trains variants and seeds\n"
        "(docs/language.md). Needs pip install 'fwm_py[language]'.",
        None,
        language.add_language_flags,
        None,
    ),
    "translation": (
        "prepare parallel texts, train translation models, translate",
        "Translation with the maps of the paper in all attentions of an encoder-decoder: prepare makes tokens of\n"
        "parallel texts, train trains a model, translate translates lines of text, score compares with references,\n"
        "sweep trains variants and seeds (docs/translation.md). Needs pip install 'fwm_py[translation]'.",
        None,
        translation.add_translation_flags,
        None,
    ),
    "figures": (
        "draw the paper's figures from logs, or those of a study",
        "Draw the paper's six figures from the logs of a folder, and write each as PNG and SVG. Logs that are not\n"
        "whole, or none of the paper's, are named and not drawn. Of a study's file (fwm-py capacity, fwm-py recall)\n"
        "draw the study's figures. Needs pip install 'fwm_py[figures]'.",
        None,
        figures.add_figures_flags,
        figures.run_figures,
    ),
}
