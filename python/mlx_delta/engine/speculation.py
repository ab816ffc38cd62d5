"""One sequence's drafts: who makes them, and how many came true. How many to make: ``depth``."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_delta.engine.depth import LOOKUP, MOST_BY_HEAD, MTP, Acceptance, Depths, Drafts, Wish
from mlx_delta.engine.draft import CONTEXT, MOST_DRAFTS, LookupDrafter, MtpDrafter
from mlx_delta.model.network import Network


class Speculation:
    """One sequence's. ids: its prompt. count: drafts of each pass; None: as many as pay, as ``depths`` finds.

    A step without drafts leaves word of its token and no more: on a small model all that Python does shows.

    drafted, accepted: tokens so far.
    """

    def __init__(self, network: Network, ids: Sequence[int], count: int | None, depths: Depths) -> None:
        self.drafted = self.accepted = 0
        self.count = count
        self._costs = depths.costs
        self._lookup = LookupDrafter(ids)
        self._head = None if network.mtp is None else MtpDrafter(network, self._lookup.text)
        self._acceptance = {drafter: Acceptance(shared) for drafter, shared in depths.acceptance.items()}
        self.drafter = MTP  # of the pass under way, if it has drafts
        self._pushed: list[int] = []  # tokens that look-up was not told of yet
        self._seen = deque[tuple[mx.array, int]](maxlen=CONTEXT)  # what the head was not told of yet
        self._fresh: list[mx.array] = []  # what nobody has evaluated yet

    def see(self, x: mx.array, end: int) -> None:
        """x [1, n, hidden], as the last layer gave it, of the tokens before place ``end`` of the text."""
        if self._head is not None:
            self._seen.append((x, end))
            self._fresh.append(x)

    def recent(self, end: int) -> mx.array | None:
        """What ``see`` was told of the tokens before ``end``, for a sequence that goes on from there; None: nothing."""
        self._catch_up()
        return None if self._head is None else self._head.recent(end)

    def _catch_up(self) -> None:
        """Tell the drafters. Whether look-up would have known a token is noted, drafted or not."""
        if self._head is not None:
            for x, end in self._seen:
                self._head.see(x, end)
            self._seen.clear()
        for token in self._pushed:
            expected = self._lookup.expected
            if expected is not None:
                self._acceptance[LOOKUP].note(1, int(expected == token))
            self._lookup.extend([token])
        self._pushed.clear()

    def wish(self, most: int) -> Wish:
        """What it can draft in the pass to come, of at most ``most`` drafts."""
        self._catch_up()
        most = max(0, min(most, MOST_DRAFTS))
        by_head = most if self.count is not None else min(most, MOST_BY_HEAD)
        able = {MTP: 0 if self._head is None else by_head, LOOKUP: most if self._lookup.familiar else 0}
        return Wish(able, self._acceptance, self.count)

    def draft(self, token: mx.array, drafts: Drafts) -> mx.array | None:
        """What may follow ``token``, int [1], which follows the text: about so many, int [n]; None: nothing is known.

        A token's value is waited for only where it is looked up.
        """
        self.drafter = drafts.drafter
        if drafts.count and drafts.drafter == LOOKUP:
            if found := self._lookup.draft(int(np.array(token)[0]), drafts.count):
                return mx.array(found, dtype=mx.int32)
            self.drafter = MTP
        if not drafts.count or self._head is None:
            return None
        made, seconds = self._head.draft(token, drafts.count, trial=drafts.trial)
        if seconds is not None:
            self._costs.note_draft(seconds)
        return made

    def checked(self, drafts: int, accepted: int) -> None:
        """So many drafts of a pass were right, of so many."""
        self.drafted += drafts
        self.accepted += accepted
        self._acceptance[self.drafter].note(drafts, accepted)

    def push(self, token: int) -> None:
        """The text goes on with it."""
        self._pushed.append(token)

    def arrays(self) -> list[mx.array]:
        """What the drafters go on with, besides what was told before; evaluated, any thread can."""
        fresh, self._fresh = self._fresh, []
        return fresh if self._head is None else [*fresh, *self._head.arrays()]
