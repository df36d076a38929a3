"""`fwm-py capacity`: what it prints, and what it refuses."""

import subprocess
import sys

import pytest

RULES = ["delta", "sum"]
SMALL = ["--feature_map", "elu1", "--hidden_size", "4", "--load", "2", "--seed", "1"]


def capacity(*flags, cwd=None):
    return subprocess.run([sys.executable, "-m", "fwm_py", "capacity", *flags], capture_output=True, text=True, cwd=cwd)


def test_capacity(tmp_path):
    done = capacity(*SMALL, cwd=tmp_path)
    assert done.returncode == 0 and "capacity.csv: 2 rows made in" in done.stdout
    assert done.stderr.count("\n") == 2 and "elu1 delta d 4 N 8 seed 1: stored" in done.stderr
    table = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("elu1")]
    assert [(row[1], row[4], row[5], row[-1]) for row in table] == [(rule, "8", "2", "0.2500") for rule in RULES]
    again = capacity(*SMALL, cwd=tmp_path)
    assert "capacity.csv: 0 rows made in" in again.stdout and "2 made before" in again.stdout and not again.stderr


def test_kinds_of_memories_in_one_table(tmp_path):
    out = ("--out", str(tmp_path / "c.csv"), "--seed", "1", "--max_steps", "300")
    done = [
        capacity(*out, "--rule", "softmax", "--n_keys", "6", "--hidden_size", "2"),
        capacity(*out, "--rule", "delta", "--feature_map", "favor2", "--load", "2", "--redraw", "never"),
        capacity(*out, "--rule", "sum", "--feature_map", "dpfp1", "--n_keys", "20", "--replace"),
    ]
    text = "".join(one.stdout for one in done)
    assert all(one.returncode == 0 for one in done)
    assert "none softmax" in text and "favor2 delta drawn once" in text and "dpfp1 sum replace" in text


def test_a_damaged_file_is_named(tmp_path):
    assert capacity(*SMALL, "--max_steps", "0", cwd=tmp_path).returncode == 0
    with open(tmp_path / "capacity.csv", "a") as file:
        file.write("elu1,")
    done = capacity(*SMALL, "--max_steps", "0", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "capacity.csv: line 4: got 'elu1,', expected a line that ends; delete this line" in done.stderr


def test_untrained():
    done = capacity("--untrained", "--p", "32", "--load", "1,2", "--seed", "3")
    rows = [line.split() for line in done.stdout.splitlines()[3:-1]]
    assert done.returncode == 0 and [row[0] for row in rows] == ["sum", "delta", "pseudo-inverse"] * 2
    for row in rows:
        assert float(row[-2]) == pytest.approx(float(row[-1]), rel=0.15, abs=1e-3)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--rule softmax", "--n_keys: got none, expected numbers of keys with softmax, which has no p"),
        ("--rule gated_delta", "--rule: got 'gated_delta', expected sum, fwm, delta, softmax"),
        ("--feature_map dpfp", "--feature_map: got 'dpfp', expected none, elu1, tanh, dpfpN, favorN"),
        ("--load 1,x", "--load: got 'x', expected a finite number above 0"),
        ("--hidden_size 0", "--hidden_size: got '0', expected an integer in 1..1024"),
        ("--seed 1,,2", "--seed: got '', expected an integer in 0..4294967295"),
        ("--load 1 --n_keys 3", "--load: got loads and n_keys, expected one of them"),
        ("--redraw never", "--redraw: got 'never', expected 'pass' with linear, which draws nothing"),
        ("--p 3", "--p: got '3', expected it with --untrained alone"),
        ("--untrained --rule sum", "--rule: got 'sum', expected it without --untrained"),
        ("--untrained --out a.csv", "--out: got it with --untrained, expected it without"),
        ("--untrained --p 4 --load 1e-9", "--load p: got 0, expected an integer in 2..16384"),
        ("--jobs 0", "--jobs: got '0', expected an integer in 1..4096"),
        ("--out /nowhere/a.csv", "--out: got '/nowhere/a.csv', expected a file that can be written (No such file"),
        ("--colour", "'--colour': an unknown argument, expected --feature_map"),
    ],
)
def test_wrong_flags(flags, message, tmp_path):
    done = capacity(*flags.split(), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not done.stdout and not list(tmp_path.iterdir())
