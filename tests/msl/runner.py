"""Launches Metal kernels on numpy arrays."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from . import arguments, compiler, native, source
from .address_spaces import without_address_space
from .arguments import Buffer, Size

Constants: TypeAlias = "Mapping[int, bool | int | float]"
ORDERS = ("forward", "reverse")

# How often each kernel has run: what a report of tests counts.
launched: Counter[str] = Counter()

# What a kernel's attribute gives, in C++.
BUILTINS = {
    "thread_position_in_grid": "msl::current->builtins.thread_in_grid",
    "thread_position_in_threadgroup": "msl::current->builtins.thread_in_threadgroup",
    "threadgroup_position_in_grid": "msl::current->builtins.threadgroup_in_grid",
    "thread_index_in_threadgroup": "msl::current->builtins.index",
    "thread_index_in_simdgroup": "msl::current->builtins.lane",
    "simdgroup_index_in_threadgroup": "msl::current->builtins.simdgroup",
    "thread_index_in_quadgroup": "msl::current->builtins.lane % 4",
    "quadgroup_index_in_threadgroup": "msl::current->builtins.index / 4",
    "threads_per_simdgroup": "msl::kSimdWidth",
    "thread_execution_width": "msl::kSimdWidth",
    "simdgroups_per_threadgroup": "msl::simdgroups_in(msl::grid.threadgroup_size)",
    "dispatch_simdgroups_per_threadgroup": "msl::simdgroups_in(msl::grid.dispatched_size)",
    "threads_per_threadgroup": "msl::grid.threadgroup_size",
    "dispatch_threads_per_threadgroup": "msl::grid.dispatched_size",
    "threadgroups_per_grid": "msl::grid.threadgroups",
    "threads_per_grid": "msl::grid.threads",
}


@dataclass(frozen=True)
class Traffic:
    """Bytes a launch read and wrote in one buffer.

    ``read`` and ``written`` count every access, ``unique_read`` and ``unique_written`` every byte once.
    ``read_by_threadgroups`` counts every byte once a threadgroup: what leaves the caches of a GPU at most.
    """

    read: int
    written: int
    read_by_threadgroups: int
    unique_read: int
    unique_written: int


@dataclass(frozen=True)
class Result:
    """arrays: the writable buffers after a launch, by the parameter's name. traffic: by the same names, if counted."""

    arrays: dict[str, np.ndarray]
    traffic: dict[str, Traffic]


class Library:
    """The kernels of one Metal source, compiled when launched: one at a time, for the constants given."""

    def __init__(
        self,
        text: str,
        *,
        includes: Iterable[str | Path] = (),
        replaced_headers: Mapping[str, str] | None = None,
        filename: str = "kernel.metal",
        shim: Sequence[Path] = (),
    ) -> None:
        """text: the Metal source. includes, replaced_headers, filename: see ``source.flatten``. shim: directories whose
        <metal_stdlib.h> and parts of it come before this emulator's."""
        flat = source.flatten(text, [Path(i) for i in includes], replaced_headers, filename)
        self._source = source.parse(compiler.preprocess(flat))
        self._shim = tuple(shim)
        self._rewritten: dict[str, str] = {}
        self._binaries: dict[tuple[object, ...], compiler.Binary] = {}

    @property
    def kernels(self) -> list[str]:
        """The names that can be launched."""
        return sorted(self._source.instances)

    def instantiate(self, text: str) -> None:
        """Adds explicit instantiations, which use no macro; for kernels that share all the rest of a long source."""
        self._source.instances.update(source.instances_of(text))

    def launch(
        self,
        name: str,
        buffers: Sequence[Buffer],
        *,
        threadgroup: Size,
        threads: Size | None = None,
        threadgroups: Size | None = None,
        threadgroup_bytes: Mapping[int, int] | None = None,
        constants: Constants | None = None,
        order: str = "forward",
        excess_precision: bool = False,
        check: bool = False,
        allow_same_value_writes: bool = False,
        count_bytes: bool = False,
    ) -> Result:
        """Runs a kernel.

        buffers: one for each index from 0 on: a C-contiguous array, an ``Output``, or the bytes or numpy scalar of a
            ``constant`` argument; None where the kernel has no buffer of that index, or an optional one. What the
            kernel may write is written back into the array given.
        threadgroup: threads in a threadgroup. threads: those of the grid (dispatch_threads); or threadgroups: their
            number (dispatch_threadgroups).
        threadgroup_bytes: the size of each ``[[threadgroup(i)]]`` parameter. constants: function constants by index.
        order: "forward" or "reverse", in which threadgroups, simdgroups and lanes take turns.
        excess_precision: leave half and bfloat unrounded inside an expression.
        check: find out-of-bounds and misaligned accesses, reads of what was never written, and races, of which
            allow_same_value_writes lets threads write one value to one place.
        count_bytes: count the bytes read and written.

        Raises LaunchError for findings, ValueError for arguments that do not fit the kernel.
        """
        parameters = self._source.parameters(name)
        if order not in ORDERS:
            raise ValueError(f"kernel '{name}': order is one of {ORDERS}, found '{order}'")
        group = arguments.size(name, "threadgroup", threadgroup)
        grid = arguments.grid(name, threads, threadgroups, group)
        memory = arguments.threadgroup_sizes(name, parameters, threadgroup_bytes or {})
        bound = arguments.bind(name, parameters, buffers)

        binary = self._binary(name, constants or {}, check or count_bytes, excess_precision)
        library = native.load(binary.path)
        launch = native.Launch(
            entry=ctypes.cast(library.msl_entry, ctypes.c_void_p),
            arguments=native.pack_arguments(bound),
            count=len(bound),
            reverse=order == "reverse",
            check=check,
            allow_same_value=allow_same_value_writes,
        )
        launch.threads[:], launch.threadgroup[:], launch.threadgroup_bytes[:] = grid, group, memory
        counts = (native.Counts * len(bound))()
        if count_bytes:
            launch.traffic = counts
        library.msl_launch(ctypes.byref(launch))
        launched[name] += 1

        if launch.findings_count:
            raw = launch.findings[: launch.findings_count]
            raise native.LaunchError(name, [native.describe(library, binary, finding) for finding in raw])
        arrays = {b.parameter.name: b.array for b in bound if b.parameter.writable and b.array is not None}
        traffic = {
            b.parameter.name: Traffic(c.read, c.written, c.read_by_threadgroups, c.unique_read, c.unique_written)
            for b, c in zip(bound, counts, strict=True)
            if count_bytes and b.array is not None
        }
        return Result(arrays, traffic)

    def compile(
        self,
        name: str,
        *,
        constants: Constants | None = None,
        excess_precision: bool = False,
        check: bool = False,
        count_bytes: bool = False,
    ) -> None:
        """What ``launch`` with these options does first; for several threads at a time to do ahead of it."""
        self._binary(name, constants or {}, check or count_bytes, excess_precision)

    def strict_compile(
        self, name: str | None = None, constants: Constants | None = None, flags: Sequence[str] = ()
    ) -> list[compiler.Diagnostic]:
        """What clang says with real address spaces, C++14, -Wall -Wextra -Wconversion and ``flags``; and pointers and
        references that do not spell theirs, which Metal 4.1 refuses.

        name: the kernel to compile; all of them if None.
        """
        found = compiler.diagnose(self._code([name] if name else self.kernels, constants or {}), flags)
        return found + [self._without_address_space(each) for each in without_address_space(self._source.text)]

    def _without_address_space(self, spelled: str) -> compiler.Diagnostic:
        lines = self._source.text.splitlines()
        line = next((number for number, text in enumerate(lines, 1) if spelled in text), 0)
        return compiler.Diagnostic("kernel.metal", line, 0, "error", f"'{spelled}' has no address space")

    def depends_on_excess_precision(self) -> bool:
        """Whether clang, before it optimises, makes anything else of the kernels with ``excess_precision``.

        If not, there is nothing in them that it could change, whatever the arguments.
        """
        return compiler.depends_on_excess_precision(self._code(self.kernels, {}), self._shim)

    def _binary(self, name: str, constants: Constants, instrumented: bool, excess: bool) -> compiler.Binary:
        key = (name, tuple(sorted((i, repr(value)) for i, value in constants.items())), instrumented, excess)
        if key not in self._binaries:
            code = self._code([name], constants)
            self._binaries[key] = compiler.build(
                code, instrumented=instrumented, excess_precision=excess, shim=self._shim
            )
        return self._binaries[key]

    def _code(self, names: Sequence[str], constants: Constants) -> str:
        """The C++ text with an entry point for each kernel named; `msl_entry` is the first's."""
        entries = []
        for i, name in enumerate(names):
            values = ", ".join(argument(name, parameter) for parameter in self._source.parameters(name))
            call = f"{self._source.instances[name]}({values});"
            entry = "msl_entry" if i == 0 else f"msl_entry_{i}"
            entries.append(f'extern "C" void {entry}(const msl::Argument* arguments) {{ (void)arguments; {call} }}')
        key = repr(sorted(constants.items()))
        if key not in self._rewritten:
            self._rewritten[key] = source.rewrite(self._source, constants)
        return "\n".join(["#include <metal_stdlib.h>", self._rewritten[key], '#line 1 "entry points"', *entries, ""])


def argument(kernel: str, parameter: source.Parameter) -> str:
    """The C++ expression of one argument of a kernel."""
    if parameter.kind == "buffer":
        return f"msl::{'Reference' if parameter.reference else 'Pointer'}(arguments[{parameter.index}])"
    if parameter.kind == "threadgroup":
        return f'msl::Pointer(msl::threadgroup_parameter({parameter.index}, "{parameter.name}"))'
    if parameter.builtin not in BUILTINS:
        found = f"parameter '{parameter.name}' has attribute [[{parameter.builtin}]]"
        raise source.SourceError(f"kernel '{kernel}': {found}, expected one of {sorted(BUILTINS)}")
    return f"msl::Builtin({BUILTINS[parameter.builtin]})"


def strict_compile(
    text: str, includes: Iterable[str | Path] = (), flags: Sequence[str] = (), filename: str = "kernel.metal"
) -> list[compiler.Diagnostic]:
    """What clang says of all the kernels of a source without function constants; see ``Library.strict_compile``."""
    return Library(text, includes=includes, filename=filename).strict_compile(flags=flags)
