"""Token ids to text, one at a time, never showing half a character; knows nothing of models, stops or messages.

``tokenizers.decoders.DecodeStream`` decodes its whole tail again for each token that does not complete a character
(quadratic on a run of broken bytes) and cannot be flushed. A byte-level token is a fixed string of bytes, so an
incremental UTF-8 decoder over those bytes does the same in constant time a token.
"""

from __future__ import annotations

import codecs

from mlx_delta.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of a growing sequence of tokens: the pieces joined are ``tokenizer.decode`` of the ids.

    skip_special leaves out the tokens flagged special, such as ``<|im_end|>`` (but not ``<think>``).
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes: "" while a character is broken, U+FFFD where it can never be whole."""
        return "" if token_id in self._skipped else self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD when the sequence ends inside a character, else ""; ready for a new sequence then."""
        left = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return left
