"""The commands `compare` and `figures`: their flags, what they print, and their exit status."""

import os
import pty
import re
import subprocess
import sys

import pytest

from fwm_py import cli
from fwm_py.experiments.retrieval.logs import LogWriter
from fwm_py.experiments.retrieval.manifest import Manifest
from fwm_py.experiments.retrieval.paper import published_losses
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.twins import read_twins

NAME = "d64_dpfp1_sum_AssocSeq20N20R0.csv"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published logs, with the one that was cut off."""
    folder = tmp_path_factory.mktemp("published")
    for name, rows in published_losses().items():
        with LogWriter(folder / name) as log:
            for row in rows:
                log.write(*row)
    return folder


def run(*argv):
    return cli.main([str(argument) for argument in argv])


def test_compare_says_that_the_published_logs_agree_with_themselves(published, capsys):
    assert run("compare", published) == 0
    output = capsys.readouterr().out
    assert "320" in output and "not ended (1)" in output and "ok: first rows that agree to 1e-3: 319 of 320" in output


def test_compare_fails_where_logs_are_missing(tmp_path, capsys):
    assert run("compare", tmp_path) == 1
    assert "FAILED: first rows" in capsys.readouterr().out


def test_compare_trains_twins_where_asked_and_keeps_their_bands(tmp_path, capsys):
    assert run("compare", tmp_path, "--twins", 2, "--only", NAME, "--jobs", 1) == 1
    band = read_twins(tmp_path)[NAME]
    assert len(band.losses) == 2 and band.holds(published_losses()[NAME][-1][1])
    assert f"{NAME}: 2 twins" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["compare"], "the following arguments are required: FOLDER"),
        (["compare", "nowhere"], "FOLDER: got 'nowhere', expected a folder of logs"),
        (["compare", ".", "--twins", "0"], "--twins: got '0', expected an integer in 1..10000"),
        (["compare", ".", "--twins", "1", "--only", "x"], "--only: got 'x', expected the name of a published log"),
        (["compare", ".", "--jobs", "2"], "--jobs: goes with --twins"),
        (["compare", ".", "--out", "x"], "'--out': an unknown argument, expected --twins"),
        (["figures"], "the following arguments are required: FOLDER"),
        (["figures", "."], "got no whole log of a run that is drawn"),
        (["figures", "nowhere"], "'nowhere': No such file or directory"),
    ],
)
def test_wrong_flags(tmp_path, monkeypatch, capsys, flags, message):
    if flags[0] == "figures":
        pytest.importorskip("matplotlib")
        pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(flags)
    except SystemExit as end:
        status = end.code
    errors = capsys.readouterr().err
    assert status == 2 and message in errors and errors.count("\n") == 1, errors
    assert list(tmp_path.iterdir()) == []


def test_figures_are_drawn_and_what_is_no_log_is_named(published, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    logs = tmp_path / "logs"
    logs.mkdir()
    for name in (NAME, "d64_linear_sum_AssocSeq40N40R0.csv"):
        (logs / name).write_bytes((published / name).read_bytes())
    (logs / "d64_dpfp2_sum_AssocSeq20N20R0.csv").write_bytes(b"step,eval-loss\r\n100,0.5\r\n")
    assert run("figures", logs, "--out", tmp_path / "out") == 0
    output, errors = capsys.readouterr()
    assert "not drawn: 'd64_dpfp2_sum_AssocSeq20N20R0.csv'" in errors
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        os.path.basename(line) for line in output.splitlines()
    }
    assert {"setting1_scatter.png", "setting1_lines.svg"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_sweep_on_a_terminal_shows_what_runs_and_what_has_ended(tmp_path):
    here, there = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fwm_py", "reproduce"),
            *("--only", "*linear_ours*N1[26]0R1*", "--log_folder", str(tmp_path)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=there,
        env={**os.environ, "COLUMNS": "100"},
    )
    os.close(there)
    shown = b""
    while True:
        try:
            piece = os.read(here, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    os.close(here)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "0 of 2 runs" in text and "running d64_linear_ours_AssocSeq320N160R1" in text


@pytest.mark.parametrize("command", ["compare", "figures"])
def test_a_log_of_other_settings_is_named_and_not_looked_at(published, tmp_path, capsys, command):
    if command == "figures":
        pytest.importorskip("matplotlib")
        pytest.importorskip("pandas")
    (tmp_path / NAME).write_bytes((published / NAME).read_bytes())
    settings = Settings(attn_name="dpfp", attn_arg=1, max_steps=200)
    Manifest(tmp_path).record(settings, published_losses()[NAME], 1.0, "avx2")
    assert run(command, tmp_path) != 0
    said = "".join(capsys.readouterr())
    assert "was made with max_steps 200, not 100000" in said
    assert "0 of 320 runs compared" in said if command == "compare" else "got no whole log" in said


@pytest.mark.parametrize("command", ["compare", "figures"])
def test_a_malformed_manifest_is_an_error(tmp_path, capsys, command):
    if command == "figures":
        pytest.importorskip("pandas")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs.manifest.csv").write_text("name\n")
    assert run(command, tmp_path / "logs") == 2
    assert "logs.manifest.csv: line 1: got 'name', expected log," in capsys.readouterr().err
