"""The evaluation of a model: the loss of every chunk of the stream's queries, and the order of their sum."""

import numpy as np
import pytest
from support import cases, oracle, training_oracle

from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.stream import Batch, Stream

ONE_OF_EACH = [next(case for case in cases.MODEL_CASES if case.rule_row is row) for row in cases._core.READOUTS]


@pytest.mark.parametrize("n_keys, replace, batch_size", [(5, False, 32), (40, True, 32), (30, True, 7)])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_evaluation(case, n_keys, replace, batch_size):
    """Chunks of the queries, whatever their size, weigh the same; the stream goes on behind the evaluation."""
    settings = case.settings(n_keys=n_keys, hidden_size=8, replace=replace, batch_size=batch_size)
    model = Model(settings, np.float64)
    ours, theirs = Stream(settings), training_oracle.Stream(settings.seed, n_keys, batch_size, replace)
    arguments = case.oracle_arguments(settings)
    expected = training_oracle.evaluate(theirs, lambda batch: oracle.loss(model.parameters, *arguments, batch))
    loss = model.evaluate(ours)
    assert np.float32(loss) == loss and loss == pytest.approx(float(expected), rel=5e-7)
    for got, same in zip(ours.batch(), theirs.batch()):
        np.testing.assert_array_equal(got, same)


def mean_without_halves(losses):
    """The float32 mean of one who forgets that sums of more than 128 numbers are halved."""
    sums = np.zeros(8, np.float32)
    for i in range(0, len(losses) // 8 * 8, 8):
        sums += losses[i : i + 8]
    total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))
    for loss in losses[len(losses) // 8 * 8 :]:
        total += loss
    return total / np.float32(len(losses))


def test_evaluation_sums_more_than_128_chunks_in_halves():
    """To the bit NumPy's float32 mean; a sum in another order is another number for some seeds."""
    others = 0
    for seed in range(8):
        settings = Settings(n_keys=40, attn_name="linear", hidden_size=8, batch_size=1, seed=seed)
        model, chunks = Model(settings, np.float64), []
        training_oracle.evaluate(
            training_oracle.Stream(seed, 40, 1, False),
            lambda batch: (
                chunks.append(model.loss(Batch(batch[0], batch[1] + 40, batch[2], batch[3] + 40))) or chunks[-1]
            ),
        )
        chunks = np.array(chunks, np.float32)
        assert len(chunks) == 800
        assert model.evaluate(Stream(settings)) == np.mean(chunks) == training_oracle.pairwise_mean(chunks)
        others += np.mean(chunks) != mean_without_halves(chunks)
    assert others > 2


@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_evaluation_is_the_loss_of_its_chunks(case):
    """Over 200 keys: the first 200 queries of each sequence, in chunks of 150 and 50."""
    settings = case.settings(n_keys=210, hidden_size=16, batch_size=150)
    model, same = Model(settings, np.float64), Model(settings, np.float64)
    sizes = []

    def chunk_loss(batch):
        keys, values, query, answer = batch
        sizes.append(len(query))
        return same.loss(Batch(keys, values + 210, query, answer + 210))

    expected = training_oracle.evaluate(training_oracle.Stream(1, 210, 150, False), chunk_loss)
    assert sizes == [150, 50] * 20
    assert model.evaluate(Stream(settings)) == pytest.approx(float(expected), rel=1e-5, nan_ok=True)
