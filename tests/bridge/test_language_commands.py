"""`fwm-py language`: a text through all its commands, a sweep that goes on, and what is refused."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from support.commands import run_here
from support.texts import write_documents

TINY = "--layers 1 --d_model 16 --heads 2 --d_ff 16 --seq_len 16 --max_tokens 400 --threads 1".split()
SWEEP = """
data = "data"
preset = "test"
seeds = [1, 2]
layers = 1
d_model = 16
heads = 2
d_ff = 16
seq_len = 16
max_tokens = 400

[variants."sum, elu + 1"]
rule = "sum"

[variants."gated delta"]
rule = "gated_delta"
feature_map = "none"
"""


def language(*arguments, cwd):
    return run_here("language", *arguments, cwd=cwd)


def language_process(*arguments, cwd):
    command = [sys.executable, "-m", "fwm_py", "language", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With data of a Markov chain's letters, and a run."""
    folder = tmp_path_factory.mktemp("language")
    write_documents(folder / "texts", n=40, length=200)
    done = language_process("prepare", "texts", "--vocab", "257", "--out", "data", cwd=folder)
    assert done.returncode == 0 and "perplexity of valid by counting: unigram" in done.stdout
    write_documents(folder / "other_texts", n=40, length=200, seed=7)
    done = language("prepare", "other_texts", "--vocab", "260", "--out", "other_data", cwd=folder)
    assert done.returncode == 0
    done = language_process("train", "data", "--out", "run", *TINY, cwd=folder)
    assert done.returncode == 0 and "run: valid: perplexity" in done.stdout and "; 7 steps, " in done.stdout
    assert "step 7  tokens 448  loss" in done.stderr and "valid perplexity" in done.stderr
    return folder


def test_evaluate(folder):
    for mode in ((), ("--mode", "sliding", "--stride", "4"), ("--mode", "carry")):
        done = language("evaluate", "run", *mode, "--threads", "1", cwd=folder)
        table = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("valid", "test"))]
        assert done.returncode == 0 and [row[0] for row in table] == ["valid", "test"]
        assert all(float(row[1]) > 1 for row in table)
        assert ("was not trained so (--carry)" in done.stderr) == ("carry" in mode)


def test_generate(folder):
    texts = [
        language("generate", "run", "abc", "--tokens", "9", "--temperature", t, cwd=folder) for t in ("0", "0", "2")
    ]
    assert all(done.returncode == 0 and done.stdout.startswith("abc") for done in texts)
    assert texts[0].stdout == texts[1].stdout


def test_sweep_and_its_figures(folder):
    (folder / "study.toml").write_text(SWEEP)
    done = language("sweep", "study.toml", "--out", "study", "--jobs", "2", cwd=folder)
    assert (
        done.returncode == 0 and "study: 4 rows made in" in done.stdout and done.stderr.count("valid perplexity") == 4
    )
    table = [line for line in done.stdout.splitlines() if line.strip().startswith(("sum; elu + 1", "gated delta"))]
    assert len(table) == 2
    assert len(list((folder / "study" / "logs").iterdir())) == 4 and not list((folder / "study" / "runs").iterdir())
    again = language("sweep", "study.toml", "--out", "study", cwd=folder)
    assert "study: 0 rows made in" in again.stdout and "4 made before" in again.stdout
    assert (folder / "study" / "data.json").read_bytes() == (folder / "data" / "meta.json").read_bytes()
    done = language("figures", "study", "--out", "figures", cwd=folder)
    assert done.returncode == 0 and not done.stderr
    names = {file.name for file in (folder / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("language", "language_state") for kind in ("png", "svg")}
    log = next((folder / "study" / "logs").iterdir())
    log.write_text(log.read_text() + "8,")
    done = language("figures", "study", cwd=folder)
    assert done.returncode == 2 and "line" in done.stderr and "the sweep makes it again" in done.stderr


def test_a_sweep_goes_on_with_its_text_alone(folder):
    write_documents(folder / "more_texts", n=41, length=200)
    assert language("prepare", "more_texts", "--vocab", "257", "--out", "more_data", cwd=folder).returncode == 0
    (folder / "one.toml").write_text(SWEEP.replace("[1, 2]", "[1]"))
    (folder / "other.toml").write_text(SWEEP.replace("[1, 2]", "[1]").replace('"data"', '"more_data"'))
    assert language("sweep", "one.toml", "--out", "text_study", cwd=folder).returncode == 0
    before = (folder / "text_study" / "results.csv").read_bytes()
    done = language("sweep", "other.toml", "--out", "text_study", cwd=folder)
    assert done.returncode == 2 and "data.json: got runs on another text than" in done.stderr
    assert (folder / "text_study" / "results.csv").read_bytes() == before
    (folder / "text_study" / "data.json").write_text("{")
    done = language("sweep", "one.toml", "--out", "text_study", cwd=folder)
    assert done.returncode == 2 and "data.json: got a damaged file" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_in_bfloat16_is_evaluated_so(folder):
    assert language("train", "data", "--out", "bf16", *TINY, "--bf16", cwd=folder).returncode == 0
    result = json.loads((folder / "bf16" / "result.json").read_text())
    done = language("evaluate", "bf16", "--threads", "1", cwd=folder)
    assert f"{result['test']['perplexity']:.3f}" in done.stdout


def test_a_sweep_whose_file_has_changed(folder):
    """Rows, and runs that were interrupted, of the same names with other settings are refused before anything is made;
    what a kill left behind a row goes."""
    one = SWEEP.replace("[1, 2]", "[1]")
    (folder / "one.toml").write_text(one)
    (folder / "longer.toml").write_text(one.replace("max_tokens = 400", "max_tokens = 500"))
    left = folder / "changed" / "runs" / "sum_elu_1_seed1"
    assert language("sweep", "one.toml", "--out", "changed", "--keep_runs", cwd=folder).returncode == 0
    assert (left / "config.json").exists()
    done = language("sweep", "longer.toml", "--out", "changed", cwd=folder)
    message = "results.csv: got sum_elu_1_seed1 with max_tokens 400, expected 500; begin elsewhere, or delete its line"
    assert done.returncode == 2 and message in done.stderr
    results = folder / "changed" / "results.csv"
    before = results.read_text()
    results.write_text(before.splitlines(keepends=True)[0])
    done = language("sweep", "longer.toml", "--out", "changed", cwd=folder)
    assert done.returncode == 2 and "sum_elu_1_seed1: got a run with other settings, expected those" in done.stderr
    results.write_text(before)
    assert language("sweep", "one.toml", "--out", "changed", cwd=folder).returncode == 0 and not left.exists()


def test_a_failed_row_says_how_it_is_made_again(folder):
    (folder / "large.toml").write_text(SWEEP.replace("[1, 2]", "[1]").replace("seq_len = 16", "seq_len = 100000"))
    for made in (2, 0):
        done = language("sweep", "large.toml", "--out", "failed", "--jobs", "1", cwd=folder)
        assert done.returncode == 1 and f"failed: {made} rows made" in done.stdout
        assert "a row that failed is made again where its line is deleted" in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "action: got none, expected prepare, train, evaluate, generate, convert, sweep, figures"),
        ("prepare nowhere --out other", "nowhere"),
        ("prepare texts --vocab 3 --out other", "--vocab: got '3', expected an integer in 257..1048576"),
        ("prepare texts --out data", "data"),
        ("train data --out other --preset big", "--preset: got 'big', expected test, study, paper-small"),
        ("train data --out other --rule deltas", "--rule: got 'deltas', expected softmax, sum"),
        ("train data --out other --lr fast", "--lr: got 'fast', expected a number"),
        (
            "train data --out other --rule softmax --feature_map none --carry",
            "carry: got True, expected False with softmax",
        ),
        (
            "train data --out other --normalize --rule gated_delta",
            "--normalize: got True with gated_delta, expected sum",
        ),
        ("train data --out run", "run: got a folder with files, expected an empty one, or a resume"),
        ("train nothing --out other", "nothing"),
        ("evaluate run --mode all", "--mode: got 'all', expected segments, sliding, carry"),
        ("evaluate run --stride 3", "--stride: got 3 with segments, expected it with sliding, and only there"),
        ("evaluate nothing", "nothing"),
        ("evaluate run --data other_data", "other_data: got another tokenizer, expected that of run"),
        ("generate run abc --data other_data", "other_data: got another tokenizer, expected that of run"),
        ("generate run abc --temperature 0 --top_k 3", "top_k: got 3 with temperature 0, expected None"),
        ("generate run abc --temperature 0 --seed 3", "--seed: got 3 with temperature 0, expected none"),
        ("generate run \udcff", "text: got '\\udcff', expected UTF-8"),
        ("train data --out texts/0.txt", "'texts/0.txt': File exists"),
        ("train data --out texts --resume", "texts: got files that are of no run, expected a run, or a new folder"),
        ("train data --out other --carry --redraw --feature_map favor8", "redraw: got True, expected False with carry"),
        ("sweep nothing.toml --out other", "'nothing.toml': No such file"),
        ("evaluate run --threads 0", "--threads: got '0', expected an integer in 1.."),
        ("generate run abc --threads x", "--threads: got 'x', expected an integer in 1.."),
        ("generate run abc --temperature warm", "--temperature: got 'warm', expected a number"),
        ("generate run abc --temperature -1", "temperature: got -1.0, expected a number from 0"),
        ("generate run abc --top_k 0", "--top_k: got '0', expected an integer in 1..257"),
        ("sweep texts/0.txt --out other", "texts/0.txt: got no TOML"),
    ],
)
def test_what_is_refused(arguments, message, folder):
    done = language(*arguments.split(), cwd=folder)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (("seeds = [1, 2]", "seeds = 1"), "study: seeds: got 1, expected a list"),
        (('preset = "test"', 'preset = "big"'), "preset: got 'big', expected test, study"),
        (("layers = 1", "layer = 1"), "layer: an unknown setting, expected d_model"),
        (('rule = "sum"', 'rule = "add"'), "rule: got 'add', expected softmax, sum"),
        (('"gated delta"', '"sum; elu + 1"'), "variants: got two that are called sum_elu_1_seed1"),
        (('"gated delta"', '"gated \u0394"'), "variants: got 'gated \u0394', expected names of ASCII letters"),
        (('"gated delta"', '"gated\\ndelta"'), "variants: got 'gated\\ndelta', expected names of ASCII letters"),
        (("[1, 2]", "[1, 1]"), "seeds: got [1, 1], expected each once"),
        (('"test"', '["test"]'), "preset: got ['test'], expected test, study"),
    ],
)
def test_files_that_are_no_sweeps(change, message, folder):
    (folder / "bad.toml").write_text(SWEEP.replace(*change))
    done = language("sweep", "bad.toml", "--out", "other", cwd=folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message.removeprefix("study: ") in done.stderr
    assert "bad.toml: " in done.stderr and not (folder / "other").exists()
