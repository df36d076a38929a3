"""A row of a table is enough: for each map and rule there are functions, documentation, an oracle, settings, help."""

import inspect
import subprocess
import sys

import pytest
from support import cases, oracle, rule_oracle

from fwm_py import _core, feature_maps, readouts
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.train import train

ROWS = [(feature_maps, row) for row in _core.MAPS] + [(readouts, row) for row in _core.READOUTS]
every_row = pytest.mark.parametrize("module, row", ROWS, ids=[row["name"] for _, row in ROWS])


@pytest.fixture(scope="module")
def help_text():
    process = subprocess.run([sys.executable, "-m", "fwm_py", "train", "--help"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return " ".join(process.stdout.split())


@every_row
def test_help_names_the_row(module, row, help_text):
    assert row["name"] in help_text.split() or f"{row['name']}," in help_text
    assert " ".join(row["summary"].split()) in help_text and row["summary"]


@every_row
def test_names_are_unique(module, row):
    assert sum(other["name"] == row["name"] for _, other in ROWS) == 1


def test_no_oracle_without_a_row():
    assert set(oracle.MAPS) == {row["name"] for row in _core.MAPS}
    assert set(oracle.READOUTS) == set(oracle.GRADIENTS) == {row["name"] for row in _core.READOUTS}
    assert set(oracle.WITH_BETA) == {row["name"] for row in _core.READOUTS if row["uses_beta"]}
    assert set(rule_oracle.RULES) == {row["function"] for row in _core.RULES}


def test_nothing_public_without_a_row():
    """The modules' other functions are named here, so that a new one is looked at."""
    for module, table, others in ((feature_maps, _core.MAPS, {"draw_omega"}), (readouts, _core.READOUTS, set())):
        rows = {row["function"] + ending for row in table for ending in ("", "_backward")}
        public = {
            name
            for name, value in vars(module).items()
            if inspect.isroutine(value) and not name.startswith("_") and value.__module__ == module.__name__
        }
        assert public - others == rows


@pytest.mark.parametrize("case", cases.MODEL_CASES, ids=str)
def test_every_combination_trains(case):
    """Every map goes with every rule."""
    rows = train(case.settings(n_keys=4, hidden_size=3, replace=True, max_steps=100))
    assert [step for step, _ in rows] == [100]


@pytest.mark.parametrize("rule", [row["name"] for row in _core.READOUTS])
def test_every_rule_is_reached_by_its_name(rule):
    """By --update_rule, or, if it takes keys as they are, by --attn_name."""
    uses_map = next(row["uses_map"] for row in _core.READOUTS if row["name"] == rule)
    settings = Settings(attn_name="linear", update_rule=rule) if uses_map else Settings(attn_name=rule)
    assert settings.rule == rule
