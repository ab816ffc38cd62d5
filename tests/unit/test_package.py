"""The wheel: one abi3 file for every Python from 3.10 on, and the facts that pyproject.toml has to state twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from support import ROOT

USE_IT = """
import sys
import mlx.core as mx
from mlx_delta import ops, load_model
from mlx_delta.bench.cases import CASES
from mlx_delta.bench.checks import check
from mlx_delta.example import example_checkpoint

x, w = mx.random.normal((3, 64)), mx.random.normal((8, 64))
y = ops.qmm(x, [w])
assert isinstance(y, mx.array) and mx.allclose(y, x @ w.T, atol=1e-4), y
check(CASES[0], CASES[0].arguments(mx.bfloat16))
prompt = "<|im_start|>user\\nCount to 7.<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n"
assert load_model(example_checkpoint()).generate(prompt, temperature=0).text() == "1 2 3 4 5 6 7"
print(f"{sys.version_info[0]}.{sys.version_info[1]}")
"""


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
    return done.stdout


def version_of(python: Path) -> tuple[int, int] | None:
    """(3, 12) of a working interpreter, else None (a launcher that finds no such version, say)."""
    code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return None
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None


def other_pythons() -> dict[tuple[int, int], Path]:
    """Interpreters here of another version than this one, 3.10 to 3.13, by version."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders += Path.home().glob(".pyenv/versions/*/bin")
    found = {}
    for folder in folders:
        for python in folder.glob("python3.1[0-3]"):
            version = version_of(python)
            if version and version != sys.version_info[:2]:
                found.setdefault(version, python)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ROOT)
    (file,) = out.glob("*.whl")
    return file


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"mlx_delta-[0-9.]+-cp310-abi3-\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert "mlx_delta/_core.abi3.so" in names
    assert "mlx_delta/examples/tiny/config.json" in names
    assert "mlx_delta/py.typed" in names
    assert not [name for name in names if name.endswith((".cpp", ".h")) or "golden" in name]


def test_the_extension_uses_only_the_stable_abi(wheel: Path) -> None:
    report = json.loads(run(Path(sys.executable).parent / "abi3audit", "--strict", "--report", wheel))
    (audited,) = next(iter(report["specs"].values()))["wheel"]
    assert audited["result"]["is_abi3"]
    assert audited["result"]["is_abi3_baseline_compatible"]
    assert audited["result"]["baseline"] == "3.10"


def test_the_wheel_runs_on_a_second_python(wheel: Path, tmp_path: Path) -> None:
    others = other_pythons()
    if not others:
        pytest.skip("no second Python from 3.10 to 3.13 on this machine")
    version, python = max(others.items())
    run(python, "-m", "venv", tmp_path / "venv")
    inside = tmp_path / "venv" / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", "--no-compile", wheel)
    assert run(inside, "-c", USE_IT).strip() == f"{version[0]}.{version[1]}"


def test_build_requirements_are_stated_alike() -> None:
    """The group that `make` installs, and what `pip install .` builds with: the same pins."""
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = \[(.*?)\]$", text, re.M | re.S)
    group = re.search(r"^build = \[\n(.*?)^\]", text, re.M | re.S)
    assert requires is not None
    assert group is not None
    items = [set(re.findall(r'"([^"]+)"', found[1])) for found in (requires, group)]
    assert items[0] <= items[1]
    assert all("==0.32.4" in item for item in items[0] if item.startswith("mlx"))


def test_all_tests_can_be_collected_at_once() -> None:
    """As ``make test`` does; pytest takes two files of one name outside of packages for one module."""
    files = (file for file in (ROOT / "tests").rglob("test_*.py") if not (file.parent / "__init__.py").exists())
    assert [name for name, count in Counter(file.name for file in files).items() if count > 1] == []
