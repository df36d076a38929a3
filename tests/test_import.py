"""What `import fwm_py` loads: NumPy and the functions; the experiments and the command line come on first use."""

import subprocess
import sys

import pytest

import fwm_py

MOST_MODULES = 25


def loaded_by(program):
    """The modules that a program loads beyond those of NumPy."""
    before = "import sys, numpy\nbefore = set(sys.modules)\n"
    after = "\nprint(*sorted(set(sys.modules) - before))"
    output = subprocess.run(
        [sys.executable, "-c", before + program + after], capture_output=True, text=True, check=True
    )
    return output.stdout.split()


def test_the_package_loads_the_functions_only():
    modules = loaded_by("import fwm_py")
    assert len(modules) <= MOST_MODULES, modules
    assert not {"fcntl", "csv", "argparse", "joblib", "rich", "torch", "fwm_py.experiments"} & set(modules)


@pytest.mark.parametrize("name", ["experiments", "reproduce"])
def test_the_experiments_come_on_first_use(name):
    assert name in dir(fwm_py)
    assert "fwm_py.experiments" in loaded_by(f"import fwm_py; fwm_py.{name}")


def test_it_imports_where_there_is_no_fcntl():
    modules = loaded_by("sys.modules['fcntl'] = None; import fwm_py; fwm_py.reproduce; import fwm_py.cli")
    assert "fwm_py.experiments.retrieval.sweep" in modules


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'memory'"):
        getattr(fwm_py, "memory")  # noqa: B009
