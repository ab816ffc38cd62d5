"""Metal source to AGX machine code: the rewriting of tests/msl, clang, SPIR-V, and Mesa's compiler for Apple's GPUs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.agx.debian import HERE, Debian, shim_hash
from bench.agx.ir import ENTRY, lower
from msl import compiler as host
from msl import source
from nvptx import compiler as nvptx

# The SLP vectoriser makes vectors that Mesa takes apart again, at the price of registers; Apple's compiler is not known
# to run it.
FLAGS = shlex.split(
    "-x c++ -std=c++17 --target=spir64-unknown-unknown -ffreestanding -S -emit-llvm -O3 -fno-vectorize"
    " -fno-slp-vectorize -w -nostdinc++ -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-strict-aliasing"
    " -fno-math-errno -ffp-contract=on -Xclang -cl-single-precision-constant"
    # 64-bit integers are long in Metal, long long for this target
    " -U__INT64_TYPE__ -D__INT64_TYPE__=long -U__UINT64_TYPE__ '-D__UINT64_TYPE__=unsigned long'"
)
BUILTINS = {**nvptx.BUILTINS, "simdgroup_index_in_threadgroup": "msl::simdgroup()"}
STATISTICS = re.compile(
    r"(?P<instructions>\d+) instrs.*?(?P<bytes>\d+) code size, (?P<halfregs>\d+) gprs.*?(?P<scratch>\d+) scratch,"
    r" (?P<threads>\d+) threads.*?(?P<spills>\d+):(?P<fills>\d+) spills"
)


@dataclass(frozen=True)
class Code:
    """A kernel's machine code.

    disassembly: Mesa's. halfregs: 16-bit registers of a thread; threads: that fit a core at a time with so many.
    scratch: bytes of memory a thread, of spills and of arrays that no register holds. threadgroup: bytes of memory.
    """

    disassembly: str
    instructions: int
    bytes: int
    halfregs: int
    threads: int
    spills: int
    fills: int
    scratch: int
    threadgroup: int


def compile_kernel(debian: Debian, text: str, name: str, threads: int) -> Code:
    """The kernel that a host launches as ``name`` with so many threads a threadgroup; from the cache where it is there.

    Raises CompileError with what a compiler says, SourceError for what the rewriting does not take.
    """
    code = code_of(text, name)
    own = "".join((HERE / name).read_text() for name in ("compiler.py", "ir.py"))
    of_text = cached(debian, code, str(threads), shim_hash(), own)
    if of_text.exists():
        return Code(**json.loads(of_text.read_text()))
    with debian.folder() as folder:
        (folder / "kernel.cpp").write_text(code)
        includes = [f"-I{path}" for path in debian.shim]
        debian.run(["clang-22", *FLAGS, *includes, "kernel.cpp", "-o", "clang.ll"], folder)
        ir = lower((folder / "clang.ll").read_text(), threads)
        of_ir = cached(debian, without_names(ir))
        if not of_ir.exists():
            (folder / "kernel.ll").write_text(ir)
            debian.run(["llvm-as-22", "kernel.ll", "-o", "kernel.bc"], folder)
            debian.run(["llvm-spirv-22", "--spirv-fp-contract=fast", "kernel.bc", "-o", "kernel.spv"], folder)
            (folder / "result").write_text(json.dumps(asdict(read(*debian.build(folder)))))
            (folder / "result").rename(of_ir)
        os.link(of_ir, folder / "result")
        (folder / "result").rename(of_text)
    return Code(**json.loads(of_text.read_text()))


def cached(debian: Debian, *parts: str) -> Path:
    """The file of what such parts were compiled to, by the programs of today."""
    parts = (*parts, (HERE / "build.c").read_text(), *debian.versions.values())
    folder = debian.root.parent / "cache"
    folder.mkdir(exist_ok=True)
    return folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.json"


def without_names(ir: str) -> str:
    """Kernels whose template arguments make no difference have the same."""
    numbers: dict[str, str] = {}
    return re.sub(r"_Z\w+", lambda match: numbers.setdefault(match[0], f"_{len(numbers)}"), ir)


def code_of(text: str, name: str) -> str:
    """The C++ text with one entry point, whose parameters are the kernel's buffers."""
    parsed = nvptx.parsed(text)
    arguments: list[tuple[int, str]] = []
    values = []
    for p in parsed.parameters(name):
        if p.kind == "threadgroup":
            raise source.SourceError(f"kernel '{name}': threadgroup argument '{p.name}' is not emulated on this target")
        if p.kind == "builtin":
            values.append(f"msl::Builtin({BUILTINS[p.builtin]})")
            continue
        constant = nvptx.is_constant(p)
        arguments.append((p.index, f"{'constant const' if constant else 'device'} char* buffer{p.index}"))
        values.append(f"msl::{'ConstantPointer' if constant else 'Pointer'}(buffer{p.index})")
    declared = ", ".join(text for _, text in sorted(arguments))
    call = f"{parsed.instances[name]}({', '.join(values)});"
    entry = f'extern "C" __attribute__((device_kernel)) void {ENTRY}({declared}) {{ {call} }}'
    body = source.rewrite(parsed)
    return "\n".join(
        ["#include <entry.h>", "#include <metal_stdlib.h>", nvptx.INLINE, body, nvptx.INLINE_END, entry, ""]
    )


def read(stdout: str, stderr: str) -> Code:
    """What Mesa and build.c print. Mesa compiles small programs of its own, too: the longest is the kernel."""
    statistics = [m for m in map(STATISTICS.search, (stdout + stderr).split("\n")) if m]
    local = re.search(r"^threadgroup memory: (\d+)$", stdout, re.M)
    if not statistics or not local:
        raise host.CompileError(f"no statistics in what Mesa printed:\n{stderr[-2000:]}")
    longest = max(statistics, key=lambda m: int(m["instructions"]))
    return Code(stdout, threadgroup=int(local[1]), **{k: int(v) for k, v in longest.groupdict().items()})
