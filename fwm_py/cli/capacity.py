"""`fwm-py capacity`: how many associations a memory holds."""

from __future__ import annotations

import argparse
import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure, integer, integers, listed, numbers
from fwm_py.cli.study import add_study_flags, print_table, run_study_command
from fwm_py.experiments.capacity import Row, grid, study, untrained
from fwm_py.experiments.capacity.grid import FEATURE_MAPS, HIDDEN_SIZES, LOADS, RULES, SEEDS
from fwm_py.experiments.retrieval.settings import LIMITS, REDRAWS, Settings

OUT = "capacity.csv"
UNTRAINED_P, UNTRAINED_LOADS = "64,256", "0.5,1,2"
QUICK = {"hidden_size": "8,16", "load": "2", "seed": "1"}
OF_GRID = ("feature_map", "rule", "hidden_size", "load", "n_keys", "seed", "redraw", "max_steps")


def shown_list(values: Sequence[Any]) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def add_capacity_flags(parser: argparse.ArgumentParser) -> None:
    """Lists are comma-separated; each combination is a run. None where a flag was not given."""

    def add(name: str, metavar: str, text: str) -> None:
        parser.add_argument("--" + name, metavar=metavar, help=text)

    add("feature_map", "MAPS", f"elu1, tanh, dpfpN, favorN; none for softmax (default {shown_list(FEATURE_MAPS)})")
    add("rule", "RULES", f"sum, delta, fwm, softmax (default {shown_list(RULES)})")
    add("hidden_size", "D", f"sizes of a key before the map (default {shown_list(HIDDEN_SIZES)})")
    add("load", "C", f"keys for each of the p features (default {shown_list(LOADS)})")
    add("n_keys", "N", "numbers of keys, in place of --load; softmax has no p")
    add("seed", "S", f"seeds (default {shown_list(SEEDS)})")
    parser.add_argument("--replace", action="store_true", help="draw keys and values with replacement, 2 N of each")
    add("redraw", "R", f"when FAVOR+'s features are drawn anew, {' or '.join(REDRAWS)} (default {REDRAWS[0]})")
    add("max_steps", "M", f"last step of a run (default {Settings.max_steps})")
    parser.add_argument(
        "--quick", action="store_true", help=f"the defaults, but with {flags(QUICK)}: less than a minute"
    )
    parser.add_argument(
        "--untrained",
        action="store_true",
        help="random keys in place of a trained model, against formulas; with --p, --load and --seed alone",
    )
    add("p", "P", f"features of an untrained key (default {UNTRAINED_P})")
    add_study_flags(parser, OUT)


def flags(given: dict[str, str]) -> str:
    return " ".join(f"--{name} {value}" for name, value in given.items())


def run_capacity(args: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = args.parser
    if args.untrained:
        return run_untrained(args)
    if args.p is not None:
        parser.error(f"--p: got {shown(args.p)}, expected it with --untrained alone")
    if args.quick:
        for name, value in QUICK.items():
            if getattr(args, name) is None and not (name == "load" and args.n_keys is not None):
                setattr(args, name, value)
    try:
        runs = grid(replace=args.replace, **options_of(args))
    except (TypeError, ValueError) as error:
        parser.error(f"--{error}")
    return run_study_command(args, functools.partial(study, runs, args.out), ending, print_rows)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    parser, given = args.parser, {name: getattr(args, name) for name in OF_GRID if getattr(args, name) is not None}
    for name, value in given.items():
        if name == "load":
            given[name] = numbers(parser, name, value)
        elif name == "max_steps":
            given[name] = integer(parser, name, value, *LIMITS[name])
        elif name in LIMITS:
            given[name] = integers(parser, name, value, *LIMITS[name])
        elif name != "redraw":
            given[name] = listed(value)
    return given


def run_untrained(args: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = args.parser
    for name in (*OF_GRID, "jobs", "dask"):
        if name not in ("load", "seed") and getattr(args, name) is not None:
            parser.error(f"--{name}: got {shown(getattr(args, name))}, expected it without --untrained")
    for name, other in (("replace", False), ("quick", False), ("out", OUT)):
        if getattr(args, name) != other:
            parser.error(f"--{name}: got it with --untrained, expected it without")
    seed = integer(parser, "seed", "1" if args.seed is None else args.seed, *LIMITS["seed"])
    rows = []
    for p in integers(parser, "p", UNTRAINED_P if args.p is None else args.p, 1, 4096):
        for load in numbers(parser, "load", UNTRAINED_LOADS if args.load is None else args.load):
            try:
                found = untrained(p, load, seed=seed)
            except ValueError as error:
                raise Failure(2, f"--{error}") from None
            rows += [(r.rule, r.p, r.n_keys, f"{load:g}", f"{r.loss:.4f}", f"{r.formula:.4f}") for r in found]
    print_table(("rule", "p", "keys N", "N / p", "mean loss", "formula"), rows)
    return 0


# ---- what is printed ----


def name_of(row: Row) -> str:
    how = " with replacement" if row.replace else ""
    how += " drawn once" if row.redraw == "never" else ""
    return f"{row.feature_map} {row.rule}{how} d {row.hidden_size} N {row.n_keys} seed {row.seed}"


def ending(row: Row) -> str:
    if row.loss is None:
        return f"{name_of(row)}: failed: {row.error}"
    of_p = f" of p = {row.p}" if row.p is not None else ""
    held = f"right {row.right:.3f}" if row.stored is None else f"stored {row.stored:.1f}{of_p}"
    return f"{name_of(row)}: {held}, step {row.steps}, {row.seconds:.1f} s"


def print_rows(rows: Sequence[Row]) -> None:
    """A line for each memory and number of keys, medians over the seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.loss is not None:
            key = (row.rule, row.replace, row.feature_map, row.redraw, row.p or 0, row.hidden_size, row.n_keys)
            groups.setdefault(key, []).append(row)
    lines = []
    for key in sorted(groups):
        runs = groups[key]
        rule, replace, word, redraw, p, d, N = key

        def middle(name: str, runs: Sequence[Row] = runs) -> float:
            return float(statistics.median(getattr(row, name) for row in runs))

        held = runs[0].stored is not None
        stored = middle("stored") if held else math.nan
        bound = f"{max(0, 1 - p / N) / 2:.4f}" if p and held and not replace else "-"
        memory = " ".join([word, rule, *["replace"] * replace, *["drawn once"] * (redraw == "never")])
        load, of_p = f"{N / p:g}" if p else "-", f"{stored / p:.3f}" if p and held else "-"
        lines.append((memory, d, p or "-", N, load, len(runs), f"{stored:.1f}" if held else "-", of_p,
                      f"{middle('right'):.3f}", f"{middle('loss'):.4f}", bound))  # fmt: skip
    headings = ("memory", "d", "p", "keys N", "N / p", "runs", "stored K", "K / p", "right", "loss", "(1 - p/N) / 2")
    print_table(headings, lines)
