"""The interactive chat: reads lines, knows the slash commands, asks before a tool runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.text import Text

from mlx_delta.chat.messages import prepare_messages
from mlx_delta.chat.pictures import take_pictures
from mlx_delta.chat.tools import ToolCall
from mlx_delta.cli.chat_input import LineReader
from mlx_delta.cli.chat_turns import Conversation
from mlx_delta.cli.chat_view import TerminalView
from mlx_delta.cli.console import stdout
from mlx_delta.cli.errors import UsageError, interruption, report
from mlx_delta.cli.pictures import show_picture
from mlx_delta.errors import MlxDeltaError
from mlx_delta.json_files import read_json
from mlx_delta.paths import expanded

HELP = {
    "/help": "these commands",
    "/reset": "forget the conversation",
    "/system [TEXT]": "show the system message, or set it ('/system none' removes it)",
    "/think [on|off|auto]": "think before answering; auto leaves it to the chat template",
    "/image FILE": "show a picture with the next question; several, one after the other",
    "/save FILE": "write the conversation as JSON messages; /save! replaces a file",
    "/load FILE": "go on with a conversation from such a file",
    "/stats": "tokens, speeds and memory so far",
    "/exit": "leave (so does Ctrl-D)",
}
_THINK = {"on": True, "off": False, "auto": None}


class Reader(Protocol):
    """Where lines come from: ``LineReader``."""

    def read(self, prompt: str) -> str:
        """A line of the conversation."""

    def ask(self, prompt: str) -> str:
        """A reply to a question of ours."""


class ChatTerminal:
    """run_tools: without asking. title: the model's name, that of its directory by default. reader: where lines come
    from; console: where everything is shown."""

    def __init__(
        self,
        conversation: Conversation,
        *,
        run_tools: bool = False,
        title: str | None = None,
        reader: Reader | None = None,
        console: Console | None = None,
    ) -> None:
        self._conversation = conversation
        self._title = title or conversation.model.path.name
        self._console = console or stdout()
        self._reader = reader or LineReader([name.split()[0] for name in HELP])
        self._run_always: set[str] = set(conversation.functions) if run_tools else set()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/system": self._system,
            "/think": self._think,
            "/image": self._image,
            "/save": self._save,
            "/save!": lambda name: self._save(name, replace=True),
            "/load": self._load,
            "/stats": self._stats,
        }

    def run(self) -> None:
        """Until /exit or the end of input."""
        self._welcome()
        while True:
            try:
                line = self._reader.read("> ").strip()
            except KeyboardInterrupt:
                self._console.print()
                self._say("Ctrl-D or /exit leaves")
                continue
            except EOFError:
                self._console.print()
                return
            if line in ("/exit", "/quit"):
                return
            if not line:
                continue
            try:
                self._command(line) if line.startswith("/") else self._answer(line)
            except KeyboardInterrupt:
                self._say("interrupted")
            except Exception as error:  # a bug too: what was said so far is worth more than an end
                end = interruption(error)
                if end is None:
                    report(error, console=self._console)
                elif isinstance(end, KeyboardInterrupt):
                    self._say("interrupted")
                else:
                    raise end from None

    def _answer(self, question: str) -> None:
        messages = self._conversation.messages
        before = len(messages)
        view = TerminalView(self._console)
        try:
            outcome = self._conversation.answer(question, view, self._may_run)
        finally:
            view.close()
        if outcome == "interrupted" and len(messages) == before:
            self._say("nothing was said yet: the question is taken back")

    def _may_run(self, call: ToolCall) -> bool:
        if call.name in self._run_always:
            return True
        try:
            reply = self._reader.ask(f"run {call.name}? [y]es, [n]o, [a]lways: ").strip().lower()
        except EOFError:
            return False
        if reply in ("a", "always"):
            self._run_always.add(call.name)
        return reply in ("y", "yes", "a", "always")

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise UsageError(f"{name}: expected one of {', '.join(self._commands)}, /exit")
        command(rest.strip())

    def _welcome(self) -> None:
        tools = f", tools: {', '.join(self._conversation.functions)}" if self._conversation.functions else ""
        self._say(f"{self._title}{tools}. /help for commands, Ctrl-C ends an answer, Ctrl-D leaves.")

    def _help(self, _: str) -> None:
        width = max(map(len, HELP))
        for name, text in HELP.items():
            self._console.print(Text(f"{name:<{width}}  {text}"), soft_wrap=True)
        self._say("a line that ends in a backslash goes on in the next")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._say("the conversation is forgotten")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "none" else text
        self._say(f"system message: {self._conversation.system or 'none'}")

    def _think(self, mode: str) -> None:
        options = self._conversation.options
        if mode:
            if mode not in _THINK:
                raise UsageError(f"/think: expected on, off or auto, found {mode!r}")
            options["enable_thinking"] = _THINK[mode]
        shown = next(name for name, value in _THINK.items() if value is options.get("enable_thinking"))
        self._say(f"thinking: {shown}")

    def _image(self, name: str) -> None:
        path = _path(name, "/image")
        self._conversation.show(path)
        show_picture(self._console, path)
        self._say(f"{path.name} goes with the next question")

    def _save(self, name: str, replace: bool = False) -> None:
        path = _path(name, "/save")
        if path.exists() and not replace:
            raise UsageError(f"{path}: expected a new file, found it there already (/save! {name} replaces it)")
        write_whole(path, json.dumps(self._conversation.all_messages, ensure_ascii=False, indent=1) + "\n")
        self._say(f"{len(self._conversation.messages)} messages written to {path}")

    def _load(self, name: str) -> None:
        path = _path(name, "/load")
        content = read_json(path, UsageError, list)
        try:
            messages = prepare_messages(take_pictures(content)[0])
        except MlxDeltaError as error:
            raise UsageError(f"{path}: expected a list of messages, found: {error}") from error
        system = [message for message in messages if message["role"] == "system"]
        self._conversation.system = system[0]["content"] if system else None
        others = [message for message in content if message["role"] not in ("system", "developer")]
        self._conversation.messages[:] = [dict(message) for message in others]
        self._say(f"{len(self._conversation.messages)} messages read from {path}")

    def _stats(self, _: str) -> None:
        import mlx.core as mx

        session = self._conversation.session
        turns = session.turns
        prefilled, generated = sum(t.prefilled_tokens for t in turns), sum(t.completion_tokens for t in turns)
        prefill, decode = sum(t.prefill_seconds for t in turns), sum(t.decode_seconds for t in turns)
        decoded = sum(max(0, t.completion_tokens - 1) for t in turns)
        rows = {
            "answers": f"{len(turns)}",
            "prompts": f"{sum(t.prompt_tokens for t in turns):,} tokens, {prefilled:,} of them computed, "
            f"the others kept from before",
            "generated": f"{generated:,} tokens, {sum(t.thinking_tokens for t in turns):,} of them thoughts",
            "prefill": f"{prefilled / prefill:,.0f} tok/s" if prefill else "-",
            "decode": f"{decoded / decode:,.1f} tok/s" if decode else "-",
            "memory": f"conversation {session.nbytes / 1e6:,.1f} MB, peak {mx.get_peak_memory() / 1e6:,.0f} MB",
        }
        for name, text in rows.items():
            self._console.print(Text(f"{name:<10} {text}"), soft_wrap=True)

    def _say(self, text: str, style: str = "dim") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


def _path(name: str, command: str) -> Path:
    if not name:
        raise UsageError(f"{command}: expected a file, found nothing")
    return expanded(name)


def write_whole(path: Path, text: str) -> None:
    """All of the file or, when anything fails, what was there before."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: expected a directory to write it in, found none")
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as out:
        try:
            out.write(text)
            out.close()
            Path(out.name).replace(path)
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise
