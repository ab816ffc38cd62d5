"""Sequences as rank 0 tells other ranks of them, and as those make them: the same tokens, samplers and constraints.

A prompt goes as its ids, whatever it was written from, and pictures as the features that the tower of rank 0 has made
of them: no other rank needs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta.chat.request import Prompt
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.chat.stream import ChatStream
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.exclusive import Exclusive
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.engine.sequence import TokenSequence, Told
from mlx_delta.text.generation import Generation
from mlx_delta.text.tokenizer import Tokenizer


class ToldPictures:
    """``model.pictures.PicturePart`` of what was told. rows: [n, hidden], read in the places ``index``."""

    def __init__(self, facts: dict[str, Any], arrays: dict[str, mx.array]) -> None:
        self.positions = np.array(arrays["positions"])
        self._keys: list[int] = facts["keys"]
        self._index = np.array(arrays["index"])
        self._rows = arrays["rows"]

    def keys(self, ids: Sequence[int]) -> list[int]:
        return self._keys

    def look(self, start: int = 0) -> None:
        """Rank 0 has."""

    def rows(self, start: int, end: int) -> tuple[mx.array, mx.array] | None:
        places = np.flatnonzero((self._index >= start) & (self._index < end))
        if not places.size:
            return None
        return mx.array(self._index[places] - start), self._rows[mx.array(places)]


def sequence_of(told: Told, engine: Engine, tokenizer: Tokenizer) -> TokenSequence:
    """The sequence that rank 0 has told of."""
    facts, arrays = told
    pictures: Any = ToldPictures(facts, arrays) if arrays else None
    if facts["kind"] == "chat":
        prompt = Prompt(facts["ids"], facts["thinking"], facts["written"], pictures)
        return ChatStream(engine, tokenizer, prompt, ChatSettings(**facts["options"]), [], Exclusive("rank")).begun()
    options = facts["options"]
    params = SamplingParams(**options.pop("params"))
    return Generation(engine, tokenizer, facts["ids"], params, pictures=pictures, **options).sequence
