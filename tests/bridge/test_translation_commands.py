"""`fwm-py translation`: parallel texts through all its commands, a sweep that goes on, and what is refused."""

import io
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("sacrebleu")
pytest.importorskip("matplotlib")

from support.commands import run_here
from support.texts import write_reversals

TINY = "--encoder_layers 1 --decoder_layers 1 --d_model 16 --heads 2 --d_ff 16 --batch_tokens 100 --max_steps 6".split()
TINY += ["--threads", "1"]
SWEEP = """
data = "data"
preset = "test"
seeds = [1, 2]
encoder_layers = 1
decoder_layers = 1
d_model = 16
heads = 2
d_ff = 16
batch_tokens = 100
max_steps = 6

[variants."softmax"]
rule = "softmax"

[variants."elu + 1, delta in the decoder"]
feature_map = "elu1"
decoder_rule = "delta"
"""


def translation(*arguments, cwd):
    return run_here("translation", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    write_reversals(folder, "all", 600)
    flags = "--source all.source --target all.target --vocab 283 --out data".split()
    done = translation("prepare", *flags, cwd=folder)
    assert done.returncode == 0 and "data: left out: 0 empty, " in done.stdout and "BLEU of test without" in done.stdout
    done = translation("train", "data", "--out", "run", *TINY, cwd=folder)
    assert done.returncode == 0 and "run: valid: perplexity" in done.stdout and "; 6 steps, " in done.stdout
    assert "step 6  tokens" in done.stderr and "valid perplexity" in done.stderr
    return folder


def test_translate_line_by_line(folder):
    """From the standard input to the standard output, blank lines too."""
    command = [sys.executable, "-m", "fwm_py", "translation", "translate", "run", "--beam", "2", "--threads", "1"]
    text = "a b c\n\nc d\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.split("\n")
    assert len(lines) == 4 and lines[1] == lines[3] == ""


def test_translate_more_lines_than_are_read_at_once(folder, monkeypatch):
    from fwm_py.cli import translation as command

    def translated(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        return translation("translate", "run", "--beam", "1", cwd=folder)

    whole = translated(b"a b\nb c\n\nd e f\ng")
    monkeypatch.setattr(command, "LINES", 2)
    assert translated(b"a b\nb c\n\nd e f\ng") == whole and whole.stdout.count("\n") == 5
    assert translated(b"") == (0, "", "")
    assert translated(b"\xef\xbb\xbfa b\n").stdout == translated(b"a b\n").stdout
    bad = translated(b"a b\n\xff\n")
    assert bad.returncode == 2 and "line 2: got no UTF-8 at byte 0, expected text" in bad.stderr


def test_without_an_input(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    done = translation("translate", "run", cwd=folder)
    assert done.returncode == 2 and "standard input: got none, expected a file" in done.stderr


def test_score(folder):
    for flags in ((), ("--split", "valid", "--beam", "1", "--length_penalty", "0.5")):
        done = translation("score", "run", *flags, cwd=folder)
        told, signature = done.stdout.splitlines()
        assert done.returncode == 0 and signature.startswith("nrefs:1|case:mixed")
        assert told.startswith(f"run: {'valid' if flags else 'test'}: BLEU ") and told.endswith("% exact")


def test_sweep_and_its_figures(folder):
    (folder / "study.toml").write_text(SWEEP)
    done = translation("sweep", "study.toml", "--out", "study", "--jobs", "1", cwd=folder)
    assert done.returncode == 0 and "study: 4 rows made in" in done.stdout and done.stderr.count("BLEU") == 4
    assert "elu + 1; delta in the" in done.stdout
    assert len(list((folder / "study" / "logs").iterdir())) == 4 and not list((folder / "study" / "runs").iterdir())
    again = translation("sweep", "study.toml", "--out", "study", cwd=folder)
    assert "study: 0 rows made in" in again.stdout and "4 made before" in again.stdout
    done = translation("figures", "study", "--out", "figures", cwd=folder)
    assert done.returncode == 0 and not done.stderr
    log = next((folder / "study" / "logs").iterdir())
    log.rename(folder / "log.csv")
    lost = translation("figures", "study", cwd=folder)
    assert lost.returncode == 2 and log.name in lost.stderr and "No such file" in lost.stderr
    names = {file.name for file in (folder / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("translation", "translation_curves") for kind in ("png", "svg")}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "action: got none, expected prepare, train, translate, score, sweep, figures"),
        ("prepare --source all.source --out other", "the following arguments are required: --target"),
        ("prepare --source no --target all.target --out other", "'no': No such file"),
        ("prepare --source all.source --target run/log.csv --out other", "run/log.csv: got 2 lines, expected 600"),
        ("prepare --source all.source --target all.target --vocab 3 --out other", "--vocab: got '3', expected"),
        ("prepare --source all.source --target all.target --out data", "data: got a folder with files"),
        ("train data --out other --preset big", "--preset: got 'big', expected test, study, paper-big"),
        ("train data --out other --rule delta", "--rule: got delta, expected softmax or sum"),
        ("train data --out other --feature_map elu2", "--feature_map: got 'elu2', expected none, elu1"),
        ("train data --out other --label_smoothing much", "--label_smoothing: got 'much', expected a number"),
        ("train data --out run", "run: got a folder with files, expected an empty one, or a resume"),
        ("train nothing --out other", "nothing/meta.json: got no such file"),
        ("translate nothing", "nothing"),
        ("train data --out other --average 9", "--average: got 9, expected at most 5"),
        (
            "prepare --source all.source --target all.target --max_ratio 0.5 --out other",
            "max_ratio: got 0.5, expected a",
        ),
        ("translate run --length_penalty 101", "length_penalty: got 101.0, expected a number from 0 to 100"),
        ("translate run --beam 0", "--beam: got '0', expected an integer in 1.."),
        ("translate run --length_penalty -1", "length_penalty: got -1.0, expected a number from 0"),
        ("score run --split train", "--split: got 'train', expected test or valid"),
        ("score run --data texts", "texts/meta.json: got no such file"),
        ("sweep all.source --out other", "all.source: got no TOML"),
        ("figures data", "data/results.csv"),
    ],
)
def test_what_is_refused(arguments, message, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b\n")))
    done = translation(*arguments.split(), cwd=folder)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (folder / "other").exists()
