"""Translation models: what is learned, resumed, averaged, shared among processes, searched and scored."""

import dataclasses
import itertools
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
pytest.importorskip("sacrebleu")

import torch.nn.functional as F  # noqa: E402
from support.runs import files_of, stop_after  # noqa: E402
from support.texts import write_reversals  # noqa: E402

from fwm_py.experiments.checkpoint import load_checkpoint  # noqa: E402
from fwm_py.experiments.run_folder import CHECKPOINT, LOG, RESULT  # noqa: E402
from fwm_py.experiments.translation import Settings, load_model, make_model, prepare, score, train  # noqa: E402
from fwm_py.experiments.translation.batches import IGNORED, Batches, batch_of  # noqa: E402
from fwm_py.experiments.translation.run import Run  # noqa: E402
from fwm_py.experiments.translation.scores import loss_of, translate_texts  # noqa: E402
from fwm_py.experiments.translation.search import longest_translation, translate  # noqa: E402

END = 0
TINY = Settings(
    encoder_layers=1, decoder_layers=1, d_model=16, heads=2, d_ff=16, batch_tokens=60, max_steps=12, log_every=3,
    evaluate_every=6, checkpoint_every=4,
)  # fmt: skip
VARIANTS = {
    "softmax": dict(rule="softmax"),
    "sum": dict(),
    "sum, dpfp1": dict(feature_map="dpfp1", norm="post", init="normal", schedule="inverse_sqrt"),
    "sum, favor8 redrawn": dict(feature_map="favor8", redraw=True, dropout=0.1, attention_dropout=0.1),
    "delta in the decoder": dict(decoder_rule="delta", accumulate=2),
    "gated delta in the decoder": dict(decoder_rule="gated_delta", decoder_map="none", bf16=True),
    "softmax across": dict(cross_rule="softmax", encoder_map="dpfp2", average=2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    texts = {
        name: write_reversals(folder / "texts", name, n, seed=seed)
        for seed, (name, n) in enumerate((("train", 1500), ("valid", 40), ("test", 40)))
    }
    return prepare(*texts["train"], folder / "data", valid=texts["valid"], test=texts["test"], vocab=283)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name, data, tmp_path):
    """Trains, goes on from a checkpoint to the bit, is loaded, and scored."""
    settings, whole, parts = dataclasses.replace(TINY, **VARIANTS[name]), tmp_path / "whole", tmp_path / "parts"
    rows = []
    result = train(settings, data, whole, on_log=rows.append)
    assert [row.step for row in rows] == [3, 6, 9, 12] and rows[-1].valid_loss is not None
    stop_after(train, settings, data, parts, 9)  # checkpoints at 4 and 8
    train(settings, data, parts, resume=True)
    assert files_of(parts) == files_of(whole)
    model, known = load_model(whole)
    assert known == settings
    if not settings.bf16:
        assert score(model, data, "test", beam=4)._asdict() | {"beam": 4} == result["test"]
        assert loss_of(model, *data.tokens("valid")) == pytest.approx(result["valid"]["loss"])


@pytest.mark.slow
def test_reversal_is_learned(tmp_path):
    """The test preset, its first 500 steps: exact in nearly all sentences."""
    texts = [write_reversals(tmp_path, name, n, seed=n) for name, n in (("train", 20000), ("valid", 50), ("test", 300))]
    data = prepare(*texts[0], tmp_path / "data", valid=texts[1], test=texts[2], vocab=283)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(Settings(decoder_rule="delta", max_steps=500), data, tmp_path / "run")
    finally:
        torch.set_num_threads(threads)
    assert result["test"]["exact"] >= 0.97 and result["test"]["bleu"] > 99


def test_the_mean_of_the_last_checkpoints(data, tmp_path):
    settings = dataclasses.replace(TINY, average=3, checkpoint_every=2, max_steps=10)
    kept, plain = tmp_path / "kept", tmp_path / "plain"
    train(settings, data, kept)
    names = sorted(path.name for path in kept.glob("parameters-*.safetensors"))
    assert names == ["parameters-10.safetensors", "parameters-6.safetensors", "parameters-8.safetensors"]
    found = [load_checkpoint(kept / name)[0] for name in names]
    written = load_checkpoint(kept / "model.safetensors")[0]
    for name, tensor in written.items():
        mean = torch.stack([tensors[name].double() for tensors in found]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-8)
    train(dataclasses.replace(settings, average=1), data, plain)
    last = load_checkpoint(plain / "model.safetensors")[0]
    assert all(torch.equal(last[name], found[0][name]) for name in last)  # of step 10
    assert any(not torch.equal(last[name], written[name]) for name in last)


def test_kills_and_the_mean_of_checkpoints(data, tmp_path):
    """Before a checkpoint, after the last one, and with a file of parameters that is gone."""
    settings = dataclasses.replace(TINY, average=2, checkpoint_every=2, max_steps=10, log_every=1)
    whole = tmp_path / "whole"
    train(settings, data, whole)
    model = (whole / "model.safetensors").read_bytes()
    parts = tmp_path / "parts"
    stop_after(train, settings, data, parts, 5)
    stale = (parts / "parameters-4.safetensors").read_bytes()
    (parts / "parameters-9.safetensors").write_bytes(stale)  # a step that no run has a checkpoint of
    (parts / "parameters-old.safetensors").write_bytes(b"mine")
    train(settings, data, parts, resume=True)
    assert (parts / "model.safetensors").read_bytes() == model
    names = {path.name for path in parts.glob("parameters-*")}
    assert names == {"parameters-8.safetensors", "parameters-10.safetensors", "parameters-old.safetensors"}
    for name in (RESULT, "model.safetensors"):
        (parts / name).unlink()
    (parts / "parameters-6.safetensors").write_bytes(stale)  # was to be deleted
    train(settings, data, parts, resume=True)
    assert (parts / "model.safetensors").read_bytes() == model
    for name in (RESULT, "parameters-8.safetensors"):
        (parts / name).unlink()
    with pytest.raises(ValueError, match=r"parameters-8.safetensors: got no such file, expected what average needs"):
        train(settings, data, parts, resume=True)


def test_the_mean_has_directions_that_were_drawn(data, tmp_path):
    settings = dataclasses.replace(TINY, average=4, checkpoint_every=1, max_steps=4, feature_map="favor8", redraw=True)
    train(settings, data, tmp_path / "run")
    model, _ = load_model(tmp_path / "run")
    last = load_checkpoint(tmp_path / "run" / CHECKPOINT)[0]
    found = {name: buffer for name, buffer in model.named_buffers() if name.endswith("omega")}
    assert len(found) == 3 and all(torch.equal(buffer, last[f"model.{name}"]) for name, buffer in found.items())


def test_the_loss_of_a_step(data, tmp_path):
    """Of all parts together, a token counts as much as another."""
    settings = dataclasses.replace(TINY, accumulate=3, label_smoothing=0.2)
    run = Run(settings, data, tmp_path)
    parts, tokens = run.batches.step(0)
    found = sum(loss().item() for loss in run.losses()) / 3
    total = 0.0
    for part in parts:
        log_p = run.model(part.source, part.lengths, part.target).log_softmax(-1)
        for row, following in zip(log_p, part.following):
            for p, token in zip(row, following[following != IGNORED]):
                total -= 0.8 * p[token].item() + 0.2 * p.mean().item()
    assert tokens == sum(part.tokens for part in parts) == run.tokens
    assert found == pytest.approx(total / tokens, rel=1e-5)


def test_two_processes_are_two_parts(data, tmp_path):
    settings = dataclasses.replace(TINY, accumulate=2, log_every=1)
    one = []
    train(settings, data, tmp_path / "one", on_log=one.append)
    names = ("encoder_layers", "decoder_layers", "d_model", "heads", "d_ff", "batch_tokens", "max_steps", "log_every")
    flags = [part for name in names for part in ("--" + name, str(getattr(settings, name)))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "fwm_py"]
    command += ["translation", "train", str(data.folder), "--out", str(tmp_path / "two"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    log = [line.split(",") for line in (tmp_path / "two" / LOG).read_text().splitlines()[1:]]
    assert [float(row[2]) for row in log] == pytest.approx([row.loss for row in one], abs=1e-5)
    assert [int(row[1]) for row in log] == [row.tokens for row in one]
    assert len(log) == 12 and done.stdout.count("perplexity") == 1


def test_kill_9(data, tmp_path):
    """What is there is whole, and the run goes on to the same end."""
    settings = dataclasses.replace(TINY, max_steps=300, checkpoint_every=10, evaluate_every=100, average=2)
    names = [field.name for field in dataclasses.fields(settings) if getattr(settings, field.name) != field.default]
    flags = [part for name in names for part in ("--" + name, str(getattr(settings, name)))]
    command = [sys.executable, "-m", "fwm_py", "translation", "train", str(data.folder), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, *flags, "--threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "run" / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / RESULT).exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(settings, data, tmp_path / "run", resume=True)
        train(settings, data, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


# ---- batches ----


def test_batches_have_every_pair_once_an_epoch(data):
    source, target = data.tokens("train")
    batches = Batches(source, target, 60, seed=3)
    seen = []
    for number in range(batches.n):
        rows = batches._rows_of(number)
        longest = max(max(len(source[row]), len(target[row])) for row in rows)
        assert len(rows) * longest <= 60
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(source)))
    again = Batches(source, target, 60, seed=3)
    assert np.array_equal(again._rows_of(batches.n + 5), batches._rows_of(batches.n + 5))
    assert not np.array_equal(again._rows_of(0), batches._rows_of(batches.n))
    assert len(Batches(source, target, 1, seed=0)._rows_of(0)) == 1  # a row at least
    both = [Batches(source, target, 60, 3, 2, 2, rank).step(4) for rank in (0, 1)]
    one, tokens = Batches(source, target, 60, 3, 4).step(4)
    assert both[0][1] == both[1][1] == tokens
    for part in range(2):
        for rank in range(2):
            assert torch.equal(both[rank][0][part].source, one[2 * part + rank].source)


def test_a_batch():
    batch = batch_of([np.array([5, END]), np.array([6, 7, END])], [np.array([8, 9, END]), np.array([END])])
    assert batch.source.tolist() == [[5, END, END], [6, 7, END]] and batch.lengths.tolist() == [2, 3]
    assert batch.target.tolist() == [[END, 8, 9], [END, END, END]]
    assert batch.following.tolist() == [[8, 9, END], [END, IGNORED, IGNORED]] and batch.tokens == 4


# ---- search ----


def drawn_model(name, vocab_size, seed=0, scale=1.0):
    torch.manual_seed(seed)
    model = make_model(dataclasses.replace(TINY, **VARIANTS[name] | dict(bf16=False)), vocab_size).double().eval()
    with torch.no_grad():
        model.embed.weight.normal_(std=scale)
    return model


SOURCES = [np.array([3, 1, 2, 4, END]), np.array([END]), np.array([2, END]), np.array([4, 4, 1, 3, 2, 1, END])]


def greedy(model, source):
    """All tokens again for each one that is added."""
    tokens, score, state = [END], 0.0, model.encode(torch.tensor([source.tolist()]), torch.tensor([len(source)]))
    for n in itertools.count(1):
        log_p = model.decode(torch.tensor([tokens]), state)[0, -1].log_softmax(-1)
        token = END if n >= longest_translation(len(source)) else int(log_p.argmax())
        score += float(log_p[token])
        if token == END:
            return tokens[1:], score / n
        tokens.append(token)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_beam_1_is_greedy(name):
    model = drawn_model(name, 20)
    found = translate(model, SOURCES, beam=1)
    for (tokens, value), source in zip(found, SOURCES):
        expected = greedy(model, source)
        assert tokens == expected[0] and value == pytest.approx(expected[1], rel=1e-9)
    again = translate(model, SOURCES, beam=1, use_states=False, batch_tokens=1)
    assert [tokens for tokens, _ in again] == [tokens for tokens, _ in found]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", ["softmax", "sum", "delta in the decoder"])
@torch.no_grad()
def test_a_wide_beam_is_exhaustive_search(name, length_penalty, monkeypatch):
    monkeypatch.setattr("fwm_py.experiments.translation.search.longest_translation", lambda n: 4)
    vocab_size = 5
    model = drawn_model(name, vocab_size, scale=0.4)
    for source in SOURCES:
        state = model.encode(torch.tensor([source.tolist()]), torch.tensor([len(source)]))
        scores = {}
        for n in range(4):
            for tokens in itertools.product(range(1, vocab_size), repeat=n):
                log_p = model.decode(torch.tensor([[END, *tokens]]), state)[0].log_softmax(-1)
                total = sum(float(log_p[i, token]) for i, token in enumerate([*tokens, END]))
                scores[tokens] = total / (n + 1) ** length_penalty
        best = max(scores, key=scores.get)
        (found,) = translate(model, [source], beam=85, length_penalty=length_penalty)
        assert tuple(found.tokens) == best and found.score == pytest.approx(scores[best], rel=1e-9)


def test_a_beam_of_4_scores_at_least_as_greedy(data, tmp_path):
    train(dataclasses.replace(TINY, d_model=32, d_ff=64, max_steps=150, batch_tokens=300), data, tmp_path / "run")
    model, _ = load_model(tmp_path / "run")
    sources = [data.tokens("test")[0][i] for i in range(40)]
    means = {beam: np.mean([found.score for found in translate(model, sources, beam=beam)]) for beam in (1, 4)}
    assert means[4] >= means[1]
    by_states = translate(model, sources, beam=4)
    assert by_states == translate(model, sources, beam=4)
    plain = translate(model, sources, beam=4, use_states=False)
    assert [found.tokens for found in plain] == [found.tokens for found in by_states]


@torch.no_grad()
def test_texts_and_blank_lines(data):
    model = make_model(TINY, data.vocab_size).eval()
    texts = ["a b c", "", "  ", "c b a", "\u00e9\u2028 x"]
    found = translate_texts(model, data, texts, beam=2)
    assert found[1] == found[2] == "" and len(found) == 5 and not any("\n" in text for text in found)
    assert translate_texts(model, data, ["c b a"], beam=2) == [found[3]]
    assert translate_texts(model, data, [], beam=2) == []


def test_spaces_of_a_translation_stay(data, monkeypatch):
    """As the model wrote them, but what would break the line."""
    monkeypatch.setattr(type(data.tokenizer), "decode", lambda self, tokens: " 5\u00a0 x\n\u2028y ", raising=False)
    assert translate_texts(make_model(TINY, data.vocab_size), data, ["a"], beam=1) == ["5\u00a0 x y"]


def test_nan_is_no_translation():
    model = drawn_model("sum", 20)
    with torch.no_grad():
        model.embed.weight.fill_(math.nan)
    found = translate(model, SOURCES, beam=2)
    assert all(tokens == [] and math.isnan(value) for tokens, value in found)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(beam=0), ValueError, "beam: got 0, expected"),
        (dict(beam="4"), TypeError, "beam: got '4', expected"),
        (dict(length_penalty=-1), ValueError, "length_penalty: got -1, expected a number from 0 to 100"),
        (dict(length_penalty=1000), ValueError, "length_penalty: got 1000, expected a number from 0 to 100"),
        (dict(length_penalty=None), TypeError, "length_penalty: got None, expected a number from 0"),
    ],
)
def test_bad_searches(wrong, error, message):
    with pytest.raises(error, match=message):
        translate(drawn_model("sum", 20), SOURCES, **wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(rule="delta"), "^rule: got delta, expected softmax or sum in the encoder attention"),
        (dict(cross_rule="gated_sum"), "^cross_rule: got gated_sum, expected softmax or sum in the cross attention"),
        (dict(rule="softmax", feature_map="elu1"), "feature_map: got 'elu1', expected none, as no memory takes it"),
        (dict(redraw=True), "redraw: got True with the map elu1, expected favorN"),
        (dict(feature_map="elu2"), "feature_map: got 'elu2', expected none, elu1"),
        (dict(feature_map=""), "feature_map: got '', expected none, elu1"),
        (dict(decoder_rule="deltas"), "decoder_rule: got 'deltas', expected softmax, sum"),
        (dict(decoder_rule=""), "decoder_rule: got '', expected softmax, sum"),
        (dict(cross_map="elu2"), "cross_map: got 'elu2', expected none, elu1"),
        (dict(encoder_rule="softmax", encoder_map="elu1"), "encoder_map: got 'elu1', expected none with softmax"),
        (
            dict(rule="softmax", encoder_rule="sum", decoder_rule="sum", cross_rule="sum"),
            "rule: got 'softmax', expected",
        ),
        (dict(average=4), "average: got 4, expected at most 3, the checkpoints of the run"),
        (dict(label_smoothing=1), "label_smoothing: got 1, expected a number from 0, below 1"),
        (dict(heads=3), "heads: got 3, expected a divisor of d_model 16"),
        (dict(warmup_steps=12), "warmup_steps: got 12, expected fewer than all 12 steps"),
        (dict(batch_tokens=0), "batch_tokens: got 0, expected an integer in"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **wrong)


def test_cross_entropy_of_valid(data):
    model = make_model(TINY, data.vocab_size)
    source, target = data.tokens("valid")
    total = 0.0
    with torch.no_grad():
        for i in range(len(source)):
            batch = batch_of([source[i]], [target[i]])
            logits = model(batch.source, batch.lengths, batch.target)[0]
            total += F.cross_entropy(logits, batch.following[0], reduction="sum").item()
    assert loss_of(model, source, target) == pytest.approx(total / len(target.tokens), rel=1e-5)
    assert model.training
