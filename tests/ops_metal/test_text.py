"""What holds for the text of every kernel, whatever it computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

FILES = sorted(path for path in (ROOT / "metal").iterdir() if path.suffix in (".h", ".metal"))
TWO_PRECISIONS = r"exp|exp2|exp10|log|log2|log10|sin|cos|tan|sinh|cosh|tanh|asin|acos|atan|atan2|pow|powr|sqrt|rsqrt"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_functions_of_two_precisions_are_called_by_their_full_name(path: Path) -> None:
    """A bare exp() is the precise one on macOS 14 and the fast one from 15 on."""
    assert re.findall(rf"(?<!precise::)(?<!fast::)\b(?:{TWO_PRECISIONS})\(", without_comments(path.read_text())) == []


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def without_address_space(text: str) -> Iterator[str]:
    """Pointers, references and member functions that do not say where what they mean lies.

    Before Metal 4.1 (macOS 27) `thread` goes without saying; from then on it has to be said.
    """
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
        if not said.search(declaration):
            yield declaration
    for body in re.findall(r"^struct [^;{]*\{(.*?)^\};", code, re.M | re.S):
        for function in re.findall(r"^  (?! |static|template|enum|typedef|\})([^;{}]*\)[\s\w]*)\{", body, re.M):
            if not re.search(r"\)[\s\w]*\bthread\b", function) and not re.search(r"\bstatic\b", function):
                yield function.strip()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_pointer_says_its_address_space(path: Path) -> None:
    assert list(without_address_space(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "inline void f(float& x) {\n}",
        "inline void f(device float* x, const Row& row) {\n}",
        "inline void f(float (&x)[4], int n) {\n}",
        "inline void f(thread float& x) {\n  const float* p = &x;\n}",
        "inline void f(device float* x) {\n  f((int*)x);\n}",
        "struct S {\n  int n;\n\n  int twice() const {\n    return 2 * n;\n  }\n};",
    ],
)
def test_one_that_does_not_is_found(text: str) -> None:
    assert len(list(without_address_space(text))) == 1
