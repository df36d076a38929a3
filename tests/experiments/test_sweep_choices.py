"""`fwm-py reproduce`: which runs, and in what order."""

import pytest

from fwm_py import _core
from fwm_py.experiments.retrieval.paper import COMMANDS, published_losses
from fwm_py.experiments.retrieval.settings import UPDATE_RULES, Settings
from fwm_py.experiments.retrieval.sweep import cost, select


def test_all_runs_are_the_published_ones_longest_first():
    runs = select()
    assert sorted(run.name for run in runs) == sorted(published_losses()) and len(runs) == 320
    costs = [cost(run.settings) for run in runs]
    assert costs == sorted(costs, reverse=True) and min(costs) > 0


def test_any_settings_have_a_cost():
    sizes = [cost(Settings(n_keys=n_keys, attn_name="dpfp", attn_arg=1)) for n_keys in (2, 20, 21, 200, 600, 2000)]
    assert sizes == sorted(sizes) and sizes[0] > 0
    for row in [*_core.MAPS, {"name": "softmax"}]:
        for rule in UPDATE_RULES:
            assert cost(Settings(n_keys=33, attn_name=row["name"], attn_arg=7, update_rule=rule, hidden_size=8)) > 0
    assert cost(Settings(max_steps=0)) == 0 < cost(Settings(max_steps=100)) < cost(Settings())


def test_choices():
    assert {run.command.setting for run in select(setting=2)} == {2} and len(select(setting=2)) == 80
    assert max(run.settings.n_keys for run in select(max_n=100)) == 100
    assert [run.name for run in select(only=["*favor512*N40R0.csv"])] == ["d64_favor512_sum_AssocSeq40N40R0.csv"]
    assert {run.command for run in select(only=["dpfp1_sum R?"])} == {COMMANDS[2], COMMANDS[8]}


def test_quick_shows_every_map_and_rule_in_little_time():
    quick = select(quick=True)
    assert {(run.settings.map, run.settings.rule) for run in quick} == {
        (command.runs[0].map, command.runs[0].rule) for command in COMMANDS
    }
    assert sum(cost(run.settings) for run in quick) < 180
    for setting in (1, 2):
        assert max(run.settings.n_keys for run in quick if run.command.setting == setting) >= 100


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"setting": 3}, "setting: got 3, expected 1 or 2"),
        ({"only": ["*dpfp9*"]}, "only: got '\\*dpfp9\\*', expected a pattern"),
        ({"setting": 1, "only": ["*ours*"]}, "leaves no run"),
        ({"max_n": 10}, "leaves no run"),
        ({"max_n": 1}, "max_n: got 1, expected an integer in 2..2000"),
    ],
)
def test_choices_that_make_no_sense(choice, message):
    with pytest.raises(ValueError, match=message):
        select(**choice)
