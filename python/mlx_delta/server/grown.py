"""What Anthropic's messages and OpenAI's responses have in common: an answer that grows piece by piece, and of which
every step is events, too."""

from __future__ import annotations

from abc import ABC, abstractmethod

from mlx_delta.chat.result import ChatEvent, ChatResult
from mlx_delta.chat.tools import ToolCall
from mlx_delta.server.models import Json
from mlx_delta.server.runner import Answers


class GrownReply(ABC):
    """The answer is ``grown``, of which some piece may be open. single_call: its first call of a tool ends it.

    THOUGHT, TEXT: the kinds of pieces, as the API names them.
    """

    THOUGHT: str
    TEXT: str

    def __init__(self, grown: Json, *, single_call: bool) -> None:
        self.grown = grown
        self._single_call = single_call
        self._calls = 0

    async def whole(self, answers: Answers) -> Json:
        async for _, event in answers:
            self._push(event, answers)
        return self.grown

    def _push(self, event: ChatEvent, answers: Answers) -> list[Json]:
        """What an event of the library adds, as events of the stream."""
        if event.result is not None:
            return [*self._close(), *self._end(event.result)]
        if event.thinking:
            return self._grow(self.THOUGHT, event.thinking)
        if event.tool_call is not None:
            if self._single_call and self._calls:
                return []
            self._calls += 1
            if self._single_call:
                answers.end(0)
            return self._call(event.tool_call)
        return self._grow(self.TEXT, event.text) if event.text else []

    @abstractmethod
    def _grow(self, kind: str, text: str) -> list[Json]:
        """More text of a kind, in the open piece or in a new one."""

    @abstractmethod
    def _call(self, call: ToolCall) -> list[Json]:
        """A piece that is a call of a tool, whole."""

    @abstractmethod
    def _close(self) -> list[Json]:
        """The open piece, if there is one, is whole."""

    @abstractmethod
    def _end(self, result: ChatResult) -> list[Json]:
        """The answer is whole."""
