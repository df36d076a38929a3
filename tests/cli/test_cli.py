"""The command line: what it accepts, refuses and writes, in this process and, where signals matter, in its own."""

import csv
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import cases

import fwm_py
from fwm_py import _core, cli
from fwm_py.cli.main import make_parser
from fwm_py.experiments.retrieval.logs import log_name, read_log
from fwm_py.experiments.retrieval.settings import LIMITS, Settings

COMMANDS = """
--begin=20 --end=600 --step=20 --attn_name=softmax --update_rule=sum
--begin=20 --end=600 --step=20 --attn_name=linear --update_rule=sum
--begin=20 --end=600 --step=20 --attn_name=dpfp --attn_arg=1 --update_rule=sum
--begin=20 --end=600 --step=20 --attn_name=dpfp --attn_arg=2 --update_rule=sum
--begin=20 --end=600 --step=20 --attn_name=dpfp --attn_arg=3 --update_rule=sum
--begin=20 --end=600 --step=20 --attn_name=favor --attn_arg=64 --update_rule=sum
--begin=20 --end=600 --step=20 --attn_name=favor --attn_arg=128 --update_rule=sum
--begin=20 --end=600 --step=20 --attn_name=favor --attn_arg=512 --update_rule=sum
--begin=20 --end=200 --step=20 --attn_name=dpfp --attn_arg=1 --update_rule=sum --replace
--begin=20 --end=200 --step=20 --attn_name=dpfp --attn_arg=1 --update_rule=ours --replace
--begin=20 --end=200 --step=20 --attn_name=tanh --update_rule=fwm --replace
--begin=20 --end=200 --step=20 --attn_name=dpfp --attn_arg=1 --update_rule=fwm --replace
--begin=20 --end=200 --step=20 --attn_name=dpfp --attn_arg=2 --update_rule=ours --replace
--begin=20 --end=200 --step=20 --attn_name=linear --update_rule=ours --replace
--begin=20 --end=200 --step=20 --attn_name=favor --attn_arg=64 --update_rule=ours --replace
--begin=20 --end=200 --step=20 --attn_name=favor --attn_arg=128 --update_rule=ours --replace
""".strip().splitlines()

FLAGS = [
    *("--begin", "--end", "--step", "--attn_name", "--attn_arg", "--update_rule", "--replace", "--seed"),
    *("--hidden_size", "--batch_size", "--lr", "--max_steps", "--log_folder", "--threads", "--favor_generator"),
]

# A run that goes on for a long time: the steps are small, so that each evaluation is a little better than the last.
ENDLESS = ["--attn_name", "linear", "--begin", "40", "--lr", "1e-6"]

WHOLE = {
    "begin": LIMITS["n_keys"],
    "end": (20, LIMITS["n_keys"][1]),
    "step": (1, LIMITS["n_keys"][1]),
    "threads": (1, 1024),
    **{name: ends for name, ends in LIMITS.items() if name != "n_keys"},
}

# arguments, what the message must hold
REFUSED = [
    *[
        ([f"--{name}", text], f"--{name}: got {text!r}, expected an integer in {low}..{high}")
        for name, (low, high) in WHOLE.items()
        for text in (str(low - 1), str(high + 1), "", "x", "1.5", "nan", "0x10", "1\n2", "9" * 40)
    ],
    *[([f"--{name}={'9' * 10**5}"], f"--{name}: got '999") for name in WHOLE],
    *[
        (["--lr", text], f"--lr: got {shown}, expected a finite number above 0")
        for text, shown in (
            ("0", "0.0"),
            ("-1", "-1.0"),
            ("nan", "nan"),
            ("inf", "inf"),
            ("1e400", "inf"),
            ("x", "'x'"),
            ("", "''"),
        )
    ],
    *[
        (["--lr", text], f"--lr: got {text}, expected a number in 1.4e-45..3.1e+37 in float32")
        for text in ("1e+39", "1e+38", "1e-60")
    ],
    *[
        (["--attn_name", text], f"--attn_name: got {text!r}, expected {cases.ATTN_NAMES}")
        for text in ("", "elu", "Softmax", "tanh\n")
    ],
    *[
        (
            ["--attn_name", row["name"], *arg],
            f"--attn_arg: got 0, expected an integer in 1..65536 ({row['argument']} of {row['name']})",
        )
        for row in _core.MAPS
        if row["argument"]
        for arg in ([], ["--attn_arg", "0"])
    ],
    *[
        (["--update_rule", text], f"--update_rule: got {text!r}, expected {cases.UPDATE_RULES}")
        for text in ("", "delta")
    ],
    (["--favor_generator", "cuda"], "--favor_generator: got 'cuda', expected philox or mt19937"),
    (["--begin", "40", "--end", "20"], "--end: got '20', expected an integer in 40..2000"),
    (["--log_folder", ""], "--log_folder: got '', expected a folder"),
    (["--replace=1"], "--replace: ignored explicit argument '1'"),
    (["--rule", "sum"], "'--rule': an unknown argument, expected --begin, --end"),
    (["--attn", "tanh"], "'--attn': an unknown argument"),  # no abbreviations
    (["20"], "'20': an unknown argument"),
    *[([flag], f"{flag}: expected one argument") for flag in FLAGS if flag != "--replace"],
]


def command(*arguments):
    return [sys.executable, "-m", "fwm_py", "train", *arguments]


def wait_for_rows(path, rows, seconds=20):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_bytes().count(b"\n") > rows):
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments, message", REFUSED, ids=range(len(REFUSED)))
def test_refused_on_one_line_and_nothing_written(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", *arguments])
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.err.startswith("fwm-py train: error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [([], "command: got none, expected train"), (["test"], "invalid choice: 'test'"), (["--seed", "1"], "command: ")],
)
def test_refused_commands(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_help_has_every_flag_and_every_row_of_the_tables(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for flag in FLAGS:
        assert any(line.startswith(flag) for line in lines)
    for row in _core.MAPS:
        assert f"{row['name']} {row['argument'] or '-'} {' '.join(row['summary'].split())}" in lines
    for row in _core.READOUTS:
        argument = "" if row["uses_map"] else "- "
        assert f"{row['name']} {argument}{' '.join(row['summary'].split())}" in lines


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"fwm-py {fwm_py.__version__}\n"


def test_the_sixteen_commands_mean_the_320_published_runs():
    with open(Path(__file__).parents[1] / "data" / "published_first_rows.csv", newline="") as file:
        published = {
            log_name(
                Settings(
                    int(row["n_keys"]),
                    row["attn_name"],
                    int(row["attn_arg"]),
                    row["update_rule"],
                    row["replace"] == "1",
                )
            )
            for row in csv.DictReader(file)
        }
    runs = [run for line in COMMANDS for run in cli.train.runs_of(make_parser().parse_args(["train", *line.split()]))]
    assert len(runs) == len(published) == 320
    assert {log_name(run) for run in runs} == published
    assert all(run.seed == 1 and run.hidden_size == 64 and run.max_steps == 100_000 for run in runs)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_sixteen_commands_work(folder, capsys, line):
    assert cli.main(["train", *line.split(), "--max_steps", "1"]) == 0
    runs = cli.train.runs_of(make_parser().parse_args(["train", *line.split()]))
    assert sorted(os.listdir(folder / "logs")) == sorted(log_name(run) for run in runs)
    for log in (folder / "logs").iterdir():
        assert log.read_bytes() == b"step,eval-loss\r\n"
    assert len(capsys.readouterr().out.splitlines()) == len(runs)


@pytest.mark.parametrize("max_steps, steps", [(0, []), (99, []), (100, [100]), (199, [100]), (200, [100, 200])])
def test_max_steps(folder, max_steps, steps):
    assert cli.main(["train", "--max_steps", str(max_steps), "--log_folder", "a/b"]) == 0
    assert [step for step, _ in read_log(folder / "a/b/d64_softmax_cat_AssocSeq20N20R0.csv")] == steps


def test_both_spellings_of_a_value_and_every_flag():
    values = {
        "begin": "4",
        "end": "8",
        "step": "2",
        "attn_name": "favor",
        "attn_arg": "3",
        "update_rule": "ours",
        "seed": "7",
        "hidden_size": "5",
        "batch_size": "6",
        "lr": "0.25",
        "max_steps": "9",
        "log_folder": "x",
        "threads": "1",
        "favor_generator": "mt19937",
    }
    assert {"--" + name for name in values} == set(FLAGS) - {"--replace"}
    apart = [part for name, value in values.items() for part in ("--" + name, value)]
    joined = [f"--{name}={value}" for name, value in values.items()]
    for arguments in (apart, joined):
        args = make_parser().parse_args(["train", "--replace", *arguments])
        assert cli.train.runs_of(args) == [
            Settings(n_keys, "favor", 3, "ours", True, 7, 5, 6, 0.25, 9, "mt19937") for n_keys in (4, 6, 8)
        ]


def test_end_defaults_to_begin():
    args = make_parser().parse_args(["train", "--begin", "100"])
    assert [run.n_keys for run in cli.train.runs_of(args)] == [100]


def test_its_own_log_is_overwritten_and_others_are_left_alone(folder):
    logs = folder / "logs"
    logs.mkdir()
    own, other = logs / "d64_softmax_cat_AssocSeq20N20R0.csv", logs / "d64_tanh_sum_AssocSeq20N20R0.csv"
    own.write_text("old" * 100)
    other.write_text("other")
    assert cli.main(["train", "--max_steps", "100"]) == 0
    assert len(read_log(own)) == 1 and other.read_text() == "other"
    assert sorted(logs.iterdir()) == [own, other]


def test_threads(folder):
    assert cli.main(["train", "--max_steps", "1", "--threads", "1"]) == 0
    assert fwm_py.get_num_threads() == 1


@pytest.mark.parametrize("name", ["file/logs", "file"])
def test_a_log_folder_that_cannot_be_written(folder, capsys, monkeypatch, name):
    (folder / "file").write_text("in the way")
    monkeypatch.setattr(cli.train, "train", None)  # no step is made
    assert cli.main(["train", "--log_folder", name]) == 2
    error = capsys.readouterr().err
    assert f"--log_folder: got '{name}', expected a folder that can be written" in error and error.count("\n") == 1
    assert (folder / "file").read_text() == "in the way"


def test_a_log_that_cannot_be_written(folder, capsys):
    (folder / "logs" / "d64_softmax_cat_AssocSeq20N20R0.csv").mkdir(parents=True)
    assert cli.main(["train"]) == 2
    error = capsys.readouterr().err
    assert "--log_folder: got 'logs', expected a folder that can be written" in error and error.count("\n") == 1


def test_a_full_disk(folder):
    """A limit on the size of files stands in for a disk that fills up after the header and one row."""

    def limit():
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # coverage's data would not fit either, and it would say so
        resource.setrlimit(resource.RLIMIT_FSIZE, (36, 36))

    result = subprocess.run(
        command("--attn_name", "linear", "--begin", "40"), capture_output=True, text=True, preexec_fn=limit
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("fwm-py train: error: d64_linear_sum_AssocSeq40N40R0.csv: ")
    assert len(read_log(folder / "logs" / "d64_linear_sum_AssocSeq40N40R0.csv")) == 1


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer needs the address space")
def test_out_of_memory(folder):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

    arguments = ["--begin", "2000", "--attn_name", "favor", "--attn_arg", "65536", "--threads", "1"]
    result = subprocess.run(command(*arguments), capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 1 and result.stderr == "fwm-py train: error: out of memory at N = 2000\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kill, status", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_run_leaves_whole_rows(folder, kill, status):
    process = subprocess.Popen(command(*ENDLESS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        log = folder / "logs" / "d64_linear_sum_AssocSeq40N40R0_lr1e-06.csv"
        wait_for_rows(log, rows=3)
        started = time.monotonic()
        process.send_signal(kill)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert time.monotonic() - started < 1
    assert process.returncode == status
    steps = [step for step, _ in read_log(log)]
    assert len(steps) >= 3 and steps == list(range(100, steps[-1] + 1, 100))
    assert "Traceback" not in err
    if kill == signal.SIGINT:
        assert err.splitlines()[1:] == ["fwm-py train: error: interrupted at N = 40; the logs hold whole rows"]


def test_plain_lines_where_there_is_no_terminal(folder, monkeypatch, capsys):
    monkeypatch.setattr(cli.train, "PLAIN_PROGRESS_SECONDS", 0.0)
    assert cli.main(["train", *ENDLESS, "--max_steps", "4000", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    first, *others = captured.err.splitlines()
    assert first == "N 40  d64_linear_sum_AssocSeq40N40R0_lr1e-06.csv"
    assert others and all("steps/s" in line and "loss" in line for line in others)
    assert captured.out.startswith("d64_linear_sum_AssocSeq40N40R0_lr1e-06.csv: 40 rows in ")


def test_a_live_line_on_a_terminal(folder):
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        command(*ENDLESS, "--max_steps", "4000", "--threads", "1"),
        stdout=subprocess.DEVNULL,
        stderr=inner,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(inner)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # Linux's end of file of a terminal
        pass
    finally:
        os.close(terminal)
    assert process.wait() == 0
    text = shown.decode()
    assert "N 40  step " in text and "steps/s" in text and "\x1b[2K" in text


def test_a_reader_that_goes_away(folder):
    """Our output's end is closed before we write to it, as `| head -0` would."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command("--max_steps", "1"), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
