"""Language models: what is learned, resumed, accumulated, evaluated and written."""

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

import torch.nn.functional as F  # noqa: E402
from support.runs import files_of, stop_after  # noqa: E402
from support.texts import write_documents  # noqa: E402

from fwm_py.experiments.files import Refused, locked  # noqa: E402
from fwm_py.experiments.language.batches import Segments, Shape, Streams  # noqa: E402
from fwm_py.experiments.language.data import prepare  # noqa: E402
from fwm_py.experiments.language.model import load_model, make_model  # noqa: E402
from fwm_py.experiments.language.run import Run, train  # noqa: E402
from fwm_py.experiments.language.sampling import generate  # noqa: E402
from fwm_py.experiments.language.scores import evaluate  # noqa: E402
from fwm_py.experiments.language.settings import Settings  # noqa: E402
from fwm_py.experiments.run import train_in_folder  # noqa: E402
from fwm_py.experiments.run_folder import CHECKPOINT, LOG, RESULT  # noqa: E402
from fwm_py.experiments.training import Diverged, Stepper, step_size  # noqa: E402
from fwm_py.torch.nn import DecoderState  # noqa: E402

TINY = Settings(
    layers=1, d_model=16, heads=2, d_ff=16, seq_len=16, batch_size=2, max_tokens=16 * 2 * 12, log_every=3,
    evaluate_every=6, checkpoint_every=4,
)  # fmt: skip
VARIANTS = {
    "softmax": dict(rule="softmax", feature_map="none", positions="rotary"),
    "sum": dict(rule="sum", normalize=True),
    "sum, dpfp1": dict(rule="sum", feature_map="dpfp1", positions="none"),
    "delta": dict(rule="delta", conv_size=4),
    "delta, normalised": dict(rule="delta", normalize=True, norm="post", init="normal"),
    "delta, favor8 redrawn": dict(rule="delta", feature_map="favor8", redraw=True, dropout=0.1),
    "gated delta": dict(rule="gated_delta", feature_map="none", kv_heads=1),
    "kimi delta": dict(rule="kimi_delta", feature_map="none", bf16=True),
    "gated delta 2": dict(rule="gated_delta_2", feature_map="none", schedule="inverse_sqrt"),
    "fwm": dict(rule="fwm", feature_map="tanh", clip=0.0),
    "carried": dict(rule="delta", carry=True, accumulate=2, max_tokens=16 * 2 * 2 * 12),
    "carried, convolved": dict(rule="gated_sum", feature_map="none", carry=True, conv_size=3, positions="rotary"),
}


def variant(name, **others):
    return dataclasses.replace(TINY, **VARIANTS[name] | others)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Data of a Markov chain's letters, a token each, and the chain's entropy."""
    folder = tmp_path_factory.mktemp("language")
    nats = write_documents(folder / "texts")
    return prepare([str(folder / "texts")], folder / "data", vocab=257), nats


@pytest.fixture
def data(texts):
    return texts[0]


def test_the_entropy_of_a_chain_is_learned(texts, tmp_path):
    data, nats = texts
    settings = Settings(layers=1, d_model=32, heads=2, d_ff=64, seq_len=64, batch_size=8, max_tokens=200_000,
                        evaluate_every=1000, checkpoint_every=1000)  # fmt: skip
    result = train(settings, data, tmp_path / "run")
    for split in ("valid", "test"):
        found = result[split]["bits_per_byte"] * math.log(2)
        assert nats < found < 1.05 * nats + 6 / 300  # a document ends once in 300 letters


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name, data, tmp_path):
    """Trains, goes on from a checkpoint to the bit, is loaded, evaluated three ways, and generates."""
    settings, whole, parts = variant(name), tmp_path / "whole", tmp_path / "parts"
    rows = []
    train(settings, data, whole, on_log=rows.append)
    assert [row.step for row in rows] == [3, 6, 9, 12] and rows[-1].valid_loss is not None
    stop_after(train, settings, data, parts, 9)  # checkpoints at 4 and 8
    train(settings, data, parts, resume=True)
    assert files_of(parts) == files_of(whole)
    model, known = load_model(whole)
    assert known == settings
    tokens = data.tokens("valid")[:200]
    scores = [
        evaluate(model, tokens, 200, seq_len=16, mode=mode, stride=4 if mode == "sliding" else None)
        for mode in ("segments", "sliding", "carry")
    ]
    assert all(0 < score.loss < 7 and score.tokens == 199 for score in scores)
    tokens = list(generate(model, [1, 2], 5))
    assert len(tokens) == 5 and set(tokens) <= set(range(data.vocab_size))


def test_stopped_seven_times(data, tmp_path):
    settings = variant("delta, favor8 redrawn", max_tokens=16 * 2 * 40, checkpoint_every=3, log_every=2)
    train(settings, data, tmp_path / "whole")
    for i in range(7):
        stop_after(train, settings, data, tmp_path / "parts", 4 * i + 4, resume=bool(i))
    train(settings, data, tmp_path / "parts", resume=True)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    result = json.loads((tmp_path / "parts" / RESULT).read_text())
    assert train(settings, data, tmp_path / "parts", resume=True) == result  # which has ended


@pytest.mark.parametrize("carry", [False, True])
def test_accumulated_batches(carry, data, tmp_path):
    """K parts are one batch of K times the size."""
    one, rows = [], []
    settings = dataclasses.replace(TINY, carry=carry, log_every=1)
    train(dataclasses.replace(settings, batch_size=6), data, tmp_path / "one", on_log=one.append)
    train(dataclasses.replace(settings, accumulate=3), data, tmp_path / "parts", on_log=rows.append)
    assert [row.tokens for row in rows] == [row.tokens for row in one]
    for ours, theirs in zip(rows, one):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)


def test_two_processes_are_one(data, tmp_path):
    """torchrun with two gloo ranks: the losses of one process with twice the batch."""
    one = []
    settings = dataclasses.replace(TINY, batch_size=4, max_tokens=16 * 4 * 20, log_every=1)
    train(settings, data, tmp_path / "one", on_log=one.append)
    flags = [
        part
        for name in ("layers", "d_model", "heads", "d_ff", "seq_len", "max_tokens", "log_every")
        for part in ("--" + name, str(getattr(settings, name)))
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "fwm_py"]
    command += ["language", "train", str(data.folder), "--out", str(tmp_path / "two"), "--batch_size", "2", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    log = [line.split(",") for line in (tmp_path / "two" / LOG).read_text().splitlines()[1:]]
    assert [float(row[2]) for row in log] == pytest.approx([row.loss for row in one], abs=1e-5)
    assert len(log) == 20 and done.stdout.count("perplexity") == 2


@pytest.mark.parametrize("seconds", [0.0, 0.9])
def test_kill_9(seconds, data, tmp_path):
    """At any instant: what is there is whole, and the run goes on to the same end."""
    settings = dataclasses.replace(TINY, max_tokens=16 * 2 * 600, checkpoint_every=10, evaluate_every=100)
    flags = [
        part
        for name in ("layers", "d_model", "heads", "d_ff", "seq_len", "batch_size", "max_tokens", "log_every",
                     "checkpoint_every", "evaluate_every")
        for part in ("--" + name, str(getattr(settings, name)))
    ]  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "fwm_py",
        "language",
        "train",
        str(data.folder),
        "--out",
        str(tmp_path / "run"),
        *flags,
    ]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(settings, data, tmp_path / "run", resume=True)
        train(settings, data, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


RESUMED = """
import os, sys
from fwm_py.experiments import run as runs
from fwm_py.experiments.language import Data, Settings, train
from fwm_py.experiments.training import processes, rank

save, stop = runs.Run.save, int(sys.argv[3])

def stopping(self):
    save(self)
    if self.step == stop:
        os._exit(0)

runs.Run.save = stopping
with processes():
    if rank():
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")  # without a disk in common
    settings = Settings(layers=1, d_model=16, heads=2, d_ff=16, seq_len=16, batch_size=2, max_tokens=16 * 2 * 2 * 12,
                        carry=True, dropout=0.2, log_every=1, checkpoint_every=5)
    train(settings, Data.open(sys.argv[1]), sys.argv[2], resume=True)
"""


def test_two_processes_go_on_to_the_bit(data, tmp_path):
    """With the states and the generator of each, whether or not the second sees the folder."""
    (tmp_path / "script.py").write_text(RESUMED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    folder = str(data.folder.resolve())
    for name, stop in (("whole", -1), ("parts", 5), ("parts", -1)):
        done = subprocess.run(
            [*command, folder, name, str(stop)], capture_output=True, text=True, cwd=tmp_path, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_carried_state_without_a_step(data, tmp_path):
    """A step that is left out leaves the states that were before it."""
    run = Run(variant("carried", log_every=1), data, tmp_path / "run")
    hidden, calls = run.model.hidden, 0

    def spoiled(*arguments, **options):
        nonlocal calls
        calls += 1
        x, state = hidden(*arguments, **options)
        if calls != 5:
            return x, state
        memories = tuple(memory._map(lambda tensor: tensor * math.nan) for memory in state.memories)
        return x * math.nan, DecoderState(state.tokens, memories)

    run.model.hidden = spoiled
    rows = []
    result = train_in_folder(run, on_log=rows.append)
    assert result["skipped"] == 1
    assert [row.step for row in rows if math.isnan(row.loss)] == [3] and math.isfinite(result["test"]["perplexity"])


def test_a_folder_that_is_no_run_is_left_alone(data, tmp_path):
    (tmp_path / "log.csv").write_text("mine")
    with pytest.raises(ValueError, match="got files that are of no run, expected a run, or a new folder"):
        train(TINY, data, tmp_path, resume=True)
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"config.json: got a damaged file, expected a run's settings"):
        train(TINY, data, tmp_path, resume=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log.csv": "mine",
        "config.json": '{"mine": 1}',
    }


def test_a_kill_before_the_first_checkpoint(data, tmp_path):
    stop_after(train, TINY, data, tmp_path / "run", 3)
    with pytest.raises(ValueError, match=r"config.json: got a run with lr 0.008, expected 0.1"):
        train(dataclasses.replace(TINY, lr=0.1), data, tmp_path / "run", resume=True)
    train(TINY, data, tmp_path / "run", resume=True)
    train(TINY, data, tmp_path / "whole")
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_a_log_that_is_shorter_than_its_checkpoint(data, tmp_path):
    stop_after(train, TINY, data, tmp_path / "run", 9)
    (tmp_path / "run" / LOG).write_text("step")
    with pytest.raises(ValueError, match=r"log.csv: got 4 bytes, expected \d+; begin in another folder"):
        train(TINY, data, tmp_path / "run", resume=True)


def test_what_is_refused(data, tmp_path):
    folder = tmp_path / "run"
    train(TINY, data, folder)
    with pytest.raises(FileExistsError, match="got a folder with files, expected an empty one, or a resume"):
        train(TINY, data, folder)
    with pytest.raises(ValueError, match=r"config.json: got a run with lr 0.008, expected 0.1"):
        train(dataclasses.replace(TINY, lr=0.1), data, folder, resume=True)
    with locked(folder, "in use"), pytest.raises(Refused, match="another run is writing into this folder"):
        train(TINY, data, folder, resume=True)
    with pytest.raises(ValueError, match="carry: got True, expected False with softmax"):
        train(variant("softmax", carry=True), data, tmp_path / "other")
    with pytest.raises(ValueError, match="redraw: got True, expected False with carry"):
        variant("delta, favor8 redrawn", carry=True)
    with pytest.raises(ValueError, match="seq_len: got 1000000, expected at most"):
        train(dataclasses.replace(TINY, seq_len=10**6, max_tokens=10**8), data, tmp_path / "other")


@pytest.mark.parametrize("name, message", [
    (CHECKPOINT, "checkpoint.safetensors: got a damaged file"),
    ("config.json", "config.json: got a damaged file, expected a run's settings; begin in another folder"),
])  # fmt: skip
def test_damaged_files(name, message, data, tmp_path):
    folder = tmp_path / "run"
    stop_after(train, TINY, data, folder, 9)
    whole = (folder / name).read_bytes()
    for cut in (0, 5, len(whole) // 2):
        (folder / name).write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=message) as error:
            train(TINY, data, folder, resume=True)
        assert "\n" not in str(error.value)
    (folder / name).write_bytes(whole)
    train(TINY, data, folder, resume=True)
    (folder / RESULT).write_bytes(b'{"valid": {"perplexity": 1}, "steps": 12}')
    with pytest.raises(ValueError, match="result.json: got a damaged file, expected a result; delete it, and resume"):
        train(TINY, data, folder, resume=True)
    (folder / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ValueError, match="model.safetensors: got a damaged file"):
        load_model(folder)


# ---- parts ----


def test_nan_steps_are_left_out():
    parameter = torch.nn.Parameter(torch.ones(2))
    module = torch.nn.Module()
    module.weight = parameter
    stepper = Stepper(module, 0.1, (0.9, 0.98), 0.0, 1.0)
    good, bad = (lambda: parameter.square().sum()), (lambda: parameter.sum() * math.nan)
    assert stepper.step(0.1, [good]).made
    before = parameter.detach().clone()
    for _ in range(9):
        step = stepper.step(0.1, [bad])
        assert not step.made and math.isnan(step.loss) and torch.equal(parameter, before)
    assert stepper.step(0.1, [good]).made and stepper.skipped == 9
    for _ in range(9):
        stepper.step(0.1, [bad])
    with pytest.raises(Diverged, match="10 steps in a row had no finite loss"):
        stepper.step(0.1, [bad])


def test_clipping_and_averages():
    """A step of Adam depends on a clipped gradient's direction only; the norm reported is that before."""
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    module = torch.nn.Module()
    module.weight = parameter
    stepper = Stepper(module, 0.1, (0.9, 0.98), 0.0, 1.0)
    step = stepper.step(0.1, [lambda: parameter.square().sum(), lambda: 3 * parameter.square().sum()])
    assert step.loss == pytest.approx((25 + 75) / 2) and step.gradient_norm == pytest.approx(20.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_schedules():
    assert [step_size("cosine", 1.0, step, 2, 12) for step in (1, 2, 3, 8)] == [0.5, 1.0, 1.0, pytest.approx(0.5)]
    assert step_size("cosine", 1.0, 12, 2, 12) == pytest.approx((1 - math.cos(math.pi / 10)) / 2)
    assert step_size("cosine", 1.0, 1, 0, 12) == 1.0
    assert step_size("inverse_sqrt", 1.0, 16, 4, 100) == 0.5
    assert step_size("constant", 1.0, 50, 4, 100) == 1.0


def test_segments_cover_the_text():
    tokens = np.arange(1001, dtype=np.uint16)
    batches = Segments(tokens, Shape(batch_size=4, seq_len=10), seed=3)
    starts = []
    for step in range(25):
        (part,) = batches.parts(step)
        assert torch.equal(part.following[:, :-1], part.tokens[:, 1:]) and part.tokens.shape == (4, 10)
        starts += part.tokens[:, 0].tolist()
    epoch = starts[:99]
    assert len({start // 10 for start in epoch}) == 99 and len({start % 10 for start in epoch}) == 1
    assert torch.equal(Segments(tokens, Shape(4, 10), 3).parts(20)[0].tokens, batches.parts(20)[0].tokens)


def test_streams_follow_each_other():
    tokens = np.arange(1001, dtype=np.uint16)
    batches = Streams(tokens, Shape(batch_size=2, seq_len=10, parts=2))
    assert [step for step in range(60) if batches.begins(step)] == [0, 25, 50]
    first, second = batches.parts(0), batches.parts(1)
    for part, after in zip(first, second):
        assert torch.equal(part.following[:, -1], after.tokens[:, 0])
    assert [part.tokens[:, 0].tolist() for part in first] == [[0, 250], [500, 750]]
    two = [Streams(tokens, Shape(1, 10, 2, 2, rank)).parts(0) for rank in (0, 1)]
    assert [[int(part.tokens[0, 0]) for part in parts] for parts in two] == [[0, 500], [250, 750]]


@pytest.mark.parametrize("n", [2, 16, 17, 18, 40, 49])
def test_evaluation_by_hand(n):
    """Every token but the first once: segments, windows of 16 that are 5 apart, and the whole text at once."""
    torch.manual_seed(0)
    model = make_model(TINY, 30).double()
    with torch.no_grad():
        model.embed.weight.normal_()
    tokens = np.random.default_rng(n).integers(30, size=n).astype(np.uint16)
    text = torch.from_numpy(tokens.astype(np.int64))

    def nats(start, end, first):
        """Of tokens first .. end - 1, given those from `start` on."""
        logits = model(text[None, start : end - 1])[0, first - start - 1 :]
        return F.cross_entropy(logits, text[first:end], reduction="sum").item()

    with torch.no_grad():
        segments = sum(nats(start, min(start + 17, n), start + 1) for start in range(0, n - 1, 16))
        sliding, done = 0.0, 1
        start = 0
        while done < n:
            end = min(start + 17, n)
            sliding += nats(end - 17 if end - 17 > 0 else 0, end, done)
            done, start = end, start + 5
        carried = nats(0, n, 1)
        for mode, stride, expected in (("segments", None, segments), ("sliding", 5, sliding), ("carry", None, carried)):
            score = evaluate(model, tokens, 3 * n, seq_len=16, mode=mode, stride=stride)
            assert score.loss == pytest.approx(expected / (n - 1), rel=1e-10)
            assert score.bits_per_byte == pytest.approx(expected / math.log(2) / (3 * n))
            assert score.perplexity == pytest.approx(math.exp(score.loss)) and score.tokens == n - 1


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_from_states_is_greedy_from_scratch(name):
    torch.manual_seed(1)
    model = make_model(variant(name, bf16=False), 30).double().eval()
    with torch.no_grad():
        model.embed.weight.normal_()
    found = [3, 4]
    for _ in range(8):
        with torch.no_grad():
            found.append(int(model(torch.tensor([found]))[0, -1].argmax()))
    assert list(generate(model, [3, 4], 8, temperature=0)) == found[2:]
    drawn = [list(generate(model, [3, 4], 8, temperature=50.0, top_k=9, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert list(generate(model, [3, 4], 8, temperature=1e-310)) == found[2:] and not model.training
    assert list(generate(model.train(), [3, 4], 1, temperature=0)) == found[2:3] and model.training
    assert list(generate(model, [3, 4], 8, temperature=0, end=found[4])) == found[2 : found.index(found[4], 2) + 1]
