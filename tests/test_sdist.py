"""The source distribution holds what a clone holds, so that the tests run from it."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
# These serve the repository.
LEFT_OUT = {
    *(".ci/run", ".clang-format", ".git-blame-ignore-revs", ".gitattributes", ".gitignore", ".pre-commit-config.yaml")
}


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no clone")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    return [name for name in os.fsdecode(listed.stdout).split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def tree(tracked, tmp_path_factory):
    """A copy of what is tracked: setuptools writes into the tree that it packs."""
    tree = tmp_path_factory.mktemp("sdist") / "tree"
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    return tree


def setuptools(tree, *command):
    done = subprocess.run([sys.executable, "setup.py", *command], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_holds_what_is_tracked(tracked, tree):
    setuptools(tree, "sdist")
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as members:
        paths = [PurePosixPath(member.name) for member in members if member.isfile()]
    held = {str(path.relative_to(path.parts[0])) for path in paths}
    generated = {name for name in held if name.startswith("fwm_py.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert held - generated == set(tracked) - LEFT_OUT


def test_data_is_packed_and_not_taken_for_a_package(tree):
    said = setuptools(tree, "build_py", "--build-lib", "library")
    assert "fwm_py.data" not in said and "configuration" not in said
    assert (tree / "library" / "fwm_py" / "experiments" / "retrieval" / "data" / "published.csv.gz").is_file()
