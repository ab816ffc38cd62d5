"""Every error raised on purpose is a MlxDeltaError; the library's are defined in one place and speak of arguments."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_delta import errors
from mlx_delta.errors import ArgumentError, MlxDeltaError
from support import ROOT

PACKAGE = ROOT / "python" / "mlx_delta"
FILES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = [file for file in FILES if "cli" not in file.relative_to(PACKAGE).parts]
KINDS = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
VAGUE = {"Exception", "RuntimeError", "ValueError"}
# Where a ValueError is no report to a caller: the same file catches it, or only a bug of ours can raise it.
INTERNAL = {"chat/calls.py", "chat/functions.py", "chat/tools.py", "engine/prefix.py", "json_files.py"}


def raised(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            yield node.exc


def test_every_kind_is_a_value_error_of_ours() -> None:
    assert len(KINDS) > 8
    for kind in KINDS.values():
        assert issubclass(kind, MlxDeltaError)
        assert issubclass(kind, ValueError)
        assert kind.__doc__


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_raises_a_vague_kind(file: Path) -> None:
    """A command would tell of it as a bug, with a traceback."""
    if file.relative_to(PACKAGE).as_posix() in INTERNAL:
        return
    for call in raised(file):
        assert isinstance(call.func, ast.Name)
        assert call.func.id not in VAGUE, f"line {call.lineno}: raises {call.func.id}"


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_library_speaks_of_arguments_not_of_flags(file: Path) -> None:
    for call in raised(file):
        words = [
            node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not any("--" in word for word in words), f"line {call.lineno}: {words}"


def test_exceptions_are_defined_in_one_place() -> None:
    for file in LIBRARY:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and file != PACKAGE / "errors.py" and not node.name.startswith("_"):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not any(base in KINDS or base.endswith(("Error", "Exception")) for base in bases), node.name


def test_an_argument_error_knows_its_argument() -> None:
    assert ArgumentError("messages[3].role: expected a role, found None").argument == "messages[3].role"
