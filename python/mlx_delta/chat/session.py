"""Turns of a conversation over one cache: what earlier turns computed is not computed again.

A turn can go on from the end of the conversation before it (the last tokens of a prompt open an answer, and are gone
from the next prompt, as are thoughts), from the end of its prompt, and from the end of its answer; another conversation
from (nearly) the end of the system message and the tools, if it has the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlx_delta.chat.api import ChatMethods
from mlx_delta.chat.messages import Message
from mlx_delta.chat.prefix import PrefixCache
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.result import Usage
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.chat.stream import ChatStream
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.text.tokenizer import Tokenizer
from mlx_delta.vision.vision import Vision


class Session(ChatMethods):
    """A conversation that keeps its cache between turns. Use ``model.session()``.

    Each turn gets all messages, as ``model.chat`` does: those that the session has seen before, token for token from
    the beginning, cost nothing; a changed history is computed again from the last snapshot before the change. One turn
    at a time: starting a turn ends the one before it, or raises BusyError while another thread is at it.

    goes_on: False for a single turn, which computes its prompt in one go, as a batch does.
    turns: the usage of every turn that ended.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, vision: Vision | None = None, *, goes_on: bool = True
    ) -> None:
        self.turns: list[Usage] = []
        self._goes_on = goes_on
        self._engine = engine
        self._tokenizer = tokenizer
        self._vision = vision
        self._prefix = PrefixCache(engine.network.config)
        self._exclusive = Exclusive("session")
        self._stream: ChatStream | None = None

    def reset(self) -> None:
        """Forget everything, and free its memory."""
        with self._exclusive:
            self._end_turn()
            self._prefix = PrefixCache(self._engine.network.config)
            self.turns.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all states, keys and values held."""
        return self._prefix.nbytes

    def _start(self, messages: Sequence[Message], settings: ChatSettings) -> ChatStream:
        prompt = Prompt.build(self._tokenizer, messages, settings, self._vision)
        if not self._goes_on:
            prompt = replace(prompt, stable=0)
        with self._exclusive:
            self._end_turn()
            self._stream = ChatStream(
                self._engine, self._tokenizer, self._prefix, prompt, settings, self.turns, self._exclusive
            )
            return self._stream

    def _end_turn(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
