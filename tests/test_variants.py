"""The instruction sets: each variant in a process of its own, forced by FWM_PY_ISA, follows the baseline.

As a program (`python tests/test_variants.py`) this file prints what a variant computes.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fwm_py

# With tanh these divide by sums that may be near zero, which leaves float32 no digits: two correct programs part at once.
CHAOTIC = ("tanh-sum", "tanh-ours")


def run_python(*arguments, isa=None):
    environment = {name: value for name, value in os.environ.items() if name != "FWM_PY_ISA"}
    if isa is not None:
        environment["FWM_PY_ISA"] = isa
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def first_losses():
    """{model: 50 training losses, then the evaluation after 100 steps}, of this process's variant."""
    import cases
    from fwm_py.retrieval import Model, Stream

    fwm_py.set_num_threads(1)
    results = {"variant": fwm_py.build_info()["variant"]}
    for case in cases.MODEL_CASES:
        settings = case.settings(n_keys=20, replace=case.rule_row["uses_beta"], batch_size=16)
        model, stream = Model(settings), Stream(settings)
        losses = [model.step(stream.batch()) for _ in range(100)]
        results[str(case)] = losses[:50] + [model.evaluate(stream)]
    return results


@pytest.fixture(scope="module")
def results():
    """What each variant that this processor can run computes, by its name."""
    printed = {isa: run_python(__file__, isa=isa) for isa in fwm_py.build_info()["variants"]}
    assert all(process.returncode == 0 for process in printed.values()), printed
    return {isa: json.loads(process.stdout) for isa, process in printed.items()}


@pytest.mark.parametrize("isa", fwm_py.build_info()["variants"])
def test_a_variant_follows_the_baseline(results, isa):
    assert results[isa].pop("variant") == isa
    for case, losses in results[isa].items():
        if case not in CHAOTIC:
            np.testing.assert_allclose(losses[:50], results["baseline"][case][:50], rtol=1e-5, err_msg=case)
            np.testing.assert_allclose(losses[50], results["baseline"][case][50], rtol=1e-3, err_msg=case)


def test_the_best_variant_is_chosen():
    process = run_python("-c", "import fwm_py; print(fwm_py.build_info()['variant'])")
    assert process.stdout.strip() == fwm_py.build_info()["variants"][-1]


@pytest.mark.parametrize("isa", ["sse9", "AVX2 ", "x" * 1000])
def test_an_unknown_variant_is_refused(isa):
    process = run_python("-c", "import fwm_py", isa=isa)
    last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 1 and last.startswith("ImportError: FWM_PY_ISA: got ")
    assert "baseline" in last


def test_a_variant_that_the_processor_lacks_is_refused():
    lacking = {"avx2", "avx512"} - set(fwm_py.build_info()["variants"])
    if not lacking:
        pytest.skip("this processor has them all")
    process = run_python("-c", "import fwm_py", isa=lacking.pop())
    last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 1 and last.startswith("ImportError: FWM_PY_ISA: got ")


if __name__ == "__main__":
    print(json.dumps(first_losses()))
