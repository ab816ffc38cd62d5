"""How answers look: markdown that grows, thoughts, calls."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from mlx_delta.chat.result import ChatEvent, ChatResult, Usage
from mlx_delta.chat.tools import ToolCall
from mlx_delta.cli.chat_view import MarkdownStream, TerminalView, finished_length

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
