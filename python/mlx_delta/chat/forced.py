"""A call that has to be made, once its head is written: what may come next, so that it ends as a call.

Between values the way on is a parameter that was not given yet or, once all that are required were, the call's end. A
number, a truth value or one of an enumeration is written as its schema has it; any other value is the model's own, up
to the tag on a line of its own that ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mlx_delta.chat.calls import CallReader
from mlx_delta.chat.schema import Schema
from mlx_delta.text.tokenizer import Tokenizer

_INTEGER = r"-?(?:0|[1-9]\d{0,17})"
_WHOLE = {"integer": re.compile(_INTEGER), "number": re.compile(rf"{_INTEGER}(?:\.\d{{1,16}})?")}
_BEGUN = {"integer": re.compile(rf"-?|{_INTEGER}"), "number": re.compile(rf"-?|{_INTEGER}(?:\.\d{{0,16}})?")}


class ForcedCall:
    """schemas: those of the tools' parameters, by the tools' names."""

    def __init__(self, tokenizer: Tokenizer, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self._tokenizer = tokenizer
        self._markup = tokenizer.markup
        self._schemas = {name: Schema(schema) for name, schema in schemas.items()}

    def paths(self, reader: CallReader, tail: str) -> list[list[int]]:
        """The token sequences of which one has to come next; [] where the model is free. tail: the last character."""
        schema = self._schemas.get(reader.name)
        if schema is None:
            return []
        if reader.between_values:
            texts = self._ways_on(reader.given, schema)
            return [self._tokenizer.encode(("" if tail == "\n" else "\n") + text) for text in texts]
        if reader.open_value is None:
            return []
        name, text = reader.open_value
        return self._value_paths(schema, schema.parameter(name), text.removeprefix("\n"))

    def _ways_on(self, given: frozenset[str], schema: Schema) -> list[str]:
        names, required, further = schema.declared(), schema.required(), schema.takes_further()
        needed = required if further else required & names
        if further and needed <= given:
            return []
        texts = [self._markup.parameter_head.format(name=name) for name in sorted((names | needed) - given)]
        return texts + [self._markup.call_end] * (needed <= given)

    def _value_paths(self, schema: Schema, part: Any, text: str) -> list[list[int]]:
        types, end = schema.types(part), self._markup.parameter_end
        choices: list[Any] = schema.choices(part)
        numbers = not choices and types & {"integer", "number"}
        if not choices and types <= {"boolean", "null", "integer", "number"}:
            choices = [True, False] * ("boolean" in types) + [None] * ("null" in types)
        elif not choices:
            return []
        found = [choice if isinstance(choice, str) else json.dumps(choice, ensure_ascii=False) for choice in choices]
        paths = [self._tokenizer.encode(choice + end) for choice in found] if not text else []
        if numbers:
            kind = "number" if "number" in types else "integer"
            pieces = _number_tokens(self._tokenizer)
            paths += [[token] for token, digits in pieces.items() if _BEGUN[kind].fullmatch(text + digits)]
            if _WHOLE[kind].fullmatch(text):
                paths.append(self._tokenizer.encode(end))
        return paths


@lru_cache(maxsize=4)
def _number_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens that a number may be made of."""
    texts = ((token, tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
    return {token: text.decode() for token, text in texts if re.fullmatch(rb"[0-9.-]+", text)}
