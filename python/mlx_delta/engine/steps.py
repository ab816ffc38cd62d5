"""What a step computes: the next token of every sequence that decodes, beside a piece of a prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence

import mlx.core as mx

from mlx_delta.engine.blocks import ErrorsOf, Restored, read, wait
from mlx_delta.engine.depth import MTP, Depths
from mlx_delta.engine.prompts import Prompts
from mlx_delta.engine.sequence import TokenSequence
from mlx_delta.model.network import Network
from mlx_delta.model.rows import Span


class Steps:
    """Of sequences over ``network``, in whichever thread takes the step. depths: hears what passes cost, and says how
    much to draft."""

    def __init__(self, network: Network, prompts: Prompts, depths: Depths) -> None:
        self._network = network
        self._prompts = prompts
        self._depths = depths
        self._waited = 0.0  # in the step under way, for the end of the pass before it

    def take(self, going: Sequence[TokenSequence]) -> None:
        """One step of all that go on: those that fail, or come to their end, are ``ended`` then."""
        if len(going) == 1:
            (row,) = going
            if row.decoding and (row.speculation is None or not row.drafts_now(self._depths.rests)):
                self._step_alone(row)
                return
        rows = [each for each in going if each.decoding]
        read(rows)  # what a step before, cut short, has left
        prompts = [each for each in going if not each.decoding]
        waited = 0.0
        if prompts:
            waited = wait(rows)
            rows = [each for each in rows if not each.ended]
            self._prompts.compute(prompts, beside=len(rows))
            rows += [each for each in prompts if each.decoding]
        rows = [each for each in rows if not each.ended]
        begin, self._waited = time.perf_counter(), 0.0
        for row in rows:
            with ErrorsOf([row]):
                row.steer()
        rows = [each for each in rows if not each.ended]
        speculating = not prompts and any(row.speculation is not None for row in rows)
        tokens = sum(len(row.tokens) for row in rows) if speculating else 0
        with ErrorsOf(rows):
            self._decode([row for row in rows if not row.last])
        for row in rows:
            if row.last and not row.ended:
                row.use()
        read(rows)
        seconds = time.perf_counter() - begin
        if rows:
            self._prompts.pace.decoded(waited + seconds, len(rows), beside=bool(prompts))
        if speculating and not any(row.ended for row in rows):
            brought = sum(len(row.tokens) for row in rows) - tokens
            self._depths.took(seconds, len(rows), brought, self._waited)

    def _step_alone(self, row: TokenSequence) -> None:
        """One sequence, decoding, that nobody drafts for in this step: there is nobody to keep it apart from.

        Written out, since what Python does between two tokens shows on a small model, and all the more the more
        functions it goes through: after each pass over the weights none of them is in the processor's caches.
        """
        begin, speculation = time.perf_counter(), row.speculation
        try:
            row.read()  # what a step before, cut short, has left
            if row.ended:
                return
            row.steer()
            if row.last:
                row.use()
            else:
                if speculation is not None:
                    self._depths.began(1, 0, drafting=False)
                self._decode_alone(row)
            row.read()
        except Exception as error:
            row.error, row.ended = error, True
            return
        seconds = time.perf_counter() - begin
        self._prompts.pace.decoded(seconds, 1, beside=False)
        if speculation is not None and not row.ended:
            self._depths.took(seconds, 1, 1)

    def _decode_alone(self, row: TokenSequence) -> None:
        """``_decode`` of one row without drafts."""
        held = row.cache.held()
        try:
            x = self._network.step(row.next, row.cache)
            row.advance(x, self._network.logits(x)[:, 0], None)
        except BaseException:
            row.cache.restore(held)
            raise
        del held  # a held state is not updated in place
        mx.async_eval(*row.arrays())

    def _decode(self, rows: Sequence[TokenSequence]) -> None:
        """Set off the pass over the weights in which each row's next token becomes the one after it."""
        if not rows:
            return
        drafts = self._drafts(rows)
        if len(rows) == 1 and drafts[0] is None:
            self._decode_alone(rows[0])
            return
        with Restored(rows):
            tokens, spans = list[mx.array](), list[Span]()
            for row, drafted in zip(rows, drafts, strict=True):
                tokens += [row.next] if drafted is None else [row.next, drafted]
                count = 1 if drafted is None else 1 + drafted.shape[0]
                spans.append(Span(row.cache, spans[-1].first + spans[-1].count if spans else 0, count))
                if drafted is not None:
                    row.cache.begin_drafts()
            x, _ = self._network.advance(tokens[0] if len(tokens) == 1 else mx.concatenate(tokens), None, spans)
            assert x is not None
            logits = self._network.logits(x)[:, 0]
            for row, span, drafted in zip(rows, spans, drafts, strict=True):
                part = slice(span.first, span.first + span.count)
                row.advance(*((x, logits) if len(rows) == 1 else (x[part], logits[part])), drafted)
        mx.async_eval(*(array for row in rows for array in row.arrays()))

    def _drafts(self, rows: Sequence[TokenSequence]) -> list[mx.array | None]:
        """What each row's pass is to check."""
        rests = self._depths.rests
        wishes = [row.wish() if row.drafts_now(rests) else None for row in rows]
        if not any(wishes):
            self._depths.began(len(rows), 0, drafting=False)
            return [None] * len(rows)
        shares = self._depths.share(wishes)
        if any(share.trial for share in shares):
            self._waited = wait(rows)  # else what drafts cost would be told with the pass before
        drafts = [row.drafts(share) for row, share in zip(rows, shares, strict=True)]
        counts = [0 if each is None else each.shape[0] for each in drafts]
        by_head = sum(
            count for row, count in zip(rows, counts, strict=True) if row.speculation and row.speculation.drafter == MTP
        )
        self._depths.began(len(rows) + sum(counts), by_head, drafting=any(counts))
        return drafts
