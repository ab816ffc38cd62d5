"""griffe extension: our docstrings as Markdown.

They name arguments where they speak of them, a line each ("seed: makes a run repeatable"), often several at once
("q, k: [B, T, Hk, Dk]"), in an Args section or without one; that becomes a list. Types are in the signature. A literal
block's "::" goes, its indented text is one in Markdown too. A TypedDict of options becomes a list of what its Docs say.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe

_NAMES = re.compile(r"^(\*{0,2}\w+(?:(?:, | \.\. )\*{0,2}\w+)*): +(?=\S)")
_SECTION = re.compile(r"^(Raises|Returns|Source|Dims): +")


class HouseStyle(griffe.Extension):
    """Rewrites every docstring of the package."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _rewrite(pkg)


def _rewrite(obj: griffe.Object | griffe.Alias) -> None:
    if obj.is_alias:
        return
    if obj.docstring is not None:
        names = set(obj.members) if not obj.is_function else {parameter.name for parameter in obj.parameters}
        if obj.is_class and "__init__" in obj.members:
            names |= {parameter.name for parameter in obj.members["__init__"].parameters}
        obj.docstring.value = markdown(obj.docstring.value, names)
        if obj.is_class and (options := list(documented_options(obj))):
            obj.docstring.value += "\n\n" + "\n".join(options)
    for member in obj.members.values():
        _rewrite(member)


def documented_options(form: griffe.Object) -> Iterator[str]:
    """An item for each ``name: Annotated[type, Doc("text")]`` of a class, after those of its bases in the module."""
    for base in form.bases:
        above = form.module.members.get(str(base))
        if above is not None and not above.is_alias:
            yield from documented_options(above)
    for name, member in form.members.items():
        text = str(member.annotation) if member.is_attribute else ""
        match = re.fullmatch(r"Annotated\[(.*), Doc\((.*)\)\]", text, re.DOTALL)
        if match:
            yield f"- `{name}`: {' '.join(ast.literal_eval(f'({match[2]})').split())} (`{match[1]}`)"


def markdown(docstring: str, names: set[str]) -> str:
    """``docstring`` with the lines that begin with one of ``names`` as a list, and Raises and Returns set apart."""
    lines: list[str] = []
    item = arguments = False
    for line in inspect.cleandoc(docstring).splitlines():
        if line == "Args:":
            arguments = True
            continue
        indented = line.startswith("    ")
        arguments = arguments and (indented or not line)
        text = line[4:] if arguments else line
        match, section = _NAMES.match(text), _SECTION.match(text)
        if section:
            lines += ["", f"**{section[1]}**: {text[section.end() :]}"]
            item = False
        elif match and (arguments or names & set(re.findall(r"\w+", match[1]))):
            lines += [] if item else [""]
            lines.append(f"- `{match[1]}`: {text[match.end() :]}")
            item = True
        elif text.strip() != "::":
            item = item and bool(text.strip())
            lines.append(f"  {text}" if item else re.sub(r"(?<=\S)::$", ":", text))
    return "\n".join(lines)
