"""Settings: what they accept, what they refuse and how, and what follows from them."""

import dataclasses

import numpy as np
import pytest
from support import cases

from fwm_py import _core
from fwm_py.experiments.retrieval.settings import LIMITS, Settings

HUGE = 10**5000

# field, value, error, message
REFUSED = [
    *[
        (name, value, TypeError, f"expected an integer in {low}..{high}")
        for name, (low, high) in LIMITS.items()
        for value in (True, np.True_, 20.0, "20", [20], np.arange(3))
    ],
    *[
        (name, None, TypeError, f"got None, expected an integer in {low}..{high}")
        for name, (low, high) in LIMITS.items()
        if name != "batch_size"
    ],
    *[
        (name, value, ValueError, f"got {value}, expected an integer in {low}..{high}")
        for name, (low, high) in LIMITS.items()
        for value in (low - 1, high + 1, -(10**30))
    ],
    *[(name, HUGE, ValueError, f"got an integer of {HUGE.bit_length()} bits") for name in LIMITS],
    *[("lr", value, TypeError, "expected a finite number above 0") for value in ("0.1", True, [1.0], 1j)],
    *[
        ("lr", value, ValueError, f"got {value}, expected a finite number above 0")
        for value in (0, 0.0, -1e-3, float("nan"), float("inf"), -float("inf"))
    ],
    ("lr", HUGE, ValueError, "expected a finite number above 0"),
    *[("replace", value, TypeError, f"got {value!r}, expected True or False") for value in (1, 0, None, "no")],
    *[("attn_name", value, TypeError, f"expected {cases.ATTN_NAMES}") for value in (None, 3, b"tanh")],
    *[
        ("attn_name", value, ValueError, f"got {value!r}, expected {cases.ATTN_NAMES}")
        for value in ("", "elu1", "DPFP", "dpfp\nx", "sum")
    ],
    *[
        ("update_rule", value, ValueError, f"got {value!r}, expected {cases.UPDATE_RULES}")
        for value in ("", "delta", "softmax")
    ],
    ("update_rule", None, TypeError, f"got None, expected {cases.UPDATE_RULES}"),
    ("favor_generator", "torch", ValueError, "got 'torch', expected philox or mt19937"),
    ("favor_generator", None, TypeError, "got None, expected philox or mt19937"),
    ("attn_name", "x" * 10**6, ValueError, "got 'xxx"),
]


@pytest.mark.parametrize("name, value, error, message", REFUSED, ids=[f"{row[0]}-{i}" for i, row in enumerate(REFUSED)])
def test_refused(name, value, error, message):
    with pytest.raises(error) as raised:
        Settings(**{name: value})
    text = str(raised.value)
    assert text.startswith(f"{name}: got ") and message in text
    assert len(text) < 250 and "\n" not in text


@pytest.mark.parametrize("row", [row for row in _core.MAPS if row["argument"]], ids=lambda row: row["name"])
def test_a_map_with_an_argument_needs_one(row):
    with pytest.raises(ValueError) as raised:
        Settings(attn_name=row["name"])
    assert str(raised.value) == f"attn_arg: got 0, expected an integer in 1..65536 ({row['argument']} of {row['name']})"
    assert Settings(attn_name=row["name"], attn_arg=1).attn_arg == 1


def test_every_map_and_rule_is_accepted():
    for row in _core.MAPS:
        assert Settings(attn_name=row["name"], attn_arg=1).map == row["name"]
    for row in _core.READOUTS:
        if row["uses_map"]:
            settings = Settings(attn_name="tanh", update_rule=row["name"])
            assert (settings.map, settings.rule) == ("tanh", row["name"])
        else:
            settings = Settings(attn_name=row["name"], update_rule="ours")
            assert (settings.map, settings.rule) == (None, row["name"])


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_accepted_and_whole_numbers_of_numpy_become_pythons(name):
    for value in LIMITS[name]:
        for integer in (value, np.int64(value), np.uint64(value), np.array(value)):
            accepted = getattr(Settings(**{name: integer}), name)
            assert accepted == value and type(accepted) is int


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int32(1), 5e-324])
def test_step_sizes(value):
    lr = Settings(lr=value).lr
    assert lr == value and type(lr) is float


def test_published_defaults():
    settings = Settings()
    assert dataclasses.asdict(settings) == {
        "n_keys": 20,
        "attn_name": "softmax",
        "attn_arg": 0,
        "update_rule": "sum",
        "replace": False,
        "seed": 1,
        "hidden_size": 64,
        "batch_size": None,
        "lr": None,
        "max_steps": 100_000,
        "favor_generator": "philox",
        "redraw": "pass",
    }
    assert (settings.resolved_lr, settings.resolved_batch_size, settings.seq_len) == (1e-3, 32, 20)
    assert Settings(replace=True).seq_len == 40


def test_tanh_with_fwm_has_defaults_of_its_own_and_honours_what_is_given():
    fwm = Settings(attn_name="tanh", update_rule="fwm")
    assert (fwm.resolved_lr, fwm.resolved_batch_size) == (1e-4, 128)
    given = dataclasses.replace(fwm, lr=0.01, batch_size=8)
    assert (given.resolved_lr, given.resolved_batch_size) == (0.01, 8)
    other_rule = dataclasses.replace(fwm, update_rule="sum")
    assert (other_rule.resolved_lr, other_rule.resolved_batch_size) == (1e-3, 32)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 2
    assert Settings(seed=np.int64(3)) == Settings(seed=3)
    assert hash(Settings()) == hash(Settings())
