"""What ``import mlx_delta`` offers: each name is what it says, typed, whatever was imported before it."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mlx_delta
from support import ROOT

PACKAGE = ROOT / "python" / "mlx_delta"
NAMES = sorted(mlx_delta.__all__)
SHOW = """
import json, types
found = {{}}
for name in mlx_delta.__all__:
    value = {value}
    module = isinstance(value, types.ModuleType)
    found[name] = value.__name__ if module else f"{{value.__module__}}.{{value.__qualname__}}"
print(json.dumps(found))
"""
EVERYTHING = """
import importlib, mlx_delta, pkgutil
for module in pkgutil.walk_packages(mlx_delta.__path__, "mlx_delta."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(map(str, path))
    environment = {**os.environ, "PYTHONPATH": search} if path else None
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def stated() -> dict[str, str]:
    """Name -> where the stub says it is."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    parts = [(node.module, alias) for node in imports for alias in node.names]
    assert all(alias.name == alias.asname for _, alias in parts)  # re-exported, as type checkers want it said
    return {alias.name: ".".join(filter(None, ("mlx_delta", module, alias.name))) for module, alias in parts}


@pytest.mark.parametrize("before", ["import mlx_delta", EVERYTHING], ids=["first", "after all modules"])
@pytest.mark.parametrize(
    "value", ["getattr(mlx_delta, name)", "__import__('mlx_delta', fromlist=[name]).__dict__[name]"]
)
def test_each_name_is_what_the_stub_says(before: str, value: str) -> None:
    done = run(before + SHOW.format(value=value))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == stated()


def test_no_function_shares_its_name_with_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(mlx_delta.__path__)}
    assert {name for name in NAMES if isinstance(getattr(mlx_delta, name), types.ModuleType)} == {"errors", "ops"}
    assert set(NAMES) & modules == {"errors", "ops"}


def test_what_a_user_sees() -> None:
    assert dir(mlx_delta) == sorted([*mlx_delta.__all__, "__version__"])
    assert mlx_delta.__version__ == importlib.metadata.version("mlx-delta")
    assert all(inspect.getdoc(getattr(mlx_delta, name)) for name in NAMES)
    with pytest.raises(AttributeError, match="nothing"):
        mlx_delta.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_all_that_the_documents_name_is_there() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py")]
    texts = [file.read_text(encoding="utf-8") for file in documents]
    named = {name for text in texts for name in re.findall(r"\bmlx_delta\.(\w+)", text)}
    modules = {module.name for module in pkgutil.iter_modules(mlx_delta.__path__)}
    assert len(named) > 5
    assert named - modules <= set(NAMES)


def test_functions_are_functions(tiny: Path, tmp_path: Path) -> None:
    """Called as they are imported, after modules of the same subject."""
    import mlx_delta.conversion.pipeline
    import mlx_delta.evaluation
    import mlx_delta.loading
    from mlx_delta import convert, create_tool_definition, evaluate, function_tool, load_model

    report = convert(tiny, tmp_path / "out", dry_run=True)
    assert isinstance(report, mlx_delta.ConvertReport)
    model = load_model(tiny, "float32")
    assert isinstance(model, mlx_delta.LanguageModel)
    (figures,) = evaluate([model], model, "one two three four")
    assert isinstance(figures, mlx_delta.Evaluation)
    assert figures.kld_mean == 0
    assert function_tool(create)["function"]["name"] == "create"
    assert create_tool_definition("x", "y", {})["function"]["name"] == "x"
    settings = mlx_delta.ChatSettings(temperature=0, max_new_tokens=2, enable_thinking=False)
    (result,) = model.chat_batch([[{"role": "user", "content": "Count to 7."}]], settings)
    assert isinstance(result, mlx_delta.ChatResult)
    assert isinstance(model.session(), mlx_delta.Session)
    assert isinstance(model.make_cache(), mlx_delta.Cache)
    assert isinstance(model.generate("x"), mlx_delta.Generation)


def create() -> None:
    """Do nothing."""


def test_import_is_light() -> None:
    done = run(
        "import sys, mlx_delta; print([m for m in ('mlx', 'numpy', 'pydantic', 'tokenizers') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]"


def test_another_mlx_is_named(tmp_path: Path) -> None:
    """Before the extension is loaded, which would tell of an undefined symbol; in Python and on the command line."""
    (tmp_path / "mlx-0.99.1.dist-info").mkdir()
    (tmp_path / "mlx-0.99.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx\nVersion: 0.99.1\n")
    message = r"mlx-delta needs mlx [\d.]+, found 0\.99\.1: pip install 'mlx(\[cpu\])?==[\d.]+' mends it"
    for code in ("import mlx_delta.ops", "import mlx_delta; mlx_delta.load_model('x')"):
        done = run(code, tmp_path)
        assert re.search(rf"VersionError: {message}", done.stderr), done.stderr
    command = "import sys; sys.argv[1:] = ['info', '--system']; from mlx_delta.cli.main import run; run()"
    done = run(command, tmp_path)
    assert re.fullmatch(rf"error: {message}", done.stderr.strip()), done.stderr
    assert done.returncode == 1
