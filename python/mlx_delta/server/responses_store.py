"""Responses that others may go on from: in memory, the oldest go first."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_delta.errors import RequestError
from mlx_delta.server.models import Json


@dataclass(frozen=True)
class Kept:
    """messages: the conversation up to the response and with it, without instructions."""

    response: Json
    messages: Sequence[Json]
    size: int


class ResponseStore:
    """count, size: how many are kept at most, and of how many characters of JSON together."""

    def __init__(self, count: int = 512, size: int = 64 << 20) -> None:
        self._count, self._most = count, size
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, response: Json, messages: Sequence[Json]) -> None:
        kept = Kept(response, messages, len(json.dumps(messages)) + len(json.dumps(response)))
        self._kept[response["id"]] = kept
        self._size += kept.size
        while len(self._kept) > self._count or self._size > self._most:
            self._size -= self._kept.popitem(last=False)[1].size

    def get(self, id: str, param: str | None = None, status: int = 404) -> Kept:
        """Raises: RequestError where it was not kept, or not for so long."""
        if id not in self._kept:
            message = f"{param or 'response'}: expected a response that is kept, found {id:.80}"
            raise RequestError(status, message, param=param, code="previous_response_not_found" if param else None)
        self._kept.move_to_end(id)
        return self._kept[id]

    def drop(self, id: str) -> None:
        """Raises: as ``get``."""
        self._size -= self.get(id).size
        del self._kept[id]
