"""Every script of examples/ runs on the tiny checkpoint, its default, and prints what it says it does."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from support import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as Python does with a script's folder
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.fixture
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the script of the test's name printed: test_chat, chat.py."""
    return run(f"{request.node.name.removeprefix('test_')}.py", [], monkeypatch, capsys)


def test_chat(out: str) -> None:
    assert re.search(r"\w.*\n\[\d+ tokens, \d+ tok/s, stop\]\n$", out)


def test_streaming(out: str) -> None:
    turns = re.findall(r"\((\d+) of (\d+) prompt tokens were known\)", out)
    known = [int(count) for count, _ in turns]
    assert len(turns) == 3
    assert known[0] == 0
    assert 0 < known[1] < known[2]


def test_tool_loop(out: str) -> None:
    call = re.search(r'^add\(\{"a": (\d+), "b": (\d+)\}\) = (\d+)$', out, re.MULTILINE)
    assert call is not None
    assert int(call[1]) + int(call[2]) == int(call[3])
    assert out.rstrip().splitlines()[-1] != call[0]  # the model's own words come after it


def test_batch(out: str) -> None:
    answers = re.split(r"^> .*\n", out, flags=re.MULTILINE)[1:]
    assert len(answers) == 3
    assert all(answer.strip() for answer in answers)


def test_structured_output(out: str) -> None:
    assert set(json.loads(out)) == {"name", "age", "mood"}


def test_forward(out: str) -> None:
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["'Hello, I am'", "'Hello, I am Ada'", "'Hello, I am Bob'"]
    assert all(0 <= float(p) <= 1 for line in lines for p in re.findall(r"(?<=' )\d\.\d\d", line))


def test_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("conversion.py", ["--output", str(tmp_path / "converted")], monkeypatch, capsys)
    size = (tmp_path / "converted" / "model.safetensors").stat().st_size
    assert out.startswith(f"{size:,} bytes to write")
    assert re.search(r"^tiny: \S.*\nconverted: \S", out, re.MULTILINE)


def test_none_is_forgotten() -> None:
    scripts = {file.stem for file in EXAMPLES.glob("*.py")} - {"tools"}  # a file of functions, which tool_loop uses
    assert scripts == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "none_is_forgotten"
    }
