"""`fwm-py figures`: the paper's figures, drawn from logs, and those of studies."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure
from fwm_py.experiments.study import header_of

STUDIES = ("capacity", "recall")
"""The experiments whose results are one file: packages with a `Row` and with `figures`."""


def add_figures_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER|FILE", help="the logs, or the CSV file of a study")
    parser.add_argument(
        "--out", metavar="FOLDER", default="figures", help="for <name>.png and <name>.svg (default figures)"
    )
    parser.add_argument(
        "--no-overlay",
        dest="overlay",
        action="store_false",
        help="without the published losses, hollow markers over ours; of logs alone",
    )


def run_figures(args: argparse.Namespace) -> int:
    try:
        paths = figures_of_study(args) if os.path.isfile(args.source) else figures_of_logs(args)
    except ImportError as error:
        raise Failure(1, str(error)) from None
    except ValueError as error:
        raise Failure(2, str(error)) from None
    except OSError as error:
        raise Failure(2, f"{shown(error.filename)}: {error.strerror}") from None
    for path in paths:
        print(path)
    return 0


def figures_of_logs(args: argparse.Namespace) -> list[Path]:
    from fwm_py.experiments.retrieval import figures

    losses = figures.load(args.source)
    for name, reason in losses.skipped:
        print(f"not drawn: {shown(name)}: {reason}", file=sys.stderr)
    return figures.save(losses, args.out, args.overlay)


def figures_of_study(args: argparse.Namespace) -> list[Path]:
    from fwm_py.experiments.drawing import save_figures

    if not args.overlay:
        raise ValueError("--no-overlay: got it with a study, expected it with logs")
    with open(args.source, "rb") as file:
        header = file.readline().decode("ascii", "replace").strip()
    for name in STUDIES:
        experiment = importlib.import_module(f"fwm_py.experiments.{name}")
        if header == header_of(experiment.Row):
            figures = importlib.import_module(f"fwm_py.experiments.{name}.figures")
            rows = figures.load(args.source)
            return save_figures({name: draw(rows) for name, draw in figures.FIGURES.items()}, args.out)
    raise ValueError(f"{args.source}: got {shown(header)}, expected the first line of a study ({', '.join(STUDIES)})")
