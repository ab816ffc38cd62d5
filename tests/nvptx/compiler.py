"""Metal source to PTX: the same text, rewritten by the same rules as for a CPU, with another shim underneath.

A warp is a simdgroup. Buffers are kernel parameters in the order of their index. What `constant` arguments hold lies in
constant memory, in a symbol for each (``constant_symbol``) that the host fills before it launches.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msl import compiler as host
from msl import source

SHIM = Path(__file__).resolve().parent / "shim"
ARCHITECTURE = "sm_90"
# The oldest PTX that has sm_90 and everything used here: drivers from CUDA 12.0 on read it.
PTX_VERSION = "ptx80"
CONSTANT_SPACE = 4

FLAGS = shlex.split(
    "-x c++ -std=c++17 -ffreestanding -S -O3 -w -nostdinc++ -fno-exceptions -fno-rtti -fno-threadsafe-statics"
    " -fno-strict-aliasing -fno-math-errno -ffp-contract=fast -Xclang -cl-single-precision-constant"
    # 64-bit integers are long in Metal and on the CPU, but long long for this target
    " -U__INT64_TYPE__ -D__INT64_TYPE__=long -U__UINT64_TYPE__ '-D__UINT64_TYPE__=unsigned long'"
)
# Metal's compiler inlines every function, and kernels count on it: arrays passed by reference stay in registers.
INLINE = "#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)"
INLINE_END = "#pragma clang attribute pop"

BUILTINS = {
    "thread_position_in_grid": "msl::threadgroup_in_grid() * msl::threadgroup_size() + msl::thread_in_threadgroup()",
    "thread_position_in_threadgroup": "msl::thread_in_threadgroup()",
    "threadgroup_position_in_grid": "msl::threadgroup_in_grid()",
    "thread_index_in_threadgroup": "msl::thread_index()",
    "thread_index_in_simdgroup": "msl::lane()",
    "simdgroup_index_in_threadgroup": "msl::thread_index() / msl::kSimdWidth",
    "threads_per_simdgroup": "msl::kSimdWidth",
    "thread_execution_width": "msl::kSimdWidth",
    "simdgroups_per_threadgroup": "msl::threads() / msl::kSimdWidth",
    "threads_per_threadgroup": "msl::threadgroup_size()",
    "threadgroups_per_grid": "msl::threadgroups()",
    "threads_per_grid": "msl::threadgroups() * msl::threadgroup_size()",
}


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel. ``buffers``: the indices of the buffers that are its parameters, in their order;
    ``constants``: the index of each buffer that lies in constant memory."""

    name: str
    ptx: str
    buffers: tuple[int, ...]
    constants: tuple[int, ...]


def constant_symbol(index: int) -> str:
    """The symbol of the `constant` argument at a buffer index."""
    return f"msl_constant_{index}"


@functools.cache
def find_clang() -> tuple[str, ...]:
    """MSL_CXX if set, else ziglang's clang itself (`zig c++` refuses this target), else clang++ 19 or later."""
    if command := shlex.split(os.environ.get("MSL_CXX", "")):
        return tuple(command)
    if zig := host.find_zig():
        return (str(zig), "clang", "-isystem", str(zig.parent / "lib" / "include"))
    return (host.system_clang(),)


def kernels_of(text: str) -> list[str]:
    """The names that a host can launch."""
    return sorted(parsed(text).instances)


@functools.cache
def parsed(text: str) -> source.Source:
    return source.parse(host.preprocess(source.flatten(text)))


def compile_kernel(
    text: str,
    name: str,
    *,
    threads: int,
    constant_bytes: Mapping[int, int],
    constants: Mapping[int, object] | None = None,
    architecture: str = ARCHITECTURE,
    rename: str = "",
) -> Kernel:
    """The kernel that a host launches as ``name``, as PTX, where it is named ``rename`` if given.

    threads: of a threadgroup, which the register allocation is bounded by. constant_bytes: the size of each `constant`
        argument by its buffer index. constants: function constants by index.
    Raises CompileError with what clang says, SourceError for what this emulation does not take.
    """
    parameters = parsed(text).parameters(name)
    code = source_of(text, name, constant_bytes, constants or {})
    flags = [*FLAGS, "--target=nvptx64-nvidia-cuda", f"-march={architecture}", f"-DMSL_CONSTANT_SPACE={CONSTANT_SPACE}"]
    flags += [f"--cuda-feature=+{PTX_VERSION}"]
    ptx = bounded(compiled(code, tuple(flags)), name, rename or name, threads)
    in_constant = tuple(p.index for p in parameters if p.kind == "buffer" and is_constant(p))
    buffers = tuple(sorted(p.index for p in parameters if p.kind == "buffer" and not is_constant(p)))
    return Kernel(rename or name, ptx, buffers, in_constant)


def is_constant(parameter: source.Parameter) -> bool:
    return re.search(r"\bconstant\b", parameter.declaration) is not None


def source_of(text: str, name: str, constant_bytes: Mapping[int, int], constants: Mapping[int, object]) -> str:
    """The C++ text with one entry point, which takes the kernel's buffers in the order of their index."""
    parameters = parsed(text).parameters(name)
    symbols, values = [], []
    for p in parameters:
        if p.kind == "threadgroup":
            raise source.SourceError(f"kernel '{name}': threadgroup argument '{p.name}' is not emulated on this target")
        if p.kind == "builtin":
            if p.builtin not in BUILTINS:
                found = f"parameter '{p.name}' has attribute [[{p.builtin}]]"
                raise source.SourceError(f"kernel '{name}': {found}, expected one of {sorted(BUILTINS)}")
            values.append(f"msl::Builtin({BUILTINS[p.builtin]})")
        elif is_constant(p):
            if p.index not in constant_bytes:
                raise ValueError(
                    f"kernel '{name}': constant_bytes: expected the size of argument '{p.name}' at {p.index}"
                )
            symbol = constant_symbol(p.index)
            symbols.append(f'extern "C" {{ alignas(16) constant char {symbol}[{constant_bytes[p.index]}]; }}')
            values.append(f"msl::ConstantPointer({symbol})")
        else:
            values.append(f"msl::Pointer(buffer{p.index})")
    buffers = sorted(p.index for p in parameters if p.kind == "buffer" and not is_constant(p))
    arguments = ", ".join(f"device char* buffer{index}" for index in buffers)
    call = f"{parsed(text).instances[name]}({', '.join(values)});"
    entry = f'extern "C" __attribute__((nvptx_kernel)) void {name}_entry({arguments}) {{ {call} }}'
    body = source.rewrite(parsed(text), constants)
    return "\n".join(["#include <entry.h>", "#include <metal_stdlib.h>", INLINE, body, INLINE_END, *symbols, entry, ""])


def bounded(ptx: str, name: str, final: str, threads: int) -> str:
    """The PTX with its entry under its final name, and with the threads that a launch has at most."""
    ptx = re.sub(rf"\b{name}_entry\b", final, ptx)
    entry = re.compile(rf"(\.visible \.entry {final}\([^)]*\))")
    bound, count = entry.subn(rf"\1\n.maxntid {threads}, 1, 1", ptx)
    if count != 1:
        raise host.CompileError(f"kernel '{name}': expected one entry in the PTX, found {count}")
    return bound


def compiled(code: str, flags: tuple[str, ...]) -> str:
    target = host.cache_directory() / f"{host.cache_key(code, *flags, environment())}.ptx"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=host.cache_directory()) as folder:
            kernel, ptx = Path(folder) / "kernel.cpp", Path(folder) / "kernel.ptx"
            kernel.write_text(code)
            command = [*find_clang(), *flags, f"-I{SHIM}", f"-I{host.SHIM}", str(kernel), "-o", str(ptx)]
            host.check_run(command)
            ptx.replace(target)
    return target.read_text()


@functools.cache
def environment() -> str:
    """A hash of the shim and the compiler; that of the CPU's shim is in every key already."""
    version = host.run([*find_clang(), "--version"]).stdout
    return hashlib.sha256((version + host.files_hash(SHIM)).encode()).hexdigest()
