"""Checks what a launch is given against what its kernel takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .native import THREADGROUP_PARAMETERS
from .source import Parameter

MAX_BUFFERS = 31
MAX_THREADS = 1024
THREADGROUP_MEMORY = 32 << 10

Size: TypeAlias = "int | Sequence[int]"


@dataclass(frozen=True)
class Output:
    """A buffer with no contents before the launch: all bytes 0xff, and reading what was not written is a finding."""

    array: np.ndarray


Buffer: TypeAlias = "np.ndarray | Output | bytes | np.generic | None"


@dataclass(frozen=True)
class Bound:
    """What is bound to one buffer index. ``array`` is None where the kernel has no buffer, or does without it."""

    parameter: Parameter
    array: np.ndarray | None
    writable: bool
    undefined: bool


def bind(kernel: str, parameters: Sequence[Parameter], buffers: Sequence[Buffer]) -> list[Bound]:
    """What is bound to each buffer index, from 0 on. One array given twice is one buffer to the kernel."""
    by_index = {p.index: p for p in parameters if p.kind == "buffer"}
    count = max(by_index, default=-1) + 1
    if len(buffers) > count or count > MAX_BUFFERS:
        raise ValueError(f"kernel '{kernel}': takes {count} buffers of {MAX_BUFFERS} possible, found {len(buffers)}")
    bound: list[Bound] = []
    for index in range(count):
        given = buffers[index] if index < len(buffers) else None
        parameter = by_index.get(index)
        if parameter is None:
            bound.append(Bound(Parameter(f"unused{index}", "const", "buffer", index), None, False, False))
            continue
        if given is None and not parameter.optional:
            found = "None" if index < len(buffers) else f"{len(buffers)} buffers"
            raise ValueError(f"kernel '{kernel}': argument '{parameter.name}' is buffer {index}, found {found}")
        array = as_array(kernel, parameter, given)
        bound.append(Bound(parameter, array, parameter.writable, isinstance(given, Output)))
    return [share(kernel, b, bound) for b in bound]


def share(kernel: str, one: Bound, bound: Sequence[Bound]) -> Bound:
    """``one``, writable if another argument is the same memory and may be written."""
    writable, undefined = one.writable, one.undefined
    for other in bound:
        if one.array is None or other.array is None or other is one or not np.may_share_memory(one.array, other.array):
            continue
        if one.array.ctypes.data != other.array.ctypes.data or one.array.nbytes != other.array.nbytes:
            if one.writable or other.writable:
                names = f"arguments '{one.parameter.name}' and '{other.parameter.name}'"
                raise ValueError(f"kernel '{kernel}': {names} overlap in part, and the kernel may write one of them")
            continue
        writable |= other.writable
        undefined &= other.undefined
    return Bound(one.parameter, one.array, writable, undefined)


def as_array(kernel: str, parameter: Parameter, given: Buffer) -> np.ndarray | None:
    """The array behind an argument."""
    if given is None:
        return None
    if isinstance(given, bytes):
        return np.frombuffer(given, np.uint8)
    if isinstance(given, np.generic):
        return np.asarray(given)
    array = given.array if isinstance(given, Output) else given
    where = f"kernel '{kernel}': argument '{parameter.name}'"
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{where}: expected an array, Output, bytes or numpy scalar, found {type(given).__name__}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{where}: expected a C-contiguous array, found strides {array.strides} of shape {array.shape}"
        )
    if parameter.writable and not array.flags.writeable:
        raise ValueError(f"{where}: the kernel may write it, but the array is read-only")
    if isinstance(given, Output) and not parameter.writable:
        raise ValueError(f"{where}: an Output, but the kernel only reads '{parameter.declaration}'")
    return array


def size(kernel: str, what: str, given: Size) -> list[int]:
    """Three numbers, from one to three."""
    sizes = [given] if isinstance(given, int) else [int(n) for n in given]
    sizes += [1] * (3 - len(sizes))
    if len(sizes) != 3 or any(n < 1 for n in sizes):
        raise ValueError(f"kernel '{kernel}': {what} is one to three numbers from 1 on, found {given}")
    if what == "threadgroup" and sizes[0] * sizes[1] * sizes[2] > MAX_THREADS:
        raise ValueError(f"kernel '{kernel}': a threadgroup has at most {MAX_THREADS} threads, found {given}")
    return sizes


def grid(kernel: str, threads: Size | None, threadgroups: Size | None, threadgroup: list[int]) -> list[int]:
    """The grid in threads."""
    if threads is not None and threadgroups is None:
        return size(kernel, "threads", threads)
    if threadgroups is None or threads is not None:
        raise ValueError(
            f"kernel '{kernel}': expected either threads or threadgroups, found {threads} and {threadgroups}"
        )
    counts = size(kernel, "threadgroups", threadgroups)
    return [count * n for count, n in zip(counts, threadgroup, strict=True)]


def threadgroup_sizes(kernel: str, parameters: Sequence[Parameter], sizes: Mapping[int, int]) -> list[int]:
    """The bytes of each `[[threadgroup(i)]]` parameter."""
    expected = {p.index: p.name for p in parameters if p.kind == "threadgroup"}
    if set(expected) != set(sizes):
        wanted = expected or "no parameter"
        raise ValueError(f"kernel '{kernel}': threadgroup_bytes for {wanted} expected, found {dict(sizes)}")
    result = [0] * THREADGROUP_PARAMETERS
    for index, given in sizes.items():
        if given % 16 or not 0 < given <= THREADGROUP_MEMORY:
            limit = f"expected a multiple of 16 up to {THREADGROUP_MEMORY} bytes"
            raise ValueError(f"kernel '{kernel}': threadgroup argument '{expected[index]}': {limit}, found {given}")
        result[index] = given
    return result
