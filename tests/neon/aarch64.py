"""Cross-compiles the CPU kernels and run_calls.cpp for aarch64 Linux with ziglang, as CMakeLists.txt does natively.

Objects are kept in build/neon by the hash of what went into them. Only the C library is linked, the kernels need no
other: the one of Debian's libc6-arm64-cross, since zig would build its own, which takes longer than all the kernels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from support import ROOT

HERE = Path(__file__).resolve().parent
CPU = ROOT / "csrc" / "cpu"
CACHE = ROOT / "build" / "neon"
TARGET = ["-target", "aarch64-linux-gnu", "-g0"]
NATIVE = (platform.system(), platform.machine()) == ("Linux", "aarch64")
LIBRARIES = ("/lib/aarch64-linux-gnu", "/lib64") if NATIVE else ("/usr/aarch64-linux-gnu/lib",)
LOADER = "/lib/ld-linux-aarch64.so.1"
ISA_FLAGS = {
    "neon": ["-DMLX_DELTA_ISA_NEON"],
    "neondot": ["-DMLX_DELTA_ISA_NEON", "-mcpu=generic+dotprod"],
}
# As ISA_BASE of CMakeLists.txt: only qmm and what is made of it are compiled for the set, all else is another's.
BASE = {"neondot": "neon"}
OWN = ("experts.cpp", "qmm.cpp", "route.cpp", "table.cpp")
UNUSED = ["-Wno-unused-parameter", "-Wno-unused-variable"]  # what other instruction sets use


@cache
def flags() -> list[str]:
    """Those of CMakeLists.txt for the kernels, so that there is one list; warnings are errors."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(r"target_compile_options\(kernels_\$\{isa\} PRIVATE (.*?) \$\{ISA_FLAGS", text, re.S)
    assert found is not None
    return [*found[1].split(), "-std=c++20", "-Werror", *UNUSED, f"-I{ROOT / 'csrc'}"]


def zig(command: str, *arguments: str) -> None:
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None, "ziglang is in the dev group of pyproject.toml"
    assert spec.origin is not None
    environment = {"ZIG_LOCAL_CACHE_DIR": str(CACHE / "zig"), **os.environ}
    full = [str(Path(spec.origin).parent / "zig"), command, *arguments]
    done = subprocess.run(full, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(full)}:\n{done.stderr[-8000:]}"


def libraries() -> list[str]:
    """The C library and its mathematics, where this machine has those of aarch64."""
    for folder in map(Path, LIBRARIES):
        found = [folder / "libc.so.6", folder / "libm.so.6"]
        if all(path.exists() for path in found):
            return [str(path) for path in found]
    return []


def compiled(source: Path, *options: str) -> Path:
    """The object of a C++ source."""
    content = [source, *sorted(CPU.rglob("*.h"))]
    made_of = [*TARGET, *flags(), *options, *(path.read_text() for path in content)]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    target = CACHE / f"{source.stem}-{key}.o"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial.o")
        zig("c++", *TARGET, *flags(), *options, "-c", str(source), "-o", str(partial))
        partial.replace(target)
    return target


@cache
def objects() -> list[Path]:
    """run_calls and all tables of kernels."""
    jobs = [(HERE / "run_calls.cpp", ())]
    for isa, options in ISA_FLAGS.items():
        own = [f"-DMLX_DELTA_ISA={isa}", f"-DMLX_DELTA_BASE={BASE.get(isa, isa)}", *options]
        names = OWN if isa in BASE else sorted(path.name for path in CPU.glob("*.cpp"))
        jobs += [(CPU / name, tuple(own)) for name in names]
    jobs.sort(key=lambda job: job[0].name != "qmm.cpp")  # the longest first
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: compiled(job[0], *job[1]), jobs))


@cache
def program() -> Path:
    """The executable of these, for LOADER."""
    linked = [*map(str, objects()), *libraries()]
    target = CACHE / f"run_calls-{hashlib.sha256(repr(linked).encode()).hexdigest()[:16]}"
    if not target.exists():
        partial = target.with_suffix(".partial")
        zig("ld.lld", "--allow-shlib-undefined", "-dynamic-linker", LOADER, *linked, "-o", str(partial))
        partial.replace(target)
    return target
