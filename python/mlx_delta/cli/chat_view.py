"""How an answer looks: plain for pipes, markdown that streams for a terminal."""

from __future__ import annotations

import json
import sys

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from mlx_delta.chat.result import ChatEvent, ChatResult
from mlx_delta.chat.tools import ToolCall
from mlx_delta.cli.console import shown
from mlx_delta.progress import Bars, of

_RESULT_LINES = 6  # of a tool's result that are shown
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


def format_call(call: ToolCall) -> str:
    """``name(key=value, ...)``, values as JSON."""
    arguments = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
    return f"{call.name}({', '.join(arguments)})"


class _PromptView:
    """How far a long prompt is, until there is something else to see."""

    def __init__(self) -> None:
        self._bars = Bars()
        self._show_prompt = self._bars.task("reading the prompt", of("tokens"))

    def prompt(self, done: int, total: int) -> None:
        self._show_prompt(done, total)


class PlainView(_PromptView):
    """The text on standard output and nothing else there; calls, their results and warnings on standard error."""

    def show(self, event: ChatEvent) -> None:
        self._bars.close()
        if event.text:
            sys.stdout.write(event.text)
            sys.stdout.flush()
        if event.tool_call is not None:
            print(shown(f"tool call: {format_call(event.tool_call)}"), file=sys.stderr)
        if event.warning is not None:
            print(shown(f"warning: {event.warning}"), file=sys.stderr)

    def end(self, result: ChatResult) -> None:
        self._bars.close()
        if result.text and not result.text.endswith("\n"):
            print(flush=True)

    def tool_result(self, call: ToolCall, text: str) -> None:
        print(shown(f"result of {call.name}: {_head(text)}"), file=sys.stderr)


class TerminalView(_PromptView):
    """Text as markdown while it grows, thoughts dimmed, calls and figures beside them."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._markdown: MarkdownStream | None = None
        self._thinking = False

    def show(self, event: ChatEvent) -> None:
        self._bars.close()
        if event.thinking:
            self._end_text()
            self._console.print(Text(shown(event.thinking), style="dim italic"), end="", soft_wrap=True)
            self._thinking = True
        if event.text:
            self._end_thinking()
            self._markdown = self._markdown or MarkdownStream(self._console)
            self._markdown.push(shown(event.text))
        if event.tool_call is not None:
            self._end_text()
            self._end_thinking()
            self._console.print(Text(shown(f"▸ {format_call(event.tool_call)}"), style="cyan"), soft_wrap=True)
        if event.warning is not None:
            self._end_text()
            self._end_thinking()
            self._console.print(Text(shown(f"warning: {event.warning}"), style="yellow"), soft_wrap=True)

    def end(self, result: ChatResult) -> None:
        self._bars.close()
        self._end_text()
        self._end_thinking()
        usage = result.usage
        parts = [f"{result.num_tokens} tokens", f"{usage.tokens_per_second:.0f} tok/s"]
        if result.finish_reason == "length":
            parts.append("cut off: --max-new-tokens")
        if result.finish_reason == "interrupted":
            parts.append("interrupted")
        self._console.print(Text(f"[{', '.join(parts)}]", style="dim"), soft_wrap=True)

    def close(self) -> None:
        """Leave the screen in order when an answer could not be shown to its end."""
        self._bars.close()
        if self._markdown is not None:
            self._markdown.abandon()
            self._markdown = None

    def tool_result(self, call: ToolCall, text: str) -> None:
        self._console.print(Text(shown(f"◂ {_head(text)}"), style="dim cyan"), soft_wrap=True)

    def _end_thinking(self) -> None:
        if self._thinking:
            self._console.print("\n")
            self._thinking = False

    def _end_text(self) -> None:
        if self._markdown is not None:
            self._markdown.finish()
            self._markdown = None


class MarkdownStream:
    """Markdown printed as it grows: blocks that cannot change any more for good, the last one redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._source = ""  # of the last block
        self._printed = False
        self._live = Live(console=console, transient=True, refresh_per_second=8, get_renderable=self._tail)
        self._live.start()

    def push(self, text: str) -> None:
        self._source += text
        if "\n" in text:
            self._print_finished()

    def finish(self) -> None:
        """The rest, for good."""
        self._source += "\n"
        self._print_finished()
        rest, self._source = self._source, ""
        self._live.stop()
        if rest.strip():
            self._print(rest)

    def abandon(self) -> None:
        """What is not printed yet is not."""
        self._live.stop()

    def _print_finished(self) -> None:
        while cut := finished_length(self._source):
            done, self._source = self._source[:cut], self._source[cut:]
            self._print(done)

    def _print(self, source: str) -> None:
        self._console.print(_Block(source, after_another=self._printed))
        self._printed = True

    def _tail(self) -> RenderableType:
        return _Block(self._source, after_another=self._printed, cropped=True) if self._source.strip() else Text("")


def finished_length(source: str) -> int:
    """How many characters of growing markdown its first block has, if no further text can change it; else 0."""
    whole = source[: source.rfind("\n") + 1]
    starts = [token.map[0] for token in _MARKDOWN.parse(whole) if token.level == 0 and token.map and token.nesting >= 0]
    if len(starts) < 2:
        return 0
    return sum(len(line) + 1 for line in whole.split("\n")[: starts[1]])


class _Block:
    """A block of markdown without blank lines around it, or one before it when it comes after another.

    cropped: to as many of the last lines as fit the screen, for a live display that is longer is not redrawn in place.
    """

    def __init__(self, source: str, *, after_another: bool, cropped: bool = False) -> None:
        self._markdown = _ModelMarkdown(source)
        self._after_another = after_another
        self._cropped = cropped

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options.update(height=None), pad=False)
        filled = [i for i, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        lines = lines[filled[0] : filled[-1] + 1] if filled else []
        if self._after_another:
            lines.insert(0, [])
        for line in lines[-max(1, console.size.height - 2) :] if self._cropped else lines:
            yield from line
            yield Segment.line()


class _ModelMarkdown(Markdown):
    """As models write it: HTML is text like any other, and a line ends where it ends."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.parsed = _MARKDOWN.parse(source)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def _head(text: str) -> str:
    lines = text.splitlines()
    more = f"\n… {len(lines) - _RESULT_LINES} more lines" if len(lines) > _RESULT_LINES else ""
    return "\n".join(lines[:_RESULT_LINES]) + more
