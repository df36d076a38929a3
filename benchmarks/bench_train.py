"""A training step of the experiments against PyTorch, pair by pair in one run. Prints a Markdown table.

    python benchmarks/bench_train.py [--cases sum fwm] [--repeats 7] [--threads 2] [--quick]
    python benchmarks/bench_train.py --side-by-side      what two one-thread processes at once cost each other
    python benchmarks/bench_train.py --memory            peak memory of the published runs

PyTorch: the equations as written (torch_program.py). Fast forms: PyTorch with the algorithms of the C code
(torch_fast.py). Every repetition takes a new batch through all three, one after the other, so that what else the
machine does hits them alike; the ratios are medians over repetitions. Drawing the batch is not timed, but in the column
of the training loop, which is all that `train` does between evaluations. Limits: roofline.py.
"""

import argparse
import dataclasses
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import roofline
import torch
from torch_fast import FastModel
from torch_program import RetrievalModel, TrainingStep

import fwm_py
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.stream import Stream
from fwm_py.experiments.retrieval.train import train
from fwm_py.feature_maps import draw_omega
from fwm_py.random import Philox

CASES = {
    "sum": Settings(attn_name="dpfp", attn_arg=1, update_rule="sum", n_keys=600),
    "softmax": Settings(attn_name="softmax", n_keys=600),
    "delta": Settings(attn_name="dpfp", attn_arg=1, update_rule="ours", n_keys=200, replace=True),
    "fwm": Settings(attn_name="tanh", update_rule="fwm", n_keys=200, replace=True),
    "favor": Settings(attn_name="favor", attn_arg=128, update_rule="sum", n_keys=600),
}

# fmt: off
LARGEST_PUBLISHED_RUNS = [  # of the sixteen published commands
    Settings(attn_name=attn_name, attn_arg=attn_arg, update_rule=update_rule, n_keys=n_keys, replace=replace)
    for n_keys, replace, runs in [
        (600, False, [("softmax", 0, "sum"), ("linear", 0, "sum"), ("dpfp", 1, "sum"), ("dpfp", 2, "sum"),
                      ("dpfp", 3, "sum"), ("favor", 64, "sum"), ("favor", 128, "sum"), ("favor", 512, "sum")]),
        (200, True, [("dpfp", 1, "sum"), ("dpfp", 1, "ours"), ("tanh", 0, "fwm"), ("dpfp", 1, "fwm"),
                     ("dpfp", 2, "ours"), ("linear", 0, "ours"), ("favor", 64, "ours"), ("favor", 128, "ours")]),
    ]
    for attn_name, attn_arg, update_rule in runs
]
# fmt: on

FAST_STEPS, OUR_STEPS = 3, 30  # a repetition: shorter steps are repeated, and their median counts
LOSS_TOLERANCE = 1e-3


def label(settings):
    parts = [settings.attn_name + (str(settings.attn_arg) if settings.attn_arg else "")]
    if settings.rule != settings.attn_name:
        parts.insert(0, {"ours": "delta"}.get(settings.rule, settings.rule))
    parts.append(f"N = {settings.n_keys}")
    if settings.replace:
        parts.append("with replacement")
    if settings.resolved_batch_size != 32:
        parts.append(f"B = {settings.resolved_batch_size}")
    return ", ".join(parts)


def median_seconds(call, times=1):
    """Median of the seconds that `call` takes, after half as many calls that are not counted.

    These fill the caches, and wait until threads that another library left spinning have gone to sleep.
    """
    seconds = []
    for _ in range(times // 2 + times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[-times:])


def markdown(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- a training step --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    """Seconds of a step by each repetition; of the training loop, by step; and of an evaluation."""

    program: list
    fast: list
    ours: list
    loop: float
    evaluation: float


def torch_model(kind, settings, parameters):
    """A torch model (RetrievalModel or FastModel) with a copy of our parameters."""
    model = kind(settings.n_keys, settings.attn_name, settings.attn_arg, settings.update_rule, settings.hidden_size)
    wanted = model.state_dict()
    model.load_state_dict({name: torch.tensor(parameters[name]) for name in wanted})
    return model


def check_losses(settings, ours, torch_models, batch):
    """Raises unless all compute the same loss from the same parameters."""
    omega = None
    if settings.attn_name == "favor":
        omega = draw_omega(settings.hidden_size, settings.attn_arg, Philox(settings.seed))
    expected = ours.loss(batch, omega)
    for model in torch_models:
        with torch.no_grad():
            loss = model.loss(*map(torch.tensor, batch), None if omega is None else torch.tensor(omega)).item()
        if not abs(loss - expected) <= LOSS_TOLERANCE * expected:
            raise RuntimeError(f"{label(settings)}: {type(model).__name__} has a loss of {loss}, ours is {expected}")


def step_seconds(settings, stream, ours, repeats):
    """Seconds of a step by each repetition: of the program, of the fast forms and of ours."""
    models = [torch_model(kind, settings, ours.parameters) for kind in (RetrievalModel, FastModel)]
    check_losses(settings, ours, models, stream.batch())
    program, fast = (TrainingStep(model, settings.resolved_lr) for model in models)
    columns = [], [], []
    for repeat in range(repeats + 1):
        batch = stream.batch()
        tensors = [torch.tensor(array) for array in batch]
        fresh = iter([stream.batch() for _ in range(2 * OUR_STEPS)])  # on one batch, gradients would soon be subnormal
        seconds = (
            median_seconds(lambda: program(*tensors)),
            median_seconds(lambda: fast(*tensors), FAST_STEPS),
            median_seconds(lambda: ours.step(next(fresh)), OUR_STEPS),
        )
        if repeat > 0:  # the first fills caches and allocators
            for column, value in zip(columns, seconds):
                column.append(value)
    return columns


def measure(settings, repeats):
    stream, ours = Stream(settings), Model(settings)
    program, fast, own = step_seconds(settings, stream, ours, repeats)  # PyTorch's models are gone when it returns
    loop = statistics.median(loop_seconds(settings) for _ in range(min(repeats, 3)))
    return Result(program, fast, own, loop, median_seconds(lambda: ours.evaluate(stream), 5))


def loop_seconds(settings, first=10, last=90):
    """Seconds of a step in `train`, drawing included: a longer run less a shorter one, neither with an evaluation."""

    def run(steps):
        return median_seconds(lambda: train(dataclasses.replace(settings, max_steps=steps)))

    return (run(last) - run(first)) / (last - first)


def times_row(settings, result):
    ours = statistics.median(result.ours)

    def ratio(column):
        return f"{statistics.median(a / b for a, b in zip(column, result.ours)):.1f}"

    return [
        label(settings),
        f"{1e3 * statistics.median(result.program):.0f}",
        f"{1e3 * statistics.median(result.fast):.1f}",
        f"{1e3 * ours:.2f}",
        ratio(result.program),
        ratio(result.fast),
        f"{1e3 * result.loop:.2f}",
        f"{result.evaluation / ours:.1f}",
    ]


def roofline_row(settings, result, rates):
    work = roofline.training_step(settings)
    products, triad = (max(column) for column in zip(*rates))
    by_flop, by_bytes = 1e3 * work.flop / products, 1e3 * work.bytes / triad
    limit, ours = max(by_flop, by_bytes), 1e3 * statistics.median(result.ours)
    return [
        label(settings),
        f"{work.flop / 1e6:.0f}",
        f"{work.bytes / 1e6:.1f}",
        f"{products / 1e9:.0f}",
        f"{triad / 1e9:.0f}",
        f"{by_flop:.2f}",
        f"{by_bytes:.2f}",
        f"{ours:.2f}",
        f"{100 * limit / ours:.0f} %",
    ]


def compare_case(name, repeats, threads):
    """The rows of one case in the two tables."""
    fwm_py.set_num_threads(threads)
    torch.set_num_threads(threads)
    settings = CASES[name]
    rates = [roofline.rates(settings, threads)]
    result = measure(settings, repeats)
    rates.append(roofline.rates(settings, threads))  # the better counts: other work on the machine only lowers them
    return times_row(settings, result), roofline_row(settings, result, rates)


def compare(cases, repeats, threads):
    """Prints the tables. Each case has a process of its own: what torch allocates in one slows the next down."""
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in cases:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            rows.append(pool.apply(compare_case, (name, repeats, threads)))
    times, rooflines = zip(*rows)
    print(f"{threads} threads, float32, medians of {repeats} repetitions; ratios are medians of the pairs' ratios.\n")
    print(
        markdown(
            [
                "step",
                "PyTorch, ms",
                "fast forms in PyTorch, ms",
                "ours, ms",
                "PyTorch / ours",
                "fast forms / ours",
                "training loop, ms a step",
                "an evaluation, steps",
            ],
            times,
        )
    )
    print("\nThe least work of a step at the measured rates; reached: the larger of both times, as a share of ours.\n")
    print(
        markdown(
            [
                "step",
                "MFLOP",
                "MB",
                "products, GFLOP/s",
                "triad, GB/s",
                "by FLOP, ms",
                "by bytes, ms",
                "ours, ms",
                "reached",
            ],
            rooflines,
        )
    )


# ---- two processes at once --------------------------------------------------------------------------------------


def step_in_process(settings, seconds, barrier, results):
    """Puts into `results` the seconds of a one-thread step, over `seconds` from when all processes are ready."""
    fwm_py.set_num_threads(1)
    stream, model = Stream(settings), Model(settings)
    model.step(stream.batch())
    barrier.wait()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        model.step(stream.batch())
        steps += 1
    results.put((time.perf_counter() - start) / steps)


def seconds_at_once(settings, processes, seconds):
    """Mean seconds of a one-thread step in each of so many processes at once."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=step_in_process, args=(settings, seconds, barrier, results)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    measured = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return statistics.mean(measured)


def compare_processes(cases, repeats, seconds):
    rows = []
    for name in cases:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        pairs = [[seconds_at_once(CASES[name], n, seconds) for n in (1, 2)] for _ in range(repeats)]
        alone, both = (statistics.median(column) for column in zip(*pairs))
        loss = statistics.median(100 * (1 - one / two) for one, two in pairs)
        rows.append([label(CASES[name]), f"{1e3 * alone:.2f}", f"{1e3 * both:.2f}", f"{loss:.1f} %"])
    print(markdown(["step, one thread", "alone, ms", "two at once, ms each", "loss"], rows))


# ---- memory -----------------------------------------------------------------------------------------------------

RUN_AND_REPORT = """
import sys
from fwm_py.cli import main
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak.split()[1])
sys.exit(status)
"""


def peak_megabytes(settings, threads, steps=200):
    """Peak resident memory of the command that trains `settings`, Python included, in a process of its own.

    Read from Linux's VmHWM by the process itself: the maxrss of a child counts what its parent had when it forked.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "begin": settings.n_keys,
            "attn_name": settings.attn_name,
            "attn_arg": settings.attn_arg,
            "update_rule": settings.update_rule,
            "max_steps": steps,
            "threads": threads,
            "log_folder": folder,
        }
        command = [sys.executable, "-c", RUN_AND_REPORT, "train", *(f"--{name}={flags[name]}" for name in flags)]
        command += ["--replace"] * settings.replace
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1]) * 1024 / 1e6


def compare_memory(threads):
    rows = []
    for settings in LARGEST_PUBLISHED_RUNS:
        print(f"running {label(settings)}", file=sys.stderr, flush=True)
        rows.append([label(settings), f"{peak_megabytes(settings, threads):.0f}"])
    print(markdown(["run, its first 200 steps", "peak resident, MB"], rows))


# ---- command line -----------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--repeats", type=int, help="default 7 (3 with --side-by-side)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch and ours, default 2")
    parser.add_argument("--quick", action="store_true", help="two short repetitions: does it run?")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--side-by-side", action="store_true", help="two one-thread processes against one")
    mode.add_argument("--memory", action="store_true", help="peak memory of the published runs' first 200 steps")
    args = parser.parse_args()
    build = fwm_py.build_info()
    print(
        f"{roofline.cpu_model()}; Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"fwm_py {fwm_py.__version__} ({build['variant']}, gcc {build['compiler']})."
    )
    if args.memory:
        compare_memory(args.threads)
    elif args.side_by_side:
        compare_processes(args.cases, 2 if args.quick else args.repeats or 3, 1 if args.quick else 4)
    else:
        compare(args.cases, 2 if args.quick else args.repeats or 7, args.threads)


if __name__ == "__main__":
    main()
