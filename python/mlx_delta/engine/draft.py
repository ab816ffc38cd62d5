"""Drafters: what may come next, at a fraction of what the model costs. The model checks every draft, so that none can
change a token; a bad one costs time alone."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_delta.model.cache import KeyValues
from mlx_delta.model.network import Network

MOST_DRAFTS = 7  # for one pass: with the token that they follow as many rows as a tile of products has
_CONTEXT = 1024  # tokens of a prompt's end that the head reads
_GRAM = 3  # tokens in a row that have to be there before


class MtpDrafter:
    """Drafts of the checkpoint's own head, greedy.

    The head goes through a slot for each token: the hidden state that the model had there, and the token after it.
    Its chain of drafts beyond the last slot is forgotten each time, and made again from the model's hidden states.
    Where it has not seen the beginning of the text, or a stretch of it, it drafts from what it has seen.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._state = KeyValues()
        self._slots = 0
        self._hidden: mx.array | None = None  # [1, n, hidden] of tokens whose slots are to come
        self._next: list[int] = []  # the tokens after all of them but the last

    def read(self, ids: Sequence[int], x: mx.array, left: int) -> None:
        """A piece of the prompt, ids, and x [1, n, hidden] as the last layer gave it; ``left`` tokens come after it."""
        if left > _CONTEXT:
            return
        hidden, tokens = self._network.hidden(x), list(ids)
        if self._hidden is not None:
            hidden = mx.concatenate([self._hidden, hidden], axis=1)
        else:
            tokens = tokens[1:]
        self._hidden, self._next = hidden[:, -1:], []
        if tokens:
            self._advance(mx.array([tokens]), hidden[:, :-1])

    def seen(self, x: mx.array, tokens: Sequence[int]) -> None:
        """x [1, n, hidden] of the last n tokens, as the last layer gave it; tokens: those after all of them but one."""
        self._hidden, self._next = self._network.hidden(x), list(tokens)

    def draft(self, token: mx.array, count: int) -> mx.array | None:
        """``count`` tokens, int [count], that may follow ``token``, int [1], which follows all that was seen; lazily.
        None where nothing was."""
        network, mtp = self._network, self._network.mtp
        if self._hidden is None or mtp is None:
            return None
        tokens = mx.concatenate([mx.array(self._next, dtype=token.dtype), token]) if self._next else token
        x = self._advance(tokens[None], self._hidden)[:, -1:]
        self._hidden = None
        drafts = [network.draft_token(x)]
        for i in range(count - 1):
            x = network.draft(drafts[-1][None], mtp.hidden(x), self._state, self._slots + i)
            drafts.append(network.draft_token(x))
        return mx.concatenate(drafts)

    def arrays(self) -> list[mx.array]:
        """What it goes on with; evaluated, any thread can."""
        return self._state.arrays() + ([] if self._hidden is None else [self._hidden])

    def _advance(self, tokens: mx.array, hidden: mx.array) -> mx.array:
        x = self._network.draft(tokens, hidden, self._state, self._slots)
        self._slots += tokens.shape[1]
        return x


class LookupDrafter:
    """Drafts copied from the text so far: what came after the last place where its last three tokens stand."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # what comes after these tokens, by position
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """The text goes on. Its last tokens are entered when something follows them."""
        for each in ids:
            if len(self._ids) >= _GRAM:
                self._after[tuple(self._ids[-_GRAM:])] = len(self._ids)
            self._ids.append(each)

    @property
    def familiar(self) -> bool:
        """Whether the text's last tokens stand at an earlier place too."""
        return tuple(self._ids[-_GRAM:]) in self._after

    def draft(self, token: int, count: int) -> list[int]:
        """At most ``count`` tokens that may follow ``token``, which follows the text; none where it is new."""
        start = self._after.get((*self._ids[1 - _GRAM :], token))
        return [] if start is None else self._ids[start : start + count]
