"""What the documents say and the code can tell: tables that are computed, variables that are read, names that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench import requirements
from typer.main import get_command

import mlx_delta
from mlx_delta import ops
from mlx_delta.cli.main import app
from support import ROOT, TINY

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def read(file: Path | str) -> str:
    return Path(file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("table", "document"),
    [
        ("memory_by_recipe", "README.md"),
        ("speeds", "README.md"),
        ("parts", "docs/memory.md"),
        ("caches", "docs/memory.md"),
    ],
)
def test_computed_tables_are_what_the_configs_give(table: str, document: str) -> None:
    assert "\n".join(getattr(requirements, table)()) in (ROOT / document).read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference() -> None:
    """An op by the line that exports it: docs/hooks/pages.py."""
    exported = re.findall(r"^from mlx_delta\.ops\.(\w+) import \1, \1_reference$", read(ops.__file__), re.MULTILINE)
    assert "<!-- every op of mlx_delta.ops -->" in read(ROOT / "docs" / "reference" / "ops.md")
    for module, page in ((mlx_delta, "python.md"), (ops, "ops.md")):
        shown = re.findall(r"^::: ([\w.]+)$", read(ROOT / "docs" / "reference" / page), re.MULTILINE)
        names = {name for name in module.__all__ if not name.endswith("_reference") and name not in ("errors", "ops")}
        missing = names - {name.rsplit(".", 1)[1] for name in shown} - (set(exported) if module is ops else set())
        assert not missing, f"docs/reference/{page}: expected {missing}"


def test_every_environment_variable_is_documented() -> None:
    sources = [
        file
        for folder in ("python", "csrc", "bench", "cross", "tests")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".cpp", ".h", "") and file.is_file()
    ]
    read = re.compile(r"""(?:getenv\(|environ\.get\(|environ\[)["']([A-Z][A-Z0-9_]+)["']""")
    found = {name for file in sources for name in read.findall(file.read_text(encoding="utf-8", errors="replace"))}
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)", (ROOT / "docs" / "environment.md").read_text()))
    internal = {"MACOS_STUBS", "ZIG", "LD64_LLD", "PATH"}  # set by cross/macos/build.py for its tools; the shell's
    assert found >= {"MLX_DELTA_ISA", "MLX_DELTA_THREADS"}
    assert found - internal <= documented


def test_every_option_of_serve_is_in_its_guide() -> None:
    guide = read(ROOT / "docs" / "serving.md")
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    found = [[name for name in each.opts if name.startswith("--")] for each in command.params]
    options = [names for names in found if names != ["--debug"]]  # which all commands have
    assert ["--port"] in options
    missing = [names for names in options if not any(f"`{name}" in guide or f" {name} " in guide for name in names)]
    assert not missing, f"docs/serving.md: expected {missing}"


@pytest.mark.parametrize("document", ["README.md", "docs/chat.md"])
def test_python_blocks_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, each with what those before it named; the model that they load is the tiny one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3.5-9b-4bit").symlink_to(TINY)
    blocks = re.findall(r"^```python\n(.*?)^```", read(ROOT / document), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, document, "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", document.read_text(encoding="utf-8")):
        made = target.endswith("reference/cli.md")  # by the build
        if not re.match(r"[a-z]+:", target) and not made:
            assert (document.parent / target).exists(), f"{document.name}: expected a file, found a link to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_paths_in_the_text_exist(document: Path) -> None:
    """`csrc/ops/common.h`, `tests/ops/test_cases.py::test_x`, or `conversion/awq.py` for a file of the package;
    `chat/test_calls.py` for a test of it."""
    for name in re.findall(r"`([\w.]+/[\w./*-]+)(?:::\w+)?`", document.read_text(encoding="utf-8")):
        bases = (ROOT, ROOT / "python" / "mlx_delta", ROOT / "tests" / "unit")
        roots = [base for base in bases if (base / name.split("/")[0]).is_dir()]
        if roots and not name.startswith("dist/"):
            assert any(list(root.glob(name)) for root in roots), f"{document.name}: expected a file, found {name}"


def test_the_tree_of_architecture_is_there() -> None:
    tree = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## The tree")[1].split("Dependencies")[0]
    named = 0
    for line in tree.splitlines():
        root = ROOT / "python" / "mlx_delta" if line.startswith("      ") else ROOT
        for name in line[4:37].split():  # the left column
            named += 1
            assert list(root.glob(re.sub(r"<op>|\{.*\}", "*", name))), f"ARCHITECTURE.md: expected {name} in {root}"
    assert named > 25


def test_the_arrows_of_architecture_are_the_contract() -> None:
    contract = re.search(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert contract is not None
    arrows = " -> ".join(re.findall(r'"(\w+)"', contract[1]))
    assert f"`{arrows}`" in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
