"""Damaged manifests, twins and logs, and full disks: one line that names the file, and the way out."""

import errno
import os
import random
import resource
import subprocess
import sys

import pytest

from fwm_py import cli
from fwm_py.experiments.files import write_file
from fwm_py.experiments.retrieval.logs import LogWriter, format_log
from fwm_py.experiments.retrieval.manifest import Manifest
from fwm_py.experiments.retrieval.paper import RUNS, published_losses
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.sweep import Run, reproduce
from fwm_py.experiments.retrieval.twins import Band, make_twins, read_twins

NAMES = ["d64_dpfp1_sum_AssocSeq20N20R0.csv", "d64_linear_sum_AssocSeq20N20R0.csv", "d64_dpfp2_sum_AssocSeq20N20R0.csv"]

# What a file may have become, as a function of its bytes.
DAMAGE = {
    "random bytes": lambda data: random.Random(1).randbytes(len(data)),
    "no bytes": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a quote": lambda data: data.replace(b",20,", b',"20,', 1),
    "a long field": lambda data: data.replace(b",20,", b"," + b"2" * 200_000 + b",", 1),
    "a NUL": lambda data: data.replace(b",20,", b",2\0,", 1),
    "a carriage return": lambda data: data.replace(b",20,", b",20\r,", 1),
    "another encoding": lambda data: b"\xff\xfe" + data,
    "a row twice": lambda data: data + data.splitlines(keepends=True)[-1],
    "an empty line": lambda data: data + b"\n",
    "lines in one": lambda data: data.replace(b"\n", b" "),
    "a number that is none": lambda data: data.replace(b",20,", b",2x,", 1),
}


@pytest.fixture
def folder(tmp_path):
    """Three published logs with their manifest and their twins."""
    logs = tmp_path / "logs"
    logs.mkdir()
    known = Manifest(logs)
    for name in NAMES:
        known.record(RUNS[name], published_losses()[name], 1.0, "avx2")
    return logs


def manifest_of(folder):
    return folder.parent / "logs.manifest.csv"


def twins_of(folder, monkeypatch):
    """The file of bands, made without training."""
    monkeypatch.setattr(
        "fwm_py.experiments.retrieval.twins.run_all",
        lambda function, tasks, jobs: (
            (index, published_losses()[NAMES[0]][-1][1] + seed) for index, (_, seed) in enumerate(tasks)
        ),
    )
    make_twins(folder, [RUNS[name] for name in NAMES], 2)
    return folder.parent / "logs.twins.csv"


def said(capsys, *argv):
    """The status of a command, and the one line that it wrote to stderr."""
    status = cli.main([str(argument) for argument in argv])
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and len(errors) < 600, errors
    return status, errors


def cuts(data):
    """Every beginning that does not end with a line."""
    return [data[:end] for end in range(len(data)) if end == 0 or data[end - 1 : end] != b"\n"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest(folder, damage, capsys):
    manifest_of(folder).write_bytes(DAMAGE[damage](manifest_of(folder).read_bytes()))
    before = manifest_of(folder).read_bytes()
    for command in (["reproduce", "--only", *NAMES, "--log_folder", folder], ["compare", folder], ["figures", folder]):
        if command[0] == "figures":
            pytest.importorskip("pandas")
        status, line = said(capsys, *command)
        assert status == 2 and f"{manifest_of(folder)}: line " in line and "--adopt" in line and "--force" in line
    assert manifest_of(folder).read_bytes() == before
    assert cli.main(["reproduce", "--only", *NAMES, "--log_folder", str(folder), "--adopt"]) == 0
    assert Manifest(folder).rows.keys() == set(NAMES)


def test_a_manifest_that_was_cut(folder):
    for data in cuts(manifest_of(folder).read_bytes()):
        manifest_of(folder).write_bytes(data)
        with pytest.raises(ValueError, match=r"logs.manifest.csv: line [1-4]: got .*--adopt"):
            Manifest(folder)


def test_of_a_damaged_manifest_what_comes_before_the_damage_is_kept(folder):
    manifest_of(folder).write_bytes(manifest_of(folder).read_bytes()[:-9])
    runs = reproduce(folder, [Run(None, RUNS[name]) for name in NAMES], force=True, jobs=1)
    assert [run.state for run in runs] == ["skipped", "skipped", "done"]
    assert len(Manifest(folder).rows) == 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_twins(folder, damage, capsys, monkeypatch):
    path = twins_of(folder, monkeypatch)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = path.read_bytes()
    for command in (["compare", folder], ["compare", folder, "--twins", 2, "--only", NAMES[0]]):
        status, line = said(capsys, *command)
        assert status == 2 and f"{path}: line " in line and "delete it" in line and "--twins" in line
    assert path.read_bytes() == before


def test_twins_that_were_cut(folder, monkeypatch):
    path = twins_of(folder, monkeypatch)
    for data in cuts(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"logs.twins.csv: line [1-4]: got .*--twins"):
            read_twins(folder)


def test_bands_of_many_twins_are_read_again(folder, monkeypatch):
    """Their losses make a field of more than the 131072 characters of Python's csv module."""
    twins_of(folder, monkeypatch)
    make_twins(folder, [RUNS[NAMES[0]]], 10_000)
    assert len(read_twins(folder)[NAMES[0]].losses) == 10_000
    assert isinstance(read_twins(folder)[NAMES[1]], Band)


@pytest.mark.parametrize(
    "damage", ["random bytes", "no bytes", "zeros", "another encoding", "a row twice", "an empty line", "lines in one"]
)
def test_a_damaged_log(folder, damage, capsys):
    path = folder / NAMES[1]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    status, line = said(capsys, "reproduce", "--only", *NAMES, "--log_folder", folder)
    assert status == 2 and f"{folder}: {NAMES[1]} has been changed since it was made" in line and "--force" in line
    manifest_of(folder).unlink()
    status, line = said(capsys, "reproduce", "--only", *NAMES, "--log_folder", folder, "--adopt")
    assert status == 2 and f"{folder}: {NAMES[1]} line " in line and "--force" in line and "--adopt" not in line
    cli.main(["compare", str(folder)])
    output = capsys.readouterr().out
    assert NAMES[1] in output and "fwm-py reproduce --force makes the logs again" in output


# ---- full disks ----


def limited(size, *argv):
    """A command that may write no file beyond `size` bytes, which stands in for a full disk."""

    def limit():
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # coverage's data would not fit either, and it would say so
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        [sys.executable, "-m", "fwm_py", *map(str, argv)], capture_output=True, text=True, timeout=60, preexec_fn=limit
    )


@pytest.mark.parametrize("size, name", [(3, "logs.manifest.csv"), (400, "logs.manifest.csv")])
def test_a_full_disk_under_a_sweep(tmp_path, size, name):
    done = limited(size, "reproduce", "--only", *NAMES, "--log_folder", tmp_path / "logs", "--jobs", 1)
    assert done.returncode == (2 if size == 3 else 1) and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert str(tmp_path / name) in line and "File too large" in line


def test_a_full_disk_under_twins(tmp_path):
    (tmp_path / "logs").mkdir()
    done = limited(3, "compare", tmp_path / "logs", "--twins", 1, "--only", NAMES[0])
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{tmp_path / 'logs.twins.csv'}: File too large" in done.stderr


def test_a_full_disk_under_a_run(tmp_path):
    done = limited(3, "train", "--log_folder", tmp_path / "logs", "--max_steps", 100)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"No space left on device: {tmp_path / 'logs' / 'd64_softmax_cat_AssocSeq20N20R0.csv'}" in done.stderr


def fail_with_no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file_and_leaves_the_old_one(folder, monkeypatch):
    """Found out when the bytes go to the disk."""
    before = {path: path.read_bytes() for path in [manifest_of(folder), *folder.iterdir()]}
    monkeypatch.setattr(os, "fsync", fail_with_no_space)
    known = Manifest(folder)
    for name, write in {
        str(folder / NAMES[0]): lambda: known.record(RUNS[NAMES[0]], [(100, 0.0)], 1.0, "avx2"),
        str(manifest_of(folder)): known.write,
        str(folder / "x"): lambda: write_file(folder / "x", b"data"),
    }.items():
        with pytest.raises(OSError) as error:
            write()
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, name)
    assert before == {path: path.read_bytes() for path in [manifest_of(folder), *folder.iterdir()]}
    assert len(known.rows) == 3 and known.rows[NAMES[0]] == Manifest(folder).rows[NAMES[0]]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_device():
    """It is written to, not replaced by a file."""
    for write in (lambda: write_file("/dev/full", b"data"), lambda: LogWriter("/dev/full")):
        with pytest.raises(OSError) as error:
            write()
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")
        assert not os.path.isfile("/dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fwm_py", "compare", "."], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and done.stderr == "fwm-py compare: error: standard output: No space left on device\n"


def test_a_file_is_written_through_a_link(tmp_path):
    (tmp_path / "to").write_bytes(b"old")
    (tmp_path / "link").symlink_to("to")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "to").read_bytes() == b"new" and (tmp_path / "link").is_symlink()


def test_a_folder_by_any_of_its_names_has_one_manifest(folder, monkeypatch):
    (folder.parent / "link").symlink_to("logs")
    monkeypatch.chdir(folder)
    for name in (".", folder, f"{folder}/", folder.parent / "link", "../logs"):
        assert len(Manifest(name).rows) == 3


def test_a_log_is_as_the_manifest_has_it(folder):
    assert (folder / NAMES[0]).read_bytes() == format_log(published_losses()[NAMES[0]])
    assert Manifest(folder).standing(RUNS[NAMES[0]]) is None and Manifest(folder).standing(Settings()) == ""
