"""The file of a study: rows appended whole, known by their settings, and a study that goes on."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest

from fwm_py.experiments.files import Refused, locked
from fwm_py.experiments.study import Results, run_study, texts_of


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    flag: bool = False
    rate: float = 0.1
    size: int | None = None
    loss: float | None = None
    error: str = ""

    KEYS: ClassVar[tuple[str, ...]] = ("name", "flag", "rate", "size")


def measure(row):
    if row.name == "bad":
        raise ValueError("a, b\nc")
    if row.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return dataclasses.replace(row, loss=1 / 3)


def own_row(row):
    return row


def run(rows, path, **how):
    return run_study(measure, rows, own_row, path, Row, **{"jobs": 1} | how)


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [Row("a", True, 1e-300, None, float("nan")), Row("b", rate=1 / 3, size=-3, loss=float("inf"))]
    results = Results(path, Row)
    path.touch()
    results.begin()
    for row in rows:
        results.append(row)
    assert path.read_text() == "name,flag,rate,size,loss,error\na,1,1e-300,,nan,\nb,0,0.3333333333333333,-3,inf,\n"
    again = list(Results(path, Row).rows.values())
    assert [texts_of(row) for row in again] == [texts_of(row) for row in rows]


def test_what_failed_is_a_row(tmp_path):
    rows = run([Row("good"), Row("bad")], tmp_path / "rows.csv")
    assert rows[0] == Row("good", loss=1 / 3) and rows[1] == Row("bad", error="ValueError: a; b c")
    assert run([Row("bad")], tmp_path / "rows.csv") == rows[1:]  # and is not tried again


def test_what_was_killed_is_a_row(tmp_path):
    rows = run([Row("killed"), Row("good")], tmp_path / "rows.csv", jobs=2)
    assert rows == [Row("killed", error="its process was killed 3 times"), Row("good", loss=1 / 3)]


@pytest.mark.parametrize(
    "damage, line, expected",
    [
        (lambda text: text.replace("flag", "flags"), 1, "name,flag,rate,size,loss,error"),
        (lambda text: text + "b,0,0.1", 3, "a line that ends"),
        (lambda text: text + "b,0,0.1\n", 3, "6 fields"),
        (lambda text: text.replace("a,0", "a,2"), 2, "a row of a study"),
        (lambda text: text.replace("0.1,", "x,"), 2, "a row of a study"),
        (lambda text: text.replace("0.1,", "0.10,"), 2, "a row of a study"),
    ],
)
def test_damage(tmp_path, damage, line, expected):
    path = tmp_path / "rows.csv"
    run([Row("a")], path)
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=rf"rows.csv: line {line}: got .*, expected {re.escape(expected)}; delete this"
    ):
        run([Row("a"), Row("c")], path)
    assert path.read_bytes() == before


def test_an_empty_file_is_a_study_that_was_killed_at_once(tmp_path):
    path = tmp_path / "rows.csv"
    path.touch()
    assert run([Row("a")], path) == [Row("a", loss=1 / 3)]


def test_one_study_at_a_time(tmp_path):
    path = tmp_path / "rows.csv"
    path.touch()
    with locked(path, "in use"), pytest.raises(Refused, match=r"rows.csv: another study is writing into this file"):
        run([Row("a")], path)


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    run([Row("a")], path)
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:4]))
    with pytest.raises(OSError, match=r"No space left on device: .*rows.csv"):
        run([Row("b")], path)
    assert path.read_bytes() == before


def test_a_killed_study_goes_on(tmp_path):
    path = tmp_path / "study.csv"
    command = [sys.executable, "-m", "fwm_py", "capacity", "--rule", "sum", "--load", "2", "--seed", "1,2,3"]
    command += ["--hidden_size", "8", "--out", str(path), "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not path.exists() or path.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = path.read_bytes()
    assert before.endswith(b"\n")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = path.read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 1 + 12
    kept = before.count(b"\n") - 1
    assert f"{12 - kept} rows made in" in done.stdout and f"{kept} made before" in done.stdout
