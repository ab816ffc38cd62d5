"""Answers beside each other, outside of the event loop, which never waits for the model.

A thread for each answer that is computed: it waits for the engine, and takes its steps where nobody else does. So as
many answers are under way as there are threads, and the queue before them is the executor's own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from mlx_delta.chat.result import ChatEvent, Usage
from mlx_delta.errors import RequestError
from mlx_delta.server.limits import Limits
from mlx_delta.server.metrics import Metrics

_LONGEST_RETRY = 60  # seconds
_PIECE = 64  # events of a write at most: it is held until the client has taken it


class Stream(Protocol):
    """What is run: a ``ChatStream``, or whatever has events and can be closed from another thread."""

    @property
    def prompt_tokens(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def rest(self) -> None:
        """It has to wait before it is iterated over: hold little until then."""

    def close(self) -> None:
        """End it; returns when it has ended."""

    def result(self) -> Any:
        """All of it, once it has ended."""


Make = Callable[[], Stream]


class Runner:
    """All that runs. Use it from the event loop's thread, but for ``stop``, which waits for a step."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.metrics = metrics
        self._limits = limits
        self._answering = ThreadPoolExecutor(limits.concurrent, "answer")
        self._preparing = ThreadPoolExecutor(2, "prompt")  # templates and tokenizers: short, but not for an event loop
        self._closing = ThreadPoolExecutor(1, "close")  # waits for a step of the engine to be over
        self._change = threading.Lock()  # guards what follows
        self._stopped = False
        self._places = 0  # taken: by answers under way or waiting
        self._unread = 0  # answers that have ended, whose clients have not taken all of their events
        self._running: set[Stream] = set()
        self._seconds = 1.0  # that an answer took, lately

    @property
    def running(self) -> int:
        """Answers that are computed now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that were accepted and have not begun."""
        return max(0, self._places - len(self._running))

    async def start(self, makes: Sequence[Make]) -> Answers:
        """Accept answers that belong together. makes: prepare one each, and raise where the request is wrong.

        Raises: RequestError 429 where the queue is full, and whatever ``makes`` raise.
        """
        self._take_places(len(makes))
        streams: list[Stream] = []
        try:
            for make in makes:
                streams.append(await self.call(make))
                if self._places > self._limits.concurrent:
                    streams[-1].rest()
        except BaseException:
            self._leave_places(len(makes))
            raise
        return Answers(self, streams, self._limits.keep_alive_seconds)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Something short, outside of the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function)

    def stop(self) -> None:
        """End all answers within a step; nothing is accepted any more."""
        with self._change:
            self._stopped = True
            running = list(self._running)
        for stream in running:
            stream.close()
        for pool in (self._answering, self._preparing, self._closing):
            pool.shutdown(wait=False, cancel_futures=pool is not self._closing)

    def close(self, stream: Stream) -> None:
        """End a stream within a step, without waiting for it."""
        if not self._stopped:
            self._closing.submit(stream.close)

    def submit(self, stream: Stream, tell: Callable[[Any], None]) -> Future[None]:
        """Run a stream that has a place when its turn comes; its events, or its error, are told in another thread."""
        future = self._answering.submit(self._run, stream, tell)
        future.add_done_callback(lambda _: self._leave_places(1))
        return future

    def _run(self, stream: Stream, tell: Callable[[Any], None]) -> None:
        begin, done = time.monotonic(), False
        with self._change:
            self._running.add(stream)
        try:
            for event in stream:
                done = event.done
                tell(event)
            if not done:  # it was closed between two events
                tell(ChatEvent(done=True, result=stream.result()))
        except Exception as error:
            tell(error)
        finally:
            with self._change:
                self._running.discard(stream)
                self._seconds += (time.monotonic() - begin - self._seconds) / 8

    def ended(self, answers: Answers) -> None:
        """One of them, which is not read yet."""
        with self._change:
            if not answers.closed:
                answers.unread += 1
                self._unread += 1

    def read(self, answers: Answers) -> None:
        """All of them, or nobody will."""
        with self._change:
            answers.closed = True
            self._unread -= answers.unread
            answers.unread = 0

    def _take_places(self, count: int) -> None:
        limits = self._limits
        with self._change:
            if self._stopped:
                raise RequestError(503, "the server is ending")
            if self._places + self._unread + count > limits.concurrent + limits.queue:
                wait = self._seconds * (1 + self._places / limits.concurrent)
                raise RequestError(
                    429,
                    f"expected at most {limits.concurrent} answers at once and {limits.queue} waiting or unread, "
                    "found as many",
                    code="rate_limit_exceeded",
                    retry_after=max(1, min(_LONGEST_RETRY, round(wait))),
                )
            self._places += count

    def _leave_places(self, count: int) -> None:
        with self._change:
            self._places -= count


class Answers:
    """Accepted answers that belong together. Once, ``frames`` for a stream, or ``async for index, event in answers``
    for who wants the whole: it is not woken for every token. They end with the iteration, and ``close`` ends what was
    never iterated over.

    count: how many. prompt_tokens: of the first one's prompt. usages: of those that have ended, by their indices.
    """

    def __init__(self, runner: Runner, streams: Sequence[Stream], keep_alive_seconds: float) -> None:
        self.count = len(streams)
        self.prompt_tokens = streams[0].prompt_tokens
        self.usages: dict[int, Usage] = {}
        self.closed, self.unread = False, 0  # the runner's
        self._streams = list(streams)
        self._first_seconds: float | None = None
        self._begin = time.monotonic()
        self._runner = runner
        self._keep_alive_seconds = keep_alive_seconds
        self._events: deque[tuple[int, Any]] = deque()
        self._streamed = False  # else only ends, errors and calls of tools are worth waking up for
        self._loop = asyncio.get_running_loop()
        self._more: asyncio.Future[None] | None = None  # who waits for an event
        self._wanted = False  # there is such an event
        self._woken = False  # the loop will hear of it
        self._waits_since = 0.0
        self._silent = False  # nothing came until the timer did
        self._timer: asyncio.TimerHandle | None = None
        self._first_at: float | None = None
        self._futures = [runner.submit(stream, partial(self._tell, i)) for i, stream in enumerate(self._streams)]

    def _tell(self, index: int, event: Any) -> None:
        """From an answer's thread. Each wake is a call of the system, and who is woken runs Python beside the model's
        threads."""
        if self._first_at is None:
            self._first_at = time.monotonic()
        self._events.append((index, event))
        if isinstance(event, Exception) or event.done:
            self._runner.ended(self)
        if self._streamed or isinstance(event, Exception) or event.done or getattr(event, "tool_call", None):
            self._wanted = True
            if not self._woken and not self._loop.is_closed():
                self._woken = True
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._woken = False
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _time_out(self) -> None:
        """One timer for all waits: it begins anew for the rest of the one that is under way."""
        left = self._waits_since + self._keep_alive_seconds - self._loop.time()
        self._timer = None
        if self._more is not None:
            if left <= 0:
                self._silent = True
                self._wake()
            else:
                self._timer = self._loop.call_later(left, self._time_out)

    async def _wait(self) -> None:
        """Until there is an event, or none has come for a while. (``asyncio.wait_for`` does not do: before Python 3.12
        it forgets that it was cancelled where an event comes at that moment, and the answer goes on for nobody.)
        """
        self._silent = False
        if self._wanted:
            await asyncio.sleep(0)  # others have their turn, and who iterates can be cancelled
            return
        self._more = self._loop.create_future()
        self._waits_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._keep_alive_seconds, self._time_out)
        try:
            await self._more
        finally:
            self._more = None

    async def _batches(self) -> AsyncIterator[list[tuple[int, Any]]]:
        """All events that are there; none where nothing has come for a while."""
        left = self.count
        try:
            while left:
                await self._wait()
                self._wanted = False
                batch = [self._events.popleft() for _ in range(min(len(self._events), _PIECE))]
                if self._events:
                    self._wanted = True
                if not batch and not self._silent:
                    continue
                for at, (index, event) in enumerate(batch):
                    if isinstance(event, Exception):
                        if at:
                            yield batch[:at]
                        raise event
                    self._count(index, event)
                    left -= bool(event.done)
                yield batch
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self.close()

    async def frames(self, frames_of: Callable[[int, Any], Iterable[bytes]], silent: bytes) -> AsyncIterator[bytes]:
        """What ``frames_of`` makes of each event, all that is there in one piece, for one write; ``silent`` where
        nothing has come for a while."""
        self._streamed = True
        self._wanted = bool(self._events)
        batches = self._batches()
        try:
            async for batch in batches:
                piece = b"".join([each for index, event in batch for each in frames_of(index, event)])
                if piece or not batch:
                    yield piece or silent
        finally:
            await batches.aclose()  # type: ignore[attr-defined]  # it is a generator

    async def __aiter__(self) -> AsyncIterator[tuple[int, Any]]:
        batches = self._batches()
        try:
            async for batch in batches:
                for each in batch:
                    yield each
        finally:
            await batches.aclose()  # type: ignore[attr-defined]

    def figures(self) -> dict[str, Any]:
        """For a line in the log: tokens and seconds so far, and no text."""
        usages = self.usages.values()
        return {
            "first_seconds": None if self._first_seconds is None else round(self._first_seconds, 3),
            "prompt_tokens": max((usage.prompt_tokens for usage in usages), default=None),
            "cached_tokens": max((usage.cached_tokens for usage in usages), default=None),
            "completion_tokens": sum(usage.completion_tokens for usage in usages),
            "drafted_tokens": sum(usage.drafted_tokens for usage in usages),
            "accepted_tokens": sum(usage.accepted_tokens for usage in usages),
        }

    def _count(self, index: int, event: ChatEvent) -> None:
        metrics = self._runner.metrics
        if self._first_seconds is None and self._first_at is not None:
            self._first_seconds = self._first_at - self._begin
            metrics.first_event(self._first_seconds)
        if event.result is not None:
            self.usages[index] = event.result.usage
            metrics.answer(event.result.usage)

    def close(self) -> None:
        """End them, if they have not ended: within a step their places are free."""
        for stream, future in zip(self._streams, self._futures, strict=True):
            if not future.done() and not future.cancel():
                self._runner.close(stream)
        # What a connection holds lives until Python's next collection of circles, which knows nothing of the megabytes
        # that a stream has.
        self._streams.clear()
        self._futures.clear()
        self._runner.read(self)

    def end(self, index: int) -> None:
        """End one of them: its last event is still to come."""
        if self._streams:
            self._runner.close(self._streams[index])
