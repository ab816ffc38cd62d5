"""The compiled side of a launch: its structs, which shim/launch.h declares, and its findings."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import compiler, source

if TYPE_CHECKING:
    from .arguments import Bound

KINDS = ("error", "out of bounds", "uninitialised", "race", "misaligned", "read-only", "divergence")
MAX_FINDINGS = 64
THREADGROUP_PARAMETERS = 8
NAMED_SITES = 1 << 31  # from here on, sites that accesses name themselves


@dataclass(frozen=True)
class Finding:
    """One thing wrong, at its first occurrence.

    ``where`` is the file:line:column of the access, ``other`` that of the access it conflicts with; each is empty where
    unknown, and in a divergence, whose message has both places. ``offset`` counts bytes from the start of ``buffer``,
    which is the name of the kernel's parameter or threadgroup variable.
    """

    kind: str
    message: str
    where: str
    other: str
    threadgroup: tuple[int, ...]
    thread: tuple[int, ...]
    buffer: str
    offset: int

    @property
    def line(self) -> int:
        """The line of ``where``, 0 where unknown."""
        return int(self.where.split(":")[-2]) if self.where else 0

    def __str__(self) -> str:
        text = f"{self.kind}: {self.message}; threadgroup {self.threadgroup} thread {self.thread}"
        text += f"; '{self.buffer}' at byte {self.offset}" if self.buffer else ""
        text += f"; at {self.where}" if self.where else ""
        return text + (f"; the other at {self.other}" if self.other else "")


class LaunchError(RuntimeError):
    """A kernel did something wrong. ``findings`` lists what."""

    def __init__(self, kernel: str, findings: list[Finding]) -> None:
        self.findings = findings
        super().__init__(f"kernel '{kernel}':\n" + "\n".join(f"  {finding}" for finding in findings))


class Argument(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("writable", ctypes.c_uint32),
        ("undefined", ctypes.c_uint32),
        ("address", ctypes.c_void_p),
    )


class NativeFinding(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("site", ctypes.c_uint32),
        ("other_site", ctypes.c_uint32),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("offset", ctypes.c_int64),
        ("buffer", ctypes.c_char * 64),
        ("message", ctypes.c_char * 256),
    )


class Counts(ctypes.Structure):
    _fields_ = (
        ("read", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("read_by_threadgroups", ctypes.c_uint64),
        ("unique_read", ctypes.c_uint64),
        ("unique_written", ctypes.c_uint64),
    )


class Launch(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(Argument)),
        ("traffic", ctypes.POINTER(Counts)),
        ("count", ctypes.c_uint32),
        ("threads", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("threadgroup_bytes", ctypes.c_uint32 * THREADGROUP_PARAMETERS),
        ("reverse", ctypes.c_uint32),
        ("check", ctypes.c_uint32),
        ("allow_same_value", ctypes.c_uint32),
        ("findings_count", ctypes.c_uint32),
        ("findings", NativeFinding * MAX_FINDINGS),
    )


class Site(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_int),
        ("column", ctypes.c_int),
        ("operation", ctypes.c_char_p),
    )


def pack_arguments(bound: Sequence[Bound]) -> ctypes.Array[Argument]:
    """The arguments as the runtime takes them; the arrays must outlive the launch."""
    packed = (Argument * len(bound))()
    for argument, one in zip(packed, bound, strict=True):
        argument.name = one.parameter.name.encode()
        if one.array is not None:
            argument.data, argument.bytes = one.array.ctypes.data, one.array.nbytes
            argument.writable, argument.undefined = one.writable, one.undefined
    return packed


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """A compiled kernel, ready to be launched."""
    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)  # kernels are linked with no library
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        needed = re.search(rf"{source.NO_VALUE}(\d+)_(\w+)", str(error))
        if needed is None:
            raise
        message = f"function constant {needed[1]} ('{needed[2]}') has no value, and the kernel uses it"
        raise source.SourceError(message) from None
    library.msl_launch.restype = None
    library.msl_named_site.restype = ctypes.POINTER(Site)
    return library


def describe(library: ctypes.CDLL, binary: compiler.Binary, raw: NativeFinding) -> Finding:
    """A finding with the source lines of its sites."""

    def where(site: int) -> str:
        if site >= NAMED_SITES:
            named = library.msl_named_site(ctypes.c_uint32(site)).contents
            return f"{named.file.decode()}:{named.line}:{named.column}"
        return str(binary.sites[site - 1]) if site else ""

    return Finding(
        kind=KINDS[raw.kind],
        message=raw.message.decode(errors="replace"),
        where=where(raw.site),
        other=where(raw.other_site),
        threadgroup=tuple(raw.threadgroup),
        thread=tuple(raw.thread),
        buffer=raw.buffer.decode(),
        offset=raw.offset,
    )
