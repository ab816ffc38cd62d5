"""What a server takes at once, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_delta.engine.engine import MOST_ROWS
from mlx_delta.errors import ArgumentError


@dataclass(frozen=True)
class Limits:
    """concurrent: answers that are computed at once; queue: those that wait for one of them to end, more are refused.

    body_bytes: of a request. messages: in a conversation. prompt_tokens: of a prompt; None: as many as the model has
    positions. image_tokens: of a request's images together, by what their headers say. answer_tokens: most tokens of
    an answer, and what a request gets that says nothing.
    keep_alive_seconds: after so long without an event, a stream gets a comment. read_seconds: how long a body may
    pause on its way in.
    """

    concurrent: int = 8
    queue: int = 64
    body_bytes: int = 32 << 20
    messages: int = 4096
    prompt_tokens: int | None = None
    image_tokens: int = 65536
    answer_tokens: int = 32768
    keep_alive_seconds: float = 10.0
    read_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("concurrent", "queue", "body_bytes", "messages", "image_tokens", "answer_tokens"):
            least = int(name not in ("queue", "image_tokens"))
            if getattr(self, name) < least:
                raise ArgumentError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.concurrent > MOST_ROWS:
            raise ArgumentError(f"concurrent: expected at most {MOST_ROWS}, found {self.concurrent}")
        if self.prompt_tokens is not None and self.prompt_tokens < 1:
            raise ArgumentError(f"prompt_tokens: expected at least 1, found {self.prompt_tokens}")
