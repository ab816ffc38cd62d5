"""``mlx-delta chat``: through pipes, and at a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import ENVIRONMENT, MLX_DELTA, call, run
from support.terminal import Terminal

TOOLS = '''
def search(query: str) -> str:
    """Search the web.

    Args:
        query: Query
    """
    return f"3 pages about {query}"
'''


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOLS)
    return tmp_path / "tools.py"


def test_a_question_through_a_pipe(tiny: Path) -> None:
    done = run("chat", "-m", tiny, "-t", "0", stdin="Count to 7.\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 2 3 4 5 6 7\n", "")


def test_tools_through_a_pipe(tiny: Path, tools: Path) -> None:
    asked = ["chat", "-m", tiny, "-t", "0", "--tools", tools]
    shy = call(*asked, stdin="Search for velvet cloud.")
    assert 'tool call: search(query="' in shy.stderr
    assert "result of search: The user declined this call." in shy.stderr
    assert "not run without --yes: search" in shy.stderr
    bold = call(*asked, "--yes", stdin="Search for velvet cloud.")
    assert "result of search: 3 pages about " in bold.stderr
    for done in (shy, bold):
        assert done.returncode == 0
        assert "<tool_call>" not in done.stdout
        assert done.stdout.strip()


def test_a_schema_through_a_pipe(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["velvet", "cloud"]}')
    done = call("chat", "-m", tiny, "-t", "0", "--json-schema", tmp_path / "schema.json", stdin="Hello")
    assert json.loads(done.stdout) in ("velvet", "cloud")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["-m", "nowhere"], "hi", "error: nowhere: expected a model directory, found nothing"),
        (["-m", "nowhere"], "", "error: nowhere: expected a model directory, found nothing"),
        (["-m", "TINY"], "  \n", "error: standard input: expected a question, found nothing"),
        (["-m", "TINY", "-t", "-1"], "hi", "error: --temperature: expected >= 0, found -1"),
        (["-m", "TINY", "--preset", "wild"], "hi", "error: --preset: expected one of auto, thinking"),
        (["-m", "TINY", "--tools", "nowhere.py"], "hi", "error: nowhere.py: expected a Python file, found nothing"),
        (["-m", "TINY", "--json-schema", "nowhere"], "hi", "nowhere"),
    ],
)
def test_wrong_arguments(tiny: Path, arguments: list[str], stdin: str, message: str) -> None:
    done = call("chat", *[str(tiny) if a == "TINY" else a for a in arguments], stdin=stdin)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.fixture
def terminal(tiny: Path, tmp_path: Path) -> Iterator[Terminal]:
    command = [*MLX_DELTA, "chat", "-m", str(tiny), "-n", "100000", "--no-think", "--seed", "1"]
    environment = {**ENVIRONMENT, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state")}
    started = Terminal([*command, "-t", "9", "--top-k", "0", "--top-p", "1"], environment)  # babbles, does not end
    yield started
    started.close()


def test_at_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for("> ")
    terminal.type("Count to 7.\r")
    terminal.wait_for("Count to 7.")
    time.sleep(1.5)
    terminal.type("\x03")
    terminal.wait_for("interrupted]")
    terminal.wait_for("> ")
    terminal.type("half a line")
    terminal.wait_for("half a line")
    time.sleep(0.2)
    terminal.type("\x03")
    terminal.wait_for("Ctrl-D or /exit leaves")
    terminal.wait_for("> ")
    terminal.type("/st\t\r")
    terminal.wait_for("generated")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=20) == 0
    history = (tmp_path / "state" / "mlx-delta" / "chat_history").read_text()
    assert "Count to 7." in history
    assert "half a line" not in history


def test_a_paste_does_not_answer_questions(tiny: Path, tools: Path, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state")}
    terminal = Terminal([*MLX_DELTA, "chat", "-m", str(tiny), "--tools", str(tools), "-t", "0"], environment)
    try:
        terminal.wait_for("> ")
        terminal.type("Search for velvet cloud.\ry\ry\rwhat else?\r")
        terminal.wait_for("search(query=")
        terminal.type("yes\r")  # still part of it: the question is not there yet
        terminal.wait_for("run search? [y]es, [n]o, [a]lways: ")
        time.sleep(0.5)
        terminal.type("n\r")
        terminal.wait_for("declined this call")
        assert "3 pages" not in terminal.seen
    finally:
        terminal.close()
