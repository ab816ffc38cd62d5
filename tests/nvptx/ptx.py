"""Reads PTX: what a kernel takes, which memory it uses, and how wide it loads."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)\n(.*?)\n\{\n(.*?)\n\}", re.S)
PARAMETER = re.compile(r"\.param\s+(.*?)\s*(\w+_param_\d+)")
VARIABLE = re.compile(r"\.(shared|local|const)\s+\.align (\d+) \.b8\s+([\w$.]+)\[(\d+)\]")
WIDE = re.compile(r"\b(add|sub|mul|mad|div|rem)(?:\.\w+)*?\.[busf]64\b")
LOAD = re.compile(r"\bld\.global(?:\.\w+)*?(?:\.v(\d))?\.[busf](\d+)\b")
STORE = re.compile(r"\bst\.(?:global|shared)\b")


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str


@dataclass(frozen=True)
class Entry:
    """A kernel as PTX states it.

    shared, local: bytes of threadgroup memory, and of thread memory that is not in registers. constants: bytes of each
    symbol in constant memory. loads: the number of load instructions of device memory by the bytes of one. calls:
    functions called. threads: the launch bound. loops: how many that load device memory the optimiser has left. wide:
    64-bit operations in the innermost of those, "loads" and "stores" among them: a GPU of 32 bits has to make each of
    several.
    """

    name: str
    parameters: tuple[Parameter, ...]
    threads: int
    shared: int
    local: int
    constants: dict[str, int]
    loads: Counter[int]
    calls: tuple[str, ...]
    instructions: int
    loops: int
    wide: Counter[str]


def read_ptx(text: str) -> Entry:
    """The only kernel of a PTX text. Raises ValueError if there is not exactly one."""
    text = re.sub(r"//.*", "", text)
    entries = ENTRY.findall(text)
    if len(entries) != 1:
        raise ValueError(f"expected one entry in the PTX, found {len(entries)}")
    name, parameters, directives, body = entries[0]
    bytes_of: dict[str, dict[str, int]] = {"shared": {}, "local": {}, "const": {}}
    for space, _, symbol, count in VARIABLE.findall(text):
        bytes_of[space][symbol] = int(count)
    bound = re.search(r"\.maxntid (\d+)", directives)
    return Entry(
        name=name,
        parameters=tuple(Parameter(symbol, type_) for type_, symbol in PARAMETER.findall(parameters)),
        threads=int(bound[1]) if bound else 0,
        shared=sum(bytes_of["shared"].values()),
        local=sum(bytes_of["local"].values()),
        constants=bytes_of["const"],
        loads=Counter(int(width or 1) * int(bits) // 8 for width, bits in LOAD.findall(body)),
        calls=tuple(re.findall(r"\bcall\.\w+\s+(?:\(.*?\),\s*)?(\w+)", body)),
        instructions=len(re.findall(r";$", body, re.M)),
        loops=len(loading_loops(body)),
        wide=sum((wide_operations(body[start:end]) for start, end in innermost(loading_loops(body))), Counter()),
    )


def loading_loops(body: str) -> list[tuple[int, int]]:
    """From places that are branched back to to the last branch, with loads of device memory between."""
    labels = {m[1]: m.end() for m in re.finditer(r"^(\$\w+):", body, re.M)}
    ends = {m[1]: m.start() for m in re.finditer(r"\bbra(?:\.uni)?\s+(\$\w+)", body)}
    loops = [(labels[name], end) for name, end in ends.items() if labels[name] < end]
    return [(start, end) for start, end in loops if LOAD.search(body, start, end)]


def innermost(loops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [
        one for one in loops if not any(one != other and one[0] <= other[0] and other[1] <= one[1] for other in loops)
    ]


def wide_operations(body: str) -> Counter[str]:
    """64-bit operations by their name, "loads", and "stores" (to threadgroup memory too)."""
    stores = ["stores"] * len(STORE.findall(body))
    return Counter([*WIDE.findall(body), *("loads" for _ in LOAD.findall(body)), *stores])
