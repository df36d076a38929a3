"""What setup.py says where it cannot build, or not all, and what a tree says that is not built."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fwm_py

ROOT = Path(__file__).parent.parent
# Writes an empty file where an object or a library is expected, and knows no OpenMP.
STUB_COMPILER = """#!/bin/sh
for argument; do
    if [ "$previous" = -o ]; then output=$argument; fi
    if [ "$argument" = -fopenmp ]; then echo "no OpenMP here" >&2; exit 1; fi
    previous=$argument
done
: >"$output"
"""


@pytest.fixture
def tree(tmp_path):
    """A source tree that is not built: the package's Python files, and one C file so that a build is quick."""
    shutil.copytree(ROOT / "fwm_py", tmp_path / "tree" / "fwm_py", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in "setup.py", "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md":
        shutil.copy(ROOT / name, tmp_path / "tree")
    source = tmp_path / "tree" / "csrc" / "empty.c"
    source.parent.mkdir()
    source.touch()
    return tmp_path / "tree"


def python(tree, *arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FWM_PY_") and name != "CC"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env={**kept, **environment}, capture_output=True, text=True
    )


def build(tree, **environment):
    return python(tree, "setup.py", "build_ext", **environment)


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def compiled(done):
    assert done.returncode == 0, done.stderr
    return sorted(re.findall(r" -c csrc/(\S+) ", done.stdout))


def test_no_compiler(tree):
    done = build(tree, CC="no-such-compiler")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("fwm_py: found no compiler 'no-such-compiler'")
    assert "apt install gcc" in last and "CC=" in last


def test_compiler_that_compiles_nothing(tree, tmp_path):
    compiler = executable(tmp_path / "cc", "#!/bin/sh\necho 'Python.h: No such file or directory' >&2\nexit 1\n")
    done = build(tree, CC=compiler)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "python3-dev" in done.stderr and done.stderr.endswith("It says:\nPython.h: No such file or directory\n")


def test_compiler_without_openmp_says_so_unless_it_was_asked_for(tree, tmp_path):
    compiler = executable(tmp_path / "cc", STUB_COMPILER)
    done = build(tree, CC=compiler)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "OpenMP" in line]
    assert "has no OpenMP, so that fwm_py will use one thread" in warning
    assert "libgomp" in warning and "libomp" in warning and "FWM_PY_NO_OPENMP=1" in warning
    assert "-DFWM_OPENMP_MISSING=1" in done.stdout
    done = build(tree, CC=compiler, FWM_PY_NO_OPENMP="1")
    assert done.returncode == 0 and "OpenMP" not in done.stderr and "FWM_OPENMP_MISSING" not in done.stdout


@pytest.mark.parametrize(
    "environment, kept", [({}, False), ({"FWM_PY_DEBUG": "1"}, True), ({"FWM_PY_SANITIZE": "undefined"}, True)]
)
def test_symbols_for_debuggers_only_where_asked_for(tree, tmp_path, environment, kept):
    done = build(tree, CC=executable(tmp_path / "cc", STUB_COMPILER), **environment)
    assert done.returncode == 0, done.stderr
    (flags,) = [line.split() for line in done.stdout.splitlines() if "csrc/empty.c" in line]
    asked = [flag for flag in flags if flag in ("-g", "-g0")]
    assert asked[-1] == ("-g" if kept else "-g0")


def test_variants_of_another_architecture_are_left_out(tree, tmp_path):
    """With a compiler that knows their flags, as one for another target might, but defines no __x86_64__."""
    for folder in ("kernels", "kernels/rules"):
        (tree / "csrc" / folder).mkdir()
        (tree / "csrc" / folder / "empty.c").touch()
    x86_64 = executable(tmp_path / "x86_64", STUB_COMPILER)
    other = executable(tmp_path / "other", STUB_COMPILER + '! grep -qs "not __x86_64__" -- "$@"\n')
    for compiler, expected in (x86_64, {"baseline", "avx2", "avx512", "avx512_bf16"}), (other, {"baseline"}):
        done = build(tree, CC=compiler)
        whole, has_rules_only = expected - {"avx512_bf16"}, "avx512_bf16" in expected
        assert compiled(done).count("kernels/empty.c") == 2 * len(whole)
        assert compiled(done).count("kernels/rules/empty.c") == 2 * len(whole) + has_rules_only
        assert set(re.findall(r"-DFWM_VARIANT=(\w+)", done.stdout)) == expected
        shutil.rmtree(tree / "build")


def test_rules_alone_are_no_variant(tree):
    done = build(tree, FWM_PY_VARIANTS="baseline,avx512_bf16")
    assert done.returncode == 1 and "got 'avx512_bf16' alone, expected 'avx512' too" in done.stderr


needs_compiler = pytest.mark.skipif(not shutil.which(sysconfig.get_config_var("CC").split()[0]), reason="no compiler")


@pytest.fixture
def tree_with_headers(tree):
    """One source that includes inner.h by way of outer.h, beside one that includes nothing."""
    (tree / "csrc" / "inner.h").write_text("int inner(void);\n")
    (tree / "csrc" / "outer.h").write_text('#include "inner.h"\n')
    (tree / "csrc" / "kernel.c").write_text('#include <Python.h>\n#include "outer.h"\n')
    return tree


@needs_compiler
def test_build_compiles_again_what_reads_a_changed_header(tree_with_headers):
    tree = tree_with_headers
    assert compiled(build(tree)) == ["empty.c", "kernel.c"]
    assert compiled(build(tree)) == []
    (tree / "csrc" / "inner.h").touch()
    assert compiled(build(tree)) == ["kernel.c"]
    (tree / "csrc" / "empty.c").touch()
    assert compiled(build(tree)) == ["empty.c"]
    (listed,) = tree.glob("build/**/kernel.d")
    assert "Python.h" not in listed.read_text()  # pip puts NumPy's headers into another folder for every build
    for damage in listed.unlink, lambda: listed.write_text(""):
        damage()
        assert compiled(build(tree)) == ["kernel.c"]
    (tree / "csrc" / "inner.h").unlink()
    assert "inner.h: No such file" in build(tree).stderr
    (tree / "csrc" / "outer.h").write_text("")
    assert compiled(build(tree)) == ["kernel.c"]
    assert compiled(build(tree)) == []


@needs_compiler
def test_build_folder_moves_with_its_checkout(tree_with_headers, tmp_path):
    assert compiled(build(tree_with_headers)) == ["empty.c", "kernel.c"]
    moved = shutil.move(tree_with_headers, tmp_path / "moved")
    assert compiled(build(moved)) == []
    (moved / "csrc" / "outer.h").touch()
    assert compiled(build(moved)) == ["kernel.c"]


def test_sanitizers_see_signed_overflow(tree, tmp_path):
    """Also where Python was built with -fwrapv, as it mostly is."""
    done = build(tree, CC=executable(tmp_path / "cc", STUB_COMPILER), CFLAGS="-fwrapv", FWM_PY_SANITIZE="undefined")
    assert done.returncode == 0, done.stderr
    (flags,) = [line.split() for line in done.stdout.splitlines() if "csrc/empty.c" in line]
    assert [flag for flag in flags if "wrapv" in flag][-1] == "-fno-wrapv"


@pytest.mark.parametrize("package, version, least", [("setuptools", "70.0.0", "77"), ("numpy", "1.26.4", "2")])
def test_old_requirement_without_isolation(tree, tmp_path, package, version, least):
    metadata = tmp_path / "site" / f"{package}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    done = python(tree, "setup.py", "--version", PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 1
    assert done.stderr == (
        f"fwm_py: building it needs {package} {least} or newer, here is {version}; run pip install "
        f"'{package}>={least}', or build without --no-build-isolation\n"
    )


def test_tree_that_is_not_built_says_so(tree):
    done = python(tree, "-S", "-c", "import fwm_py")  # -S: an editable installation would lend it its extension
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: fwm_py is not built: run pip install . in {tree}"


def test_package_without_its_extension_says_so():
    code = "import sys; sys.modules['fwm_py._core'] = None; import fwm_py"
    done = python(Path(fwm_py.__file__).parent.parent, "-c", code)
    assert done.stderr.splitlines()[-1].startswith("ImportError: fwm_py is not built: run pip install . in /")
