"""The rules on several threads: the same bits, calls side by side, forks, memory that does not grow."""

import os

import numpy as np
import pytest
from support.rule_cases import METHODS, RULE_CASES, run_python

import fwm_py

FORK = """
import os, signal
import fwm_py
from support.rule_cases import RULE_CASES, Sizes, bits
sizes = Sizes(2, 100, 2, 4, 2, 20, 40)
work = [(case, case.inputs(sizes), sizes) for case in RULE_CASES]
fwm_py.set_num_threads(2)
before = [bits(*arguments) for arguments in work]  # the parent has been in a parallel region
child = os.fork()
if child == 0:
    signal.alarm(60)                               # a hang ends the child, and fails
    os._exit(0 if [bits(*arguments) for arguments in work] == before and fwm_py.get_num_threads() == 1 else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert [bits(*arguments) for arguments in work] == before and fwm_py.get_num_threads() == 2
print("done")
"""

# Peak memory of a backward of 32 heads beyond its inputs and outputs, in MB.
MEMORY = """
import resource, sys
import numpy as np
import fwm_py
from support.rule_cases import RULE_CASES, Sizes

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

fwm_py.set_num_threads(1)
case, method = RULE_CASES[int(sys.argv[1])], sys.argv[2]
sizes = Sizes(1, 1024, 32, 32, 32, 64, 64)
x = case.inputs(sizes._replace(H=1, HV=1, HQ=1), dtype=np.float32)
x = {name: np.repeat(a, 32, axis=1 if name.endswith(("_state", "_sum")) else 2) for name, a in x.items()}
before = peak()
made = case.backward(x, sizes, method=method)
print((peak() - before - sum(array.nbytes for array in made.values())) / 1e6)
"""

# The same of one head and many tokens.
LONG = """
import resource, sys
import numpy as np
import fwm_py

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

fwm_py.set_num_threads(1)
T = int(sys.argv[1])
x, gate = np.full((1, T, 1, 128), 0.01, np.float32), np.full((1, T, 1), -0.01, np.float32)
gradients = tuple(np.zeros_like(a) for a in (x, x, x, gate, gate))
before = peak()
fwm_py.gated_delta_rule_backward(x, x, x, x, gate, -gate, out=(*gradients, None))
print((peak() - before) / 1e6)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_works():
    assert run_python(FORK) == "done"


@pytest.mark.skipif(os.name != "posix", reason="peak memory as POSIX tells it")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", [case for case in RULE_CASES if not case.options], ids=str)
def test_the_backward_keeps_states_of_one_head(case, method):
    """The states of all heads, one for every 16 tokens, would take 33 MB."""
    assert float(run_python(MEMORY, str(RULE_CASES.index(case)), method)) < 12


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="peak memory as POSIX tells it")
def test_the_memory_of_a_very_long_backward():
    """It grows with the square root of T, from 30 MB at 131072."""
    assert float(run_python(LONG, str(1 << 18))) < 37


def test_threads_that_share_a_head_flush_subnormals_alike():
    """The threads are there before the call, in the caller's mode, and each gets gradients near the smallest number."""
    random = np.random.default_rng(0)
    q, k, v, do = (random.standard_normal((1, 200, 1, 64)).astype(np.float32) for _ in range(4))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    g, beta = (-6 * random.random(q.shape)).astype(np.float32), random.random((1, 200, 1)).astype(np.float32)
    results = []
    for threads in (1, 2, 3):
        fwm_py.set_num_threads(threads)
        ones = np.ones((1, 40, 8, 16), np.float32)
        fwm_py.delta_rule(ones, ones, ones, ones[..., 0])
        gradients = fwm_py.kimi_delta_rule_backward(do * np.float32(1e-36), q, k, v, g, beta)
        results.append([a.tobytes() for a in gradients[:5]])
    assert results[0] == results[1] == results[2]
