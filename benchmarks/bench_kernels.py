"""The rules against what else computes the same on a CPU, pair by pair in one run. Prints Markdown tables.

    python benchmarks/bench_kernels.py [alternatives pairs tokens heads sizes] [--only WORD ...] [--threads 2]
                                       [--without NAME ...] [--repeats 7] [--json FILE] [--quick]

    alternatives   ours and theirs, one after the other: times, their ratio, share of the product rate, memory
    pairs          ours twice: strong gates against mild ones, a token of a long sequence against one of a short one
    tokens, heads, sizes    sweeps of T, of HV, of K = V, for every function; not made unless asked for

--only: the rows, or the functions of a sweep, whose name holds one of the words. Default: the first two tables.
--without: who stays out of the alternatives, as jax and torch.compile, which compile for minutes.

What is timed. Every repetition calls all sides in turn, each often enough to fill 50 ms after a pause in which the
others' threads go to sleep; medians over repetitions, ratios of the pairs. Each row has a process of its own. Inputs
are converted to each side's layout before; outputs are made before where a side can write into them. Nobody is timed
before its results agree with ours to 1e-3 of the largest value of each (alternatives.disagreement). float32 throughout;
q and k have length one as they come, and the gated rules normalise them once more inside, as the models do (onnxruntime
cannot and is spared it).

vLLM, JAX and torch.compile are asked where they are there (peers.py). Rows "in bfloat16" are of tensors in that type.

Rows that begin with "server" have states as a server keeps them, against the same by hand (server_states.py).

FLOP: of the recurrence, with K V multiplications and additions, two each: 6 K V a token and value head for rules that
erase, 4 K V for sums, 2 (K + V) a pair of tokens for softmax attention, 2 W a channel for a convolution; with the
backward three times as many (softmax attention: 3.5 times). Product rate: torch.matmul of two 2048 x 2048 matrices with
the same threads.

Memory: what the peak of the resident memory during a first call is above that before, less the results' bytes, in a
process of its own (Linux with glibc), to about 1 MB.

Leave the machine alone meanwhile: beside a busy core PyTorch's one token takes 60 ms instead of half a one.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import math
import multiprocessing
import platform
import statistics
import sys
import time
from pathlib import Path

import alternatives
import rich.box
import rich.console
import rich.table
import roofline
import torch
from alternatives import RULES, Ours, Work, disagreement
from peers import Bfloat16, missing
from server_states import Convolution, Kept, Pooled, ValueFirst

import fwm_py

TURN, PAUSE = 0.05, 0.3  # seconds; onnxruntime's threads spin for about 0.06 after a call, and others' for longer
TOLERANCE = 1e-3
PASSES = {"forward": False, "forward + backward": True}


# ---- what is measured -------------------------------------------------------------------------------------------

LAYER = dict(H=16, HV=32, K=128, V=128)  # of Qwen3-Next
MODEL = Work("gated_delta_rule", 1, 2048, **LAYER)
KIMI = Work("kimi_delta_rule", 1, 512, 16, 16, 128, 128)
SMALL = Work("gated_delta_rule", 1, 512, 16, 16, 32, 32)
LONG = dict(H=4, HV=4, K=128, V=128)

ALTERNATIVES = {  # row: work, passes
    "gated delta": (MODEL, PASSES),
    "gated delta in bfloat16": (Bfloat16("gated_delta_rule", 1, 2048, **LAYER), ["forward"]),
    "delta": (dataclasses.replace(MODEL, function="delta_rule"), ["forward"]),
    "Kimi delta": (KIMI, PASSES),
    "gated delta, one token": (dataclasses.replace(MODEL, T=1), ["forward"]),
    "Kimi delta, one token": (dataclasses.replace(KIMI, T=1), ["forward"]),
    "softmax": (Work("softmax_attention", 1, 4096, 8, 8, 64, 64), PASSES),
    "not causal, elu1": (Work("noncausal", 50, 30, 4, 4, 64, 32), PASSES),
    "not causal, elu1, long": (Work("noncausal", 1, 4096, 8, 8, 64, 64), PASSES),
    "not causal, products": (Work("products", 1, 4096, 8, 8, 64, 64), PASSES),
    "small gated delta": (SMALL, PASSES),
    "small delta": (dataclasses.replace(SMALL, function="delta_rule"), ["forward"]),
    "small gated delta, 64": (dataclasses.replace(SMALL, K=64, V=64), PASSES),
    "small gated delta, long": (Work("gated_delta_rule", 1, 2048, 8, 8, 64, 64), ["forward"]),
    "large gated delta": (Work("gated_delta_rule", 1, 2048, 8, 8, 256, 256), PASSES),
    "odd gated delta": (Work("gated_delta_rule", 3, 700, 4, 8, 96, 80), PASSES),
    "odd Kimi delta": (Work("kimi_delta_rule", 3, 300, 8, 8, 96, 80), PASSES),
    "small Kimi delta": (Work("kimi_delta_rule", 2, 1024, 4, 4, 64, 64), PASSES),
    "server, value first": (ValueFirst("gated_delta_rule", 8, 1, **LAYER), ["forward"]),
    "server, pool": (Pooled("gated_delta_rule", 8, 1, **LAYER, pool=32), ["forward"]),
    "server, states every 64": (Kept("gated_delta_rule", 1, 2048, **LAYER, every=64), ["forward"]),
    "server, convolution, pool": (Convolution(8, 8192, 4, pool=32), ["forward"]),
    "server, convolution, rings": (Convolution(8, 8192, 4, L=8), ["forward"]),
}

PAIRS = {  # row: work, the same with one change
    "strong gates, gated delta": (MODEL, dict(g=-30.0)),
    "strong gates, Kimi delta": (KIMI, dict(g=-30.0)),
    "long, gated delta": (Work("gated_delta_rule", 1, 2048, **LONG), dict(T=32768)),
    "long, Kimi delta": (Work("kimi_delta_rule", 1, 2048, **LONG), dict(T=32768)),
    "long, delta": (Work("delta_rule", 1, 2048, **LONG), dict(T=32768)),
}

SWEEPS = {  # table: axis, its values, what does not change
    "tokens": ("T", [512, 1024, 2048, 4096, 8192, 16384, 32768], dict(B=1, **LONG)),
    "heads": ("HV", [1, 2, 4, 8, 16, 32], dict(B=1, T=2048, K=128, V=128)),
    "sizes": ("K", [32, 64, 96, 128, 192, 256], dict(B=1, T=2048, H=8, HV=8)),
}

SWEEP_TITLES = {
    "tokens": "B 1, H HV 4, K V 128 (softmax 64)",
    "heads": "B 1, T 2048, K V 128 (softmax 64), H = HV",
    "sizes": "B 1, T 2048, H HV 8, K = V",
}


def sweep_work(function, table, value):
    axis, _, rest = SWEEPS[table]
    also = {"T": {}, "HV": {"H": value}, "K": {"V": value}}[axis]
    if function == "softmax_attention" and "K" in rest:
        rest = rest | dict(K=64, V=64)
    return Work(function, **rest, **{axis: value}, **also)


def smaller(work):
    """Of the same kind but soon done, to see whether everything runs."""
    return dataclasses.replace(work, T=min(work.T, max(work.T // 16, 40)))


# ---- measuring --------------------------------------------------------------------------------------------------


def seconds_of_turn(call, times):
    """Median of the seconds that `call` takes, after half as many calls that are not counted."""
    time.sleep(PAUSE)
    seconds = []
    for _ in range(times // 2 + times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[-times:])


def alternate(calls, repeats):
    """For each call the seconds it took in each repetition, all calls in turn."""
    for call in calls:
        call()  # fills caches and allocators
    times = [max(1, math.ceil(TURN / seconds_of_turn(call, 1))) for call in calls]
    rounds = [[seconds_of_turn(call, n) for call, n in zip(calls, times)] for _ in range(repeats)]
    return [list(column) for column in zip(*rounds)]


def check(ours, others):
    """The largest disagreement with each of the others, from one call each; raises where it is too large."""
    ours()
    errors = {}
    for other in others:
        other()
        errors[other.name] = disagreement(ours, other)
        if not errors[other.name] <= getattr(other, "tolerance", TOLERANCE):
            raise RuntimeError(
                f"{ours.work}: {other.name} differs from ours by {errors[other.name]:.1e} of the largest"
            )
    return errors


def affordable(work, backward):
    """Ours, and the alternatives that do this work in seconds and in a few GB.

    PyTorch's functions take up to 4096 tokens. With a gate per channel transformers makes several arrays of 64 x K for
    every token and head, 1 GiB each at the limit.
    """
    many = work.T > 4096 or (work.rule.channel_gate and work.B * work.T * work.HV * work.K > 2**22)
    return [kind for kind in work.sides(backward) if not (many and issubclass(kind, alternatives.Torch))]


def measure(work, backward, kinds, threads, repeats):
    """Seconds of each side by repetition, and how far the others are from ours."""
    inputs = work.draw()
    ours, *others = [kind(work, inputs, backward, threads) for kind in kinds]
    errors = check(ours, others)
    return dict(zip([kind.name for kind in kinds], alternate([ours, *others], repeats))), errors


def resident(entry):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(entry))


def peak_bytes(work, backward, kind, threads):
    """Peak memory of a first call beyond inputs and results.

    Memory that was freed goes back to the system first, or results would go where something else has been resident.
    """
    small = dataclasses.replace(work, T=min(work.T, 64), K=64, V=64)
    kind(small, small.draw(), backward, threads)()  # libraries and threads are there; ours keeps its working memory
    inputs = work.draw()
    ctypes.CDLL(None).malloc_trim(0)
    side = kind(work, inputs, backward, threads)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = resident("VmRSS")
    side()
    return resident("VmHWM") - before - sum(array.nbytes for array in side.arrays().values())


def without(names, work, backward):
    return [kind for kind in work.sides(backward) if kind.name not in names]


def alternatives_row(work, backward, threads, repeats, out=()):
    kinds = without(out, work, backward)
    rate = roofline.product_rate(threads)
    seconds, errors = measure(work, backward, kinds, threads, repeats)
    rate = max(rate, roofline.product_rate(threads))  # other work on the machine only lowers it
    return {"seconds": seconds, "errors": errors, "flop": work.flop(backward), "product_rate": rate}


def pairs_row(works, backward, threads, repeats):
    """Ours twice; the others are only compared with."""
    calls, errors = [], []
    for work in works:
        inputs = work.draw()
        ours, *others = [kind(work, inputs, backward, threads) for kind in affordable(work, backward)]
        errors.append(check(ours, others))
        calls.append(ours)
    return {"seconds": dict(zip(("base", "changed"), alternate(calls, repeats))), "errors": errors}


def sweep_row(works, backward, threads, repeats):
    seconds, errors = zip(*(measure(work, backward, affordable(work, backward), threads, repeats) for work in works))
    return {"seconds": seconds, "errors": errors}


# ---- tables -----------------------------------------------------------------------------------------------------


def ms(seconds):
    return f"{1e3 * statistics.median(seconds):.3g}"


def ratio(above, below, scale=1.0):
    return f"{scale * statistics.median(a / b for a, b in zip(above, below)):.2f}"


def print_table(title, header, lines):
    table = rich.table.Table(box=rich.box.MARKDOWN)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = rich.console.Console(width=1000)
    with console.capture() as capture:
        console.print(table)
    print(f"\n{title}\n", *(line.strip() for line in capture.get().splitlines() if line.strip()), sep="\n", flush=True)


def megabytes(n_bytes):
    return "" if n_bytes is None else f"{n_bytes / 1e6:.1f}"


def alternatives_lines(name, work, direction, row):
    """One for each of the others; what is ours stands in the first."""
    seconds, ours, memory = row["seconds"], row["seconds"]["ours"], row["memory"]
    rate = row["flop"] / statistics.median(ours)
    first = [
        f"{name}, {work.sizes()}, {direction}",
        ms(ours),
        f"{rate / 1e9:.0f}",
        f"{100 * rate / row['product_rate']:.0f} %",
        megabytes(memory.get("ours")),
    ]
    for other in list(seconds)[1:]:
        error = row["errors"][other]
        yield [
            *first,
            other,
            ms(seconds[other]),
            ratio(seconds[other], ours),
            megabytes(memory.get(other)),
            f"{error:.0e}" if error else "",
        ]
        first = [""] * len(first)


def pairs_line(name, works, direction, threads, row):
    base, changed = row["seconds"]["base"], row["seconds"]["changed"]
    tokens = works[0].T / works[1].T
    shapes = [f"g {work.g:g}, {work.sizes()}" for work in works]
    memory = [megabytes(row["memory"][side] / threads) for side in ("base", "changed")]
    return [f"{name}, {direction}", shapes[0], ms(base), shapes[1], ms(changed), ratio(changed, base, tokens), *memory]


def sweep_line(function, direction, axis, values, row):
    """A cell: our time and, in brackets, theirs as multiples of it."""
    times = [statistics.median(seconds["ours"]) for seconds in row["seconds"]]
    cells = []
    for seconds in row["seconds"]:
        ours, theirs = seconds["ours"], [name for name in seconds if name != "ours"]
        ratios = ", ".join(f"{name[0]} {ratio(seconds[name], ours)}" for name in theirs)
        cells.append(ms(ours) + (f" ({ratios})" if ratios else ""))
    powers = [math.log(b / a) / math.log(y / x) for a, b, x, y in zip(times, times[1:], values, values[1:])]
    overall = math.log(times[-1] / times[0]) / math.log(values[-1] / values[0])
    return [f"{function}, {direction}", *cells, f"{overall:.2f}", f"{max(powers):.2f}"]


# ---- running ----------------------------------------------------------------------------------------------------


class Runner:
    """Measures each row in a process of its own, and keeps what was measured."""

    def __init__(self, args):
        self.args, self.rows = args, []
        self.repeats = 2 if args.quick else args.repeats

    def wanted(self, name):
        return not self.args.only or any(word.lower() in name.lower() for word in self.args.only)

    def size(self, work):
        return smaller(work) if self.args.quick else work

    def call(self, function, *arguments):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, arguments)

    def measure(self, table, name, direction, function, works):
        print(f"measuring {table}: {name}, {direction}", file=sys.stderr, flush=True)
        backward = PASSES[direction]
        row = self.call(function, works, backward, self.args.threads, self.repeats)
        described = [dataclasses.asdict(work) for work in (works if isinstance(works, list) else [works])]
        row |= {"table": table, "name": name, "pass": direction, "work": described, "threads": self.args.threads}
        self.rows.append(row)
        return row

    def memory(self, work, direction, kind):
        return self.call(peak_bytes, work, PASSES[direction], kind, self.args.threads)

    def alternatives(self):
        lines = []
        for name, (work, passes) in ALTERNATIVES.items():
            work = self.size(work)
            for direction in passes if self.wanted(name) else ():
                measured = functools.partial(alternatives_row, out=self.args.without)
                row = self.measure("alternatives", name, direction, measured, work)
                row["memory"] = (
                    {}
                    if work.decodes
                    else {
                        kind.name: self.memory(work, direction, kind)
                        for kind in without(self.args.without, work, PASSES[direction])
                    }
                )
                lines += alternatives_lines(name, work, direction, row)
        print_table(
            "Times and ratios of alternating calls; memory beyond inputs and results.",
            [
                "work",
                "ours, ms",
                "GFLOP/s",
                "of the product rate",
                "ours, MB",
                "against",
                "theirs, ms",
                "theirs / ours",
                "theirs, MB",
                "differ by",
            ],
            lines,
        )

    def pairs(self):
        lines = []
        for name, (work, change) in PAIRS.items():
            works = [self.size(work), self.size(dataclasses.replace(work, **change))]
            for direction in PASSES if self.wanted(name) else ():
                row = self.measure("pairs", name, direction, pairs_row, works)
                row["memory"] = {
                    side: self.memory(work, direction, Ours) for side, work in zip(("base", "changed"), works)
                }
                lines.append(pairs_line(name, works, direction, self.args.threads, row))
        print_table(
            "Ours alone. Ratio: of the times of a token. Memory beyond inputs and results, for each thread.",
            ["work", "base", "ms", "changed", "ms", "changed / base", "base, MB", "changed, MB"],
            lines,
        )

    def sweep(self, table):
        axis, values, _ = SWEEPS[table]
        values = values[:2] if self.args.quick else values
        lines = []
        for function in RULES:
            works = [self.size(sweep_work(function, table, value)) for value in values]
            for direction in PASSES if self.wanted(function) else ():
                row = self.measure(table, function, direction, sweep_row, works)
                lines.append(sweep_line(function, direction, axis, values, row))
        print_table(
            f"{SWEEP_TITLES[table]}: ours, ms, and in brackets the others' times as multiples of it (t transformers "
            f"or torch, o onnxruntime). Power of {axis} that our time follows: from first to last, and the largest "
            "between neighbours.",
            ["function", *(f"{axis} {value}" for value in values), "power", "largest"],
            lines,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"alternatives": Runner.alternatives, "pairs": Runner.pairs} | {
        name: functools.partial(Runner.sweep, table=name) for name in SWEEPS
    }
    parser.add_argument("tables", nargs="*", metavar="table", help=f"{', '.join(tables)}; default: the first two")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="rows whose name holds one of the words")
    others = sorted({side.name for side in alternatives.SIDES} - {"ours"})
    parser.add_argument("--without", nargs="+", default=[], choices=others, metavar="NAME", help=", ".join(others))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of everyone, default 2")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all that was measured, in seconds and bytes"
    )
    parser.add_argument("--quick", action="store_true", help="few tokens, two repetitions: does it run?")
    args = parser.parse_args()
    for name in args.tables:
        if name not in tables:
            parser.error(f"table: got {name!r}, expected one of {', '.join(tables)}")
    build = fwm_py.build_info()
    print(
        f"{roofline.cpu_model()}; {args.threads} threads; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, fwm_py {fwm_py.__version__} ({build['variant']}, gcc {build['compiler']})."
    )
    for line in missing():
        print(line)
    runner = Runner(args)
    for name in args.tables or ["alternatives", "pairs"]:
        tables[name](runner)
        if args.json:
            args.json.write_text(json.dumps(runner.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
