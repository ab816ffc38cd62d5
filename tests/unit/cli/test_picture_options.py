"""--image and /image: what the model sees, what a terminal shows, and what is no picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from mlx_delta.cli.chat_terminal import ChatTerminal
from mlx_delta.cli.chat_turns import Conversation
from mlx_delta.cli.pictures import show_picture
from support import GOLDEN, ROOT
from support.command_line import call, run
from support.pictures import seeing

FLAG = ROOT / "examples" / "pictures" / "japan.png"
QUESTION = "What is the capital?"


def test_generate_and_chat_show_it(tiny: Path) -> None:
    shown = {"role": "user", "content": [{"type": "image", "image": FLAG}, {"type": "text", "text": QUESTION}]}
    prompt = seeing().prompt([shown], enable_thinking=False)
    command = ("-m", tiny, "--no-think", "--temp", "0", "--dtype", "float32", "--image", FLAG, "--max-tokens", "20")
    done = run("generate", *command, "-p", QUESTION, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["prompt_tokens"] == len(prompt.ids)
    assert found["text"] == seeing().generate(prompt, temperature=0, max_new_tokens=20).text()
    done = run("chat", *command, stdin=QUESTION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == found["text"]


@pytest.mark.parametrize("command", [("generate", "-p", "x"), ("chat",)])
def test_what_is_no_picture_is_told_before_the_model_is_read(tmp_path: Path, command: tuple[str, ...]) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for file, message in ((tmp_path / "no.png", "expected a file"), (text, "expected a picture")):
        done = call(*command, "-m", tmp_path, "--image", file, stdin="x")
        assert done.returncode == 1
        assert f"error: {file}: {message}" in done.stderr.replace("\n", "")
    assert "--image: expected the chat template with it" in call(
        "generate", "-m", tmp_path, "-p", "x", "--raw", "--image", FLAG
    ).stderr.replace("\n", " ")


class Lines:
    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    def read(self, prompt: str) -> str:
        line = next(self._lines, None)
        if line is None:
            raise EOFError
        return line

    ask = read


def test_the_terminal_shows_and_saves_it(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    options = {"temperature": 0, "max_new_tokens": 10, "enable_thinking": False}
    conversation = Conversation(seeing(), options, {})
    out = io.StringIO()
    lines = Lines("/image no.png", f"/image {FLAG}", QUESTION, f"/save {file}", "/reset", f"/load {file}", "And?")
    ChatTerminal(conversation, reader=lines, console=Console(file=out, width=200)).run()
    assert "no.png: expected a file, found none" in out.getvalue()
    assert "japan.png goes with the next question" in out.getvalue()
    first, answer, second, last = conversation.messages
    assert first["content"] == [{"type": "image", "image": str(FLAG)}, {"type": "text", "text": QUESTION}]
    assert (second["content"], last["role"]) == ("And?", "assistant")
    assert answer["content"] == seeing().chat([first], **options).text


@pytest.mark.parametrize(
    ("variables", "begins"),
    [
        ({"TERM": "xterm-kitty"}, "\x1b_Ga=T,f=100,r=12,m="),
        ({"TERM_PROGRAM": "iTerm.app"}, "\x1b]1337;File=inline=1;height=12;"),
        ({}, "\x1b[38;2;"),
        ({"TERM": "xterm-kitty", "TMUX": "x"}, "\x1b[38;2;"),
    ],
)
def test_terminals(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], begins: str) -> None:
    for name in ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    show_picture(Console(file=out, force_terminal=True, color_system="truecolor"), FLAG)
    assert out.getvalue().startswith(begins)
    plain = io.StringIO()
    show_picture(Console(file=plain), GOLDEN / "vision" / "odd.png")
    assert plain.getvalue() == ""
