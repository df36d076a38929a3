"""The capacity study: one measurement, the grid, untrained keys against their formulas."""

import dataclasses
import math

import numpy as np
import pytest

from fwm_py.experiments.capacity import grid, measure, study, untrained
from fwm_py.experiments.capacity.measure import NOTHING_LOST, PATIENCE, Row, _Best, distinct_keys, row_of
from fwm_py.experiments.retrieval import Model, Settings, Stream
from fwm_py.experiments.study import Results

SMALL = Settings(n_keys=32, attn_name="dpfp", attn_arg=1, hidden_size=8, seed=2)


def same(row):
    return dataclasses.replace(row, seconds=0.0)


def test_a_measurement():
    """With N = 2p, the memory stores close to p; the same settings give the same row."""
    row = measure(SMALL)
    assert (row.feature_map, row.rule, row.p, row.load, row.error) == ("dpfp1", "sum", 16, 2.0, "")
    assert 0.9 * 16 < row.stored <= 16 and row.stored + row.lost == pytest.approx(32)
    assert row.stored == pytest.approx(32 * (1 - 2 * row.loss)) and 0.45 < row.right < 0.6 and row.loss < row.worst
    assert row.steps == row.best_step + 100 * PATIENCE
    assert same(measure(SMALL)) == same(row)


def test_the_numbers_are_those_of_the_best_evaluation():
    """A training of our own, step by step, finds the same loss after the same step."""
    row = measure(dataclasses.replace(SMALL, max_steps=500))
    model, stream, found = Model(SMALL), Stream(SMALL), []
    for step in range(1, 501):
        model.step(stream.batch())
        if step % 100 == 0:
            found.append((*model.recall(stream), step))
    assert (row.loss, row.right, row.worst, row.best_step) == min(found)
    assert row.steps == 500


def test_a_run_without_a_step():
    row = measure(dataclasses.replace(SMALL, max_steps=0))
    assert (row.steps, row.best_step) == (0, 0) and row.loss > 0.3


def ends_after(losses):
    best = _Best()
    for i, loss in enumerate(losses, start=1):
        if best.is_over(100 * i, loss, 1.0, loss):
            return i, best
    return None, best


def test_when_a_run_ends():
    assert ends_after([0.5, 0.4] + [0.4] * (PATIENCE - 1))[0] is None
    assert ends_after([0.5, 0.4] + [0.4] * PATIENCE)[0] == 2 + PATIENCE
    assert ends_after([0.5, NOTHING_LOST, 0.1])[0] == 2
    nan = math.nan
    at, best = ends_after([0.5, nan, 0.4] + [nan] * PATIENCE)
    assert (at, best.step, best.recall.loss, best.nan_since) == (3 + PATIENCE, 300, 0.4, 200)
    at, best = ends_after([nan] * 20)
    assert at == PATIENCE and math.isnan(best.recall.loss)


def test_nan_is_a_row_that_says_so():
    """tanh's features have both signs, and the delta rule divides by their sum."""
    row = measure(Settings(n_keys=12, attn_name="tanh", update_rule="ours", hidden_size=2, lr=3.0))
    assert row.error == "the loss is NaN at step 100" and math.isnan(row.loss) and math.isnan(row.stored)


def test_distinct_keys():
    settings = Settings(n_keys=30, replace=True)
    counts = [len(batch.query) for _ in range(40) for batch in Stream(settings).recall()]
    assert distinct_keys(settings) == pytest.approx(np.mean(counts), rel=0.02)
    assert distinct_keys(Settings(n_keys=30)) == 30


def test_fwm_is_told_by_its_right_answers():
    row = measure(Settings(n_keys=8, attn_name="dpfp", attn_arg=1, update_rule="fwm", hidden_size=4, max_steps=500))
    assert row.stored is row.lost is None and row.loss > 1 and 0.1 < row.right <= 1


# --- the grid ---


def test_grid():
    runs = grid(feature_map=["elu1", "favor16"], rule=["delta"], hidden_size=[4], load=[0.5, 2], seed=[1, 2])
    rows = {(r.feature_map, r.rule, r.n_keys, r.p, r.seed) for r in map(row_of, runs)}
    assert rows == {("elu1", "delta", N, 4, s) for N in (2, 8) for s in (1, 2)} | {
        ("favor16", "delta", N, 32, s) for N in (16, 64) for s in (1, 2)
    }
    costs = [row_of(run).p * run.seq_len for run in runs]
    assert costs == sorted(costs, reverse=True)
    softmax = row_of(grid(rule=["softmax"], n_keys=[5], hidden_size=[4], seed=[1])[0])
    assert (softmax.feature_map, softmax.rule, softmax.p, softmax.load) == ("none", "softmax", None, None)
    assert all(run.redraw == "never" for run in grid(feature_map=["favor4"], redraw="never"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(rule=["softmax"]), "n_keys: got none, expected numbers of keys with softmax, which has no p"),
        (dict(rule=["softmax"], n_keys=[4], feature_map=["elu1"]), "feature_map: got elu1, expected none with softmax"),
        (dict(feature_map=["none"]), "feature_map: got 'none', expected a map with the rule sum"),
        (dict(feature_map=["dpfp"]), "feature_map: got 'dpfp', expected none, elu1, tanh, dpfpN, favorN"),
        (dict(feature_map=["elu11"]), "feature_map: got 'elu11', expected none, elu1"),
        (dict(rule=["gated"]), "rule: got 'gated', expected sum, fwm, delta, softmax"),
        (dict(load=[1], n_keys=[4]), "load: got loads and n_keys, expected one of them"),
        (dict(load=[0.01]), "load: got 0.01, expected 2..2000 keys, not 0, where p is 8"),
        (dict(load=[-1]), "load: got -1, expected a finite number above 0"),
        (dict(seed=[]), "got an empty list"),
        (dict(hidden_size=[0]), "hidden_size: got 0, expected an integer in 1..1024"),
        (dict(redraw="never"), "redraw: got 'never', expected 'pass' with linear, which draws nothing"),
    ],
)
def test_wrong_grids(arguments, message):
    with pytest.raises(ValueError) as error:
        grid(**arguments)
    assert message in str(error.value)


def test_wrong_types():
    with pytest.raises(TypeError, match="rule: got 'sum', expected a list of words"):
        grid(rule="sum")
    with pytest.raises(TypeError, match="settings: got 3, expected Settings"):
        measure(3)


def test_a_study_makes_what_is_missing(tmp_path):
    path, runs, made = tmp_path / "study.csv", grid(feature_map=["elu1"], hidden_size=[4], load=[2], seed=[1, 2]), []
    first = study(runs[:3], path, jobs=1, on_row=made.append)
    assert len(made) == 3 and {row.seed for row in first} == {1, 2}
    before = path.read_bytes()
    rows = study(runs, path, jobs=2, on_row=made.append)
    assert len(made) == 4 and rows[:3] == first and path.read_bytes().startswith(before)
    assert list(Results(path, Row).rows.values()) == made
    assert [dataclasses.replace(measure(run), seconds=0.0) for run in runs] == [same(row) for row in rows]


# --- without training ---


@pytest.mark.parametrize("load", [0.25, 1.0, 3.0])
def test_untrained_keys_follow_their_formulas(load):
    for rule, p, N, loss, formula in untrained(128, load, sequences=4):
        assert (p, N) == (128, round(128 * load))
        assert loss == pytest.approx(formula, rel=0.05, abs=1e-9), rule


def test_untrained_bad_input():
    with pytest.raises(ValueError, match="p: got 0, expected an integer in 1..4096"):
        untrained(0, 1.0)
    with pytest.raises(ValueError, match="load: got 0, expected a finite number above 0"):
        untrained(4, 0)
