"""What `fwm-py language` and `fwm-py translation` share: their actions, and the flags of a training and of its run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, NoReturn, TypeVar

import fwm_py
from fwm_py.checks import shown
from fwm_py.cli.failure import Failure, integer
from fwm_py.cli.study import add_study_flags, print_table, run_study_command
from fwm_py.experiments.prepared import TOKENIZER, Prepared
from fwm_py.experiments.run_folder import LogRow, read_config
from fwm_py.experiments.settings import TrainingSettings

MEANINGS = {
    "d_model": "width of the model",
    "heads": "of each memory",
    "d_ff": "width of the feed-forward networks",
    "norm": ", ".join(TrainingSettings.WORDS["norm"]),
    "init": ", ".join(TrainingSettings.WORDS["init"]) + ": how parameters begin",
    "dropout": "in training",
    "accumulate": "parts of a batch, whose gradients are added up",
    "lr": "highest step size of AdamW",
    "beta1": "of AdamW",
    "beta2": "of AdamW",
    "weight_decay": "of matrices",
    "clip": "largest norm of a gradient; 0: any",
    "schedule": ", ".join(TrainingSettings.WORDS["schedule"]),
    "warmup_steps": "over which the step size rises (a tenth of all)",
    "seed": "of parameters, order and dropout",
    "log_every": "steps",
    "evaluate_every": "steps",
    "checkpoint_every": "steps",
}
SWITCHES = {"bf16": "autocast to bfloat16"}
MAX_THREADS = 1024

Settings = TypeVar("Settings", bound=TrainingSettings)
Data = TypeVar("Data", bound=Prepared)


def add_training_flags(
    parser: argparse.ArgumentParser,
    settings: type[TrainingSettings],
    presets: Mapping[str, dict[str, Any]],
    meanings: dict[str, str],
    switches: dict[str, str],
) -> None:
    """DATA, --out, --preset, a flag for each setting, --resume and --threads.

    A setting is None where its flag was not given: then the preset's, or the default.
    """
    defaults = {field.name: field.default for field in fields(settings)} | presets["test"]
    parser.add_argument("data", metavar="DATA", help="as prepare makes it")
    parser.add_argument("--out", metavar="RUN", required=True, help="a new folder, or with --resume that of the run")
    parser.add_argument("--preset", metavar="NAME", default="test", help=f"{', '.join(presets)} (default test)")
    for name, text in (meanings | MEANINGS).items():
        default = "" if defaults[name] is None else f" (test: {defaults[name]})"
        parser.add_argument("--" + name, metavar=name[0].upper(), help=text + default)
    for name, text in (switches | SWITCHES).items():
        parser.add_argument("--" + name, action="store_true", help=text)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, or begin")
    add_threads_flag(parser)


def add_threads_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", metavar="N", help="of PyTorch and fwm_py (default: all)")


def settings_of(args: argparse.Namespace, settings: type[Settings], presets: Mapping[str, dict[str, Any]]) -> Settings:
    """The preset's settings, with those that flags name in their place."""
    parser: argparse.ArgumentParser = args.parser
    if args.preset not in presets:
        parser.error(f"--preset: got {shown(args.preset)}, expected {', '.join(presets)}")
    given: dict[str, Any] = dict(presets[args.preset])
    for field in fields(settings):
        found = getattr(args, field.name)
        if field.name in settings.FLAGS:
            given |= {field.name: True} if found else {}
        elif found is not None:
            given[field.name] = _value_of(parser, settings, field.name, found)
    try:
        return settings(**given)
    except (TypeError, ValueError) as error:
        parser.error(f"--{error}")


def _value_of(parser: argparse.ArgumentParser, settings: type[TrainingSettings], name: str, text: str) -> Any:
    if name in settings.LIMITS:
        return integer(parser, name, text, *settings.LIMITS[name])
    return number(parser, name, text) if name in settings.NUMBERS or name == "lr" else text


def number(parser: argparse.ArgumentParser, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        parser.error(f"--{name}: got {shown(text)}, expected a number")


def set_threads(args: argparse.Namespace) -> None:
    import torch

    if args.threads is not None:
        threads = integer(args.parser, "threads", args.threads, 1, MAX_THREADS)
        torch.set_num_threads(threads)
        fwm_py.set_num_threads(threads)


def progress() -> Callable[[LogRow], None]:
    """Prints a line for each row of a log."""
    last = [0, time.monotonic()]

    def show(row: LogRow) -> None:
        now = time.monotonic()
        speed = (row.tokens - last[0]) / max(now - last[1], 1e-9)
        last[:] = row.tokens, now
        valid = "" if row.valid_loss is None else f"  valid perplexity {perplexity(row.valid_loss)}"
        print(
            f"step {row.step}  tokens {row.tokens}  loss {row.loss:.4f}  gradient {row.gradient_norm:.3g}  "
            f"{speed:.0f} tokens/s{valid}",
            file=sys.stderr,
            flush=True,
        )

    return show


def perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 700 else shown(loss)


# ---- actions ----


class Action(NamedTuple):
    """A command below a command; `interrupted` is what Ctrl-C makes it say."""

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    interrupted: str = "interrupted"


RESUMES = "interrupted; --resume goes on from the last checkpoint"


def add_actions(parser: argparse.ArgumentParser, actions: Mapping[str, Action], what: str, extra: str) -> None:
    """The parsers of actions, whose errors end the program in one line.

    Parameters
    ----------
    parser : ArgumentParser
    actions : dict
        By name.
    what, extra : str
        What needs libraries that may be missing, and the extra that has them.
    """

    def ending(action: Action) -> Callable[[argparse.Namespace], int]:
        def guarded(args: argparse.Namespace) -> int:
            with in_one_line(what, extra, action.interrupted):
                return action.run(args)

        return guarded

    def none(args: argparse.Namespace) -> NoReturn:
        parser.error(f"action: got none, expected {', '.join(actions)}")

    parser.set_defaults(run=none)
    made = parser.add_subparsers(metavar="action", dest="action", parser_class=type(parser))
    for name, action in actions.items():
        flags = made.add_parser(name, help=action.summary, description=action.summary + ".", allow_abbrev=False)
        flags.set_defaults(parser=flags, run=ending(action))
        action.add_flags(flags)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """RUN, --data and --threads."""
    parser.add_argument("run_folder", metavar="RUN", help="a run that has ended")
    parser.add_argument("--data", metavar="DATA", help="as prepare makes it (default: that of the run)")
    add_threads_flag(parser)


def open_data(args: argparse.Namespace, kind: type[Data]) -> Data:
    """The data of `add_run_flags`, whose tokens must be those of the run."""
    config = read_config(args.run_folder)
    try:
        data = kind.open(args.data or config["data_folder"], verify=True)
    except ValueError as error:
        raise ValueError(str(error) if args.data else f"{error}; --data says where they are") from None
    if data.files[TOKENIZER].sha256 != config["tokenizer"]:
        raise ValueError(f"{data.folder}: got another tokenizer, expected that of {args.run_folder}")
    return data


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="STUDY.toml", help="data, seeds, settings and variants")
    parser.add_argument("--keep_runs", action="store_true", help="leave the folders of runs that have ended")
    add_study_flags(parser, "study", "FOLDER")


class Column(NamedTuple):
    """Of a sweep's table: a heading, and the number of rows whose mean over seeds stands below it."""

    heading: str
    name: str
    digits: int = 2


def run_sweep_command(
    args: argparse.Namespace, sweep: Callable[..., Sequence[Any]], score: Column, others: Sequence[Column]
) -> int:
    """Make a sweep, a line for each row as it ends, then a table with a line for each variant.

    Parameters
    ----------
    args : Namespace
        With the flags of `add_sweep_flags`.
    sweep : callable
        As `fwm_py.experiments.language.sweep`.
    score : Column
        By which variants are compared: its range over the seeds is shown too.
    others : sequence of Column
    """

    def ending(row: Any) -> str:
        if row.failed:
            return f"{row.name}, seed {row.seed}: failed: {row.error}"
        return f"{row.name}, seed {row.seed}: {score.heading} {getattr(row, score.name):.2f}, {row.seconds:.0f} s"

    def print_rows(rows: Sequence[Any]) -> None:
        groups: dict[str, list[Any]] = {}
        for row in rows:
            if not row.failed:
                groups.setdefault(row.name, []).append(row)
        lines = []
        for name, runs in groups.items():
            found = [getattr(row, score.name) for row in runs]
            means = [
                f"{sum(getattr(row, column.name) for row in runs) / len(runs):.{column.digits}f}"
                for column in (score, *others)
            ]
            lines.append((name, len(runs), means[0], f"{min(found):.1f} to {max(found):.1f}", *means[1:]))
        headings = ("variant", "runs", score.heading, "range", *(column.heading for column in others))
        print_table(headings, lines)

    return run_study_command(
        args, functools.partial(sweep, args.sweep, args.out, keep_runs=args.keep_runs), ending, print_rows
    )


def add_figures_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="the folder of a sweep")
    parser.add_argument("--out", metavar="FOLDER", default="figures", help="of <name>.png and .svg (default figures)")


def draw_sweep(args: argparse.Namespace, load: Callable[[str], Any], figures: Mapping[str, Callable[..., Any]]) -> int:
    """Draw the figures of the sweep in a folder."""
    from fwm_py.experiments.drawing import save_figures

    sweep = load(args.study)
    for path in save_figures({name: draw(sweep) for name, draw in figures.items()}, args.out):
        print(path)
    return 0


@contextlib.contextmanager
def in_one_line(what: str, extra: str, interrupted: str) -> Iterator[None]:
    """Ends the program with a line for the errors that preparing, training and evaluating have."""
    try:
        yield
    except ImportError as error:
        missing = f"{what} need {error.name}: pip install 'fwm_py[{extra}]'"
        raise Failure(1, missing if error.name else str(error)) from None  # ours say what to install
    except ArithmeticError as error:  # training.Diverged, which needs PyTorch
        raise Failure(1, str(error)) from None
    except ValueError as error:
        raise Failure(2, str(error)) from None
    except OSError as error:
        if error.errno is None:  # ours
            raise Failure(2, str(error)) from None
        if error.filename is None:  # of our output: main says so
            raise
        raise Failure(2, f"{shown(error.filename)}: {error.strerror}") from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise Failure(1, "out of memory: a smaller model, map or batch may help") from None
    except KeyboardInterrupt:
        raise Failure(130, interrupted) from None
