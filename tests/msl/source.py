"""Reads Metal sources as text: what kernels there are, and what clang needs changed to compile them.

Lines keep their numbers, so that every diagnostic and finding names the line of the kernel's own file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Headers of Metal itself, all replaced by the shim.
METAL_HEADER = re.compile(r"<metal_\w+>")
INCLUDE = re.compile(r'\s*#\s*include\s*(<[^>]+>|"[^"]+")')
PRAGMA_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")

# template [[host_name("name")]] [[kernel]] decltype(f<A>) f<A>;   or   ... void f<A>(parameters);
INSTANCE = re.compile(
    r'template\s*\[\[\s*host_name\(\s*((?:"\w*"\s*)+)\)\s*\]\]\s*(?:\[\[\s*kernel\s*\]\]|kernel)\s*'
    r"(?:decltype\((.*?)\)\s*\2\s*;|void\s+(\w+\s*<[^()]*>)\s*\([^;]*\)\s*;)",
    re.S,
)
KERNEL = re.compile(r"(?:\[\[\s*kernel\b[^\[\]]*\]\]|\bkernel\b)\s*void\s+(\w+)\s*\(")
FUNCTION_CONSTANT = re.compile(r"\bconstant\s+([\w:]+)\s+(\w+)\s*\[\[\s*function_constant\(\s*(\d+)\s*\)\s*\]\]\s*;")
DEFINED_QUERY = re.compile(r"\bis_function_constant_defined\(\s*(\w+)\s*\)")
NO_VALUE = "msl_no_value_for_"
ARRAY_PARAMETER = re.compile(
    r"\b((?:constant|device|threadgroup)\s+(?:const\s+)?[\w:]+(?:\s+const)?)\s+(\w+)\[[^\]]*\](?=\s*[,)])"
)
ATTRIBUTE = re.compile(r"\[\[(?:[^\[\]]|\[[^\[\]]*\])*\]\]")
ALIGNMENT = r"(?:alignas\([^()]*\)\s*)?"  # every threadgroup variable is aligned to 128 bytes
DECLARATOR = r"\w+\s*(?:\[[^;=]*?\])*"
THREADGROUP_VARIABLE = re.compile(
    rf"(?<=[;{{}}\n])(\s*){ALIGNMENT}threadgroup\s+{ALIGNMENT}(\w[\w:]*(?:\s*<[^;{{}}]*?>)?)\s+"
    rf"({DECLARATOR}(?:\s*,\s*{DECLARATOR})*)\s*;"
)
VECTOR = r"(?:metal::)?\b((?:bool|char|uchar|short|ushort|int|uint|long|ulong|half|bfloat|float)[234])\b"
VECTOR_CONSTRUCTOR = re.compile(rf"(?:static_cast\s*<\s*{VECTOR}\s*>|{VECTOR})\s*\(")
GENERIC_CONSTRUCTOR = re.compile(r"(?:metal::)?\bvec\s*<\s*([\w:]+)\s*,\s*(\w+)\s*>\s*\(")
HALF_LITERAL = re.compile(r"(?<![\w.])(\d+\.\d*(?:[eE][+-]?\d+)?)(h|bf)\b")
VECTOR_CAST = re.compile(rf"(?<![\w>])\(\s*{VECTOR}\s*\)\s*[\w(]")


class SourceError(ValueError):
    """A source that Metal, or this emulation of it, does not take."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    ``kind`` is "buffer", "threadgroup" or "builtin"; ``index`` the number of a buffer or of threadgroup memory;
    ``builtin`` the attribute of a builtin; ``optional`` whether a function constant decides if the argument exists.
    """

    name: str
    declaration: str
    kind: str
    index: int = 0
    builtin: str = ""
    optional: bool = False

    @property
    def writable(self) -> bool:
        """Whether the kernel may write through it."""
        return self.kind == "buffer" and not re.search(r"\b(const|constant)\b", self.declaration)

    @property
    def reference(self) -> bool:
        return "&" in self.declaration


@dataclass(frozen=True)
class FunctionConstant:
    name: str
    type: str
    index: int
    queried: bool  # the source asks whether it is defined, so it may stay undefined


@dataclass
class Source:
    """A source with its includes in place, preprocessed, and what it declares.

    ``instances`` maps each name a host can launch to the C++ expression of the kernel.
    """

    text: str
    kernels: dict[str, list[Parameter]] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    constants: list[FunctionConstant] = field(default_factory=list)

    def parameters(self, name: str) -> list[Parameter]:
        """The parameters of the kernel that a host launches as ``name``."""
        if name not in self.instances:
            known = ", ".join(sorted(self.instances)[:20]) or "none"
            raise SourceError(f"no kernel '{name}'; found: {known}")
        function = function_of(self.instances[name])
        if function not in self.kernels:
            raise SourceError(f"kernel '{name}' instantiates '{function}', which is not in the source")
        return self.kernels[function]


def flatten(
    text: str,
    includes: Iterable[Path] = (),
    replaced_headers: Mapping[str, str] | None = None,
    filename: str = "kernel.metal",
) -> str:
    """The text with its includes in place.

    includes: directories in which ``#include`` looks, after the including file's own.
    replaced_headers: texts that stand in for headers, by the name in the ``#include``.
    """
    return Flattener([Path(i) for i in includes], dict(replaced_headers or {})).flatten(text, filename, None)


def parse(text: str) -> Source:
    """Finds what a flattened and preprocessed source declares."""
    source = Source(text)
    queried = set(DEFINED_QUERY.findall(text))
    for type_, name, index in FUNCTION_CONSTANT.findall(text):
        source.constants.append(FunctionConstant(name, type_, int(index), name in queried))
    source.instances.update(instances_of(text))
    templates = {function_of(expression) for expression in source.instances.values()}
    body = INSTANCE.sub("", text)
    for match in KERNEL.finditer(body):
        source.kernels[match[1]] = parse_parameters(match[1], body[match.end() : closing(body, match.end() - 1)])
        if match[1] not in templates and not re.search(r"template\s*<[^{};()]*>\s*$", body[: match.start()]):
            source.instances[match[1]] = match[1]
    return source


def instances_of(text: str) -> dict[str, str]:
    """Explicit instantiations, as `Source.instances` has them."""
    found = INSTANCE.findall(text)
    return {re.sub(r'["\s]', "", name): expression or function for name, expression, function in found}


def function_of(expression: str) -> str:
    """The name of the function in an expression such as `f<float, 3>`."""
    return expression.split("<")[0].strip().split("::")[-1]


@dataclass
class Flattener:
    """Puts includes in place, each once, with ``#line`` directives."""

    includes: list[Path]
    replaced: dict[str, str]
    seen: set[str] = field(default_factory=set)

    def flatten(self, text: str, filename: str, folder: Path | None) -> str:
        """The text of one file. ``folder`` is where it lies, if in a file at all."""
        lines = [f'#line 1 "{filename}"']
        for number, line in enumerate(text.split("\n"), start=1):
            include = INCLUDE.match(line)
            if include is None or METAL_HEADER.fullmatch(include[1]):
                lines.append("" if include or PRAGMA_ONCE.match(line) else line)
                continue
            inner = self.include(include[1][1:-1], folder, f"{filename}:{number}")
            lines.append(f'{inner}\n#line {number + 1} "{filename}"' if inner else "")
        return "\n".join(lines)

    def include(self, name: str, folder: Path | None, where: str) -> str:
        if name in self.replaced:
            if name in self.seen:
                return ""
            self.seen.add(name)
            return self.flatten(self.replaced[name], name, None)
        for directory in [folder, *self.includes] if folder else self.includes:
            path = (directory / name).resolve()
            if path.is_file():
                if str(path) in self.seen:
                    return ""
                self.seen.add(str(path))
                return self.flatten(path.read_text(), str(path), path.parent)
        raise SourceError(f"{where}: '{name}' is neither a header of Metal nor in {[str(i) for i in self.includes]}")


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at ``start`` closes."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    opening, close = text[start], pairs[text[start]]
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == close)
        if depth == 0:
            return i
    line = text.count("\n", 0, start) + 1
    raise SourceError(f"'{opening}' at line {line} of the flattened source never closes")


def split_arguments(text: str) -> list[str]:
    """Splits at the commas outside all brackets."""
    parts = [""]
    depth = 0
    for character in text:
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def parse_parameters(kernel: str, text: str) -> list[Parameter]:
    """A kernel's parameters, from the text between its parentheses."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    parameters: list[Parameter] = []
    next_buffer = 0
    for part in split_arguments(text):
        attributes = " , ".join(a[2:-2] for a in ATTRIBUTE.findall(part))
        declaration = " ".join(ATTRIBUTE.sub("", part).split())
        name = re.search(r"(\w+)$", declaration)
        if name is None:
            raise SourceError(f"kernel '{kernel}': cannot find the name in parameter '{declaration}'")
        optional = "function_constant" in attributes
        memory = re.search(r"\bthreadgroup\(\s*(\d+)\s*\)", attributes)
        buffer = re.search(r"\bbuffer\(\s*(\d+)\s*\)", attributes)
        if memory:
            parameters.append(Parameter(name[1], declaration, "threadgroup", int(memory[1])))
        elif re.search(r"\b(device|constant)\b", declaration):
            index = int(buffer[1]) if buffer else next_buffer
            next_buffer = index + 1
            parameters.append(Parameter(name[1], declaration, "buffer", index, optional=optional))
        else:
            parameters.append(Parameter(name[1], declaration, "builtin", builtin=attributes.strip()))
    return parameters


def rewrite(source: Source, constants: Mapping[int, object] | None = None) -> str:
    """The text that clang compiles, with the function constants' values in it.

    A constant without a value becomes a symbol that nothing defines, so a kernel that needs it does not load.
    Raises SourceError where the emulation would differ from Metal silently.
    """
    values = dict(constants or {})
    unknown = set(values) - {c.index for c in source.constants}
    if unknown:
        known = {c.index: c.name for c in source.constants}
        raise SourceError(f"function constants {sorted(unknown)} are not in the source, which has {known}")
    by_name = {constant.name: constant for constant in source.constants}

    def define(match: re.Match[str]) -> str:
        constant = by_name[match[2]]
        if constant.index not in values and not constant.queried:
            symbol = f"{NO_VALUE}{constant.index}_{constant.name}"
            return f'extern constant const {match[1]} {match[2]} __asm__("{symbol}");'
        return f"constexpr constant {match[1]} {match[2]} = {match[1]}({literal(values.get(constant.index, 0))});"

    text = INSTANCE.sub(lambda m: "\n" * m[0].count("\n"), source.text)
    text = FUNCTION_CONSTANT.sub(define, text)
    text = DEFINED_QUERY.sub(lambda m: "true" if m[1] in by_name and by_name[m[1]].index in values else "false", text)
    text = rewrite_threadgroup_variables(text)
    text = ARRAY_PARAMETER.sub(r"\1* \2", text)  # what the array decays to; clang allows it no address space
    text = KERNEL.sub(r"inline void \1(", text)
    text = ATTRIBUTE.sub(lambda m: "\n" * m[0].count("\n"), text)
    double = re.search(r"\bdouble\b", text)
    if double:
        raise SourceError(f"{place(text, double.start())}: Metal has no double")
    cast = VECTOR_CAST.search(text)
    if cast:
        raise SourceError(
            f"{place(text, cast.start())}: '({cast[1]})x' converts in Metal and reinterprets in clang, "
            f"write {cast[1]}(x)"
        )
    text = HALF_LITERAL.sub(lambda m: f"{'half' if m[2] == 'h' else 'bfloat'}({m[1]}f)", text)
    text = GENERIC_CONSTRUCTOR.sub(r"msl::make<metal::vec<\1, \2>>(", text)
    return VECTOR_CONSTRUCTOR.sub(lambda m: f"msl::make<metal::{m[1] or m[2]}>(", text)


def literal(value: object) -> str:
    """A function constant's value in C++."""
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else str(value)


def place(text: str, position: int) -> str:
    """file:line of a position in a flattened text."""
    line, filename = 0, "?"
    for row in text[: position + 1].split("\n"):
        directive = re.match(r'# (\d+) "(.*?)"', row)
        line += 1
        if directive:
            line, filename = int(directive[1]) - 1, directive[2]
    return f"{filename}:{line}"


def rewrite_threadgroup_variables(text: str) -> str:
    """Turns `threadgroup T x[N];` into a reference to memory that a threadgroup's threads share."""
    spans = [(m.start(), closing(text, text.index("{", closing(text, m.end() - 1)))) for m in KERNEL.finditer(text)]
    count = 0

    def declare(match: re.Match[str]) -> str:
        nonlocal count
        if not any(start < match.start(2) < end for start, end in spans):
            where = place(text, match.start(2))
            raise SourceError(f"{where}: threadgroup variable '{match[3]}' is outside a kernel, which Metal rejects")
        lines = []
        for declarator in split_arguments(match[3]):
            name, dimensions = re.match(r"(\w+)\s*(.*)", declarator, re.S).groups()  # type: ignore[union-attr]
            count += 1
            lines.append(
                f"using {name}_memory = {match[2]}{dimensions}; threadgroup {name}_memory& {name} = "
                f'msl::threadgroup_memory<{name}_memory, {count}>("{name}");'
            )
        return match[1] + " ".join(lines) + "\n" * match[3].count("\n")

    return THREADGROUP_VARIABLE.sub(declare, text)
