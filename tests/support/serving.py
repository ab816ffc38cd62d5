"""What a server says: events of a stream, and a server of its own process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import GOLDEN
from support.command_line import ENVIRONMENT, MLX_DELTA

_QUESTIONS = json.loads((GOLDEN / "tools.json").read_text(encoding="utf-8"))
# One that the model answers with a call, whatever the machine: the shortest.
QUESTION = min(
    (q for q in _QUESTIONS if q["smallest_margin"] > 0.02), key=lambda q: len(json.dumps([q["tools"], q["messages"]]))
)


def frames(lines: Iterable[str]) -> list[tuple[str | None, Any]]:
    """(event, data) of each server-sent event; "[DONE]" is itself, comments are left out."""
    found: list[tuple[str | None, Any]] = []
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append((name, data if data == "[DONE]" else json.loads(data)))
            name = None
        else:
            assert not line or line.startswith(":"), line
    return found


@contextmanager
def serving(
    model: Path, *arguments: str, program: Sequence[str] = MLX_DELTA
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, once it is ready, and its address."""
    command = [*program, "serve", "--model", str(model), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert "http://" in ready, ready
        yield process, ready.split()[-1]
    finally:
        process.kill()
        process.communicate()
