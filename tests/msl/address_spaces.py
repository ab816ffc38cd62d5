"""Pointers and references that do not say where what they mean lies.

Before Metal 4.1 (macOS 27) `thread` goes without saying; from then on it has to be said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def without_address_space(text: str) -> Iterator[str]:
    """Pointers, references and member functions of a text that have none, as it spells them."""
    code = re.sub(r"^#.*$", "", without_comments(text), flags=re.M)
    code = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"\[\[.*?\]\]", "", code))
    while (inner := re.sub(r"(?<=\w)<[^<>;{}()=&|]*>", "", code)) != code:
        code = inner
    said = re.compile(r"\b(device|thread|threadgroup|constant)\b")
    for head, parameters in re.findall(r"(\w+)\s*\(((?:[^(){};]|\([&*]\w*\))*)\)[\s\w]*\{", code):
        if head not in ("if", "for", "while", "switch"):
            yield from (p.strip() for p in parameters.split(",") if re.search("[&*]", p) and not said.search(p))
    yield from (cast for cast in re.findall(r"\([^()]*\w\s*\*+\)", code) if not said.search(cast))
    for declaration in re.findall(r"^ *((?:const )?[A-Z_a-z]\w*(?: const)? ?[&*] ?\w+ ?[=;])", code, re.M):
        if not said.search(declaration) and not declaration.startswith("return "):  # which dereferences
            yield declaration
    for body in re.findall(r"^struct [^;{]*\{(.*?)^\};", code, re.M | re.S):
        for function in re.findall(r"^  (?! |static|template|enum|typedef|\})([^;{}]*\)[\s\w]*)\{", body, re.M):
            if not re.search(r"\)[\s\w]*\bthread\b", function) and not re.search(r"\bstatic\b", function):
                yield function.strip()
