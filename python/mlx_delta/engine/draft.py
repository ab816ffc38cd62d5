"""Drafters: what may come next, at a fraction of what the model costs. The model checks every draft, so that none can
change a token; a bad one costs time alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import mlx.core as mx

from mlx_delta.model.cache import KeyValues
from mlx_delta.model.network import Network
from mlx_delta.model.shortlist import Shortlist

MOST_DRAFTS = 7  # for one pass: with the token that they follow as many rows as a tile of products has
CONTEXT = 512  # tokens before the first draft that the head reads
_BRIEF = 64  # where it is tried whether drafts pay: reading all of them may take a CPU as long as a pass
_TOKENS = 2048  # of the text's, the last that the first ones of the vocabulary do not have, to choose drafts from too
_NEW = 16  # of these, until they are looked up
_GRAM = 3  # tokens in a row that have to be there before


class MtpDrafter:
    """Drafts of the checkpoint's own head, greedy.

    text: the ids so far, which others extend. The head goes through a slot for each token: the hidden state that the
    model had there, and the token after it; not before it is asked for drafts, for they may never pay. Its chain beyond
    the last slot is forgotten each time, and made again from the model's hidden states. Where it has not seen the
    beginning of the text, it drafts from what it has seen.
    """

    def __init__(self, network: Network, text: list[int]) -> None:
        self._network = network
        self._text = text
        self._state = KeyValues()
        self._slots = 0
        self._unread = _Recent()  # the last tokens of the text, as the last layer gave them
        self._before = _Recent()  # those before them, which the head has read
        self._end = 0  # of these, in the text
        self._among: Shortlist | None = network.shortlist
        self._rare: dict[int, None] = {}  # tokens of the text that the network's own list lacks
        self._read = self._listed = 0  # tokens of the text that were looked through; and how many of those it had then

    def see(self, x: mx.array, end: int) -> None:
        """x [1, n, hidden] of the tokens before place ``end`` of the text, as the last layer gave it."""
        if end - x.shape[1] != self._end:
            self._unread.clear()
            self._before.clear()
        self._end = end
        self._unread.append(x)

    def recent(self, end: int) -> mx.array | None:
        """What it was shown before place ``end`` of the text, [1, n, hidden], as much as one that begins there would
        read; lazily. None where it was not shown the last token."""
        shown = [*self._before.parts, *self._unread.parts]
        return _joined(shown)[:, -CONTEXT:] if shown and end == self._end else None

    def draft(self, token: mx.array, count: int, *, trial: bool = False) -> tuple[mx.array | None, float | None]:
        """``count`` tokens, int [count], that may follow ``token``, int [1], which follows the text; lazily. None where
        the last token of the text was not seen.

        trial: of the text, read little that was not read before; and wait for the drafts, if they are several, and tell
        the seconds that each takes after the first.
        """
        mtp = self._network.mtp
        if not self._unread.tokens or self._end != len(self._text) or mtp is None:
            return None, None
        hidden = self._network.hidden(self._take_unread(_BRIEF if trial else CONTEXT))
        following = self._text[self._end - hidden.shape[1] + 1 :]
        tokens = mx.concatenate([mx.array(following, dtype=token.dtype), token]) if following else token
        x = self._network.draft(tokens[None], hidden, self._state, self._slots, last=True)
        self._slots += hidden.shape[1]
        among = self._list()
        drafts = [self._network.draft_token(x, among)]
        timed = trial and count > 1
        if timed:
            mx.eval(drafts)
        begin = time.perf_counter()
        for i in range(count - 1):
            x = self._network.draft(drafts[-1][None], mtp.hidden(x), self._state, self._slots + i)
            drafts.append(self._network.draft_token(x, among))
        if timed:
            mx.eval(drafts)
        return mx.concatenate(drafts), (time.perf_counter() - begin) / (count - 1) if timed else None

    def _take_unread(self, most: int) -> mx.array:
        """x [1, n, hidden] of the tokens that the head has not read; of ``most`` or more the last so many, with
        which it begins again."""
        unread = _joined(self._unread.parts)
        for part in self._unread.parts:
            self._before.append(part)
        self._unread.clear()
        if unread.shape[1] >= most:
            self._state, self._slots = KeyValues(), 0
        return unread[:, -most:]

    def _list(self) -> Shortlist | None:
        """What drafts are chosen from: the network's list, and what else the text has."""
        if self._network.shortlist is None:
            return None
        for token in self._network.shortlist.lacks(self._text[self._read :]):
            self._rare.pop(token, None)  # to the end
            self._rare[token] = None
        new, self._read = len(self._rare) - self._listed, len(self._text)
        if new >= _NEW or (new and not self._listed):
            self._listed = len(self._rare)
            rare = list(self._rare)[-_TOKENS:]
            self._among = self._network.shortlist.with_rows(self._network.lm_head, rare)
        return self._among

    def arrays(self) -> list[mx.array]:
        """What it has made of what it was shown."""
        return self._state.arrays()


class _Recent:
    """Hidden states [1, n, hidden] of the tokens up to a place, of about the last ``CONTEXT`` of them."""

    def __init__(self) -> None:
        self.parts = deque[mx.array]()
        self.tokens = 0

    def append(self, x: mx.array) -> None:
        self.parts.append(x)
        self.tokens += x.shape[1]
        while self.tokens - (first := self.parts[0].shape[1]) >= CONTEXT:
            self.parts.popleft()
            self.tokens -= first

    def clear(self) -> None:
        self.parts.clear()
        self.tokens = 0


def _joined(parts: Sequence[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=1)


class LookupDrafter:
    """Drafts copied from the text so far: what came after the last place where its last three tokens stand."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # what comes after these tokens, by position
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """The text goes on. Its last tokens are entered when something follows them."""
        for each in ids:
            if len(self.text) >= _GRAM:
                self._after[tuple(self.text[-_GRAM:])] = len(self.text)
            self.text.append(each)

    @property
    def familiar(self) -> bool:
        """Whether the text's last tokens stand at an earlier place too."""
        return tuple(self.text[-_GRAM:]) in self._after

    @property
    def expected(self) -> int | None:
        """What came next where the text's last tokens stand at an earlier place; None: they do not."""
        place = self._after.get(tuple(self.text[-_GRAM:]))
        return None if place is None else self.text[place]

    def draft(self, token: int, count: int) -> list[int]:
        """At most ``count`` tokens that may follow ``token``, which follows the text; none where it is new."""
        start = self._after.get((*self.text[1 - _GRAM :], token))
        return [] if start is None else self.text[start : start + count]
