"""`fwm-py train`: runs one after another, each into its log."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Protocol

import fwm_py
from fwm_py import _core
from fwm_py.checks import shown
from fwm_py.cli.failure import Failure, integer
from fwm_py.experiments.retrieval.logs import LogWriter, format_loss, log_name
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import (
    ATTN_NAMES,
    GENERATORS,
    LIMITS,
    REDRAWS,
    UPDATE_RULES,
    Settings,
    step_size,
)
from fwm_py.experiments.retrieval.train import train

PLAIN_PROGRESS_SECONDS = 10.0
MAX_THREADS = 1024
SETTING_FLAGS = (
    "attn_name",
    "attn_arg",
    "update_rule",
    "replace",
    "seed",
    "hidden_size",
    "batch_size",
    "lr",
    "max_steps",
    "favor_generator",
    "redraw",
)


def run_train(args: argparse.Namespace) -> int:
    runs = runs_of(args)
    if args.threads is not None:
        fwm_py.set_num_threads(integer(args.parser, "threads", args.threads, 1, MAX_THREADS))
    train_all(runs, args.log_folder)
    return 0


def train_all(runs: Sequence[Settings], folder: str) -> None:
    """Train the runs one after another, each into its log."""
    for settings in runs:
        try:
            train_one(settings, folder)
        except KeyboardInterrupt:
            raise Failure(130, f"interrupted at N = {settings.n_keys}; the logs hold whole rows") from None
        except MemoryError:
            raise Failure(1, f"out of memory at N = {settings.n_keys}") from None


def train_one(settings: Settings, folder: str) -> None:
    """Train one run and write its log."""
    name = log_name(settings)
    model = Model(settings)
    started = time.monotonic()
    last = ""
    try:
        log = LogWriter(os.path.join(folder, name))
    except OSError as error:
        raise Failure(
            2,
            f"--log_folder: got {shown(folder)}, expected a folder that can be written "
            f"({error.strerror}: {error.filename})",
        ) from None

    def on_evaluation(step: int, loss: float) -> None:
        nonlocal last
        last = f", evaluation loss {format_loss(loss)} at step {step}"
        try:
            log.write(step, loss)
        except OSError as error:
            raise Failure(1, f"{name}: {error.strerror}; the log holds whole rows") from None

    with log, make_progress(settings) as progress:
        train(settings, on_evaluation, progress.update, model)
    print(f"{name}: {log.rows} rows in {time.monotonic() - started:.2f} s{last}", flush=True)


# ---- arguments ----


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag takes its text as it is: `runs_of` checks it. Defaults and limits are those of `Settings`."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    limits = {name: "{}..{}".format(*ends) for name, ends in LIMITS.items()}

    def add(name: str, metavar: str, text: str, default: object = None) -> None:
        default = defaults.get(name, default)
        if default is not None:
            text += f" (default {default})"
        parser.add_argument("--" + name, metavar=metavar, help=text, default=default)

    add("begin", "N", f"smallest number of keys, {limits['n_keys']}", defaults["n_keys"])
    add("end", "N", "largest number of keys (default: that of --begin)")
    add("step", "N", "distance from one number of keys to the next", 20)
    add("attn_name", "MAP", ", ".join(ATTN_NAMES))
    add("attn_arg", "K", "argument of the map, see below")
    add("update_rule", "RULE", ", ".join(UPDATE_RULES) + "; ignored by softmax")
    parser.add_argument("--replace", action="store_true", help="draw keys and values with replacement, 2 N of each")
    add("seed", "S", f"seed of every run, {limits['seed']}")
    add("hidden_size", "D", f"size of keys and queries, {limits['hidden_size']}")
    add("batch_size", "B", f"{limits['batch_size']} (default 32; 128 for tanh with fwm)")
    add("lr", "LR", "Adam's step size (default 1e-3; 1e-4 for tanh with fwm)")
    add("max_steps", "M", f"last step of a run, {limits['max_steps']}")
    add("log_folder", "FOLDER", "made if missing", "logs")
    add("threads", "T", f"1..{MAX_THREADS} (default: the cores this process may use)")
    add("favor_generator", "G", f"what draws FAVOR+'s features, {' or '.join(GENERATORS)}")
    add("redraw", "R", f"when FAVOR+'s features are drawn anew, {' or '.join(REDRAWS)}")


def runs_of(args: argparse.Namespace) -> list[Settings]:
    """The settings of every run that was asked for, all of them checked."""
    parser: argparse.ArgumentParser = args.parser
    low, high = LIMITS["n_keys"]
    begin = integer(parser, "begin", args.begin, low, high)
    end = integer(parser, "end", begin if args.end is None else args.end, begin, high)
    step = integer(parser, "step", args.step, 1, high)
    if not args.log_folder:
        parser.error("--log_folder: got '', expected a folder")
    options = {name: getattr(args, name) for name in SETTING_FLAGS}
    for name, value in options.items():
        if name in LIMITS and value is not None:
            options[name] = integer(parser, name, value, *LIMITS[name])
    if args.lr is not None:
        options["lr"] = number(args.lr)
    try:
        runs = [Settings(n_keys=n_keys, **options) for n_keys in range(begin, end + 1, step)]
        step_size(runs[0].resolved_lr, "float32")
        return runs
    except (TypeError, ValueError) as error:
        parser.error(f"--{error}")


def number(text: str) -> float | str:
    """The number that `text` writes, else `text` itself, which `Settings` then refuses."""
    try:
        return float(text)
    except ValueError:
        return text


def tables() -> str:
    """The tables of maps and rules, as the core has them."""
    maps = [("--attn_name", "--attn_arg", "")]
    maps += [(row["name"], row["argument"] or "-", row["summary"]) for row in _core.MAPS]
    maps += [(row["name"], "-", row["summary"]) for row in _core.READOUTS if not row["uses_map"]]
    rules = [("--update_rule", "")]
    rules += [(row["name"], row["summary"]) for row in _core.READOUTS if row["uses_map"]]
    return f"maps:\n{table(maps)}\n\nrules:\n{table(rules)}"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join("  " + line.rstrip() for line in lines)


# ---- progress ----


class Progress(Protocol):
    """A context manager that shows the progress of a run."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *error: object) -> None: ...

    def update(self, step: int, loss: float) -> None:
        """Called about ten times a second with the last training loss."""


class Speed:
    """Steps a second since the last call of `line`."""

    def __init__(self, n_keys: int) -> None:
        self.n_keys = n_keys
        self.step = 0
        self.time = time.monotonic()

    def line(self, step: int, loss: float) -> str:
        now = time.monotonic()
        speed = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return f"N {self.n_keys}  step {step}  loss {loss:.6g}  {speed:.0f} steps/s"


class PlainProgress:
    """A line when the run starts and one every ten seconds."""

    def __init__(self, settings: Settings) -> None:
        self.speed = Speed(settings.n_keys)
        self.name = log_name(settings)

    def __enter__(self) -> Progress:
        print(f"N {self.speed.n_keys}  {self.name}", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, step: int, loss: float) -> None:
        if time.monotonic() - self.speed.time >= PLAIN_PROGRESS_SECONDS:
            print(self.speed.line(step, loss), file=sys.stderr, flush=True)


class LiveProgress:
    """One line of a terminal, drawn anew about ten times a second and gone at the end."""

    def __init__(self, settings: Settings) -> None:
        from rich.console import Console
        from rich.live import Live

        self.speed = Speed(settings.n_keys)
        console = Console(stderr=True, highlight=False)
        self.live = Live(log_name(settings), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        self.live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def update(self, step: int, loss: float) -> None:
        self.live.update(self.speed.line(step, loss), refresh=True)


def make_progress(settings: Settings) -> Progress:
    return LiveProgress(settings) if sys.stderr.isatty() else PlainProgress(settings)
