"""`fwm-py reproduce`: what is made again and what is not; kills, full disks and clusters."""

import csv
import dataclasses
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fwm_py.experiments.retrieval import sweep
from fwm_py.experiments.retrieval.logs import read_log
from fwm_py.experiments.retrieval.manifest import Manifest
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.sweep import Refused, Run, reproduce, select
from fwm_py.experiments.retrieval.train import has_ended, train

SMALL = ["d64_dpfp?_sum_AssocSeq?0N20R0.csv", "d64_[dl]*_ours_AssocSeq40N20R1.csv"]  # a second's work in all
ENOUGH_TO_KILL = ["d64_[dl]*_sum_AssocSeq*N[246]0R?.csv", "d64_[dl]*_ours_AssocSeq*N[246]0R?.csv"]  # seconds, 24 runs


def command(folder, *flags):
    return [sys.executable, "-m", "fwm_py", "reproduce", "--log_folder", str(folder), *flags]


def logs_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("d64_*.csv")}


def manifest_of(folder):
    return folder.parent / "logs.manifest.csv"


def states(runs):
    return {run.name: run.state for run in runs}


def children_of(pid):
    """The live worker processes that `pid` has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(status[1]) == pid and status[0] != "Z" and b"resource_tracker" not in line:
                found.append(int(entry.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path):
    """An empty folder of logs; the manifest lies beside it."""
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    reproduce(folder, select(only=ENOUGH_TO_KILL))
    return logs_of(folder)


# ---- made once ----


def test_logs_and_manifest(folder):
    changes = []
    runs = reproduce(folder, select(only=SMALL), jobs=2, on_change=lambda run: changes.append((run.name, run.state)))
    assert set(states(runs).values()) == {"done"}
    assert {path.name for path in folder.iterdir()} == {run.name for run in runs}
    assert {path.name for path in folder.parent.iterdir()} == {"logs", "logs.manifest.csv"}
    assert sorted(changes) == sorted((run.name, state) for run in runs for state in ("running", "done"))
    with open(manifest_of(folder), newline="") as file:
        rows = {row["log"]: row for row in csv.DictReader(file)}
    for run in runs:
        log, row = read_log(folder / run.name), rows[run.name]
        assert has_ended(log) and (run.steps, run.loss) == log[-1]
        assert (row["seed"], row["n_keys"], row["batch_size"], row["lr"]) == ("1", "20", "32", "0.001")
        assert row["sha256"] == hashlib.sha256((folder / run.name).read_bytes()).hexdigest()
        assert float(row["seconds"]) > 0 and row["version"] and row["variant"]
    assert read_log(folder / "d64_dpfp1_sum_AssocSeq20N20R0.csv") == train(Settings(attn_name="dpfp", attn_arg=1))


def test_what_is_there_is_not_made_again(folder):
    reproduce(folder, select(only=SMALL[:1]))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(states(reproduce(folder, select(only=SMALL[:1]))).values()) == {"skipped"}
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_partial_logs_and_rows_without_a_log_are_made_again(folder):
    reproduce(folder, select(only=SMALL[:1]))
    logs = logs_of(folder)
    name = min(logs)
    (folder / name).rename(folder / (name + ".partial"))
    again = reproduce(folder, select(only=SMALL[:1]))
    assert states(again).pop(name) == "done" and list(states(again).values()).count("skipped") == len(logs) - 1
    assert logs_of(folder) == logs and not list(folder.glob("*.partial"))
    assert len(Manifest(folder).rows) == len(logs)


# ---- any settings ----


def sweep_of(*settings):
    return [Run(None, one) for one in settings]


def test_runs_that_differ_in_what_the_published_name_does_not_hold(folder):
    tiny = Settings(n_keys=5, attn_name="dpfp", attn_arg=1, hidden_size=8, max_steps=200)
    changes = [{}, {"seed": 2}, {"seed": 3}, {"lr": 3e-4}, {"batch_size": 64}, {"favor_generator": "mt19937"}]
    changes += [{"seed": 2, "lr": 3e-4}, {"max_steps": 50, "seed": 4}]
    settings = [dataclasses.replace(tiny, **change) for change in changes]
    runs = reproduce(folder, sweep_of(*settings), jobs=1)
    assert len({run.name for run in runs}) == len(runs) and {run.state for run in runs} == {"done"}
    for run in runs:
        assert read_log(folder / run.name) == train(run.settings)
    assert {run.state for run in reproduce(folder, sweep_of(*settings), jobs=1)} == {"skipped"}
    manifest_of(folder).unlink()
    assert {run.state for run in reproduce(folder, sweep_of(*settings), adopt=True)} == {"skipped"}


@pytest.mark.parametrize(
    "change, difference",
    [
        ({}, "with the same settings"),
        ({"max_steps": 300}, "with max_steps 100000 and 300"),
        (
            {"update_rule": "ours", "attn_arg": 2},
            "with attn_arg 0 and 2, update_rule sum and ours",
        ),  # softmax ignores both
    ],
)
def test_two_runs_of_one_log_are_refused(folder, change, difference):
    with pytest.raises(Refused) as error:
        reproduce(folder / "new", sweep_of(Settings(), dataclasses.replace(Settings(), **change)))
    assert "d64_softmax_cat_AssocSeq20N20R0.csv" in str(error.value) and difference in str(error.value)
    assert list(folder.iterdir()) == []


def test_what_is_no_run_is_refused(folder):
    with pytest.raises(TypeError, match=r"^runs: got Settings\(.*, expected Run"):
        reproduce(folder.parent / "new", [Settings()])
    assert list(folder.parent.iterdir()) == [folder]


def test_a_log_of_other_settings_with_the_same_name_is_refused(folder):
    short, long = Settings(max_steps=100), Settings(max_steps=200)
    reproduce(folder, sweep_of(short), jobs=1)
    with pytest.raises(Refused, match=r"AssocSeq20N20R0.csv was made with max_steps 100, not 200"):
        reproduce(folder, sweep_of(long), jobs=1)
    assert reproduce(folder, sweep_of(long), jobs=1, force=True)[0].steps == 200


# ---- logs that the manifest does not vouch for ----

NAME = "d64_dpfp1_sum_AssocSeq20N20R0.csv"


def one(folder, **options):
    return reproduce(folder, select(only=[NAME]), **options)[0]


def test_a_log_of_unknown_origin_is_refused_adopted_or_made_again(folder):
    one(folder)
    ours = (folder / NAME).read_bytes()
    manifest_of(folder).unlink()
    foreign = b"step,eval-loss\r\n100,0.0005\r\n"
    (folder / NAME).write_bytes(foreign)
    with pytest.raises(Refused, match=f"{NAME} is not in logs.manifest.csv"):
        one(folder)
    assert logs_of(folder) == {NAME: foreign} and not manifest_of(folder).exists()
    assert one(folder, adopt=True).state == "skipped" and logs_of(folder) == {NAME: foreign}
    assert one(folder).state == "skipped" and Manifest(folder).rows[NAME]["seconds"] == ""
    manifest_of(folder).unlink()
    assert one(folder, force=True).state == "done" and logs_of(folder) == {NAME: ours}


@pytest.mark.parametrize(
    "log, message",
    [
        (b"", "line 1"),
        (b"step,eval-loss\r\n100,0.5\r\n", "has not come to its end"),
        (b"step,eval-loss\r\n100,0.000", "a row that ends in CR LF"),
        (b"a table of ours\n", "line 1"),
    ],
)
def test_a_log_that_is_not_whole_is_not_adopted(folder, log, message):
    (folder / NAME).write_bytes(log)
    with pytest.raises(Refused, match=message):
        one(folder, adopt=True)
    assert logs_of(folder) == {NAME: log}


def test_a_log_that_was_changed_or_made_with_other_settings_is_refused(folder):
    one(folder)
    good, manifest = (folder / NAME).read_bytes(), manifest_of(folder).read_text()
    (folder / NAME).write_bytes(good + b"200,0.0005\r\n")
    for options in ({}, {"adopt": True}):
        with pytest.raises(Refused, match="has been changed since it was made"):
            one(folder, **options)
    (folder / NAME).write_bytes(good)
    manifest_of(folder).write_text(manifest.replace(",0.001,", ",0.01,"))
    with pytest.raises(Refused, match="was made with lr 0.01, not 0.001"):
        one(folder)
    assert one(folder, force=True).state == "done" and (folder / NAME).read_bytes() == good


@pytest.mark.parametrize("text, line", [("", 1), ("log,seed\n", 1), ("{header}\nx,1\n", 2)])
def test_a_manifest_that_cannot_be_read_is_refused(folder, text, line):
    one(folder)
    header = manifest_of(folder).read_text().splitlines()[0]
    manifest_of(folder).write_text(text.replace("{header}", header))
    with pytest.raises(ValueError, match=rf"logs.manifest.csv: line {line}: got .*, expected"):
        one(folder)


# ---- faults ----


def test_a_run_that_fails_is_reported_and_the_rest_goes_on(folder, monkeypatch):
    def fail_once(settings):
        if settings.attn_arg == 2:
            raise MemoryError("no room")
        return train(settings)

    monkeypatch.setattr(sweep, "train", fail_once)
    runs = reproduce(folder, select(only=SMALL[:1]), jobs=1)  # one job: in this process, where train is ours
    assert sorted(states(runs).values()) == ["done", "done", "failed"]
    failed = next(run for run in runs if run.state == "failed")
    assert failed.error == "MemoryError: no room" and not (folder / failed.name).exists()
    assert failed.name not in Manifest(folder).rows


def test_two_sweeps_exclude_each_other_and_the_lock_dies_with_its_process(folder):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
from pathlib import Path
from fwm_py.experiments.files import locked
with locked(Path({str(folder)!r}), "held"):
    print("held", flush=True)
    input()
""",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refused, match="another sweep is writing into this folder"):
            one(folder)
        assert list(folder.iterdir()) == []
    finally:
        holder.kill()
        holder.communicate()
    assert one(folder).state == "done"


def limit_file_size():
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # coverage's data would not fit either, and it would say so
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))


def test_a_full_disk_stops_the_sweep_and_leaves_whole_logs(folder):
    """The manifest reaches the limit at its third row or so."""
    done = subprocess.run(
        command(folder, "--only", *SMALL, "--jobs", "1"),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit_file_size,
    )
    assert done.returncode == 1 and "File too large" in done.stderr and "whole" in done.stderr, done.stderr
    assert done.stderr.count("\n") <= 8 and "Traceback" not in done.stderr
    logs = logs_of(folder)
    assert 1 <= len(logs) < len(select(only=SMALL)) and not list(folder.glob("*.partial"))
    assert all(has_ended(read_log(folder / name)) for name in logs)
    assert set(states(reproduce(folder, select(only=SMALL))).values()) == {"done", "skipped"}


def test_a_killed_worker_costs_nothing_but_time(folder, undisturbed):
    process = subprocess.Popen(
        command(folder, "--only", *ENOUGH_TO_KILL), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    killed = 0
    while killed < 2 and process.poll() is None:
        for worker in children_of(process.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
            killed += 1
            time.sleep(0.3)
        time.sleep(0.02)
    assert killed
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"{len(undisturbed)} runs made, 0 made before, 0 failed" in output
    assert logs_of(folder) == undisturbed


def test_a_sweep_killed_at_random_goes_on_to_the_same_logs(folder, undisturbed):
    """The parent by kill -9, again and again; its workers end by themselves, and nothing there is half a log."""
    kills, in_the_middle = int(os.environ.get("FWM_PY_KILLS", "5")), 0
    for kill in range(kills + 1):
        process = subprocess.Popen(
            command(folder, "--only", *ENOUGH_TO_KILL), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if kill == kills:
            break
        before = len(logs_of(folder))
        if kill % 2:  # some while it starts, some while it works
            wait_for(lambda: len(logs_of(folder)) > before or process.poll() is not None, 60, "no log")
        time.sleep(random.uniform(0, 0.8))
        workers = children_of(process.pid)
        in_the_middle += process.poll() is None
        process.kill()
        process.communicate()
        wait_for(lambda: not any(map(alive, workers)), 2, "orphaned workers")
        for name, log in logs_of(folder).items():
            assert log == undisturbed[name]
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert in_the_middle >= kills / 2
    assert logs_of(folder) == undisturbed and not list(folder.glob("*.partial"))
    rows = Manifest(folder).rows
    assert {name: row["sha256"] for name, row in rows.items()} == {
        name: hashlib.sha256(log).hexdigest() for name, log in undisturbed.items()
    }


def test_ctrl_c_leaves_whole_logs_and_no_workers(folder, undisturbed):
    process = subprocess.Popen(
        command(folder, "--only", *ENOUGH_TO_KILL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: logs_of(folder), 30, "no log")
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130 and "interrupted" in errors.splitlines()[-1], errors
    wait_for(lambda: not any(map(alive, workers)), 2, "workers")
    assert logs_of(folder).items() <= undisturbed.items()


# ---- the command ----


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--setting", "3"], "--setting: got '3', expected an integer in 1..2"),
        (["--jobs", "0"], "--jobs: got '0', expected an integer in 1..4096"),
        (["--max-n", "x"], "--max-n: got 'x', expected an integer in 2..2000"),
        (["--only", "nothing"], "--only: got 'nothing', expected a pattern"),
        (["--log_folder", ""], "--log_folder: got '', expected a folder"),
        (["--threads", "2"], "'--threads': an unknown argument, expected --setting"),
        (["--dask", "tcp://127.0.0.1:9"], "--dask: got 'tcp://127.0.0.1:9', expected the address"),
    ],
)
def test_wrong_flags(folder, flags, message):
    if flags[0] == "--dask":
        pytest.importorskip("distributed")
    done = subprocess.run(
        [sys.executable, "-m", "fwm_py", "reproduce", *flags], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made(folder):
    (folder / "file").touch()
    done = subprocess.run(command(folder / "file" / "logs", "--only", NAME), capture_output=True, text=True)
    assert done.returncode == 2 and "--log_folder: got" in done.stderr and "Traceback" not in done.stderr


def test_the_summary(folder):
    done = subprocess.run(command(folder, "--only", NAME, "*linear_ours*N20R1*"), capture_output=True, text=True)
    assert done.returncode == 0 and "2 runs made, 0 made before, 0 failed" in done.stdout
    assert "DPFP-1" in done.stdout and "Linear delta" in done.stdout and "Softmax" not in done.stdout


# ---- a cluster ----


def test_a_dask_cluster_that_loses_a_worker(folder, undisturbed):
    """A real scheduler and two workers, processes of their own on loopback; one is killed in the middle."""
    pytest.importorskip("distributed")
    file, environment = folder / "scheduler.json", {**os.environ, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, "env": environment}
    common = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *common]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *common]
    worker += ["--local-directory", str(folder)]
    processes = [subprocess.Popen(dask, **quiet)]
    try:
        wait_for(file.exists, 30, "no scheduler")
        processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        logs = folder / "logs"
        sweeping = subprocess.Popen(
            command(logs, "--only", *ENOUGH_TO_KILL, "--dask", str(file)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: logs_of(logs) or sweeping.poll() is not None, 60, "no log")
        processes[1].kill()
        output, errors = sweeping.communicate(timeout=120)
        assert sweeping.returncode == 0, errors
        assert f"{len(undisturbed)} runs made, 0 made before, 0 failed" in output
        assert logs_of(logs) == undisturbed
    finally:
        for process in processes:
            process.kill()
            process.wait()
