"""Reads a disassembly of Mesa's, and prices it.

The cost model is Mesa's own of an M1 (G13G, src/asahi/compiler/agx_performance.c), which agrees with what others have
measured (github.com/philipturner/metal-benchmarks). An instruction takes issue slots of its simdgroup's scheduler:

    floats, bitwise operations, moves, comparisons, additions    1        a 64-bit addition                     4
    shuffles, special registers                                  2        a reduction 24, a prefix sum         18
    shifts, multiplications, exp2 ..., conversions               4 of another pipe (reciprocal 6, rsqrt 8)

Both pipes work at once, for different simdgroups, so a kernel's slots are the larger sum. Loads, stores, waits and
jumps count nothing, nor does latency: slots are a bound from below, and good for comparing two kernels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LINE = re.compile(r"^\s*([0-9a-f]+): [0-9a-f]+\s+(\S+)\s*(.*)$")
ONE = re.compile(r"(f|h)?(fma|ffma|fadd|fmul|add|mul)(16)?$|(and|or|xor|not|nand|nor|xnor)[n\d]*$|andn|orn|mov|ldimm|"
                 r"[fi]?csel|[fi]?cmp|iadd|isub|get_sr")  # fmt: skip
OTHER_PIPE = re.compile(
    r"shl|shr|asr|extr|bfi|bfeil|imul|imad|imadd|imsub|floor|ceil|trunc|rint|roundeven|log2|exp2|rcp|s?rsqrt|sinr|sinc|"
    r"popcount|bitrev|ffs|intl|convert|\w+_to_\w+"
)
MEMORY = {
    "load",
    "store",
    "lload",
    "lstore",
    "uniform_store",
    "uload",
    "ustore",
    "stack_load",
    "stack_store",
    "stack_adjust",
}
CONTROL = re.compile(
    r"if|else|while|jmp|pop_exec|push_exec|begin_cf|wait|barrier|threadgroup_barrier|mem|stop|trap|ret|nop|call"
)
WIDE = re.compile(r"(^|\W)dr\d")  # a pair of registers


@dataclass(frozen=True)
class Instruction:
    offset: int
    name: str
    operands: str


@dataclass(frozen=True)
class Slots:
    """Of both pipes."""

    main: float = 0
    other: float = 0

    def __add__(self, more: Slots) -> Slots:
        return Slots(self.main + more.main, self.other + more.other)

    def __mul__(self, times: float) -> Slots:
        return Slots(self.main * times, self.other * times)

    @property
    def total(self) -> float:
        return max(self.main, self.other)


@dataclass(frozen=True)
class Region:
    """A loop, or what a branch may skip. first, last: indices of instructions."""

    first: int
    last: int
    loop: bool

    def __contains__(self, other: Region) -> bool:
        return other != self and self.first <= other.first and other.last <= self.last


class Program:
    """The instructions of one kernel, its loops and branches."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = list(instructions)
        at = {instruction.offset: index for index, instruction in enumerate(self.instructions)}
        self.regions = [Region(0, len(self.instructions) - 1, False)]
        for index, instruction in enumerate(self.instructions):
            if not instruction.name.startswith("jmp"):
                continue
            target = instruction.offset + int(re.search(r"-?\d+", instruction.operands)[0])  # type: ignore[index]
            region = (
                Region(at[target], index, True)
                if target <= instruction.offset
                else Region(index, at[target] - 1, False)
            )
            self.regions.append(region)

    @property
    def loops(self) -> list[Region]:
        return [region for region in self.regions if region.loop]

    def body(self, region: Region) -> list[Instruction]:
        """Without the regions in it."""
        inner = [other for other in self.regions if other in region]
        return [
            self.instructions[i]
            for i in range(region.first, region.last + 1)
            if not any(other.first <= i <= other.last for other in inner)
        ]

    def around(self, region: Region) -> Region | None:
        """The innermost region that it lies in."""
        outer = [other for other in self.regions if region in other]
        return min(outer, key=lambda other: other.last - other.first) if outer else None

    def slots(self, trips: Trips) -> Slots:
        """Of one simdgroup."""
        total = Slots()
        for region in self.regions:
            total += priced(self.body(region)) * self.runs(region, trips)
        return total

    def runs(self, region: Region, trips: Trips) -> float:
        """How often a region runs in all."""
        told = trips(self, region)
        outer = self.around(region)
        return told if told is not None else 1 if outer is None else self.runs(outer, trips)


# How often a region runs in one simdgroup, in all and as the mean over simdgroups; None: as often as what is around it.
Trips = Callable[[Program, Region], float | None]


def read_program(disassembly: str) -> Program:
    """The longest of the programs in it: Mesa compiles small ones of its own too."""
    programs: list[list[Instruction]] = []
    for line in disassembly.split("\n"):
        match = LINE.match(line)
        if match is None:
            continue
        offset = int(match[1], 16)
        if offset == 0:
            programs.append([])
        programs[-1].append(Instruction(offset, match[2], match[3]))
    return Program(max(programs, key=len))


def priced(instructions: Sequence[Instruction]) -> Slots:
    total = Slots()
    for instruction in instructions:
        total += price(instruction)
    return total


def price(instruction: Instruction) -> Slots:
    """Raises ValueError for an instruction that the model does not know."""
    name = instruction.name
    wide = WIDE.search(instruction.operands.split(",")[0]) is not None
    if name in MEMORY or CONTROL.match(name):
        return Slots()
    if "shuffle" in name or "ballot" in name or name == "get_sr":
        return Slots(2)
    if "prefix" in name:
        return Slots(18)
    if name.startswith(("simd", "quad")):
        return Slots(24)
    if OTHER_PIPE.match(name):
        return Slots(0, 8 if wide or "rsqrt" in name else 6 if name.startswith("rcp") else 4)
    if ONE.match(name):
        return Slots(4 if wide and name in ("iadd", "isub") else 1)
    raise ValueError(f"no price for the instruction '{name} {instruction.operands}'")
