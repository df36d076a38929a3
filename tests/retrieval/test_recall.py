"""Model.recall: what a memory returns of all its keys, which rank bounds."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support import cases, oracle, training_oracle

import fwm_py
from fwm_py import _core
from fwm_py.experiments.retrieval import Batch, Model, Settings, Stream

FAVOR = dict(attn_name="favor", attn_arg=6, hidden_size=4, n_keys=9, batch_size=9)


def recall_of(answers_to, sequences):
    """(loss, right, worst) of y (n, N) = answers_to(batch), a sequence and all its queries."""
    losses, right = [], []
    for keys, values, query, answer in sequences:
        y = answers_to((keys[np.newaxis].repeat(len(query), 0), values[np.newaxis].repeat(len(query), 0), query, None))
        row = np.arange(len(query))
        others = y.copy()
        others[row, answer] = -np.inf
        right += (y[row, answer] > others.max(1)).tolist()
        losses += (0.5 * ((np.eye(y.shape[1])[answer] - y) ** 2).sum(1)).tolist()
    return np.mean(losses), np.mean(right), np.max(losses)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_recall(case, replace):
    """By the oracle's equations where no Omega is drawn, and by our own read_out, an Omega a sequence, where it is."""
    settings = case.settings(n_keys=21, hidden_size=5, replace=replace, batch_size=21)
    model, stream, theirs = Model(settings, np.float64), Stream(settings), training_oracle.Stream(1, 21, 21, replace)
    for _ in range(30):  # so that some answers are right
        model.step(stream.batch())
        theirs.batch()
    same = copy.deepcopy(model)
    map_name, argument, rule = case.oracle_arguments(settings)

    def answers_to(batch):
        if argument is not None and np.ndim(argument):
            return same.read_out(Batch(batch[0], batch[1] + 21, batch[2], batch[2] + 21))
        return oracle.read_out(model.parameters, map_name, argument, rule, *batch[:3])

    sequences = [(keys, values - 21, query, answer - 21) for keys, values, query, answer in theirs.recall()]
    got = model.recall(stream)
    assert got == pytest.approx(recall_of(answers_to, sequences), rel=1e-6, nan_ok=True)
    batch = stream.batch()  # both streams stand behind the recall, Omega's too
    for ours, other in zip(batch, theirs.batch()):
        np.testing.assert_array_equal(ours, other)
    if case.omega(settings) is not None:
        assert model.loss(batch) == same.loss(batch)


@pytest.mark.parametrize("replace", [False, True])
def test_sequences(replace):
    settings = Settings(n_keys=7, batch_size=3, replace=replace)
    ours, theirs = Stream(settings), training_oracle.Stream(1, 7, 3, replace)
    sequences = ours.recall()
    assert len(sequences) == 20
    for got, expected in zip(sequences, theirs.recall()):
        for one, other in zip(got, expected):
            np.testing.assert_array_equal(one, other)
    assert len(sequences[0].keys) == settings.seq_len
    np.testing.assert_array_equal(ours.batch().keys, theirs.batch()[0])


@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_threads(case):
    found = []
    for threads in (1, 2, 3):
        fwm_py.set_num_threads(threads)
        settings = case.settings(n_keys=33, hidden_size=6, replace=True)
        found.append(np.array(Model(settings).recall(Stream(settings))))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_answers_that_tie_are_not_right():
    settings = Settings(n_keys=6, attn_name="linear", hidden_size=3)
    model = Model(settings, np.float64)
    model.parameters["W_k.weight"][...] = 0  # all keys are the same
    loss, right, worst = model.recall(Stream(settings))
    assert right == 0 and loss == pytest.approx(0.5 * (1 - 1 / 6), rel=1e-5) and worst == pytest.approx(loss)


def test_nan_is_reported():
    settings = Settings(n_keys=6, attn_name="linear", hidden_size=3)
    model = Model(settings, np.float64)
    model.parameters["embeddingK.weight"][2] = np.nan  # a key of each sequence: its query, and what it writes
    loss, right, worst = model.recall(Stream(settings))
    assert np.isnan(loss) and right == 0 and np.isnan(worst)


# --- Omega that stays ---


def test_omega_that_stays():
    """Every pass, of whatever kind, has the first Omega; its gradients are those of that Omega."""
    drawn, kept = Settings(**FAVOR), Settings(**FAVOR, redraw="never")
    model, other = Model(kept, np.float64), Model(drawn, np.float64)
    stream = Stream(kept)
    batch = stream.batch()
    first = model.loss(batch)
    assert first == other.loss(batch) != other.loss(batch)  # the first Omega of one who draws, and the second
    model.evaluate(Stream(kept)), model.recall(Stream(kept)), model.read_out(batch)
    assert model.loss(batch) == first == model.loss_and_gradients(batch)[0]
    assert copy.deepcopy(model).loss(batch) == first
    assert model.step(batch) == first != model.step(batch)


def test_evaluations_with_omega_that_stays():
    """The published evaluation and recall agree where each sequence has one chunk and one Omega."""
    kept = Settings(**FAVOR, redraw="never")
    model = Model(kept, np.float64)
    assert model.evaluate(Stream(kept)) == pytest.approx(model.recall(Stream(kept)).loss, rel=1e-6)


def test_redraw_is_refused_where_nothing_is_drawn():
    with pytest.raises(ValueError, match="redraw: got 'never', expected 'pass' with dpfp, which draws nothing"):
        Settings(attn_name="dpfp", attn_arg=1, redraw="never")
    with pytest.raises(ValueError, match="redraw: got 'once', expected pass or never"):
        Settings(redraw="once")


# --- the theorem ---


def spectral_bound(sequences, p):
    """The mean over all queries of half the squared singular values behind the p-th of each sequence's targets."""
    lost = n_queries = 0
    for _, _, query, answer in sequences:
        multiplicities = np.sort(np.unique(answer, return_counts=True)[1])[::-1]
        lost += multiplicities[p:].sum()
        n_queries += len(query)
    return lost / (2 * n_queries)


BOUNDED = [case for case in cases.MODEL_CASES if case.rule_row["name"] in ("sum", "ours")]


@examples(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("case", BOUNDED, ids=str)
def test_rank_bounds_the_loss(case, data):
    """docs/capacity.md: p features keep p keys, whatever the map, the rule (sum, delta) and the parameters."""
    replace, steps = data.draw(st.booleans()), data.draw(st.sampled_from([0, 1, 30, 200]))
    name = case.map_row["argument"]
    how = {"attn_arg": data.draw(st.integers(1, 2))} if name else {}
    how |= {"redraw": data.draw(st.sampled_from(["pass", "never"]))} if name == "m" else {}
    chosen = case.settings(
        n_keys=data.draw(st.integers(2, 24)),
        hidden_size=data.draw(st.integers(1, 5)),
        seed=data.draw(st.integers(0, 10)),
        replace=replace,
        lr=1e-2,
        **how,
    )
    p = _core.map_features(case.map_row["function"], chosen.hidden_size, chosen.attn_arg)
    model, stream = Model(chosen, np.float64), Stream(chosen)
    for _ in range(steps):
        model.step(stream.batch())
    sequences = copy.deepcopy(stream).recall()
    loss = model.recall(stream).loss
    if np.isfinite(loss):
        assert loss >= spectral_bound(sequences, p) - 1e-6


def test_the_bound_is_reached():
    """The test above is about something: with 2 p keys, training comes within a few per cent of the bound."""
    chosen = Settings(n_keys=32, attn_name="dpfp", attn_arg=1, hidden_size=8)
    model, stream = Model(chosen, np.float64), Stream(chosen)
    for _ in range(3000):
        model.step(stream.batch())
    loss = model.recall(stream).loss
    assert spectral_bound(stream.recall(), 16) == 0.25 <= loss < 0.26
