"""The training and evaluation data: against NumPy's RandomState and recorded batches of the published program."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import training_oracle

from fwm_py._core import Stream

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_batches.json").read_text())["batches"]


def assert_same(ours, expected):
    assert isinstance(ours, tuple) and len(ours) == len(expected) == 4
    for part, expected_part in zip(ours, expected):
        assert part.dtype == np.int64
        np.testing.assert_array_equal(part, expected_part, strict=True)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("n_keys", [1, 2, 3, 20, 200, 201, 600])
@pytest.mark.parametrize("seed, batch_size", [(1, 32), (0, 1), (2**32 - 1, 5)])
def test_against_numpy(n_keys, replace, seed, batch_size):
    """Batches and evaluations in turn: an evaluation consumes the stream, the next batch goes on from there."""
    arguments = seed, n_keys, batch_size, replace
    stream, oracle = Stream(*arguments), training_oracle.Stream(*arguments)
    for step in range(6):
        assert_same(stream.batch(), oracle.batch())
        if step % 2 == 1:
            sequences = stream.evaluation()
            assert isinstance(sequences, list) and len(sequences) == 20
            for ours, expected in zip(sequences, oracle.evaluation()):
                assert_same(ours, expected)


@pytest.mark.parametrize("golden", GOLDEN, ids=["N{n_keys}-B{batch_size}-{replace}".format(**g) for g in GOLDEN])
def test_first_batch_of_the_published_program(golden):
    stream = Stream(golden["seed"], golden["n_keys"], golden["batch_size"], golden["replace"])
    keys, values, query, answer = stream.batch()
    assert keys[0].tolist() == golden["keys_row0"]
    assert values[0].tolist() == golden["values_row0"]
    assert query.tolist() == golden["query"]
    assert answer.tolist() == golden["answer"]


def test_streams_are_independent():
    first, second = Stream(1, 20, 4, True), Stream(1, 20, 4, True)
    first.batch()
    first.evaluation()
    assert_same(second.batch(), training_oracle.Stream(1, 20, 4, True).batch())


def test_a_batch_beyond_memory_consumes_nothing():
    stream = Stream(1, 2**10, 2**48, True)
    for _ in range(2):
        with pytest.raises(MemoryError):
            stream.batch()
    assert_same(stream.evaluation()[0], training_oracle.Stream(1, 2**10, 1, True).evaluation()[0])


@pytest.mark.parametrize("method", ["batch", "evaluation"])
def test_each_failing_allocation_consumes_nothing(method):
    """Python's allocator fails at its first, second, .. call until a draw gets through; that one is the first draw."""
    testcapi = pytest.importorskip("_testcapi")
    stream, failures = Stream(1, 20, 4, True), 0
    draw, drawn = getattr(stream, method), None
    while drawn is None:
        testcapi.set_nomemory(failures)
        try:
            drawn = draw()
        except MemoryError:
            pass
        finally:
            testcapi.remove_mem_hooks()
        failures += 1
    assert failures > 3
    expected = getattr(training_oracle.Stream(1, 20, 4, True), method)()
    for ours, theirs in zip([drawn], [expected]) if method == "batch" else zip(drawn, expected):
        assert_same(ours, theirs)


BAD_ARGUMENTS = [
    ({"seed": -1}, ValueError, r"^seed: got -1, expected an integer in 0\.\.4294967295$"),
    ({"seed": 2**32}, ValueError, r"^seed: got 4294967296, expected an integer in 0\.\.4294967295$"),
    ({"seed": 0.5}, TypeError, "^seed: got float, expected an integer$"),
    ({"n_keys": 0}, ValueError, r"^n_keys: got 0, expected an integer in 1\.\.1073741823$"),
    ({"n_keys": 2**30}, ValueError, r"^n_keys: got 1073741824, expected an integer in 1\.\.1073741823$"),
    ({"n_keys": "20"}, TypeError, "^n_keys: got str, expected an integer$"),
    ({"batch_size": 0}, ValueError, r"^batch_size: got 0, expected an integer in 1\.\.\d+$"),
    ({"batch_size": -3}, ValueError, r"^batch_size: got -3, expected an integer in 1\.\.\d+$"),
    ({"batch_size": 2**62}, ValueError, r"^batch_size: got 4611686018427387904, expected an integer in 1\.\.\d+$"),
    ({"batch_size": None}, TypeError, "^batch_size: got NoneType, expected an integer$"),
]


@pytest.mark.parametrize("bad, error, message", BAD_ARGUMENTS, ids=[str(row[0]) for row in BAD_ARGUMENTS])
def test_bad_arguments(bad, error, message):
    with pytest.raises(error, match=message):
        Stream(**{"seed": 1, "n_keys": 20, "batch_size": 32, "replace": False, **bad})
