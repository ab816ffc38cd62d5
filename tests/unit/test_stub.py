"""_core.pyi, by which mypy and editors know the extension, is what ``make stub`` writes of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from support import ROOT


def declarations(text: str) -> set[str]:
    """However they are laid out, in whatever order."""
    return {ast.dump(statement) for statement in ast.parse(text).body}


def test_the_stub_is_that_of_the_extension(tmp_path: Path) -> None:
    fresh = tmp_path / "_core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "mlx_delta._core", "-o", str(fresh)]
    subprocess.run(command, check=True)
    written = (ROOT / "python" / "mlx_delta" / "_core.pyi").read_text()
    assert declarations(written) == declarations(fresh.read_text()), "make stub"
