"""``mlx-delta chat``: through pipes, at a terminal, with tools, commands, wrong input and Ctrl-C."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from mlx_delta import load_model
from mlx_delta.chat.functions import function_tool
from mlx_delta.chat.result import ChatEvent, ChatResult, Usage
from mlx_delta.chat.tools import ToolCall
from mlx_delta.cli.chat_terminal import HELP, ChatTerminal
from mlx_delta.cli.chat_turns import Conversation
from mlx_delta.cli.chat_view import MarkdownStream, TerminalView, finished_length
from mlx_delta.language_model import LanguageModel
from support.command_line import ENVIRONMENT, MLX_DELTA, run

TOOLS = '''
def search(query: str) -> str:
    """Search the web.

    Args:
        query: Query
    """
    return f"3 pages about {query}"
'''


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOLS)
    return tmp_path / "tools.py"


def test_a_question_through_a_pipe(tiny: Path) -> None:
    done = run("chat", "-m", tiny, "-t", "0", stdin="Count to 7.\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 2 3 4 5 6 7\n", "")


def test_tools_through_a_pipe(tiny: Path, tools: Path) -> None:
    asked = ["chat", "-m", tiny, "-t", "0", "--tools", tools]
    shy = run(*asked, stdin="Search for velvet cloud.")
    assert 'tool call: search(query="' in shy.stderr
    assert "result of search: The user declined this call." in shy.stderr
    assert "not run without --yes: search" in shy.stderr
    bold = run(*asked, "--yes", stdin="Search for velvet cloud.")
    assert "result of search: 3 pages about " in bold.stderr
    for done in (shy, bold):
        assert done.returncode == 0
        assert "<tool_call>" not in done.stdout
        assert done.stdout.strip()


def test_a_schema_through_a_pipe(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"enum": ["velvet", "cloud"]}')
    done = run("chat", "-m", tiny, "-t", "0", "--json-schema", tmp_path / "schema.json", stdin="Hello")
    assert json.loads(done.stdout) in ("velvet", "cloud")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["-m", "nowhere"], "hi", "error: nowhere: expected a model directory, found nothing"),
        (["-m", "TINY"], "  \n", "error: standard input: expected a question, found nothing"),
        (["-m", "TINY", "-t", "-1"], "hi", "error: --temperature: expected >= 0, found -1"),
        (["-m", "TINY", "--preset", "wild"], "hi", "error: --preset: expected one of auto, thinking"),
        (["-m", "TINY", "--tools", "nowhere.py"], "hi", "error: nowhere.py: expected a Python file, found nothing"),
        (["-m", "TINY", "--json-schema", "nowhere"], "hi", "nowhere"),
    ],
)
def test_wrong_arguments(tiny: Path, arguments: list[str], stdin: str, message: str) -> None:
    done = run("chat", *[str(tiny) if a == "TINY" else a for a in arguments], stdin=stdin)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


class Lines:
    """A keyboard: lines, and replies to questions; an exception among them is raised."""

    def __init__(self, *lines: str | BaseException | type[BaseException]) -> None:
        self._lines = iter(lines)

    def read(self, prompt: str) -> str:
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line

    def ask(self, prompt: str) -> str:
        assert "[y]es" in prompt
        return self.read(prompt)


def chat(model: LanguageModel, *lines: Any, **options: Any) -> tuple[Conversation, str]:
    """What a terminal without colours shows."""
    functions = options.pop("functions", {})
    asked = {"temperature": 0, "max_new_tokens": 60, "tools": [function_tool(f) for f in functions.values()] or None}
    conversation = Conversation(model, {**asked, **options}, functions)
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False)
    ChatTerminal(conversation, reader=Lines(*lines), console=console).run()
    return conversation, out.getvalue()


def search(query: str) -> str:
    """Search the web."""
    return f"3 pages about {query}"


def test_turns(model: LanguageModel) -> None:
    conversation, shown = chat(model, "Hello, I am Ada.", "", "Count to 7.", "/exit", "never read")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert conversation.messages[-1]["content"] in shown
    assert all(turn.cached_tokens > 0 for turn in conversation.session.turns[1:])
    assert re.search(r"\[\d+ tokens, \d+ tok/s\]", shown)


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        ("y", "3 pages about "),
        ("a", "3 pages about "),
        ("n", "declined"),
        ("", "declined"),
        (EOFError, "declined"),
        (KeyboardInterrupt, "interrupted"),
    ],
)
def test_tools_are_asked_about(model: LanguageModel, reply: Any, result: str) -> None:
    conversation, shown = chat(
        model, "Search for velvet cloud.", reply, functions={"search": search}, max_new_tokens=40
    )
    assert "▸ search(query=" in shown
    assert "I should call search." in shown
    assert "<" not in shown
    call, answer = conversation.messages[1:3]
    assert call["tool_calls"][0]["function"]["name"] == "search"
    assert answer["role"] == "tool"
    assert result in answer["content"]
    assert answer["content"] in shown
    assert len(conversation.messages) == (3 if reply is KeyboardInterrupt else 4)


def test_always_is_asked_once(model: LanguageModel) -> None:
    conversation, shown = chat(
        model, "Search for velvet cloud.", "a", "/reset", "Search for velvet cloud.", functions={"search": search}
    )
    tools = [message["content"] for message in conversation.messages if message["role"] == "tool"]
    assert len(tools) == 1
    assert tools[0].startswith("3 pages")
    assert shown.count("◂ 3 pages") == 2


def test_commands(model: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    conversation, shown = chat(
        model,
        "/help",
        "/system Be brief.",
        "/think off",
        "Count to 7.",
        f"/save {file}",
        "/stats",
        "/reset",
        "/system none",
        f"/load {file}",
        "Count to 7.",
    )
    assert all(command in shown for command in HELP)
    assert "system message: Be brief." in shown
    assert "thinking: off" in shown
    assert "2 messages written to" in shown
    assert "2 messages read from" in shown
    assert re.search(r"generated +13 tokens, 0 of them thoughts", shown)
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert conversation.all_messages[:3] == saved
    assert len(conversation.all_messages) == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "error: /nothing: expected one of /help, /reset, /system"),
        ("/save", "error: /save: expected a file, found nothing"),
        ("/save NOWHERE/deep/talk.json", "error: [Errno 2] No such file or directory"),
        ("/load NOWHERE", "error: [Errno 2] No such file or directory"),
        ("/load WRONG", "talk.json: expected a JSON array, found an object"),
        ("/think maybe", "error: /think: expected on, off or auto, found 'maybe'"),
    ],
)
def test_wrong_commands_end_nothing(model: LanguageModel, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "talk.json").write_text('{"role": "user"}')
    line = line.replace("NOWHERE", str(tmp_path / "nowhere")).replace("WRONG", str(tmp_path / "talk.json"))
    conversation, shown = chat(model, line, "/think off", "Count to 7.")
    assert message in shown.replace("\n", "")
    assert conversation.messages[-1]["content"] == "1 2 3 4 5 6 7"
    assert len(list(tmp_path.iterdir())) == 1


class InterruptingView(TerminalView):
    """Sends Ctrl-C once so much has been shown."""

    after = 0

    def show(self, event: ChatEvent) -> None:
        super().show(event)
        type(self).after -= 1
        if type(self).after == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("after", [1, 5])
@pytest.mark.parametrize("think", ["on", "off"])
def test_ctrl_c_ends_the_answer_alone(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, after: int, think: str
) -> None:
    monkeypatch.setattr(InterruptingView, "after", after)
    monkeypatch.setattr("mlx_delta.cli.chat_terminal.TerminalView", InterruptingView)
    conversation, shown = chat(model, f"/think {think}", "Count to 7.", KeyboardInterrupt, "/think off", "Count to 7.")
    assert "interrupted" in shown
    assert "Ctrl-D or /exit leaves" in shown
    kept = conversation.messages[:-2]
    if kept:
        assert "1 2 3 4 5 6 7".startswith(kept[1]["content"].strip())
        assert len(kept) == 2
    else:
        assert "the question is taken back" in shown
    assert bool(kept) == (think == "off" or after == 5)
    assert conversation.messages[-1]["content"].endswith("6 7")


class FailingView(TerminalView):
    """Fails, or gets a second Ctrl-C, while the end of the answer is shown."""

    errors: ClassVar[list[BaseException]] = []

    def end(self, result: ChatResult) -> None:
        if self.errors:
            raise self.errors.pop()
        super().end(result)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken"), OSError("gone")])
def test_the_screen_is_left_in_order(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(FailingView, "errors", [error])
    monkeypatch.setattr("mlx_delta.cli.chat_terminal.TerminalView", FailingView)
    conversation, shown = chat(model, "/think off", "Count to 7.", "/reset", "Count to 7.")
    assert ("interrupted" if isinstance(error, KeyboardInterrupt) else f"error: {error}") in shown
    assert shown.count("1 2 3 4 5 6 7") == 1  # rich refuses a second live display, had the first been left
    assert len(conversation.messages) == 2


def test_errors_take_the_question_back(model: LanguageModel) -> None:
    conversation, shown = chat(model, "Count to 7.", top_p=3.0)
    assert "error: top_p: expected > 0 and <= 1, found 3.0" in shown
    assert conversation.messages == []


DOCUMENT = """# A title

Some *text* that goes
on here with `code` and <b>html</b>.

1. one

2. two
   - deep

   still two

- other

```python
def f(x):

    return x
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

Heading
=======
last line"""


def rendered(pieces: list[str], **options: Any) -> str:
    out = io.StringIO()
    stream = MarkdownStream(Console(file=out, width=60, **options))
    for piece in pieces:
        stream.push(piece)
    stream.finish()
    return out.getvalue()


def test_markdown_does_not_depend_on_its_pieces() -> None:
    whole = rendered([*DOCUMENT.splitlines(keepends=True)])
    for size in (1, 2, 7, 31, 1000):
        assert rendered([DOCUMENT[i : i + size] for i in range(0, len(DOCUMENT), size)]) == whole
    assert "<b>html</b>" in whole
    assert "Some text that goes\n" in re.sub(" +\n", "\n", whole)
    assert [line for line in whole.splitlines() if "still two" in line]


def test_finished_blocks_are_final() -> None:
    """What is printed for good is a beginning of the document, cut between blocks, whatever follows."""
    for end in range(len(DOCUMENT)):
        cut = finished_length(DOCUMENT[:end])
        assert cut == 0 or DOCUMENT[cut - 1] == "\n"
        assert not DOCUMENT[:cut].count("```") % 2
        assert "Heading" not in DOCUMENT[:cut] or "last" in DOCUMENT[:end]
        assert not DOCUMENT[:cut].rstrip().endswith(("2. two", "goes", "deep"))


def test_a_live_display_is_never_taller_than_the_screen() -> None:
    code = "```\n" + "\n".join(f"line {i}" for i in range(100))
    out = io.StringIO()
    console = Console(file=out, width=60, height=10, force_terminal=True, legacy_windows=False)
    stream = MarkdownStream(console)
    stream.push(code)
    stream._live.refresh()
    live = out.getvalue()
    assert live.count("line ") < 10
    assert "line 99" in live
    stream.finish()
    assert out.getvalue().count("line ") >= 100


def test_the_view_keeps_streams_apart() -> None:
    out = io.StringIO()
    view = TerminalView(Console(file=out, width=60, force_terminal=True, legacy_windows=False))
    view.show(ChatEvent(thinking="hm "))
    view.show(ChatEvent(thinking="[bold]so[/bold]"))
    view.show(ChatEvent(text="Yes: **it** is. \x1b[31m\r"))
    view.show(ChatEvent(tool_call=ToolCall("f", {"x": "é", "n": 1}), warning="unknown tool: 'f'"))
    view.end(ChatResult("", "", [], "length", 5, Usage()))
    shown = out.getvalue()
    assert "\x1b[2;3mhm \x1b[0m\x1b[2;3m[bold]so[/bold]\x1b[0m" in shown
    assert "\x1b[1mit\x1b[0m" in shown
    plain = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown)
    assert "it is. \ufffd[31m\ufffd" in plain  # a model does not steer the terminal
    assert '▸ f(x="é", n=1)' in plain
    assert "warning: unknown tool: 'f'" in plain
    assert "cut off: --max-new-tokens" in plain


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C becomes a signal
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Until ``text`` is shown after what was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown[-2000:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # Linux, once the program has ended
                    assert text in self.shown, self.shown
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


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
