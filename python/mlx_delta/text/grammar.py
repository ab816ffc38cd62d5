"""Which tokens may come next in a JSON document that a schema describes, through llguidance; knows nothing of models.

llguidance reads the checkpoint's own tokenizer.json, so a token is allowed by its bytes. Special tokens and tags such
as ``<think>`` are never part of a document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from mlx_delta.errors import ArgumentError, MissingPackageError
from mlx_delta.text.tokenizer import Tokenizer

# Between two parts of a document: a blank, or a new line and its indentation. Free white space lets a model that is
# kept from anything else write blanks for ever.
_LAYOUT: Any = {"whitespace_flexible": True, "whitespace_pattern": r"\n[ ]{0,32}|[ ]?"}
_PRIVATE = "\U000f0000"  # a character for private use


class JsonGrammar:
    """A document as it grows. schema: JSON schema, with llguidance's coverage (an unknown keyword is an error).

    Raises: MissingPackageError without llguidance; ArgumentError naming what it cannot follow.
    """

    def __init__(self, tokenizer: Tokenizer, schema: Mapping[str, Any]) -> None:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise MissingPackageError(
                "json_schema: expected llguidance, found it missing: pip install 'mlx-delta[structured]'"
            ) from None
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_LAYOUT)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"json_schema: expected a JSON schema, found {schema!r:.80}: {error}") from error
        self._matcher = LLMatcher(_vocabulary(tokenizer), grammar, log_level=0)
        self._check()

    @property
    def done(self) -> bool:
        """Whether the document is whole and nothing can be added to it."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> np.ndarray:
        """bool [V] over the tokenizer's vocabulary; the end tokens are allowed where the document may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little").view(np.bool_)

    def push(self, token: int) -> None:
        """Go on with a token that was allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = self._matcher.get_error().partition("\n<state>")[0]
            raise ArgumentError(f"json_schema: expected a schema that llguidance can follow, found: {error}")


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    """llguidance's form of a tokenizer, built once: 152k tokens take 3 seconds, a mask of them then 0.04 ms.

    Added tokens get names that no text has. Under their own, llguidance would spell a string such as "<think>", where a
    document must have it, with the token of that name, and then refuse that token.
    """
    from llguidance import LLTokenizer

    content = json.loads(tokenizer.to_json())
    for token in content["added_tokens"]:
        token |= {"content": f"{_PRIVATE}{token['id']}", "special": True}
    eos = list(tokenizer.eos_token_ids) or None
    return LLTokenizer(json.dumps(content), n_vocab=tokenizer.vocab_size, eos_token=eos)
