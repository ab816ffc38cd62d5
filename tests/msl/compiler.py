"""Compiles kernels with clang: PyPI's ziglang, or the system's clang++. Every result is cached by what went into it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import instrument

HERE = Path(__file__).resolve().parent
SHIM = HERE / "shim"
RUNTIME = ("runtime.cpp", "memory.cpp", "checker.cpp")

METAL_VERSION = 310

# No C++ library is used, so that neither its headers are parsed nor the library itself is needed at link time.
COMMON = shlex.split(
    "-std=c++17 -fPIC -fno-exceptions -fno-rtti -fno-threadsafe-statics -nostdinc++ -fno-stack-protector"
    " -mavx2 -mfma -mf16c -fno-math-errno -fno-sanitize=all -fno-strict-aliasing"
)
# Metal contracts a * b + c, and a literal without suffix is a float. Variables that a kernel leaves unset become NaN.
KERNEL = [*COMMON, "-ffp-contract=fast", "-Xclang", "-cl-single-precision-constant", "-gline-tables-only"]
KERNEL += ["-ftrivial-auto-var-init=pattern"]
# An instrumented kernel keeps the accesses that its source has, but for what any optimiser removes.
INSTRUMENTED = ["-fno-vectorize", "-fno-slp-vectorize", "-fno-unroll-loops"]
INSTRUMENTED += ["-fsanitize=array-bounds,shift-exponent,integer-divide-by-zero"]  # handled by checker.cpp
# Metal is C++14 before version 4, which macOS 26 has.
WARNINGS = ["-std=c++14", "-Wall", "-Wextra", "-Wconversion", "-Wno-unknown-pragmas"]


# One a result, so that of two threads that need it the second waits.
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class CompileError(RuntimeError):
    """What clang said."""


class Unsupported(RuntimeError):
    """No kernel runs on this machine: tests that need one are skipped (tests/conftest.py)."""


@dataclass(frozen=True, order=True)
class Diagnostic:
    file: str
    line: int
    column: int
    severity: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}"


@dataclass(frozen=True)
class Compiler:
    """compile: a command that takes clang's arguments; link: one that takes a linker's."""

    compile: tuple[str, ...]
    link: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Binary:
    """A shared library, and the source lines of its sites if it is instrumented."""

    path: Path
    sites: tuple[instrument.SourceLine, ...]


def half_flags(excess_precision: bool) -> list[str]:
    """Whether half and bfloat expressions are rounded after every operation, or when stored."""
    mode = "fast" if excess_precision else "none"
    return [word for kind in ("float16", "bfloat16") for word in ("-Xclang", f"-f{kind}-excess-precision={mode}")]


@functools.cache
def find_compiler() -> Compiler:
    """MSL_CXX if set, else ziglang's clang, else the newest clang++ on PATH."""
    cpu = Path("/proc/cpuinfo")
    features = set(cpu.read_text().split()) if cpu.is_file() else set()
    if platform.machine() != "x86_64" or not {"avx2", "fma", "f16c"} <= features:
        raise Unsupported(f"Metal kernels run on x86-64 Linux with AVX2, FMA and F16C, this is {platform.machine()}")
    command, link = shlex.split(os.environ.get("MSL_CXX", "")), []
    if not command and (zig := find_zig()):
        # zig's own link step would build a C++ library first
        command, link = [str(zig), "c++"], [str(zig), "ld.lld", "-shared", "-Bsymbolic"]
    command = command or [system_clang()]
    version = run([*command, "--version"]).stdout.split("\n")[0]
    return Compiler(tuple(command), tuple(link or [*command, "-shared", "-nostdlib", "-Wl,-Bsymbolic"]), version)


def find_zig() -> Path | None:
    """The binary of PyPI's ziglang, where that is installed."""
    package = importlib.util.find_spec("ziglang")
    return Path(package.origin).parent / "zig" if package is not None and package.origin else None


def system_clang() -> str:
    """The newest clang++ on PATH."""
    names = ["clang++", *(f"clang++-{version}" for version in range(30, 18, -1))]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise CompileError("no clang found: pip install ziglang, or set MSL_CXX to a clang++ of version 19 or later")
    return found


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/mlx-delta/msl, or build/msl of the repository."""
    base = os.environ.get("XDG_CACHE_HOME")
    path = Path(base) / "mlx-delta" / "msl" if base else HERE.parent.parent / "build" / "msl"
    path.mkdir(parents=True, exist_ok=True)
    return path


def preprocess(text: str) -> str:
    """Expands the macros of a source, which must include nothing."""
    target = cache_directory() / f"{cache_key('preprocess', text)}.i"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
            plain, expanded = Path(folder) / "kernel.cpp", Path(folder) / "kernel.i"
            plain.write_text(text)
            metal = ["-D__METAL__=1", f"-D__METAL_VERSION__={METAL_VERSION}"]
            check_run([*find_compiler().compile, *COMMON, *metal, "-w", "-E", str(plain), "-o", str(expanded)])
            expanded.replace(target)
    return target.read_text()


def build(code: str, *, instrumented: bool, excess_precision: bool, shim: Sequence[Path] = ()) -> Binary:
    """Compiles a rewritten kernel with its entry points into a library, or finds it in the cache.

    shim: directories whose headers come before those of the shim.
    """
    flags = [*KERNEL, *half_flags(excess_precision), "-O2", *(INSTRUMENTED if instrumented else [])]
    flags += [f"-I{folder}" for folder in shim]
    key = cache_key(code, *flags, str(instrumented), *(files_hash(folder) for folder in shim))
    library = cache_directory() / f"{key}.so"
    lines = cache_directory() / f"{key}.json"
    with _locks[key]:
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
                work = Path(folder)
                objects = [_kernel_object(code, flags, instrumented, work), *_runtime_objects()]
                linked = work / "kernel.so"
                check_run([*find_compiler().link, *map(str, objects), "-o", str(linked)])
                if instrumented:
                    (work / "sites.json").replace(lines)
                linked.replace(library)
    if not instrumented:
        return Binary(library, ())
    return Binary(library, tuple(instrument.SourceLine(*site) for site in json.loads(lines.read_text())))


def depends_on_excess_precision(code: str, shim: Sequence[Path] = ()) -> bool:
    """Whether half_flags changes the LLVM IR of a rewritten kernel before the first pass of the optimiser."""
    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        kernel, ir = Path(folder) / "kernel.cpp", Path(folder) / "kernel.ll"
        kernel.write_text(code)
        includes = [f"-I{path}" for path in (*shim, SHIM)]
        as_is = ["-O2", "-w", "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm"]
        found = set()
        for excess in (False, True):
            flags = [*KERNEL, *half_flags(excess), *as_is, *includes]
            check_run([*find_compiler().compile, *flags, str(kernel), "-o", str(ir)])
            found.add(ir.read_bytes())
    return len(found) > 1


def diagnose(code: str, flags: Sequence[str]) -> list[Diagnostic]:
    """What clang warns of in a rewritten kernel, and in nothing of the shim."""
    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        path = Path(folder) / "kernel.cpp"
        path.write_text(code)
        kernel = [flag for flag in KERNEL if flag != "-gline-tables-only"]
        command = [
            *find_compiler().compile,
            *kernel,
            *half_flags(False),
            "-O0",
            *WARNINGS,
            *flags,
            "-isystem",
            str(SHIM),
        ]
        result = run([*command, "-S", "-emit-llvm", str(path), "-o", str(path.with_suffix(".ll"))])
    found = re.findall(r"^(.+?):(\d+):(\d+): (warning|error|fatal error): (.*)$", result.stderr, re.M)
    diagnostics = sorted(
        {Diagnostic(file, int(line), int(column), kind, text) for file, line, column, kind, text in found}
    )
    if result.returncode and not diagnostics:
        raise CompileError(result.stderr)
    return diagnostics


def _kernel_object(code: str, flags: list[str], instrumented: bool, work: Path) -> Path:
    source, target = work / "kernel.cpp", work / "kernel.o"
    source.write_text(code)
    command = [*find_compiler().compile, *flags, "-w", f"-I{SHIM}"]
    if not instrumented:
        check_run([*command, "-c", str(source), "-o", str(target)])
        return target
    ir = work / "kernel.ll"
    check_run([*command, "-S", "-emit-llvm", str(source), "-o", str(ir)])
    text, sites = instrument.instrument(ir.read_text(), SHIM)
    ir.write_text(text)
    (work / "sites.json").write_text(json.dumps([[s.file, s.line, s.column] for s in sites]))
    as_is = ["-fPIC", "-O1", "-w", "-fno-sanitize=all", "-Xclang", "-disable-llvm-passes"]
    check_run([*find_compiler().compile, *as_is, "-c", str(ir), "-o", str(target)])
    return target


def _runtime_objects() -> list[Path]:
    """The runtime's objects; they depend on the shim and the compiler alone."""
    flags = [*COMMON, "-O2"]
    objects = []
    for name in RUNTIME:
        target = cache_directory() / f"{Path(name).stem}-{cache_key(name, *flags)}.o"
        objects.append(target)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
                built = Path(folder) / "runtime.o"
                check_run([*find_compiler().compile, *flags, "-c", str(SHIM / name), "-o", str(built)])
                built.replace(target)
    return objects


@functools.cache
def _environment_hash() -> str:
    """Of what every result depends on: the compiler, the shim, and how kernels are instrumented."""
    content = files_hash(SHIM).encode() + (HERE / "instrument.py").read_bytes()
    return hashlib.sha256(find_compiler().version.encode() + content).hexdigest()


def files_hash(folder: Path) -> str:
    """Of the contents of a folder's files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()


def cache_key(*parts: str) -> str:
    return hashlib.sha256("\0".join((_environment_hash(), *parts)).encode()).hexdigest()[:20]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    cache = str(cache_directory() / "zig")
    environment = {"ZIG_LOCAL_CACHE_DIR": cache, "ZIG_GLOBAL_CACHE_DIR": cache, **os.environ}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def check_run(command: list[str]) -> None:
    result = run(command)
    if result.returncode:
        raise CompileError(f"{' '.join(command[:2])} failed:\n{result.stderr[:8000]}")
