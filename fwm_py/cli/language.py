"""`fwm-py language`: prepare a text, train a language model on it, evaluate it, let it write, sweep variants."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure, integer
from fwm_py.cli.study import add_study_flags, print_table, run_study_command
from fwm_py.experiments.language.settings import FLAGS, LIMITS, NUMBERS, PRESETS, WORDS, Settings

MEANINGS = {
    "rule": ", ".join(WORDS["rule"]),
    "feature_map": "none, elu1, tanh, dpfpN, favorN",
    "conv_size": "tokens of the memories' short convolutions, 2..4; 0: none",
    "layers": "of memory and feed-forward network",
    "d_model": "width of the model",
    "heads": "of each memory",
    "kv_heads": "heads of keys and values",
    "d_ff": "width of the feed-forward networks",
    "positions": ", ".join(WORDS["positions"]),
    "norm": " or ".join(WORDS["norm"]),
    "init": " or ".join(WORDS["init"]) + ": how parameters begin",
    "dropout": "in training",
    "seq_len": "tokens of a segment",
    "batch_size": "segments of a part of a batch",
    "accumulate": "parts of a batch, whose gradients are added up",
    "lr": "highest step size of AdamW",
    "beta1": "of AdamW",
    "beta2": "of AdamW",
    "weight_decay": "of matrices",
    "clip": "largest norm of a gradient; 0: any",
    "schedule": ", ".join(WORDS["schedule"]),
    "warmup_steps": "over which the step size rises",
    "max_tokens": "of training",
    "seed": "of parameters, order and dropout",
    "log_every": "steps",
    "evaluate_every": "steps",
    "checkpoint_every": "steps",
}
SWITCHES = {
    "normalize": "divide by the sum of weights (sum, delta with a positive map)",
    "redraw": "draw FAVOR+'s features anew in each step",
    "carry": "ordered streams: a segment begins with the state of the one before it",
    "bf16": "autocast to bfloat16",
}
MAX_THREADS = 1024


def add_language_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="action", dest="action", parser_class=type(parser))
    for name, (summary, add_flags, run) in ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary + ".", allow_abbrev=False)
        action.set_defaults(parser=action, run=failing(run))
        add_flags(action)


def run_language(args: argparse.Namespace) -> NoReturn:
    parser: argparse.ArgumentParser = args.parser
    parser.error(f"action: got none, expected {', '.join(ACTIONS)}")


def failing(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The same, with its errors in one line."""

    def guarded(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except ImportError as error:
            missing = f"language models need {error.name}: pip install 'fwm_py[language]'"
            raise Failure(1, missing if error.name else str(error)) from None  # ours say what to install
        except ArithmeticError as error:  # training.Diverged, which needs PyTorch
            raise Failure(1, str(error)) from None
        except (FileExistsError, ValueError) as error:
            raise Failure(2, str(error)) from None
        except OSError as error:
            raise Failure(2, f"{shown(error.filename)}: {error.strerror}") from None
        except KeyboardInterrupt:
            raise Failure(130, "interrupted; --resume goes on from the last checkpoint") from None

    return guarded


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
    """Each setting is None where its flag was not given: then the preset's, or the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    parser.add_argument("data", metavar="DATA", help="as prepare makes it")
    parser.add_argument("--out", metavar="RUN", required=True, help="a new folder, or with --resume that of the run")
    parser.add_argument("--preset", metavar="NAME", default="test", help=f"{', '.join(PRESETS)} (default test)")
    for name, text in MEANINGS.items():
        default = "" if defaults[name] is None else f" (test: {defaults[name]})"
        parser.add_argument("--" + name, metavar=name[0].upper(), help=text + default)
    for name, text in SWITCHES.items():
        parser.add_argument("--" + name, action="store_true", help=text)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, or begin")
    parser.add_argument("--threads", metavar="N", help="of PyTorch and fwm_py (default: all)")


def settings_of(args: argparse.Namespace) -> Settings:
    parser: argparse.ArgumentParser = args.parser
    if args.preset not in PRESETS:
        parser.error(f"--preset: got {shown(args.preset)}, expected {', '.join(PRESETS)}")
    given: dict[str, Any] = dict(PRESETS[args.preset])
    for name in MEANINGS:
        text = getattr(args, name)
        if text is not None:
            given[name] = value_of(parser, name, text)
    given |= {name: True for name in FLAGS if getattr(args, name)}
    try:
        return Settings(**given)
    except (TypeError, ValueError) as error:
        parser.error(f"--{error}")


def value_of(parser: argparse.ArgumentParser, name: str, text: str) -> Any:
    limits = LIMITS | {"conv_size": (0, 4), "kv_heads": LIMITS["heads"], "warmup_steps": (0, 10**12)}
    if name in limits:
        return integer(parser, name, text, *limits[name])
    if name not in NUMBERS and name != "lr":
        return text
    return number(parser, name, text)


def number(parser: argparse.ArgumentParser, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        parser.error(f"--{name}: got {shown(text)}, expected a number")


def run_train(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    import torch

    import fwm_py
    from fwm_py.experiments.language.data import Data
    from fwm_py.experiments.language.log import LogRow
    from fwm_py.experiments.language.run import train
    from fwm_py.experiments.training import processes

    if args.threads is not None:
        threads = integer(args.parser, "threads", args.threads, 1, MAX_THREADS)
        torch.set_num_threads(threads)
        fwm_py.set_num_threads(threads)
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

    with processes() as first:
        result = train(settings, Data.open(args.data), args.out, resume=args.resume, on_log=show)
        if first:
            scores = "; ".join(
                "{}: perplexity {perplexity:.2f}, {bits_per_byte:.3f} bits a byte".format(split, **result[split])
                for split in ("valid", "test")
            )
            skipped = f", {result['skipped']} skipped" if result["skipped"] else ""
            print(f"{args.out}: {scores}; {result['steps']} steps{skipped}, {result['seconds']:.1f} s")
    return 0


def perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 700 else shown(loss)


# ---- evaluate, generate ----


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run that has ended")
    parser.add_argument("--data", metavar="DATA", help="as prepare makes it (default: that of the run)")
    parser.add_argument("--mode", metavar="MODE", default="segments", help="segments, sliding or carry")
    parser.add_argument("--stride", metavar="S", help="tokens between windows, of sliding")
    parser.add_argument("--seq_len", metavar="T", help="tokens of a segment or window (default: as trained)")


def run_evaluate(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.data import Data
    from fwm_py.experiments.language.model import load_model
    from fwm_py.experiments.language.scores import MODES, evaluate

    parser = args.parser
    if args.mode not in MODES:
        parser.error(f"--mode: got {shown(args.mode)}, expected {', '.join(MODES)}")
    model, settings = load_model(args.run_folder)
    data = Data.open(args.data or data_of(args.run_folder))
    seq_len = settings.seq_len if args.seq_len is None else integer(parser, "seq_len", args.seq_len, 1, 1 << 24)
    if (args.stride is None) != (args.mode != "sliding"):
        parser.error(f"--stride: got {args.stride} with {args.mode}, expected it with sliding, and only there")
    stride = None if args.stride is None else integer(parser, "stride", args.stride, 1, seq_len)
    if args.mode == "carry" and not settings.carry:
        print(f"{parser.prog}: a state is carried into a model that was not trained so (--carry)", file=sys.stderr)
    rows = []
    for split in ("valid", "test"):
        score = evaluate(model, data.tokens(split), data.bytes[split], seq_len=seq_len, mode=args.mode, stride=stride)
        rows.append((split, f"{score.perplexity:.3f}", f"{score.bits_per_byte:.4f}", score.tokens))
    print_table(("", "perplexity", "bits a byte", "tokens"), rows)
    return 0


def data_of(folder: str) -> str:
    """Where the data of a run were."""
    import json

    from fwm_py.experiments.language.run import CONFIG

    path = Path(folder) / CONFIG
    try:
        return str(json.loads(path.read_bytes())["data_folder"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: got a damaged file, expected a run's settings; --data says where they are") from None


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run that has ended")
    parser.add_argument("text", metavar="TEXT", help="what it begins with")
    parser.add_argument("--data", metavar="DATA", help="whose tokenizer is used (default: that of the run)")
    parser.add_argument("--tokens", metavar="N", default="200", help="how many follow (default 200)")
    parser.add_argument("--temperature", metavar="T", default="0.8", help="0: the most likely each time (default 0.8)")
    parser.add_argument("--top_k", metavar="K", help="draw among so many of the most likely (default: all)")
    parser.add_argument("--seed", metavar="S", default="1", help="of the draws (default 1)")


def run_generate(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.data import Data
    from fwm_py.experiments.language.model import load_model
    from fwm_py.experiments.language.sampling import generate

    parser = args.parser
    model, _ = load_model(args.run_folder)
    data = Data.open(args.data or data_of(args.run_folder))
    n = integer(parser, "tokens", args.tokens, 0, 1 << 40)
    top_k = None if args.top_k is None else integer(parser, "top_k", args.top_k, 1, data.vocab_size)
    temperature = number(parser, "temperature", args.temperature)
    tokens = data.tokenizer.encode(args.text).ids or [data.end]
    seed = integer(parser, "seed", args.seed, *LIMITS["seed"])
    found = list(tokens)
    for token in generate(model, tokens, n, temperature=temperature, top_k=top_k, seed=seed, end=data.end):
        found.append(token)
    print(data.tokenizer.decode(found))
    return 0


# ---- sweep ----


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="STUDY.toml", help="data, seeds, settings and variants")
    parser.add_argument("--keep_runs", action="store_true", help="leave the folders of runs that have ended")
    add_study_flags(parser, "study", "FOLDER")


def run_sweep(args: argparse.Namespace) -> int:
    from fwm_py.experiments.language.sweeps import Row, sweep

    def ending(row: Row) -> str:
        if row.valid_perplexity is None:
            return f"{row.name}, seed {row.seed}: failed: {row.error}"
        return f"{row.name}, seed {row.seed}: valid perplexity {row.valid_perplexity:.2f}, {row.seconds:.0f} s"

    study = functools.partial(sweep, args.sweep, args.out, keep_runs=args.keep_runs)
    return run_study_command(args, study, ending, print_rows)


def add_figures_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="the folder of a sweep")
    parser.add_argument("--out", metavar="FOLDER", default="figures", help="of <name>.png and .svg (default figures)")


def run_figures(args: argparse.Namespace) -> int:
    from fwm_py.experiments.drawing import save_figures
    from fwm_py.experiments.language import figures

    sweep = figures.load(args.study)
    for path in save_figures({name: draw(sweep) for name, draw in figures.FIGURES.items()}, args.out):
        print(path)
    return 0


def print_rows(rows: Sequence[Any]) -> None:
    """A line for each variant, with the mean and the range over its seeds."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        if row.valid_perplexity is not None:
            groups.setdefault(row.name, []).append(row)
    lines = []
    for name, runs in groups.items():
        valid = [row.valid_perplexity for row in runs]
        test = [row.test_perplexity for row in runs]
        bits = sum(row.test_bits for row in runs) / len(runs)
        spread = f"{min(valid):.1f} to {max(valid):.1f}"
        means = f"{sum(valid) / len(valid):.2f}", f"{sum(test) / len(test):.2f}"
        lines.append((name, len(runs), *means, spread, f"{bits:.3f}", runs[0].state, runs[0].parameters))
    headings = ("variant", "runs", "valid", "test", "range of valid", "bits a byte", "numbers of state", "parameters")
    print_table(headings, lines)


ACTIONS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "prepare": ("Make tokens of texts", add_prepare_flags, run_prepare),
    "train": ("Train a model", add_train_flags, run_train),
    "evaluate": ("Say how well a model predicts valid and test", add_evaluate_flags, run_evaluate),
    "generate": ("Let a model go on with a text", add_generate_flags, run_generate),
    "sweep": ("Train variants and seeds", add_sweep_flags, run_sweep),
    "figures": ("Draw a sweep: curves of perplexity, and perplexity against the state", add_figures_flags, run_figures),
}
