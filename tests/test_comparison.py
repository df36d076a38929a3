"""The comparison of two commits (benchmarks/compare_commits.py): its calls are good ones, and it sees what differs."""

import functools
from pathlib import Path

import numpy as np
import pytest

import fwm_py


@pytest.fixture(scope="module")
def modules():
    """comparison and compare_commits, which are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        import compare_commits
        import comparison
    return comparison, compare_commits


def bits(comparison, monkeypatch, *left_out):
    monkeypatch.setattr(comparison, "CALLS", [row for row in comparison.CALLS if row[0].__name__ not in left_out])
    threads = fwm_py.get_num_threads()
    try:
        with np.errstate(all="ignore"):
            return comparison.bits()
    finally:
        fwm_py.set_num_threads(threads)


@pytest.mark.slow
def test_no_call_raises(modules, monkeypatch):
    results = bits(modules[0], monkeypatch, "run")  # processes of their own
    assert len(results) > 10000
    assert not [f"{name}: {result}" for name, result in results.items() if isinstance(result, str)]
    for case in modules[0].timed_cases():
        assert modules[0].seconds(case, 1) > 0, case.name


def test_a_changed_operation_is_seen(modules, monkeypatch):
    comparison, compare_commits = modules
    others = {row[0].__name__ for row in comparison.CALLS} - {"norm", "attention"}
    old = bits(comparison, monkeypatch, *others)
    monkeypatch.setattr(fwm_py, "rms_norm", functools.partial(fwm_py.rms_norm, eps=2e-6))
    new = bits(comparison, monkeypatch, *others)
    differing = {name for name in old if compare_commits.difference(old[name], new[name])}
    assert differing and all(name.startswith("norm ") and " forward" in name for name in differing)


def test_what_is_a_difference(modules):
    digests, difference = modules[0].digests, modules[1].difference
    one, payload = np.array([1.0, np.nan]), np.array([1.0, -np.nan])
    assert difference(digests((one, None)), digests((payload, None))) == ""
    assert difference(digests((one, one)), digests((one, one.astype(np.float32)))) == "result 1 of 2"
    assert difference(digests(np.zeros(2)), digests(-np.zeros(2))) == "result 0 of 1"
    assert difference(digests(np.zeros(2)), digests(np.zeros((1, 2)))) == "result 0 of 1"
    assert difference(digests((one, one)), digests((one,))) == "2 results, 1 results"
    assert (
        difference(digests(one), "TypeError: x") == difference("TypeError: x", "TypeError: x") == "raised TypeError: x"
    )
