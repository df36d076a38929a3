"""Training on recall: the model's logits against plain PyTorch's, and when a run ends."""

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from support.commands import run_here  # noqa: E402
from support.plain_layer import plain  # noqa: E402

from fwm_py.experiments.recall import Model, Settings, Task, measure, study  # noqa: E402
from fwm_py.experiments.recall.model import numbers_of_state  # noqa: E402

SMALL = dict(num_kv_pairs=3, seq_len=16, vocab_size=24, d_model=8)
EASY = Settings(num_kv_pairs=2, seq_len=8, vocab_size=16, d_model=16, max_steps=400)
KINDS = [
    dict(rule="softmax"),
    dict(rule="sum"),
    dict(rule="sum", feature_map="elu1", normalize=True),
    dict(rule="sum", feature_map="dpfp1", normalize=True),
    dict(rule="delta"),
    dict(rule="delta", feature_map="elu1"),
    dict(rule="delta", feature_map="dpfp2", heads=2),
    dict(rule="delta", feature_map="elu1", normalize=True),
    dict(rule="gated_delta"),
    dict(rule="kimi_delta", conv_size=0),
    dict(rule="gated_delta_2", conv_size=3),
    dict(rule="gated_sum", feature_map="favor6"),
]


def rms_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def plain_logits(model, tokens, asked):
    """The model by PyTorch's own functions, the rule token by token."""
    gated, x = model.convolution, F.embedding(tokens, model.embed.weight)
    y = rms_norm(x, model.norms[0].weight)
    padded = F.pad(gated.a_proj(y).mT, (2, 0))
    filtered = F.conv1d(padded, gated.weight[:, None], gated.bias, groups=len(gated.weight)).mT
    x = x + gated.o_proj(filtered * gated.b_proj(y))
    x = x + plain(model.memory, rms_norm(x, model.norms[1].weight))
    rows = torch.arange(len(tokens))[:, None]
    return rms_norm(x[rows, asked], model.norms[2].weight) @ model.embed.weight.mT


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_logits_of_plain_torch(kind):
    torch.manual_seed(0)
    settings = Settings(**SMALL, **kind)
    model = Model(settings).double()
    tokens, asked, _ = map(torch.from_numpy, Task(settings, [0]).questions(3))
    with torch.no_grad():
        model.embed.weight.normal_()
        logits, expected = model(tokens, asked), plain_logits(model, tokens, asked)
    assert logits.shape == (3, 3, 24)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_numbers_of_state():
    def count(**kind):
        return numbers_of_state(Model(Settings(**SMALL, **kind)), 16)

    assert count(rule="delta") == 8 * 8
    assert count(rule="delta", heads=2) == 2 * 4 * 4
    assert count(rule="sum", feature_map="dpfp2", normalize=True) == 32 * 8 + 32
    assert count(rule="softmax") == 2 * 16 * 8


def same(row):
    return dataclasses.replace(row, seconds=0.0)


def test_a_measurement():
    generator, threads = torch.random.get_rng_state(), torch.get_num_threads()
    row = measure(EASY)
    assert row.accuracy >= 0.99 and row.steps < 400 and row.steps_to_90 <= row.steps and row.loss < 0.3
    assert row.state == 256 and row.parameters == sum(p.numel() for p in Model(EASY).parameters())
    assert same(measure(EASY)) == same(row) and row.error == ""
    torch.manual_seed(5)
    assert same(measure(EASY)) == same(row)  # whatever PyTorch's generator has drawn
    with torch.no_grad():
        assert same(measure(EASY)) == same(row)
    torch.random.set_rng_state(generator)
    measure(dataclasses.replace(EASY, max_steps=1))
    assert torch.equal(torch.random.get_rng_state(), generator) and torch.get_num_threads() == threads


def test_a_run_that_does_not_learn():
    row = measure(dataclasses.replace(EASY, lr=1e-6, max_steps=30))
    assert row.steps == 30 and row.steps_to_90 is None and row.accuracy < 0.5 and row.loss > 1


def test_nan_is_a_row_that_says_so():
    row = measure(dataclasses.replace(EASY, lr=1e30, max_steps=60))
    assert row.error == "the loss is NaN at step 25" and row.steps == 25 and math.isnan(row.loss)


def test_normalised_elu1_learns_two_pairs():
    row = measure(Settings(rule="sum", feature_map="elu1", normalize=True, num_kv_pairs=2, seq_len=8))
    assert row.accuracy >= 0.98


def test_a_study_goes_on(tmp_path):
    path, made = tmp_path / "r.csv", []
    runs = [dataclasses.replace(EASY, seed=seed, max_steps=25) for seed in (1, 2)]
    first = study(runs[:1], path, jobs=1, on_row=made.append)
    rows = study(runs, path, jobs=2, on_row=made.append)
    assert len(made) == 2 and rows[0] == first[0] and {row.seed for row in rows} == {1, 2}
    assert [same(measure(run)) for run in runs] == [same(row) for row in rows]


# --- the command ---


def recall(*flags, cwd):
    return run_here("recall", *flags, cwd=cwd)


TINY = "--num_kv_pairs 2 --seq_len 8 --vocab_size 16 --d_model 8 --max_steps 25".split()


def test_command(tmp_path):
    done = recall(*TINY, "--rule", "delta,sum", "--lr", "1e-2,3e-2", cwd=tmp_path)
    assert done.returncode == 0 and "recall.csv: 4 rows made in" in done.stdout and done.stderr.count("\n") == 4
    table = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("delta", "sum"))]
    assert [(row[0], row[4], row[5]) for row in table] == [
        (rule, lr, "1") for rule in ("delta", "sum") for lr in ("0.01", "0.03")
    ]
    done = recall(*TINY, "--rule", "delta", "--lr", "best", "--seed", "1,2,3", cwd=tmp_path)
    assert done.returncode == 0 and "recall.csv: 2 rows made in" in done.stdout and "1 made before" in done.stdout


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--rule deltas", "--rule: got 'deltas', expected softmax, sum"),
        ("--num_kv_pairs 20", "--seq_len: got 64, expected at least 4 num_kv_pairs"),
        ("--seed x", "--seed: got 'x', expected an integer in 0..4294967295"),
        ("--conv_size 17", "--conv_size: got '17', expected an integer in 0..16"),
        ("--lr 0", "--lr: got '0', expected a finite number above 0"),
        ("--lr best", "--lr: got best, expected rows of Settings"),
        ("--normalize", "--normalize: got True with the map none, expected one that is positive"),
        ("--feature_map favor", "--feature_map: got 'favor', expected none, elu1"),
        ("--width 3", "'--width': an unknown argument, expected --rule"),
    ],
)
def test_wrong_flags(flags, message, tmp_path):
    done = recall(*flags.split(), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
