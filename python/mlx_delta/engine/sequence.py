"""One sequence of tokens under way: its prompt, its cache, its sampler, and who reads what it brings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np

from mlx_delta.engine.cuts import Cuts
from mlx_delta.engine.depth import Drafts, Wish
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.sample import Allowed, Sampler
from mlx_delta.engine.speculation import Speculation
from mlx_delta.errors import ArgumentError, NotFiniteError
from mlx_delta.model.cache import Cache
from mlx_delta.model.pictures import PicturePart

Told = tuple[dict[str, Any], dict[str, mx.array]]  # of a sequence, to other ranks: what JSON takes, and arrays
Passed = tuple[mx.array | None, mx.array | None]  # what a layer gave of a pass, by rows and by tiles


def _not_finite(dtype: mx.Dtype) -> str:
    name = str(dtype).rpartition(".")[2]
    wider = "bfloat16 or float32" if dtype == mx.float16 else "float32"
    return (
        f"logits: expected finite numbers, found NaN: activations of {name} have overflowed, or weights are damaged; "
        f"load the model with dtype {wider}"
    )


def told(kind: str, facts: dict[str, Any], pictures: PicturePart | None, keys: Sequence[int]) -> Told:
    """facts: with its ``ids``. pictures: what they show; keys: see ``TokenSequence``."""
    if pictures is None:
        return {"kind": kind, **facts}, {}
    index, rows = pictures.rows(0, len(facts["ids"])) or (mx.zeros(0, mx.int32), mx.zeros((0, 1)))
    arrays = {"positions": mx.array(pictures.positions), "index": index, "rows": rows}
    mx.eval(list(arrays.values()))  # what is lazy, only this thread could evaluate
    return {"kind": kind, **facts, "keys": list(keys)}, arrays


def _untold() -> Told:
    raise ArgumentError("sequence: expected one that other ranks can be told of, found another")


class Clock:
    """Wall time of a sequence in seconds: its prompt, up to the first token; and its decoding, after that."""

    def __init__(self) -> None:
        self._begin = self._first = self._last = 0.0

    def start(self) -> None:
        """The prompt begins."""
        self._begin = time.perf_counter()

    def tick(self) -> None:
        """A token is there."""
        self._last = time.perf_counter()
        self._first = self._first or self._last

    @property
    def started(self) -> bool:
        return self._begin > 0

    @property
    def prefill_seconds(self) -> float:
        return max(0.0, self._first - self._begin)

    @property
    def decode_seconds(self) -> float:
        return self._last - self._first


class Reader(Protocol):
    """What becomes of a sequence's tokens. finish_reason: None while it goes on."""

    clock: Clock

    @property
    def finish_reason(self) -> str | None: ...

    def allowed(self) -> Allowed | None:
        """Before the next token is used: the only ids that it may be; None: any that the sampler takes."""

    def push(self, token: int, likelihood: Likelihood | None) -> Sequence[Any]:
        """The events that this token completes; sets ``finish_reason`` when it ends the sequence."""


@dataclass(frozen=True)
class _Check:
    """A pass over a token and drafts after it. tokens: what the sampler chooses of each row, as long as ``bans``."""

    x: mx.array
    logits: mx.array
    drafts: mx.array
    tokens: mx.array
    bans: int


class TokenSequence:
    """A prompt, and what is generated after it.

    ids: the prompt. cache: one of the caller's own, which covers the first ``cache.offset`` of them already; None: the
    engine's, which goes on from what it has kept of others, and is kept for others. known: of the prompt, before it
    began.
    progress: called while the prompt is computed, with the tokens done and how many there are to do.
    pictures: what the prompt shows; keys: the ids with what tells one picture from another in their places; None: ids.
    told: what another rank makes the same sequence of. number: among those that ranks were told of, from 1; 0: not yet.
    most: tokens to generate, unless the reader ends it before. logprobs: how many of the likeliest tokens the reader is
    told besides the chosen one; None: no likelihoods. speculation: what drafts tokens for it; None: nothing does.
    tokens: generated so far. The cache covers the prompt and all of them, or all but the last.
    """

    def __init__(
        self,
        ids: Sequence[int],
        cache: Cache | None,
        sampler: Sampler,
        reader: Reader,
        *,
        most: int,
        logprobs: int | None = None,
        pictures: PicturePart | None = None,
        keys: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
        speculation: Speculation | None = None,
        told: Callable[[], Told] | None = None,
    ) -> None:
        self.ids = ids
        self.told = told or _untold
        self.number = 0
        self.pictures = pictures
        self.keys = ids if keys is None else keys
        self.own_cache = cache is not None
        self.cache = Cache([]) if cache is None else cache
        self.begun = False
        self.sampler = sampler
        self.reader = reader
        self.most = most
        self.logprobs = logprobs
        self.progress = progress or (lambda done, total: None)
        self.known = self.cache.offset
        self.computing = False  # a piece of its prompt is on its way through the network
        self.by_itself = False  # its pieces are computed beside no other's
        self.tokens: list[int] = []
        self.events: deque[Any] = deque()  # that nobody has taken yet
        self.ended = False
        self.error: Exception | None = None
        self.cuts: Cuts
        self._logits: mx.array
        self._next: mx.array  # the token sampled last, int [1]
        self._known: int | None = None  # its value, where it was waited for
        self._unread: mx.array | int | None = None  # the one before, which the cache covers
        self._unread_logits: mx.array
        self.speculation = speculation
        self._check: _Check | None = None  # drafts that are being checked
        self._steered = False  # the next token

    def begin(self, cuts: Cuts, cache: Cache) -> None:
        """Its prompt is computed from now on, over ``cache``. cuts: the prompt's."""
        self.cuts, self.cache, self.known, self.begun = cuts, cache, cache.offset, True

    def begin_again(self) -> None:
        """What was computed of its prompt is lost."""
        self.cache, self.begun, self.computing = Cache([]), False, False

    @property
    def decoding(self) -> bool:
        """Whether its prompt has been computed."""
        return not self.computing and self.cache.offset >= len(self.ids)

    @property
    def last(self) -> bool:
        """Whether its next token is the last: nothing follows that would have to be computed."""
        return len(self.tokens) + 1 == self.most

    def take_events(self) -> list[Any]:
        """Those that nobody has taken yet; more may come meanwhile, in another thread."""
        events = self.events
        return [events.popleft() for _ in range(len(events))]

    @property
    def next(self) -> mx.array:
        """The token that the next step computes on, int [1]."""
        return self._next

    def sample(self, logits: mx.array) -> None:
        """Choose the next token out of logits [1, V]."""
        self._logits = logits
        self._next, self._known = self.sampler.sample(logits), None

    def steer(self) -> None:
        """See that the next token, chosen already but not used, may come: else it is chosen again."""
        if self._steered:
            return
        self._steered = True
        allowed = self.reader.allowed()
        if allowed is not None:
            self.sampler.forget()
            self._next, self._known = self.sampler.sample(self._logits, allowed), None

    def use(self) -> None:
        """The next token is computed on, or needs no more than to be read."""
        self._unread = self._next if self._known is None else self._known
        self._unread_logits = self._logits
        self._steered = False

    def drafts_now(self, rests: bool) -> bool:
        """Whether it may draft; rests: whether those do not that leave it to the engine."""
        return self.speculation is not None and not (rests and self.speculation.count is None)

    def wish(self) -> Wish | None:
        """What it can draft in the pass that computes on its next token; None: it does not draft."""
        return None if self.speculation is None else self.speculation.wish(self.most - len(self.tokens) - 2)

    def drafts(self, share: Drafts) -> mx.array | None:
        """Tokens that may follow the next one, int [n], to be checked in the pass that computes on it; None: none."""
        return None if self.speculation is None else self.speculation.draft(self._next, share)

    def advance(self, x: mx.array, logits: mx.array, drafts: mx.array | None) -> None:
        """The next token and ``drafts`` after it were computed on: x [n, 1, hidden] as the last layer gave it, and
        logits [n, V]. The next token is in use; what follows it is chosen, here or when it is read."""
        self.use()
        if drafts is not None:
            x = x.reshape(1, x.shape[0], -1)
            self._check = _Check(x, logits, drafts, self.sampler.ahead(logits, drafts), self.sampler.bans)
            return
        self.sample(logits)
        if self.speculation is not None:
            self.speculation.see(x, self.cache.offset)

    def read(self) -> None:
        """Wait for the token in use, and those of its drafts that are right, and give them to the reader."""
        if self._unread is None and self._check is None:
            return
        check, self._check = self._check, None
        self._read_one()
        if check is not None:
            self._accept(check)

    def _accept(self, check: _Check) -> None:
        """Go on as far as the drafts are what is chosen anyway, as if each had come alone.

        The pass is waited for once: its tokens are of one graph with the drafts, and read by their values from then on.
        """
        tokens, drafts = np.array(check.tokens).tolist(), np.array(check.drafts).tolist()
        count = used = len(tokens)
        for row in range(count):
            used, self._logits = row + 1, check.logits[row : row + 1]
            if self.sampler.bans == check.bans:
                self._next, self._known = mx.array(tokens[row : row + 1], dtype=mx.int32), tokens[row]
                self.sampler.take(self._next)
            else:
                self.sample(self._logits)
            if self.ended or used == count:
                break
            self.steer()
            if self._known is None:
                (self._known,) = np.array(self._next).tolist()
            if self._known != drafts[row]:
                break
            self.use()
            self._read_one()
        self.cache.end_drafts(used, count)
        if self.speculation is not None:
            self.speculation.see(check.x[:, :used], self.cache.offset)
            self.speculation.checked(len(drafts), used - 1)
        mx.async_eval(self._logits, *self.arrays())  # a slice, which a token known before did not need

    def _read_one(self) -> None:
        if self._unread is None:
            return
        token = self._unread if isinstance(self._unread, int) else cast(int, self._unread.item())
        if token < 0:
            raise NotFiniteError(_not_finite(self._unread_logits.dtype))
        likelihood = None
        if self.logprobs is not None:
            logits = self._unread_logits[:, : self.sampler.vocab_size]
            likelihood = Likelihood.of(logits, token, self.logprobs)
        self._unread = None
        self.tokens.append(token)
        if self.speculation is not None:
            self.speculation.push(token)
        self.reader.clock.tick()
        self.events.extend(self.reader.push(token, likelihood))
        self.ended = self.reader.finish_reason is not None or len(self.tokens) == self.most

    @property
    def drafted(self) -> tuple[int, int]:
        """How many tokens were drafted for it, and how many of them came true."""
        return (0, 0) if self.speculation is None else (self.speculation.drafted, self.speculation.accepted)

    @property
    def covered(self) -> list[int] | None:
        """The keys of what the cache covers with the bits of any other that does; None where there are none: it was
        interrupted within a piece, or while a token that it covers was not known, or ends where a longer prompt would
        not be cut."""
        offset = self.cache.offset
        if not self.begun or self.computing or offset > len(self.ids) + len(self.tokens):
            return None
        generated = self.tokens[: max(0, offset - len(self.ids))]
        if generated and (not self.cuts.opened or self.cuts.start in generated):
            return None  # given in a prompt, it would be computed by tiles
        return [*self.keys, *self.tokens][:offset] if self.cuts.before(offset) == offset else None

    def arrays(self) -> list[mx.array]:
        """What the next step needs besides states, keys and values; evaluated, any thread can go on with it."""
        drafting = [] if self.speculation is None else self.speculation.arrays()
        check = self._check  # of others in its pass it has pending rows as lazy slices
        checking = [] if check is None else [check.tokens, check.drafts, *self.cache.pending()]
        return [self._next, *checking, *self.sampler.arrays(), *drafting]
