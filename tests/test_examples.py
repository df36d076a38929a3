"""The examples run, and show what they say they show; those of docstrings, README and docs/api.md too."""

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fwm_py

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *flags):
    process = subprocess.run(
        [sys.executable, EXAMPLES / name, *flags], capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_numpy_kernels():
    adding, delta, learned = (float(line.split()[-1]) for line in run("numpy_kernels.py").splitlines())
    assert learned < delta < adding and learned < 0.6 * adding


def test_train_text(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    output = run("train_text.py", tmp_path / "text", "--steps", "40", "--length", "64")
    bits = [float(number) for number in re.findall(r"([\d.]+) bits", output)]
    assert len(bits) == 10 and bits[-1] < 0.7 * bits[0]
    assert len(output.splitlines()[-1]) > 200


def test_speed_up_qwen3_next():
    pytest.importorskip("transformers")
    losses = re.findall(r"loss ([\d.]+)", run("speed_up_qwen3_next.py"))
    assert len(losses) == 2 and abs(float(losses[0]) - float(losses[1])) < 1e-4


def test_marian_with_linear_attention():
    pytest.importorskip("transformers")
    output = run("marian_with_linear_attention.py", "--steps", "200")
    assert float(re.findall(r"^accuracy ([\d.]+)", output, re.MULTILINE)[0]) > 0.25


def test_zoology_on_a_cpu():
    pytest.importorskip("torch")
    for name in ("zoology", "torchvision", "wandb", "pandas", "pydantic", "einops"):
        pytest.importorskip(name)
    assert float(re.findall(r"^accuracy ([\d.]+) after 600 steps", run("zoology_on_a_cpu.py"), re.MULTILINE)[0]) > 0.95


SHOW = {f"fwm_py.{name}" for name in "attention convolution feature_maps norm random readouts rules torch".split()}
MODULES = [module.name for module in pkgutil.walk_packages(fwm_py.__path__, "fwm_py.") if "__main__" not in module.name]


@pytest.mark.parametrize("name", ["fwm_py", *MODULES])
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples may write
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs an extra: {error}")
    failed, tried = doctest.testmod(module)
    assert not failed and (tried or name not in SHOW)


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    """One after the other, as a reader types them; those of PyTorch where it is."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (EXAMPLES.parent / page).read_text(), re.DOTALL | re.MULTILINE)
    has_torch, names = importlib.util.find_spec("torch") is not None, {}
    assert len(blocks) > 1
    for block in blocks:
        if has_torch or "torch" not in block:
            exec(block, names)
