"""No module of the package imports itself by a detour, not even for types, and none is as long as a chapter."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

from support import ROOT


def test_no_circle_of_modules() -> None:
    """import-linter's layers are packages; a circle of modules inside one of them would pass it."""
    graph = grimp.build_graph("mlx_delta", exclude_type_checking_imports=False, cache_dir=None)
    # The root is the facade: it names what is imported on first use, and everything below it imports its package.
    imports = {
        module: graph.find_modules_directly_imported_by(module) - {"mlx_delta"}
        for module in graph.modules
        if module != "mlx_delta"
    }
    assert len(imports) > 100
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_file_over_400_lines() -> None:
    for file in [*(ROOT / "python").rglob("*.py"), *(ROOT / "bench").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        count = len(file.read_text(encoding="utf-8").splitlines())
        assert count <= 400, f"{file.relative_to(ROOT)}: expected at most 400 lines, found {count}"
