"""Makes a compiled kernel announce its memory accesses.

Works on optimised LLVM IR as text: there every pointer still has its Metal address space, every access its alignment,
and every instruction its source line. Each load, store and copy that touches device, constant or threadgroup memory
gets a call of the runtime's checker in front of it. Thread memory is left alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SPACES = {"1": "device", "2": "constant", "3": "threadgroup"}
ADDRESS = r", ptr addrspace\((?P<space>[123])\) (?P<pointer>.+?), align (?P<align>\d+)"
LOAD = re.compile(r"\s+%\S+ = load (?:volatile )?(?P<type>.+?)" + ADDRESS)
STORE = re.compile(r"\s+store (?:volatile )?(?P<type>.+)" + ADDRESS)
COPY = re.compile(r"\s+(?:tail |musttail |notail )?call void @llvm\.(memcpy|memmove|memset)[\w.]*\((?P<arguments>.*)\)")
COPY_POINTER = re.compile(r"ptr addrspace\((?P<space>[123])\) (?P<attributes>.*?)(?P<pointer>[%@]\S+|null)$")
DEBUG = re.compile(r"!dbg !(\d+)")
METADATA = re.compile(r"^!(\d+) = (?:distinct )?!(DI\w+)\((.*)\)$", re.M)
SIZES = {"half": 2, "bfloat": 2, "float": 4, "double": 8, "ptr": 8}


class InstrumentError(RuntimeError):
    """IR that this module does not know how to instrument."""


@dataclass(frozen=True)
class SourceLine:
    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class DebugInfo:
    """Source lines of instructions, by the number of their debug location."""

    def __init__(self, ir: str, hidden: Path) -> None:
        """hidden: a directory whose inlined functions are not where an access happens; their caller is."""
        self._nodes = {int(n): (kind, fields) for n, kind, fields in METADATA.findall(ir)}
        self._hidden = str(hidden)

    def line(self, location: int) -> SourceLine:
        while True:
            fields = self._nodes[location][1]
            outer = self._reference(fields, "inlinedAt")
            folder, file = self._file(location)
            if outer is None or not str(Path(folder, file)).startswith(self._hidden):
                return SourceLine(file, self._number(fields, "line"), self._number(fields, "column"))
            location = outer

    def _file(self, location: int) -> tuple[str, str]:
        """The compiler's directory, and the file's name in it."""
        scope = self._reference(self._nodes[location][1], "scope")
        file = None if scope is None else self._reference(self._nodes[scope][1], "file")
        found = None if file is None else re.search(r'filename: "(.*?)", directory: "(.*?)"', self._nodes[file][1])
        return (found[2], found[1]) if found else ("", "?")

    @staticmethod
    def _reference(fields: str, name: str) -> int | None:
        found = re.search(rf"\b{name}: !(\d+)", fields)
        return int(found[1]) if found else None

    @staticmethod
    def _number(fields: str, name: str) -> int:
        found = re.search(rf"\b{name}: (\d+)", fields)
        return int(found[1]) if found else 0


def leading_type(text: str) -> str:
    """The type that `text` starts with."""
    if text[0] not in "<[{":
        return re.match(r"[%\w.]+", text)[0]  # type: ignore[index]
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "<[{") - (character in ">]}")
        if depth == 0:
            return text[: i + 1]
    raise InstrumentError(f"no type at the start of '{text}'")


def size_of(type_: str) -> int:
    """Bytes that a load or store of an IR type touches."""
    if type_ in SIZES:
        return SIZES[type_]
    if integer := re.fullmatch(r"i(\d+)", type_):
        return (int(integer[1]) + 7) // 8
    if sequence := re.fullmatch(r"[<\[](\d+) x (.+)[>\]]", type_):
        if sequence[2] == "i1":
            return (int(sequence[1]) + 7) // 8
        return int(sequence[1]) * size_of(sequence[2])
    raise InstrumentError(f"an access of type '{type_}' is not emulated")


def instrument(ir: str, shim: Path) -> tuple[str, list[SourceLine]]:
    """The IR with announcements, and the source line of each site, from site 1 on."""
    info = DebugInfo(ir, shim)
    sites: list[SourceLine] = []
    numbers: dict[SourceLine, int] = {}
    lines: list[str] = []

    def site(line: str) -> int:
        debug = DEBUG.search(line)
        where = info.line(int(debug[1])) if debug else SourceLine("?", 0, 0)
        if where not in numbers:
            sites.append(where)
            numbers[where] = len(sites)
        return numbers[where]

    def announce(line: str, write: bool, space: str, pointer: str, size: str, align: str) -> None:
        verb = "write" if write else "read"
        if write and space == "2":
            raise InstrumentError(f"a write to constant memory: {line.strip()}")
        debug = DEBUG.search(line)
        where = f", !dbg !{debug[1]}" if debug else ""
        lines.append(
            f"  call void @msl_{verb}_{SPACES[space]}(ptr addrspace({space}) {pointer}, i64 {size}, i32 {align}, "
            f"i32 {site(line)}){where}"
        )

    for line in ir.split("\n"):
        if copy := COPY.match(line):
            write, *read = re.split(r", (?=ptr|i\d)", copy["arguments"])[:2]
            size = re.split(r", (?=ptr|i\d)", copy["arguments"])[2].split()[-1]
            for text, is_write in [(write, True), *((r, False) for r in read)]:
                if pointer := COPY_POINTER.match(text):
                    align = re.search(r"align (\d+)", pointer["attributes"])
                    announce(line, is_write, pointer["space"], pointer["pointer"], size, align[1] if align else "1")
        elif access := LOAD.match(line) or STORE.match(line):
            size = str(size_of(leading_type(access["type"])))
            announce(
                line,
                " store " in line[: access.start("type")],
                access["space"],
                access["pointer"],
                size,
                access["align"],
            )
        elif "addrspace(" in line and re.search(
            r"@llvm\.masked\.|\b(atomicrmw|cmpxchg|load atomic|store atomic)\b", line
        ):
            raise InstrumentError(f"not emulated: {line.strip()}")
        lines.append(line)
    for space, name in SPACES.items():
        for verb in ("read", "write"):
            if f"@msl_{verb}_{name}(" in "\n".join(lines):
                lines.append(f"declare void @msl_{verb}_{name}(ptr addrspace({space}), i64, i32, i32)")
    return "\n".join(lines) + "\n", sites
