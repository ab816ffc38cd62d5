"""The interactive chat: turns, commands, tools that are asked about, Ctrl-C, errors."""

from __future__ import annotations

import io
import json
import re
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from mlx_delta import load_model
from mlx_delta.chat.functions import function_tool
from mlx_delta.chat.result import ChatEvent, ChatResult
from mlx_delta.cli.chat_terminal import HELP, ChatTerminal
from mlx_delta.cli.chat_turns import Conversation
from mlx_delta.cli.chat_view import PlainView, TerminalView
from mlx_delta.errors import MlxDeltaError
from mlx_delta.language_model import LanguageModel


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


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


def test_save_replaces_only_when_told(model: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("precious")
    _, shown = chat(model, "/think off", "Count to 7.", f"/save {file}")
    assert f"error: {file}: expected a new file, found it there already (/save! {file} replaces it)" in shown.replace(
        "\n", ""
    )
    assert file.read_text() == "precious"
    chat(model, "/think off", "Count to 7.", f"/save! {file}")
    assert len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "error: /nothing: expected one of /help, /reset, /system"),
        ("/save", "error: /save: expected a file, found nothing"),
        ("/save NOWHERE/deep/talk.json", "talk.json: expected a directory to write it in, found none"),
        ("/load NOWHERE", "nowhere: No such file or directory"),
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


def test_ctrl_c_behind_the_last_token_is_heard(model: LanguageModel) -> None:
    """The answer is whole; no tool is run, and a program that is to end does."""

    class Late(PlainView):
        def show(self, event: ChatEvent) -> None:
            if event.done:
                signal.raise_signal(signal.SIGINT)

    options = {"temperature": 0, "max_new_tokens": 40, "tools": [function_tool(search)]}
    conversation = Conversation(model, options, {"search": search})
    reason = conversation.answer("Search for velvet cloud.", Late(), lambda call: pytest.fail("asked"))
    assert reason == "interrupted"
    assert conversation.interrupted
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool"]
    assert "interrupted" in conversation.messages[-1]["content"]


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


def _of_ctrl_c(error: Exception) -> Exception:
    """Raised by what it came into the midst of."""
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MlxDeltaError("broken"), KeyError("gone"), _of_ctrl_c(RuntimeError("unlocked"))]
)
def test_the_screen_is_left_in_order(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(FailingView, "errors", [error])
    monkeypatch.setattr("mlx_delta.cli.chat_terminal.TerminalView", FailingView)
    conversation, shown = chat(model, "/think off", "Count to 7.", "/reset", "Count to 7.")
    told = {
        KeyboardInterrupt: "interrupted",
        RuntimeError: "interrupted",
        MlxDeltaError: "error: broken",
        KeyError: "This is a bug in mlx-delta",
    }
    assert told[type(error)] in shown
    assert shown.count("1 2 3 4 5 6 7") == 1  # rich refuses a second live display, had the first been left
    assert len(conversation.messages) == 2


def test_errors_take_the_question_back(model: LanguageModel) -> None:
    conversation, shown = chat(model, "Count to 7.", top_p=3.0)
    assert "error: top_p: expected > 0 and <= 1, found 3.0" in shown
    assert conversation.messages == []
