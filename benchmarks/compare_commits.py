"""Builds two commits and compares them: results to the bit, or times pair by pair. Exits with 1 where they differ.

    python benchmarks/compare_commits.py OLD NEW           results of every operation (comparison.py) and logs of runs,
                                                           with one and two threads, in each variant of the kernels
    python benchmarks/compare_commits.py OLD NEW --times   times, from tiny calls to training steps

OLD and NEW: commits, or folders of source trees, such as `.` for what is not committed yet. A commit is built in a
folder of its own below --work, once; a tree where it lies.

Times: both builds are alive at once and take turns; the ratio of a row is the median over pairs of turns. A row above
the limit is read again, by five new pairs of processes, since where a process's memory lies can cost more than a
change does; the second reading counts.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = 0.001  # seconds that a block of calls should take: short, so that some are not interrupted
READINGS = 5  # pairs of processes of a second reading
# Threads that wait leave the core to the other process; memory that was freed stays with a process.
MALLOC = {f"MALLOC_{name}_THRESHOLD_": str(10**9) for name in ("MMAP", "TRIM")}
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", **MALLOC}


def build(commit, work):
    """The folder with the built package of a commit."""
    tree = Path(commit).resolve()
    if not (tree / "setup.py").is_file():
        git = ["git", "-C", str(ROOT)]
        done = subprocess.run([*git, "rev-parse", "--verify", commit + "^{commit}"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"got {commit!r}, expected a commit or the folder of a source tree")
        tree = work.resolve() / done.stdout.strip()
        archive = subprocess.run([*git, "archive", tree.name], capture_output=True, check=True).stdout
        tarfile.open(fileobj=io.BytesIO(archive)).extractall(tree, filter="data")  # files as old as the commit
    print(f"building {commit} in {tree}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True)
    return tree


def start(tree, *arguments, **environment):
    """A process of comparison.py on a build."""
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(tree)} | environment
    command = [sys.executable, str(ROOT / "benchmarks" / "comparison.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process):
    """What a process prints that ends by itself."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{process.args[-1]} failed with {process.returncode}")
    return json.loads(output)


# ---- bits -------------------------------------------------------------------------------------------------------


def variants(trees):
    """The variants of the kernels that both builds have."""
    found = []
    for tree in trees:
        file, *names = said(start(tree, "variants"))
        if Path(file).parent.parent != tree:
            sys.exit(f"{tree}: Python imports {file} instead")
        found.append(names)
    if found[0] != found[1]:
        sys.exit(f"the variants differ: {found[0]} and {found[1]}")
    return found[0]


def difference(old, new):
    """In words, of what two builds give for a call: digests, or an error, which must not be either."""
    if isinstance(old, str) or isinstance(new, str):
        return f"raised {old if isinstance(old, str) else new}"
    if len(old) != len(new):
        return f"{len(old)} results, {len(new)} results"
    differing = [str(i) for i, (a, b) in enumerate(zip(old, new)) if a != b]
    return f"result {', '.join(differing)} of {len(old)}" if differing else ""


def compare_bits(trees, names):
    """Prints the calls whose results differ; returns whether there are any."""
    n_cases = n_differing = 0
    for variant in names:
        old, new = map(said, [start(tree, "bits", FWM_PY_ISA=variant) for tree in trees])
        differing = {name: words for name in old if (words := difference(old[name], new[name]))}
        for name, words in differing.items():
            print(f"{variant}: {name}: {words}")
        n_cases, n_differing = n_cases + len(old), n_differing + len(differing)
        print(f"{variant}: {len(old)} cases, {len(differing)} differ", file=sys.stderr, flush=True)
    print(f"{n_cases} cases, " + (f"{n_differing} differ" if n_differing else "all equal to the bit"))
    return n_differing > 0


# ---- times ------------------------------------------------------------------------------------------------------


class Pair:
    """A process of each build, which answer requests in turn."""

    def __init__(self, trees, threads):
        self.processes = [start(tree, "times", str(threads)) for tree in trees]
        self.names, _ = (json.loads(process.stdout.readline()) for process in self.processes)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.communicate()

    def seconds(self, side, *request):
        process = self.processes[side]
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    def ratios(self, name, repeats):
        """new / old for each pair of turns, whose order changes, and the seconds of old."""
        calls = max(1, int(BLOCK / max(self.seconds(side, name, 1) for side in (0, 1))))
        turns = []
        for repeat in range(repeats):
            order = (0, 1) if repeat % 2 else (1, 0)
            turn = {side: self.seconds(side, name, calls) for side in order}
            turns.append((turn[0], turn[1]))
        return [new / old for old, new in turns], statistics.median(old for old, _ in turns)


def compare_times(trees, threads, repeats, limit, only):
    """Prints a row for each call; returns whether the largest ratio is above the limit."""
    ratios = {}

    def row(name, seconds, read, note=""):
        ratios[name] = statistics.median(read)
        print(f"| {name} | {1e6 * seconds:.1f} | {ratios[name]:.3f} | {note} |", flush=True)

    print(f"{threads} threads, {repeats} pairs\n\n| call | old, µs | new / old | |\n|---|---:|---:|---|")
    with Pair(trees, threads) as pair:
        for name in pair.names:
            if not only or any(word in name for word in only):
                read, seconds = pair.ratios(name, repeats)
                row(name, seconds, read)
    for name in [name for name in ratios if ratios[name] > limit]:
        again = []
        for _ in range(READINGS):
            with Pair(trees, threads) as pair:
                read, seconds = pair.ratios(name, repeats)
                again += read
        row(name, seconds, again, "second reading")
    worst = max(ratios, key=ratios.get)
    print(f"\n{len(ratios)} rows, the largest ratio {ratios[worst]:.3f}: {worst}")
    return ratios[worst] > limit


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "commits", help="default build/commits")
    parser.add_argument("--times", action="store_true", help="compare times instead of bits")
    parser.add_argument("--threads", type=int, default=1, help="of times, default 1")
    parser.add_argument("--repeats", type=int, default=20, help="pairs of turns a row, default 20")
    parser.add_argument("--limit", type=float, default=1.03, help="of the ratio new / old, default 1.03")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="rows of times whose name holds one of the words")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:  # equally long names: the length of a path moves what is in memory
        trees = [Path(folder, "old"), Path(folder, "new")]
        for link, commit in zip(trees, (args.old, args.new)):
            link.symlink_to(build(commit, args.work), target_is_directory=True)
        names = variants(trees)
        if args.times:
            sys.exit(compare_times(trees, args.threads, args.repeats, args.limit, args.only))
        sys.exit(compare_bits(trees, names))


if __name__ == "__main__":
    main()
