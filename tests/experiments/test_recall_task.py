"""Multi-query associative recall: sequences as zoology makes them, and the settings of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fwm_py.experiments.recall import Settings, Task, at_best_rates, best_rates, grid
from fwm_py.experiments.recall.rows import Row, row_of
from fwm_py.experiments.study import Results

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "mqar.json").read_text())["counts"]
SIZES = ("num_kv_pairs", "seq_len", "vocab_size", "random_non_queries")


def settings_of(record):
    return Settings(**{name: record[name] for name in SIZES})


@pytest.mark.parametrize("record", RECORDED, ids=lambda record: f"{record['num_kv_pairs']} pairs")
def test_statistics_of_zoology(record):
    """The i-th key's slots, 20000 sequences of theirs against as many of ours: chi-squared, which is a slot's number of
    squared normals; a wrong exponent, or slots that are drawn by another rule, give hundreds."""
    settings, n = settings_of(record), 20000
    D, V = settings.num_kv_pairs, settings.vocab_size
    tokens, asked, answers = Task(settings, [3]).questions(n)
    theirs = np.array(record["slots"])
    ours = np.array([np.bincount((asked[:, i] - 2 * D) // 2, minlength=theirs.shape[1]) for i in range(D)])
    chi_squared = ((ours - theirs) ** 2 / (ours + theirs)).sum(1)
    assert (chi_squared < theirs.shape[1] + 5 * (2 * theirs.shape[1]) ** 0.5).all()
    keys, filler = tokens[:, 0 : 2 * D : 2], np.ones(tokens.shape, bool)
    filler[:, : 2 * D] = False
    np.put_along_axis(filler, asked, False, 1)
    assert (keys.min(), keys.max()) == (record["lowest_key"], record["highest_key"]) == (1, V // 2 - 1)
    assert (answers.min(), answers.max()) == (record["lowest_value"], record["highest_value"]) == (V // 2, V - 1)
    found = tokens[filler]
    assert (found.min(), found.max()) == (record["lowest_filler"], record["highest_filler"])
    assert found.mean() == pytest.approx(record["mean_filler"], rel=0.01)
    assert (found == 0).mean() == pytest.approx(record["filler_share_zero"], abs=0.002)


@pytest.mark.parametrize("random_non_queries", [False, True])
@pytest.mark.parametrize("D, T, V", [(1, 4, 4), (4, 16, 10), (3, 40, 64), (16, 64, 256)])
def test_sequences(D, T, V, random_non_queries):
    settings = Settings(num_kv_pairs=D, seq_len=T, vocab_size=V, random_non_queries=random_non_queries)
    tokens, asked, answers = Task(settings, [1]).questions(50)
    assert tokens.shape == (50, T) and tokens.dtype == np.int64 and asked.shape == answers.shape == (50, D)
    for row, places, values in zip(tokens, asked, answers):
        keys = row[0 : 2 * D : 2]
        assert len(set(keys)) == len(set(values)) == len(set(places)) == D
        assert ((keys >= 1) & (keys < V // 2)).all() and (values >= V // 2).all()
        np.testing.assert_array_equal(row[1 : 2 * D : 2], values)
        np.testing.assert_array_equal(row[places], keys)
        assert (places >= 2 * D).all() and (places % 2 == 0).all()
        if not random_non_queries:
            assert np.count_nonzero(row) == 3 * D
    again = Task(settings, [1]).questions(50)
    assert all(np.array_equal(one, other) for one, other in zip((tokens, asked, answers), again))
    assert not np.array_equal(Task(settings, [2]).questions(50).tokens, tokens)


def test_keys_and_values_are_independent():
    """Neither the order of the keys nor that of the values follows their numbers."""
    tokens, _, answers = Task(Settings(num_kv_pairs=4, seq_len=16, vocab_size=32), [0]).questions(4000)
    for drawn, size in ((tokens[:, 0:8:2] - 1, 15), (answers - 16, 16)):
        for i in range(4):
            counts = np.bincount(drawn[:, i], minlength=size)
            assert ((counts - 4000 / size) ** 2).sum() / (4000 / size) < size + 5 * (2 * size) ** 0.5
    assert abs(np.corrcoef(tokens[:, 0], answers[:, 0])[0, 1]) < 0.06


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(rule="deltas"), "rule: got 'deltas', expected softmax, sum, gated_sum, delta"),
        (dict(feature_map="dpfp"), "feature_map: got 'dpfp', expected none, elu1, tanh, dpfpN, favorN"),
        (dict(rule="softmax", feature_map="elu1"), "feature_map: got 'elu1', expected none with softmax"),
        (
            dict(rule="gated_delta", feature_map="elu1", normalize=True),
            "normalize: got True with gated_delta, expected",
        ),
        (dict(normalize=True), "normalize: got True with the map none, expected one that is positive"),
        (dict(feature_map="tanh", normalize=True), "normalize: got True with the map tanh, expected one that is pos"),
        (dict(seq_len=62), "seq_len: got 62, expected at least 4 num_kv_pairs"),
        (dict(seq_len=65), "seq_len: got 65, expected an even number"),
        (dict(vocab_size=33), "vocab_size: got 33, expected at least 2 num_kv_pairs + 2"),
        (dict(heads=5), "heads: got 5, expected a divisor of d_model"),
        (dict(conv_size=17), "conv_size: got 17, expected an integer in 0..16"),
        (dict(warmup_steps=1200), "warmup_steps: got 1200, expected fewer than max_steps"),
        (dict(lr=0), "lr: got 0, expected a finite number above 0"),
        (dict(seed=-1), "seed: got -1, expected an integer in 0..4294967295"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError) as error:
        Settings(**wrong)
    assert message in str(error.value)


def test_wrong_types():
    for name, value in (("normalize", 1), ("num_kv_pairs", 2.0), ("lr", "fast"), ("rule", None), ("feature_map", 3)):
        with pytest.raises(TypeError, match=f"{name}: got"):
            Settings(**{name: value})
    with pytest.raises(TypeError, match="width: an unknown setting, expected batch_size"):
        grid(width=3)


def test_grid():
    runs = grid(rule=["sum", "delta"], feature_map=["none", "dpfp1"], d_model=16, seed=[1, 2])
    assert {(r.rule, r.feature_map, r.d_model, r.seed) for r in runs} == {
        (rule, word, 16, seed) for rule in ("sum", "delta") for word in ("none", "dpfp1") for seed in (1, 2)
    }
    with pytest.raises(ValueError, match=r"seed: got \[\], expected values"):
        grid(seed=[])


def row(accuracy, steps=100, **settings):
    made = row_of(Settings(**settings))
    return Row(**{name: getattr(made, name) for name in made.KEYS}, accuracy=accuracy, steps=steps)


def test_best_rates(tmp_path):
    rows = [
        *(row(accuracy, lr=1e-2, seed=seed) for seed, accuracy in enumerate((0.9, 0.1, 0.95))),
        *(row(accuracy, lr=2e-2, seed=seed) for seed, accuracy in enumerate((0.8, 0.8, 0.8))),
        *(row(None, lr=3e-2, seed=seed) for seed in range(3)),
        row(0.997, 300, rule="sum", lr=1e-2),  # both have ended, one sooner
        row(0.99, 200, rule="sum", lr=4e-2),
    ]
    assert sorted(best_rates(rows).values()) == [1e-2, 4e-2]
    rows += [row(0.1, rule="sum", lr=4e-2, seed=seed) for seed in (2, 3)]  # of the best rate alone
    assert sorted(best_rates(rows).values()) == [1e-2, 4e-2]
    path = tmp_path / "r.csv"
    path.touch()
    results = Results(path, Row)
    results.begin()
    for one in rows:
        results.append(one)
    runs = at_best_rates(grid(rule=["sum", "delta"], seed=[1, 5]), path)
    assert {(run.rule, run.lr, run.seed) for run in runs} == {
        *(("sum", 4e-2, s) for s in (1, 5)),
        *(("delta", 1e-2, s) for s in (1, 5)),
    }
    with pytest.raises(ValueError, match=r"lr: got best, expected rows of Settings\(rule='softmax'.* in .*r.csv"):
        at_best_rates(grid(rule="softmax"), path)


def test_without_pytorch(tmp_path):
    """The settings, the task and the help are there; training says what is missing, in one line."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    assert run("-c", "from fwm_py.experiments.recall import Settings, Task, grid, Row").returncode == 0
    assert run("-m", "fwm_py", "recall", "--help").returncode == 0
    done = run("-m", "fwm_py", "recall", "--quick")
    assert done.returncode == 1 and done.stderr == (
        "fwm-py recall: error: fwm_py.experiments.recall needs PyTorch: pip install 'fwm_py[torch]'\n"
    )
