"""The one loop over tokens: many sequences at once over one network, none of which notices the others.

A step decodes the next token of every sequence that is that far, in one pass over the weights, beside a piece of the
prompt that has waited longest. A sequence joins and leaves between two steps. Its tokens depend on nothing but itself:
a row of the network has the same bits whatever the others are (``Network.decode``), and a prompt wherever it is cut
(``prefill``).

There is no thread of the engine's own. Whoever waits for a token takes the steps, for all; the others wait for theirs.
So one sequence alone costs what a plain loop does, and nothing runs when nobody waits. But where several ranks take the
steps together (``lead``), one thread takes them all.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import mlx.core as mx

from mlx_delta.distributed.ranks import Ranks
from mlx_delta.engine.blocks import AtOnce, later_interrupt
from mlx_delta.engine.cuts import NO_TURNS, Cuts, Turns
from mlx_delta.engine.depth import CHEAP_ROW, DEAR_ROW, Depths
from mlx_delta.engine.lead import Lead
from mlx_delta.engine.memory import memory_bytes
from mlx_delta.engine.prefix import PrefixCache
from mlx_delta.engine.prompts import Prompts
from mlx_delta.engine.sequence import TokenSequence, Told
from mlx_delta.engine.snapshots import Snapshots
from mlx_delta.engine.speculation import Speculation
from mlx_delta.engine.steps import Steps
from mlx_delta.errors import ArgumentError, BusyError, QueueFullError
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from mlx_delta.streams import OneStream

MOST_WAITING = 4096  # sequences that wait for their turn; a client beyond is told to come again
MOST_ROWS = 16  # sequences that decode at once; more wait for one of them to end
_LAST_STEP = 10.0  # seconds that the end of the process waits for one


class Engine:
    """Sequences over ``network``, from any number of threads.

    turns: how they show in token ids; a prompt is cut at them (``cuts``). prefix: what is kept of sequences for others;
    snapshots: in files too. memory: bytes for the weights, what sequences under way need, and what is kept; a sequence
    waits until it fits, and what is kept makes room. None: what the machine has. most_rows: sequences that hold states
    at once; those beyond wait their turn, first come, first served; most_waiting: how many may.
    """

    def __init__(
        self,
        network: Network,
        turns: Turns = NO_TURNS,
        *,
        prefix_bytes: int = 0,
        snapshots: Snapshots | None = None,
        memory: int | None = None,
        most_rows: int = MOST_ROWS,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.network = network
        self.turns = turns
        self.prefix = PrefixCache(network, network.least(prefix_bytes), turns, snapshots)
        self._most_rows = most_rows
        self._most_waiting = most_waiting
        self._refuses = memory is not None
        self._memory = network.least(max(0, memory_bytes(memory) - network.nbytes))  # for sequences and what is kept
        self.lead: Lead | None = None  # of ranks of which the first alone hears what is asked
        self._prompts = Prompts(network, self.prefix, turns)
        cost = CHEAP_ROW if mx.default_device() == mx.gpu else DEAR_ROW
        self._depths = Depths(cost, network.bytes_per_draft / network.bytes_per_token)
        self._steps = Steps(network, self._prompts, self._depths)
        self._stream = OneStream()
        self._lock = threading.RLock()  # guards what follows
        self._waiters: list[threading.Lock] = []  # of threads that wait for a change; each is released at the next
        self._driver: int | None = None  # the thread that takes a step: it alone touches the sequences that go on
        self._waiting: deque[TokenSequence] = deque()
        self._going: list[TokenSequence] = []
        self._cancelled: set[TokenSequence] = set()
        self._resting: bool | None = None  # true: no more steps are taken
        atexit.register(_rest, weakref.ref(self), os.getpid())

    def speculation(self, ids: Sequence[int], drafts: int | None) -> Speculation | None:
        """What drafts for a sequence that begins with ``ids``: so many tokens in each pass (None: as many as pay, or
        none where ranks would each find another number)."""
        nobody = drafts == 0 or (drafts is None and self.network.ranked)
        return None if nobody else Speculation(self.network, ids, drafts, self._depths)

    def follow(self, ranks: Ranks, make: Callable[[Told], TokenSequence]) -> Lead:
        """From now on all steps are taken by ``Lead.run`` of the result, and rank 0 alone submits."""
        self.lead = Lead(self, ranks, make)
        return self.lead

    def run(self, sequence: TokenSequence) -> Generator[Any, None, None]:
        """The events of a sequence as they come. It begins when the first is asked for; closing it after that ends it.

        One that was submitted before, and that nobody asks, ``cancel`` alone ends.
        """
        self.submit(sequence)
        try:
            while events := self._events(sequence):
                yield from events
        finally:
            self.cancel(sequence)

    def known(self, ids: Sequence[int], keys: Sequence[int]) -> int:
        """How many tokens of a prompt are kept, of whose ids pictures' places have their ``keys``."""
        return self.prefix.known(keys, Cuts(ids, self.turns))

    def submit(self, sequence: TokenSequence) -> None:
        """Let it go on beside the others whenever a step is taken, until ``run`` is asked for its events.

        Raises: ArgumentError where it would never fit into the memory; QueueFullError where too many wait.
        """
        need = self._need(sequence)
        if self._refuses and need > self._memory:
            raise ArgumentError(
                f"prompt: expected one that needs at most {self._memory} bytes with its answer (memory_bytes, less the "
                f"weights), found {len(sequence.ids)} tokens and max_new_tokens={sequence.most}, which need {need}"
            )
        if not sequence.reader.clock.started:
            sequence.reader.clock.start()
            if not sequence.own_cache and len(self._waiting) < self._most_rows:  # else its turn is far away
                self.prefix.fetch(sequence.keys, sequence.ids)
        with self._lock:
            if sequence not in self._waiting and sequence not in self._going and not sequence.ended:
                if len(self._waiting) >= self._most_waiting:
                    raise QueueFullError(
                        f"engine: expected at most {self._most_waiting} sequences to wait, found one more"
                    )
                if self.lead is None:
                    self._waiting.append(sequence)
                elif not sequence.number:
                    with later_interrupt():  # what has a number is waited for until the ranks have ended it
                        self.lead.submit(sequence)

    def accept(self, sequence: TokenSequence) -> None:
        """``submit`` where several ranks do it."""
        with self._lock:
            if not sequence.ended:
                self._waiting.append(sequence)

    def drop(self, sequence: TokenSequence) -> None:
        """``cancel`` where several ranks do it, or for who does not wait: it ends after the step under way."""
        with self._lock:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
                sequence.ended = True
                self._changed()
            elif sequence in self._going:
                self._cancelled.add(sequence)

    def end_all(self, error: Exception) -> None:
        """All that is under way ends with the error."""
        with self._lock:
            for each in (*self._waiting, *self._going):
                each.error, each.ended = each.error or error, True
            self._waiting.clear()
            self._going.clear()
            self._changed()

    def forget(self, keys: Sequence[int]) -> None:
        """What is kept of ``keys``, except for what others begin with too."""
        if self.lead is None:
            self.prefix.forget(keys)
        else:
            self.lead.forget(keys)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._going and not self._waiting

    def cancel(self, sequence: TokenSequence) -> None:
        """End it: whoever waits for its events hears that there are no more. On return its cache is the caller's alone.

        Where a forgotten iterator may be collected, within a step, in its own thread, or within the engine's lock, it
        ends after the step.
        """
        if self.lead is not None and sequence.number:
            self._cancel_led(self.lead, sequence)
            return
        collected = self._lock._is_owned()  # type: ignore[attr-defined]  # who needs it would wait for this thread
        while True:
            with later_interrupt(), self._lock:
                if sequence in self._waiting:
                    self._waiting.remove(sequence)
                if sequence in self._going:
                    self._cancelled.add(sequence)
                    if self._driver == threading.get_ident():
                        return
                    if self._driver is None:
                        self._drop_cancelled()
                if sequence not in self._going:
                    sequence.ended = True
                    self._changed()
                    return
                if collected:
                    return
                change = self._next_change()
            change.acquire()

    def _cancel_led(self, lead: Lead, sequence: TokenSequence) -> None:
        if sequence.ended:
            return
        with later_interrupt():
            lead.cancel(sequence)
        collected = self._lock._is_owned()  # type: ignore[attr-defined]
        while True:
            with self._lock:
                if collected or self._driver == threading.get_ident() or sequence.ended or lead.over:
                    return
                change = self._next_change()
            change.acquire()

    def _events(self, sequence: TokenSequence) -> Sequence[Any]:
        """Those that are there, or the next to come; none when it has ended."""
        while not sequence.events:
            with later_interrupt() as at_once:
                change = self._step(sequence, at_once)
            if change is not None:
                change.acquire()
            elif sequence.ended and not sequence.events:
                if sequence.error is not None:
                    raise sequence.error
                return ()
        return sequence.take_events()  # nobody else takes them

    def _step(self, sequence: TokenSequence, at_once: AtOnce) -> threading.Lock | None:
        """Take a step for a sequence that waits for an event; a change to wait for, where another thread does."""
        me = threading.get_ident()
        within = self._driver == me  # a step, which goes on
        try:
            with self._lock:
                if sequence.events or sequence.ended:
                    return None
                if (self._driver or self.lead or self._resting) is not None:
                    return self._next_change()
                self._driver = me
                self._admit()
            with at_once() if self._going == [sequence] else nullcontext():  # nobody else loses what it has begun
                self._drive()
        finally:
            if self._driver == me and not within:
                self._leave()
        return None

    def rest(self) -> None:
        """The process ends: after the step under way none is taken, and who waits for one waits for good. In a daemon
        thread that comes back from MLX after Python's end the process would be aborted."""
        if self.lead is not None:  # whose thread has ended
            return
        last = time.monotonic() + _LAST_STEP
        while True:
            with self._lock:
                self._resting = True
                if self._driver is None:
                    return
                change = self._waiter()
            if not change.acquire(timeout=max(0.0, last - time.monotonic())):
                return

    def _next_change(self) -> threading.Lock:
        """To be waited for. Raises: BusyError where that would be for ever."""
        if self._driver == threading.get_ident():
            raise BusyError("engine: expected a use outside of its steps, found one within, which would wait")
        if self._resting and threading.current_thread() is threading.main_thread():
            raise BusyError("engine: expected a use before the process ends, found one after")
        return self._waiter()

    def _waiter(self) -> threading.Lock:
        """To be acquired, when ``self._lock`` has been left. (``threading.Condition`` waits within it: Ctrl-C there may
        leave it without, which is a RuntimeError.)"""
        change = threading.Lock()
        change.acquire()
        self._waiters.append(change)
        return change

    def _changed(self) -> None:
        """Whoever waits looks again."""
        waiters, self._waiters = self._waiters, []
        for each in waiters:
            each.release()

    def take_step(self) -> None:
        """Where one thread takes them all."""
        try:
            with self._lock:
                self._driver = threading.get_ident()
                self._admit()
            with later_interrupt():
                self._drive()
        finally:
            self._leave()

    def _drive(self) -> None:
        """A step, in the thread that is the driver."""
        with self._stream():
            self._steps.take(self._going)
            for each in self._going:
                if each.ended:
                    self._prompts.leave(each)

    def _leave(self) -> None:
        """Whoever waits may be the driver."""
        with self._lock:
            self._driver = None
            if self._cancelled:
                self._drop_cancelled()
            for each in self._going:
                if each.ended:
                    self._going = [each for each in self._going if not each.ended]
                    break
            if self._waiters:
                self._changed()

    def _admit(self) -> None:
        if self._cancelled:
            self._drop_cancelled()
        if not self._waiting:
            return
        taken = sum(self._need(each) for each in self._going)
        while self._waiting and len(self._going) < self._most_rows:
            taken += self._need(self._waiting[0])
            if self._going and taken > self._memory:
                return
            self.prefix.shrink(self._memory - taken)
            self._going.append(self._waiting.popleft())

    def _need(self, sequence: TokenSequence) -> int:
        """Bytes, when all of its tokens are there."""
        network, tokens = self.network, len(sequence.ids) + sequence.most
        return Cache.bytes_of(network.cached, network.dtype, tokens, network.kv_bits)

    def _drop_cancelled(self) -> None:
        with self._stream():
            while self._cancelled:  # to which a forgotten one may come that is collected meanwhile
                dropped = self._cancelled.pop()
                dropped.ended = True
                self._prompts.leave(dropped)
                self._going = [each for each in self._going if each is not dropped]


def _rest(engine: weakref.ref[Engine], process: int) -> None:
    found = engine()
    if found is not None and os.getpid() == process:  # one that was forked has no other thread, perhaps a lock of one
        with suppress(KeyboardInterrupt):
            found.rest()
