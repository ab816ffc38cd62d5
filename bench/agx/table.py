"""The table: a kernel's registers, what of it a core holds, spills, and the slots that a byte costs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.agx.compiler import Code, compile_kernel
from bench.agx.debian import Debian
from bench.agx.kernels import Entry
from bench.agx.machine import read_program
from msl.compiler import CompileError
from msl.source import SourceError
from support import ROOT

CORE_THREADGROUP_MEMORY = 60 << 10  # bytes a core has for resident threadgroups
# What a core can issue for a byte of bandwidth: lane-instructions a second over bytes a second.
BUDGETS = {"M1 Max": 13.3, "M3 Max": 18.0, "M4": 15.0, "M5": 12.0}
HEAD = ("kernel", "registers", "threads", "simdgroups", "spills", "instructions", "slots a byte", *BUDGETS)


@dataclass(frozen=True)
class Row:
    """One kernel. slots: a byte; None where the entry does not tell what to count. error: what the compiler said."""

    label: str
    code: Code | None
    threads: int
    slots: float | None
    error: str = ""

    @property
    def simdgroups(self) -> int:
        """That a core holds at a time, by registers and by threadgroup memory."""
        if self.code is None:
            return 0
        by_memory = CORE_THREADGROUP_MEMORY // self.code.threadgroup if self.code.threadgroup else 1 << 10
        return min(self.code.threads // self.threads, by_memory) * self.threads // 32

    def cells(self) -> list[str]:
        if self.code is None:
            return [self.label, self.error.split("\n")[0], *[""] * (len(HEAD) - 2)]
        shares = [f"{100 * self.slots / budget:.0f} %" if self.slots else "" for budget in BUDGETS.values()]
        code = self.code
        numbers = (code.halfregs, code.threads, self.simdgroups, code.spills, code.instructions)
        return [self.label, *map(str, numbers), f"{self.slots:.1f}" if self.slots else "", *shares]


def rows(debian: Debian, entries: Iterable[Entry]) -> Iterator[Row]:
    """In the order of the entries, compiled several at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(row, debian, entry) for entry in entries]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def row(debian: Debian, entry: Entry) -> Row:
    try:
        code = compile_kernel(debian, entry.text(), entry.kernel, entry.threads)
    except (CompileError, SourceError) as error:
        return Row(entry.label, None, entry.threads, None, str(error))
    slots = None
    if entry.trips is not None and entry.lane_bytes:
        slots = read_program(code.disassembly).slots(entry.trips).total / entry.lane_bytes
    return Row(entry.label, code, entry.threads, slots)


def aligned(cells: list[str]) -> str:
    """A line of the table on a terminal."""
    widths = (46, 9, 7, 10, 6, 12, 12, 6, 6, 6, 6)
    return " ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True)))


def markdown(table: list[Row], debian: Debian) -> str:
    """The table as a page keeps it, with what it was made from."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" + "|---:" * (len(HEAD) - 1) + "|"]
    lines += ["| " + " | ".join(one.cells()) + " |" for one in table]
    return "\n".join([made_from(debian), "", *lines, ""])


def made_from(debian: Debian) -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return f"Commit {commit}; " + ", ".join(f"{name} {version}" for name, version in debian.versions.items()) + "."
