"""Progress: bars at a terminal, lines elsewhere, nothing for what fails or is over at once."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlx_delta import progress
from mlx_delta.cli.main import app
from mlx_delta.loading import load_model
from mlx_delta.progress import Bars, megabytes, of
from support import GOLDEN, TINY


def test_a_line_now_and_then_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Bars() as bars:
        first, second = bars.task("measuring", of("matrices")), bars.task("downloading", megabytes)
        for step in range(1, 41):
            now += 1
            first(step, 40)
            second(step * 1_000_000, 40_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8  # of both together, one in five seconds
    assert lines[0] == "measuring: 5/40 matrices, 12 %"
    capsys.readouterr()


def test_nothing_of_what_is_over_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.task("measuring", of("matrices"))(40, 40)
    with pytest.raises(KeyError), Bars() as bars:
        raise KeyError
    assert capsys.readouterr().err == ""


def test_bars_at_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyError), Bars() as bars:
        raise KeyError
    assert capsys.readouterr().err == ""  # no empty line before an error
    with Bars() as bars:
        show = bars.task("measuring", of("matrices"))
        show(1, 40)
        show(2, 40)
    assert "measuring" in capsys.readouterr().err


def test_a_conversion_is_not_silent_when_piped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    arguments = ["convert", "-i", TINY, "-o", tmp_path / "out", "-q", "--calibrate", GOLDEN / "heldout.txt"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--context", "64", "--max-chunks", "2"])
    assert done.exit_code == 0, done.output
    assert "calibrating: 1/64 chunks of a layer, 2 %\n" in done.stderr
    assert "converting: " in done.stderr
    assert "converting" not in done.stdout


def test_a_long_run_is_not_silent_when_piped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    arguments = ["imatrix", "-m", TINY, "-t", GOLDEN / "heldout.txt", "--context", "64", "--max-chunks", "2"]
    done = CliRunner().invoke(app, [*map(str, arguments), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "measuring: 1/2 chunks of 64 tokens, 50 %\n" in done.stderr


def test_long_prompts_are_not_silent_when_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    text = (GOLDEN / "heldout.txt").read_text(encoding="utf-8")[:8000]
    for command in (["generate", "-p", "-"], ["chat"]):
        done = CliRunner().invoke(app, [*command, "-m", str(TINY), "-n", "1"], input=text)
        assert done.exit_code == 0, done.output
        assert re.match(r"reading the prompt: 5\d\d/[\d,]+ tokens, \d+ %\n", done.stderr)


def test_progress_of_a_prompt_counts_what_is_computed() -> None:
    model = load_model(TINY)
    question = [{"role": "user", "content": "word " * 1500}]
    steps: list[tuple[int, int]] = []
    session = model.session()
    usage = session.chat(question, max_new_tokens=1, prompt_progress=lambda *step: steps.append(step)).usage
    assert len(steps) >= 2
    assert steps == sorted(steps)
    assert {total for _, total in steps} == {usage.prefilled_tokens}
    steps.clear()
    session.chat(question, max_new_tokens=1, prompt_progress=lambda *step: steps.append(step))
    assert steps == []  # it is known from before
    model.chat_batch([question, question], max_new_tokens=1, prompt_progress=lambda *step: steps.append(step))
    assert [done for done, _ in steps] == [512 * i for i in range(1, len(steps) // 2 + 1)] * 2  # one after the other
