"""The instruction sets: each variant in a process of its own, forced by FWM_PY_ISA, follows the baseline.

As a program (`python tests/test_variants.py FILE`) this file prints what a variant computes, and writes the general
kernels' results to an npz file.
"""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fwm_py

HAS_BASELINE = "baseline" in fwm_py.build_info()["variants"]
pytestmark = pytest.mark.skipif(not HAS_BASELINE, reason="was built for other variants alone")


def run_python(*arguments, isa=None):
    environment = {name: value for name, value in os.environ.items() if name != "FWM_PY_ISA"}
    if isa is not None:
        environment["FWM_PY_ISA"] = isa
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def first_losses():
    """{model: {dtype: 50 training losses, then the evaluation after 100 steps}}, of this process's variant."""
    from support import cases

    from fwm_py.experiments.retrieval.model import Model
    from fwm_py.experiments.retrieval.stream import Stream

    fwm_py.set_num_threads(1)
    results = {"variant": fwm_py.build_info()["variant"]}
    for case in cases.MODEL_CASES:
        settings = case.settings(n_keys=20, replace=case.rule_row["uses_beta"], batch_size=16)
        results[str(case)] = {}
        for dtype in ("float32", "float64"):
            model, stream = Model(settings, dtype), Stream(settings)
            losses = [model.step(stream.batch()) for _ in range(100)]
            results[str(case)][dtype] = [*losses[:50], model.evaluate(stream)]
    return results


def kernel_results():
    """Results and gradients of the rules, in both methods and precisions, by a name for each."""
    from support.rule_cases import METHODS, RULE_CASES, SIZES

    results = {}
    for case in RULE_CASES:
        for sizes in SIZES[3:]:
            for dtype in (np.float32, np.float64):
                x = case.inputs(sizes, dtype=dtype)
                for method in METHODS:
                    of_call = case.forward(x, sizes, method=method)
                    of_call |= {"d" + name: g for name, g in case.backward(x, sizes, method=method).items()}
                    results |= {
                        f"{case} {sizes} {method} {name} {array.dtype}": array for name, array in of_call.items()
                    }
    return results | convolution_results() | norm_results()


def convolution_results():
    """The same of the causal convolution."""
    from support import convolution_cases

    results = {}
    for W, dtype, activation in itertools.product((2, 3, 4), (np.float32, np.float64), (None, "silu")):
        case = convolution_cases.ConvolutionCase(W, activation, ())
        made = case.everything(case.inputs((2, 300, 37, None), dtype))
        results |= {f"convolution {W} {activation} {name} {array.dtype}": array for name, array in made.items()}
    return results


def norm_results():
    """The same of RMS norm."""
    from support import norm_cases

    results = {}
    for dtype, activation in itertools.product((np.float32, np.float64), ("silu", "sigmoid", None)):
        case = norm_cases.NormCase(activation, 1e-6)
        made = case.everything(case.inputs((300, 37), dtype))
        results |= {f"norm {activation} {name} {array.dtype}": array for name, array in made.items()}
    return results


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What each variant that this processor can run computes, by its name: losses, and the kernels' arrays."""
    folder, computed = tmp_path_factory.mktemp("variants"), {}
    for isa in fwm_py.build_info()["variants"]:
        process = run_python(__file__, str(folder / f"{isa}.npz"), isa=isa)
        assert process.returncode == 0, process.stderr
        with np.load(folder / f"{isa}.npz") as arrays:
            computed[isa] = json.loads(process.stdout), dict(arrays)
    return computed


@pytest.fixture(scope="module")
def results(computed):
    return {isa: losses for isa, (losses, _) in computed.items()}


@pytest.mark.parametrize("isa", fwm_py.build_info()["variants"])
def test_the_kernels_of_a_variant_follow_the_baseline(computed, isa):
    arrays, expected = computed[isa][1], computed["baseline"][1]
    assert arrays.keys() == expected.keys() and len(arrays) > 100
    for name, wanted in expected.items():
        assert arrays[name].dtype == wanted.dtype
        largest, tolerance = max(np.abs(wanted).max(initial=0), 0.1), 1e-5 if wanted.dtype == np.float32 else 1e-12
        assert np.abs(arrays[name] - wanted).max(initial=0) <= tolerance * largest, name


@pytest.mark.parametrize("isa", fwm_py.build_info()["variants"])
def test_a_variant_follows_the_baseline(results, isa):
    """Where float32 follows float64. Maps of both signs may have sums near zero, which leave float32 no digits:
    correct programs part at once."""
    from support import cases

    assert results[isa]["variant"] == isa
    for case in cases.MODEL_CASES:
        ours, expected = results[isa][str(case)], results["baseline"][str(case)]
        if not np.allclose(expected["float32"][:50], expected["float64"][:50], rtol=1e-3, atol=0, equal_nan=True):
            assert case.map_row and not case.map_row["positive"], case
            continue
        for dtype, losses in ours.items():
            np.testing.assert_allclose(losses[:50], expected[dtype][:50], rtol=1e-5, err_msg=str(case))
            np.testing.assert_allclose(losses[50], expected[dtype][50], rtol=1e-3, err_msg=str(case))


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
    lacking = {"avx2", "avx512", "avx512_bf16"} - set(fwm_py.build_info()["variants"])
    if not lacking:
        pytest.skip("this processor has them all")
    process = run_python("-c", "import fwm_py", isa=lacking.pop())
    last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 1 and last.startswith("ImportError: FWM_PY_ISA: got ")


if __name__ == "__main__":
    print(json.dumps(first_losses()))
    np.savez(sys.argv[1], **kernel_results())
