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
class Loop:
    """first, last: indices of instructions."""

    first: int
    last: int


class Program:
    """The instructions of one kernel, and its loops."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = list(instructions)
        at = {instruction.offset: index for index, instruction in enumerate(self.instructions)}
        self.loops = []
        for index, instruction in enumerate(self.instructions):
            if instruction.name.startswith("jmp"):
                distance = int(re.search(r"-?\d+", instruction.operands)[0])  # type: ignore[index]
                if distance < 0:
                    self.loops.append(Loop(at[instruction.offset + distance], index))

    def body(self, loop: Loop) -> list[Instruction]:
        """Without the loops in it."""
        inner = [
            other for other in self.loops if other != loop and loop.first <= other.first and other.last <= loop.last
        ]
        return [
            self.instructions[i]
            for i in range(loop.first, loop.last + 1)
            if not any(other.first <= i <= other.last for other in inner)
        ]

    def slots(self, trips: Callable[[Program, Loop], float]) -> Slots:
        """Of one simdgroup. trips: how often a loop runs in all."""
        whole = Loop(0, len(self.instructions) - 1)
        total = priced(self.body(whole))
        for loop in self.loops:
            total += priced(self.body(loop)) * trips(self, loop)
        return total


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
