"""Pickles, copies and reprs of models, streams and generators: a copy goes on as its original, to the bit."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support import cases

from fwm_py import _core, random
from fwm_py.experiments.retrieval.model import Model
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.stream import Stream
from fwm_py.experiments.retrieval.train import train
from fwm_py.feature_maps import draw_omega

COPIES = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "oldest pickle": lambda thing: pickle.loads(pickle.dumps(thing, 2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
every_copy = pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)


def assert_same(one, other):
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@every_copy
@pytest.mark.parametrize("drawn", [0, 3])
def test_philox(how, drawn):
    original = random.Philox(7)
    for _ in range(drawn):
        original.normal(5)
    twin = how(original)
    assert (twin.seed, twin.blocks_drawn) == (7, drawn)
    assert repr(twin) == repr(original) == f"<Philox of seed 7, {drawn} blocks drawn>"
    assert_same([original.normal(33) for _ in range(3)], [twin.normal(33) for _ in range(3)])
    assert original.blocks_drawn == twin.blocks_drawn == drawn + 3


@every_copy
@pytest.mark.parametrize(
    "before",
    [
        lambda generator: None,
        lambda generator: generator.uint32(1),
        lambda generator: generator.uint32(624),
        lambda generator: generator.uint32(700),
        lambda generator: generator.normal(3),  # the sine of the second pair waits
    ],
    ids=["new", "one word", "a block", "into the next", "a spare normal"],
)
def test_mt19937(how, before):
    original = random.MT19937(2**32 - 1)
    before(original)
    twin = how(original)
    assert repr(twin) == repr(original) == "<MT19937 of seed 4294967295>"
    for draw in (
        lambda g: g.normal(1),
        lambda g: g.uint32(2000),
        lambda g: g.normal(40),
        lambda g: g.uniform(3),
        lambda g: g.permutation(50),
        lambda g: g.choice(9, 4, True),
        lambda g: g.normal(5),
        lambda g: g.normal(2),
    ):
        np.testing.assert_array_equal(draw(twin), draw(original))


@every_copy
@pytest.mark.parametrize("replace", [False, True])
def test_streams(how, replace):
    settings = Settings(n_keys=20, replace=replace, seed=5, batch_size=3)
    for original in (Stream(settings), Stream(settings)._stream):
        original.batch()
        original.evaluation()
        twin = how(original)
        assert repr(twin) == repr(original) and "Stream of " in repr(twin) and "5" in repr(twin)
        for _ in range(3):
            assert_same(twin.batch(), original.batch())
            assert_same(twin.evaluation()[19], original.evaluation()[19])


@every_copy
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("generator", ["philox", "mt19937"])
@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_a_copied_model_goes_on_to_the_bit(case, generator, dtype, how):
    """Its moments, the number of its steps and its generator are those of the original, and none is shared."""
    settings = case.settings(n_keys=5, hidden_size=3, batch_size=4, replace=True, favor_generator=generator)
    original, stream = Model(settings, dtype), Stream(settings)
    for _ in range(7):
        original.step(stream.batch())
    twin = how(original)
    assert twin.settings == settings and twin.dtype == dtype and repr(twin) == repr(original)
    assert f"Model of {settings}" in repr(twin) and str(np.dtype(dtype)) in repr(twin) and "7 steps" in repr(twin)
    kept = {name: array.copy() for name, array in twin.parameters.items()}
    other = copy.deepcopy(stream)
    losses = [original.step(stream.batch()) for _ in range(5)] + [original.evaluate(stream)]
    assert_same(twin.parameters.values(), kept.values())
    np.testing.assert_array_equal([twin.step(other.batch()) for _ in range(5)] + [twin.evaluate(other)], losses)
    assert_same(twin.parameters.values(), original.parameters.values())


def test_a_model_that_was_pickled_goes_on_in_another_process(tmp_path):
    settings = Settings(n_keys=20, attn_name="favor", attn_arg=16, batch_size=8)
    model, stream = Model(settings), Stream(settings)
    model.step(stream.batch())
    (tmp_path / "state").write_bytes(pickle.dumps((model, stream)))
    program = (
        "import pickle, sys\nmodel, stream = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(model.step(stream.batch()).hex(), model.evaluate(stream).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "state"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [model.step(stream.batch()).hex(), model.evaluate(stream).hex()]


def test_copies_in_a_callback_go_on_as_the_training_does():
    settings = Settings(n_keys=9, attn_name="favor", attn_arg=8, hidden_size=8, batch_size=4, lr=1e-5, max_steps=300)
    model, copies = Model(settings), []
    train(settings, lambda step, loss: copies.append(copy.deepcopy(model)), model=model)
    stream, alone = Stream(settings), Model(settings)
    for twin in copies:
        for _ in range(100):
            alone.step(stream.batch())
        alone.evaluate(stream)
        assert_same(twin.parameters.values(), alone.parameters.values())
        batch = Stream(settings).batch()
        assert twin.loss(batch) == copy.deepcopy(alone).loss(batch)
        assert "steps made" in repr(twin) and repr(twin) == repr(alone)


@pytest.mark.parametrize(
    "make, states",
    [
        (lambda: random.Philox(1), [None, (), (1,), (1, -1), (1, 2**32), (2**32, 0), ("1", 0), [1, 0]]),
        (
            lambda: random.MT19937(1),
            [
                None,
                (),
                (np.zeros(624, np.uint32), 625, None),
                (np.zeros(624, np.uint32), -1, None),
                (np.zeros(623, np.uint32), 0, None),
                (np.zeros(624), 0, None),
                (b"x" * 2496, 0, None),
                (np.zeros(624, np.uint32), 0, "x"),
                (np.zeros(624, np.uint32), None, None),
            ],
        ),
        (
            lambda: _core.Stream(1, 20, 4, True),
            [None, (), (np.zeros(624, np.uint32), 625), (np.zeros((26, 24), np.uint32), 0)],
        ),
        (lambda: Model(Settings(n_keys=2, hidden_size=1, batch_size=1))._model, [None, (), (1, 2, 3, 4, 5)]),
    ],
)
def test_states_that_do_not_fit_are_refused_and_change_nothing(make, states):
    thing = make()
    set_state = getattr(thing, "__setstate__", None) or thing.set_state
    before = pickle.dumps(thing) if set_state == getattr(thing, "__setstate__", None) else thing.get_state()
    for state in states:
        with pytest.raises((TypeError, ValueError)):
            set_state(state)
    if isinstance(before, bytes):
        assert pickle.dumps(thing) == before
        return
    numbers, moment1, moment2, steps, source = before
    for state in (
        (numbers[:-1], moment1, moment2, steps, source),
        (numbers, numbers, moment2, steps, source),
        (numbers.astype(float), moment1, moment2, steps, source),
        (numbers, moment1, moment2, -1, source),
        (numbers + 1, moment1, moment2, steps, (1,)),
    ):
        with pytest.raises((TypeError, ValueError)):
            set_state(state)
    for one, other in zip(thing.get_state(), before):
        np.testing.assert_array_equal(one, other)


def test_copies_of_generators_draw_the_same_omega():
    for generator in (random.Philox(3), random.MT19937(3)):
        draw_omega(5, 7, generator)
        twin = copy.deepcopy(generator)
        np.testing.assert_array_equal(draw_omega(5, 7, twin), draw_omega(5, 7, generator))
