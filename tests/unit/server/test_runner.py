"""Answers beside each other: places, the queue, and who is told what."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest
from starlette.types import Message

from mlx_delta.errors import ArgumentError, RequestError
from mlx_delta.server.limits import Limits
from mlx_delta.server.metrics import Metrics
from mlx_delta.server.runner import Answers, Runner
from mlx_delta.server.service import event_stream


@dataclass
class Event:
    done: bool = False
    result: None = None


class Slow:
    """A stream that has an event, and then waits to be closed or released."""

    prompt_tokens = 1

    def __init__(self) -> None:
        self.end = threading.Event()
        self.closed = self.rested = False

    def __iter__(self) -> Iterator[Event]:
        yield Event()
        assert self.end.wait(10)
        yield Event(done=True)

    def rest(self) -> None:
        self.rested = True

    def close(self) -> None:
        self.closed = True
        self.end.set()

    def result(self) -> None: ...


def run(limits: Limits, scenario: Callable[[Runner], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        runner = Runner(limits, Metrics())
        try:
            await scenario(runner)
        finally:
            runner.stop()

    asyncio.run(all_of_it())


async def soon(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come")


def test_beyond_the_queue_is_refused_and_places_come_back() -> None:
    async def scenario(runner: Runner) -> None:
        streams = [Slow() for _ in range(3)]
        taken = [await runner.start([lambda one=one: one]) for one in streams]
        await soon(lambda: (runner.running, runner.waiting) == (1, 2))
        assert [stream.rested for stream in streams] == [False, True, True]
        with pytest.raises(RequestError) as refused:
            await runner.start([Slow])
        assert (refused.value.status, (refused.value.retry_after or 0) >= 1) == (429, True)
        taken[1].close()  # it waits: nothing is to be closed
        await soon(lambda: runner.waiting == 1)
        assert not streams[1].closed
        iteration = taken[0].frames(lambda index, event: [b"%d" % index], b"")
        assert await iteration.__anext__() == b"0"
        await iteration.aclose()  # type: ignore[attr-defined]
        await soon(lambda: streams[0].closed)
        await soon(lambda: (runner.running, runner.waiting) == (1, 0))
        streams[2].end.set()
        assert [event async for _, event in taken[2]] == [Event(), Event(done=True)]
        await soon(lambda: (runner.running, runner.waiting) == (0, 0))

    run(Limits(concurrent=1, queue=2), scenario)


def test_what_cannot_begin_leaves_its_place() -> None:
    def wrong() -> Slow:
        raise ArgumentError("stop: expected text")

    async def scenario(runner: Runner) -> None:
        for _ in range(3):
            with pytest.raises(ArgumentError):
                await runner.start([Slow, wrong])
        assert (runner.running, runner.waiting) == (0, 0)

    run(Limits(concurrent=2, queue=0), scenario)


def test_a_silent_answer_is_told_to_be_alive_and_an_error_is_raised() -> None:
    class Failing(Slow):
        def __iter__(self) -> Iterator[Event]:
            assert not self.end.wait(0.2)
            raise ArgumentError("x: no")

    async def scenario(runner: Runner) -> None:
        answers: Answers = await runner.start([Failing])
        iteration = answers.frames(lambda _, event: [], b": alive")
        assert await iteration.__anext__() == b": alive"
        with pytest.raises(ArgumentError):
            assert {piece async for piece in iteration} == {b": alive"}

    run(Limits(keep_alive_seconds=0.05), scenario)


def test_whoever_waits_can_be_cancelled_whenever_an_event_comes() -> None:
    class Talking(Slow):
        begun = False

        def __iter__(self) -> Iterator[Event]:
            self.begun = True
            while not self.end.wait(1e-4):
                yield Event()
            yield Event(done=True)

    async def all_of(answers: Answers) -> None:
        async for _ in answers.frames(lambda _, event: [b"x"], b""):
            pass

    async def scenario(runner: Runner) -> None:
        for _ in range(20):
            stream = Talking()
            answers = await runner.start([lambda one=stream: one])
            await soon(lambda stream=stream: stream.begun)  # else it leaves the queue, and there is nothing to close
            reading = asyncio.ensure_future(all_of(answers))
            await asyncio.sleep(0.005)
            reading.cancel()
            done, _ = await asyncio.wait([reading], timeout=10)
            assert done, "it goes on for nobody"
            assert reading.cancelled()
            await soon(lambda stream=stream: stream.closed)

    run(Limits(concurrent=1), scenario)


def test_what_is_there_is_one_piece_and_who_wants_the_whole_sleeps_until_it_ends() -> None:
    class Bursts(Slow):
        def __iter__(self) -> Iterator[Event]:
            yield from [Event()] * 3
            assert self.end.wait(10)
            yield from [Event(), Event(done=True)]

    async def scenario(runner: Runner) -> None:
        loop, streams = asyncio.get_running_loop(), [Bursts(), Bursts(), Bursts()]
        taken = [await runner.start([lambda one=one: one]) for one in streams]
        await soon(lambda: runner.running == 3)
        time.sleep(0.1)  # the loop has its turn when all three are there
        iteration = taken[0].frames(lambda _, event: [b"ab"[event.done : event.done + 1]], b"")
        assert await iteration.__anext__() == b"aaa"
        turns, schedule = list[str](), loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: turns.append("woken") or schedule(*given)  # type: ignore[assignment]
        events = asyncio.ensure_future(anext(taken[1].__aiter__()))
        await asyncio.sleep(0.05)
        assert not turns
        for stream in streams:
            stream.end.set()
        assert await events == (0, Event())
        assert b"".join([piece async for piece in iteration]) == b"ab"
        assert [event async for _, event in taken[2]] == [*[Event()] * 4, Event(done=True)]

    run(Limits(concurrent=3), scenario)


def test_what_nobody_reads_keeps_its_place() -> None:
    """It holds its events: else clients that read nothing would pile them up without end."""

    class Quick(Slow):
        def __iter__(self) -> Iterator[Event]:
            yield from [Event()] * 1000
            yield Event(done=True)

    async def scenario(runner: Runner) -> None:
        for ends in ("read", "closed"):
            answers = await runner.start([Quick, Quick])
            await soon(lambda: runner.running == runner.waiting == 0)
            with pytest.raises(RequestError, match="1 waiting or unread") as refused:
                await runner.start([Quick])
            assert refused.value.status == 429
            if ends == "closed":
                answers.close()
                continue
            pieces = [piece async for piece in answers.frames(lambda _, event: [b"x"], b"")]
            assert (sum(map(len, pieces)), max(map(len, pieces))) == (2002, 64)

    run(Limits(concurrent=1, queue=1), scenario)


def test_a_client_that_goes_before_the_first_byte_leaves_no_place() -> None:
    """While a response's head waits to be written, for it has not read the one before: no frame has been asked for."""

    class Quick(Slow):
        def __iter__(self) -> Iterator[Event]:
            yield Event(done=True)

    async def scenario(runner: Runner) -> None:
        answers = await runner.start([Quick, Quick])
        await soon(lambda: runner.running == runner.waiting == 0)
        head = asyncio.Event()

        async def receive() -> Message:
            await head.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            head.set()
            await asyncio.Event().wait()

        frames = answers.frames(lambda _, event: [b"x"], b"")
        await event_stream(frames, answers, "/", None)({"type": "http"}, receive, send)
        (await runner.start([Quick, Quick])).close()

    run(Limits(concurrent=1, queue=1), scenario)


def test_limits_are_checked() -> None:
    for wrong in ({"concurrent": 0}, {"concurrent": 17}, {"queue": -1}, {"prompt_tokens": 0}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            Limits(**wrong)
