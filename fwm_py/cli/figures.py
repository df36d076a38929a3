"""`fwm-py figures`: the paper's figures, drawn from logs."""

from __future__ import annotations

import argparse
import sys

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure


def add_figures_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="the logs")
    parser.add_argument(
        "--out", metavar="FOLDER", default="figures", help="for <name>.png and <name>.svg (default figures)"
    )
    parser.add_argument(
        "--no-overlay",
        dest="overlay",
        action="store_false",
        help="without the published losses, hollow markers over ours",
    )


def run_figures(args: argparse.Namespace) -> int:
    from fwm_py.experiments.retrieval import figures

    try:
        losses = figures.load(args.folder)
        for name, reason in losses.skipped:
            print(f"not drawn: {shown(name)}: {reason}", file=sys.stderr)
        for path in figures.save(losses, args.out, args.overlay):
            print(path)
    except ImportError as error:
        raise Failure(1, str(error)) from None
    except ValueError as error:
        raise Failure(2, str(error)) from None
    except OSError as error:
        raise Failure(2, f"{shown(error.filename)}: {error.strerror}") from None
    return 0
