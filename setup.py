"""Builds fwm_py._core from csrc.

Everything outside csrc/kernels is compiled once. The kernels are compiled once per precision and per variant (of
avx512_bf16 only what differs), each set into a folder of its own, and everything is linked into one extension. Sources
are found by glob: a new C file needs no line here. A build compiles again what read a changed file, by the lists that
the compiler writes.

Environment variables, for developers and for CI:

    FWM_PY_NO_OPENMP=1                   build without OpenMP, for one thread, and say nothing about it
    FWM_PY_VARIANTS=baseline,avx2        build these variants only; without baseline it needs such a processor
    FWM_PY_WERROR=1                      many warnings, and each one is an error
    FWM_PY_SANITIZE=address,undefined    build with the compiler's sanitizers, and with symbols for debuggers
    FWM_PY_DEBUG=1                       keep symbols for debuggers, which make the extension four times as large
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


def require(package: str, least: int) -> None:
    """What pyproject.toml requires: without isolation pip does not look, and an older one fails later, obscurely."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version is None or int(version.split(".")[0]) < least:
        sys.exit(
            f"fwm_py: building it needs {package} {least} or newer, here is {version or 'none'}; run pip install "
            f"'{package}>={least}', or build without --no-build-isolation"
        )


require("setuptools", 77)
require("numpy", 2)

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# -std=c11 would switch contraction to FMA off, -ffast-math would flush denormals in the whole process.
BASE_FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fno-lto"]
# Random streams, initial parameters and means must not depend on the processor.
COMMON_FLAGS = ["-ffp-contract=off"]
# Not errors: sizes are size_t but indices of Python and NumPy signed; clang does not vectorise every loop it may; rows
# of tables leave out what is 0.
WARNING_FLAGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
WARNING_FLAGS += ["-Wno-sign-conversion", "-Wno-pass-failed", "-Wno-missing-field-initializers"]
NO_COMPILER = """\
fwm_py: found no compiler {compiler!r}, and its core is written in C. Install gcc or clang (Debian and Ubuntu: apt \
install gcc libc6-dev; Fedora: dnf install gcc; macOS: xcode-select --install), or name yours: CC=clang pip install ."""
NO_HEADERS = """\
fwm_py: {compiler!r} compiles no program that includes Python.h; install the headers of Python and of the C library \
(Debian and Ubuntu: apt install python3-dev libc6-dev; Fedora: dnf install python3-devel). It says:
{said}"""
NO_OPENMP = """\
{compiler!r} has no OpenMP, so that fwm_py will use one thread only. For more, install OpenMP's library (gcc: libgomp; \
clang on Debian and Ubuntu: apt install libomp-dev) and build again; for one thread without this warning build with \
FWM_PY_NO_OPENMP=1"""

PRECISIONS = {"float": 0, "double": 1}


class Variant(NamedTuple):
    """Kernels for one instruction set. `architecture`: "any", or as in the macro that compilers define (__x86_64__).

    `rest`: the variant that lends it all kernels but the rules in float32 (csrc/api/dispatch.c puts them together).
    """

    architecture: str
    vector_bytes: int
    flags: list[str]
    rest: str = ""


AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"]
VARIANTS = {
    "baseline": Variant("any", 16, []),
    "avx2": Variant("x86_64", 32, ["-mavx2", "-mfma"]),
    "avx512": Variant("x86_64", 64, AVX512),
    "avx512_bf16": Variant("x86_64", 64, [*AVX512, "-mavx512bf16"], rest="avx512"),
}


class Unit(NamedTuple):
    """Sources compiled with the same flags, and the name of the folder of their objects."""

    name: str
    sources: list[str]
    flags: list[str]


def find_files(pattern: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc").glob(pattern))


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def wanted_variants() -> list[str]:
    asked = os.environ.get("FWM_PY_VARIANTS", ",".join(VARIANTS)).replace(",", " ").split()
    unknown = [name for name in asked if name not in VARIANTS]
    if unknown:
        sys.exit(f"FWM_PY_VARIANTS: got {unknown[0]!r}, expected names out of {', '.join(VARIANTS)}")
    for name in asked:
        if VARIANTS[name].rest not in ("", *asked):
            sys.exit(f"FWM_PY_VARIANTS: got {name!r} alone, expected {VARIANTS[name].rest!r} too")
    return [name for name in VARIANTS if name in asked]


def is_stale(target: Path) -> bool:
    """Whether to compile: unless the object is newer than all that the compiler read for it, listed beside it (-MMD).

    The listed paths are relative to the checkout, so that its build folder may move with it; headers of the system,
    Python and NumPy are not listed.
    """
    try:
        made = target.stat().st_mtime_ns
        inputs = target.with_suffix(".d").read_text().partition(": ")[2].replace("\\\n", " ").split()
        return not inputs or any(Path(path).stat().st_mtime_ns >= made for path in inputs)
    except FileNotFoundError:
        return True


class BuildCore(build_ext):
    """Compiles the kernels once per precision and variant, which one Extension alone cannot."""

    def build_extension(self, ext: Extension) -> None:
        if not hasattr(self.compiler, "compiler_so"):
            sys.exit("fwm_py: needs gcc or clang (its C sources are gnu11)")
        self.check_compiler()
        self.include_flags = self.take_include_flags()
        link_flags = self.openmp_flags() + self.sanitizer_flags()
        jobs = [job for unit in self.units(link_flags) for job in self.prepare(unit)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(self.compile_one, jobs))
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            target,
            libraries=["m"],
            library_dirs=self.library_dirs,
            runtime_library_dirs=self.rpath,
            extra_postargs=link_flags,
            build_temp=self.build_temp,
            target_lang="c",
        )
        if not self.inplace and Path("fwm_py").is_dir():
            # `python -m fwm_py` in the checkout imports the checkout's package, which needs the extension too.
            self.copy_file(target, "fwm_py")

    def units(self, link_flags: list[str]) -> list[Unit]:
        flags = BASE_FLAGS + link_flags
        # Python's own flags, which come first, may have -g
        flags += ["-g" if is_set("FWM_PY_DEBUG") or self.sanitizer_flags() else "-g0"]
        if self.sanitizer_flags():
            # Python's own flags may define signed overflow, which the sanitizer then lets pass
            flags += ["-O1", "-fno-omit-frame-pointer", "-fno-wrapv"]
        if is_set("FWM_PY_WERROR"):
            flags += WARNING_FLAGS
        variants = [name for name in wanted_variants() if self.compiler_accepts(VARIANTS[name])] or ["baseline"]
        kernels = find_files("kernels/**/*.c")
        rules = find_files("kernels/base/*.c") + find_files("kernels/rules/**/*.c")
        common = [source for source in find_files("**/*.c") if source not in kernels]
        have = [f"-DFWM_HAVE_{name.upper()}=1" for name in variants]
        units = [Unit("common", common, flags + COMMON_FLAGS + have)]
        for variant in variants:
            rest = VARIANTS[variant].rest
            for precision, is_double in PRECISIONS.items():
                if rest and is_double:
                    continue
                defines = [
                    f"-DFWM_VARIANT={variant}",
                    f"-DFWM_VECTOR_BYTES={VARIANTS[variant].vector_bytes}",
                    f"-DFWM_REAL_IS_DOUBLE={is_double}",
                ]
                sources = rules if rest else kernels
                units.append(Unit(f"{variant}_{precision}", sources, flags + VARIANTS[variant].flags + defines))
        return units

    def take_include_flags(self) -> list[str]:
        """Our headers with -I, Python's and NumPy's with -isystem: their warnings are not ours."""
        system = [*self.include_dirs, numpy.get_include()]
        self.compiler.set_include_dirs([])
        return ["-Icsrc"] + [f"-isystem{folder}" for folder in system]

    def sanitizer_flags(self) -> list[str]:
        names = os.environ.get("FWM_PY_SANITIZE", "")
        return [f"-fsanitize={names}", "-fno-sanitize-recover=all"] if names else []

    def check_compiler(self) -> None:
        compiler = self.compiler.compiler_so[0]
        if not shutil.which(compiler):
            sys.exit(NO_COMPILER.format(compiler=compiler))
        folders = [f"-I{folder}" for folder in self.include_dirs]
        said = self.complaint("#include <Python.h>\nint main(void) { return 0; }\n", folders)
        if said is not None:
            sys.exit(NO_HEADERS.format(compiler=compiler, said=said.strip()))

    def openmp_flags(self) -> list[str]:
        """Without OpenMP the hints to vectorise still count: they need no library."""
        if is_set("FWM_PY_NO_OPENMP"):
            return ["-fopenmp-simd"]
        if self.compiles("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n", ["-fopenmp"]):
            return ["-fopenmp"]
        self.warn(NO_OPENMP.format(compiler=self.compiler.compiler_so[0]))
        return ["-fopenmp-simd", "-DFWM_OPENMP_MISSING=1"]

    def compiler_accepts(self, variant: Variant) -> bool:
        """Whether the compiler's target is of the variant's architecture, and the compiler knows the flags."""
        macro = f"__{variant.architecture}__"
        program = f"#ifndef {macro}\n#error not {macro}\n#endif\nint main(void) {{ return 0; }}\n"
        return variant.architecture == "any" or self.compiles(program, variant.flags)

    def compiles(self, program: str, flags: list[str]) -> bool:
        return self.complaint(program, flags) is None

    def complaint(self, program: str, flags: list[str]) -> str | None:
        """What the compiler says of a program that it does not compile and link; None if it does."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            command = [*self.compiler.compiler_so, str(source), "-o", str(Path(folder, "probe")), *flags]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        return done.stderr if done.returncode else None

    def prepare(self, unit: Unit) -> list[tuple[Unit, str]]:
        """The compilations of a unit; objects of other flags or of another NumPy are removed first.

        The paths of the headers do not count: pip puts NumPy into another folder for every build.
        """
        folder = Path(self.build_temp, unit.name)
        stamp = folder / "flags.txt"
        flags = " ".join([*self.compiler.compiler_so, *unit.flags, "NumPy", numpy.__version__])
        if not stamp.exists() or stamp.read_text() != flags:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            stamp.write_text(flags)
        return [(unit, source) for source in unit.sources]

    def compile_one(self, job: tuple[Unit, str]) -> str:
        """Compiles one source unless its object is up to date; returns the object."""
        unit, source = job
        folder = str(Path(self.build_temp, unit.name))
        (target,) = self.compiler.object_filenames([source], output_dir=folder)
        if is_stale(Path(target)):
            flags = ["-MMD", *self.include_flags, *unit.flags]
            self.compiler.compile([source], output_dir=folder, extra_postargs=flags)
        return target


setup(
    ext_modules=[Extension("fwm_py._core", sources=find_files("**/*.c"), depends=find_files("**/*.h"))],
    cmdclass={"build_ext": BuildCore},
)
