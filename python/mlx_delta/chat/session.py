"""Turns of a conversation: the engine keeps what they computed, as that of all others; a session tells how much."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_delta.chat.api import ChatMethods
from mlx_delta.chat.messages import Message
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.result import Usage
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.chat.stream import ChatStream
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.text.tokenizer import Tokenizer
from mlx_delta.vision.vision import Vision


class Session(ChatMethods):
    """A conversation, one turn at a time. Use ``model.session()``.

    Each turn gets all messages, as ``model.chat`` does; what the model has kept of them, from this conversation or
    another, costs nothing. Starting a turn ends the one before it, or raises BusyError while another thread is at it.

    turns: the usage of every turn that ended.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, vision: Vision | None = None) -> None:
        self.turns: list[Usage] = []
        self._engine = engine
        self._tokenizer = tokenizer
        self._vision = vision
        self._exclusive = Exclusive("session")
        self._stream: ChatStream | None = None

    def reset(self) -> None:
        """Forget everything, and free the memory of what no other conversation begins with."""
        with self._exclusive:
            self._end_turn()
            self._engine.forget(self._keys)
            self._stream = None
            self.turns.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the states, keys and values that are kept of it, those that others share with it too."""
        return self._engine.prefix.held(self._keys)

    @property
    def _keys(self) -> list[int]:
        return [] if self._stream is None else self._stream.keys

    def _start(self, messages: Sequence[Message] | Prompt, settings: ChatSettings) -> ChatStream:
        if isinstance(messages, Prompt):
            prompt = messages
        else:
            prompt = Prompt.build(self._tokenizer, messages, settings, self._vision)
        with self._exclusive:
            self._end_turn()
            self._stream = ChatStream(self._engine, self._tokenizer, prompt, settings, self.turns, self._exclusive)
            return self._stream

    def _end_turn(self) -> None:
        if self._stream is not None:
            self._stream.close()
