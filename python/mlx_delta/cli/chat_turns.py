"""A conversation's turns: a question, the answer, the tools it calls, until the model is done; prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mlx_delta.chat.functions import Function, run_call
from mlx_delta.chat.result import ChatEvent, ChatResult
from mlx_delta.chat.tools import ToolCall
from mlx_delta.cli.pictures import picture_part, with_pictures
from mlx_delta.language_model import LanguageModel

_DECLINED = "The user declined this call."


class View(Protocol):
    """Where a turn is shown."""

    def prompt(self, done: int, total: int) -> None:
        """How far a long prompt is."""

    def show(self, event: ChatEvent) -> None:
        """One event of an answer."""

    def end(self, result: ChatResult) -> None:
        """An answer is over, or was interrupted."""

    def tool_result(self, call: ToolCall, text: str) -> None:
        """What a tool gave back."""


class Conversation:
    """messages: without the system message, which is ``system``. options: the arguments of ``Session.chat_stream``.

    declined: names of the tools that were not allowed to run in the last turn. interrupted: whether Ctrl-C came in it,
    be it behind the last token of an answer. pictures: parts that go with the next question.
    """

    def __init__(
        self,
        model: LanguageModel,
        options: Mapping[str, Any],
        functions: Mapping[str, Function],
        *,
        system: str | None = None,
    ) -> None:
        self.model = model
        self.session = model.session()
        self.options = dict(options)
        self.functions = functions
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self.declined: list[str] = []
        self.interrupted = False
        self.pictures: list[dict[str, Any]] = []

    def show(self, file: Path | str) -> None:
        """Let the next question be about this picture, too. Raises: as ``picture_part``."""
        self.pictures.append(picture_part(file, self.model))

    @property
    def all_messages(self) -> list[dict[str, Any]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.messages]

    def answer(self, question: str | list[Any], view: View, allow: Callable[[ToolCall], bool]) -> str:
        """Answer a question, text or parts, and go on through tool calls; allow: whether a call may run. The last
        answer's finish_reason.

        An interrupted turn keeps what was said so far, and what tools did; when there is nothing, the question is taken
        back. What fails raises, and the question is taken back.
        """
        before = len(self.messages)
        self.declined, self.interrupted = [], False
        shown, self.pictures = self.pictures, []
        content = with_pictures(question, shown) if isinstance(question, str) else question
        self.messages.append({"role": "user", "content": content})
        try:
            while True:
                result = self._stream(view)
                interrupted = result.finish_reason == "interrupted"
                if interrupted and not result.text:
                    if self.messages[before + 1 :] == []:
                        del self.messages[before:]
                        self.pictures = shown
                    return result.finish_reason
                self.messages.append(_kept(result) if interrupted else result.message)
                if interrupted or not result.tool_calls or not self.functions:
                    return result.finish_reason
                self._call_tools(result.tool_calls, view, allow)
                if self.interrupted:
                    return "interrupted"
        except Exception:
            del self.messages[before:]
            raise

    def reset(self) -> None:
        """Forget the messages, not the system message."""
        self.messages.clear()
        self.pictures.clear()
        self.session.reset()

    def _stream(self, view: View) -> ChatResult:
        stream = self.session.chat_stream(self.all_messages, **{**self.options, "prompt_progress": view.prompt})
        try:
            for event in stream:
                view.show(event)
        except KeyboardInterrupt:
            self.interrupted = True
            stream.close()
        result = stream.result()
        view.end(result)
        return result

    def _call_tools(self, calls: list[ToolCall], view: View, allow: Callable[[ToolCall], bool]) -> None:
        """Run what is allowed, until Ctrl-C, and answer every call."""
        for call in calls:
            text = "error: interrupted by the user"
            try:
                if not self.interrupted:
                    text = self._call_tool(call, allow)
            except KeyboardInterrupt:
                self.interrupted = True
            self.messages.append({"role": "tool", "content": text})
            view.tool_result(call, text)

    def _call_tool(self, call: ToolCall, allow: Callable[[ToolCall], bool]) -> str:
        if call.name in self.functions and not allow(call):
            self.declined.append(call.name)
            return _DECLINED
        return run_call(self.functions, call)


def _kept(result: ChatResult) -> dict[str, Any]:
    """What was said before an interruption; calls under way then are not made."""
    return {"role": "assistant", "content": result.text}
