"""The command line: `fwm-py <command>`, or `python -m fwm_py <command>`; `train` is here, the others in `cli_sweep`.

Exit status: 0 when every run has come to its end, 2 for a wrong argument or a log folder that cannot be written
(nothing is written then), 130 after Ctrl-C, 1 for any other failure. Progress goes to stderr, live on a terminal, else
as a line now and then; what a command has done goes to stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn, Protocol

import fwm_py
from fwm_py import _core, cli_sweep
from fwm_py.checks import shown
from fwm_py.failure import Failure, integer
from fwm_py.logs import LogWriter, format_loss, log_name
from fwm_py.retrieval import ATTN_NAMES, GENERATORS, LIMITS, UPDATE_RULES, Model, Settings, step_size, train

PROGRAM = "fwm-py"
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
)


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
        status = args.run(args)
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


# ---- commands ----

COMMANDS = {  # name: summary, description, what its help ends with, its flags, what it does
    "train": (
        "train and write logs",
        "Train the associative-retrieval experiment for N = begin, begin + step, .., end keys, each N a run "
        "of its own,\n"
        "and write the evaluation losses of each run to a CSV file in the log folder.",
        tables,
        add_train_flags,
        run_train,
    ),
    "reproduce": (
        "make the logs of the paper's 320 runs",
        "Make the logs of the paper's 320 runs, side by side on all cores. Logs that are there already, as\n"
        "<folder>.manifest.csv has them, are not made again: a sweep that was interrupted goes on.",
        None,
        cli_sweep.add_reproduce_flags,
        cli_sweep.run_reproduce,
    ),
    "compare": (
        "say how logs agree with the published ones",
        "Compare the logs of a folder with the published ones: first rows, lengths, last losses, and where\n"
        "<folder>.twins.csv has them, the bands in which the last losses of runs scatter. Exit status 1 where they "
        "agree too little.",
        None,
        cli_sweep.add_compare_flags,
        cli_sweep.run_compare,
    ),
    "figures": (
        "draw the paper's figures from logs",
        "Draw the paper's six figures from the logs of a folder, and write each as PNG and SVG. Logs that are "
        "not whole, or none\n"
        "of the paper's, are named and not drawn. Needs pip install 'fwm_py[figures]'.",
        None,
        cli_sweep.add_figures_flags,
        cli_sweep.run_figures,
    ),
}
