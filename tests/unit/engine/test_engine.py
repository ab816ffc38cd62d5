"""Many sequences at once: each has the tokens that it has alone, whatever the others are and do."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import FrameType
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import load_model
from mlx_delta.engine.cuts import Turns
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.pace import Pace
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.engine.sequence import TokenSequence
from mlx_delta.errors import ArgumentError, BusyError, NotFiniteError, QueueFullError
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from support import TINY
from support.reading import Collect
from support.works import VOCABULARY, Work


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {dtype: load_model(TINY, dtype) for dtype in ("float32", "bfloat16")}


def test_a_long_prompt_keeps_nobody_waiting(models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """While another decodes, a step has as many layers of a piece beside the next token as take no longer than it may:
    here half of one, and nothing is ever computed twice."""
    network = models["float32"].network
    computed: list[int] = []
    whole = type(network).layer_by_layer

    def counted(self: Network, *given: Any) -> Iterator[Any]:
        for passed in whole(self, *given):
            computed.append(sum(span.count for span in given[2]))
            yield passed

    engine = Engine(network)
    rng = random.Random(0)
    short = Work(tuple([5] * 20), SamplingParams(), 60, 99, False, None)
    long = Work(tuple(rng.randrange(VOCABULARY) for _ in range(200)), SamplingParams(), 2, 99, False, None)
    decoding = engine.run(short.sequence(network))
    next(decoding)
    monkeypatch.setattr(type(network), "layer_by_layer", counted)
    monkeypatch.setattr(Pace, "seconds", lambda pace, rows: 0.0)
    sequence = long.sequence(network)
    engine.submit(sequence)
    steps = [len(computed)]
    for _ in decoding:
        steps.append(sum(count > 2 for count in computed))  # those of two are the next tokens of both
    assert max(np.diff(steps)) == 1
    list(engine.run(sequence))
    monkeypatch.undo()
    assert sorted(count for count in computed if count > 2) == sorted([64, 64, 64, 8] * 2 * len(network.layers))
    assert sequence.tokens == [token for token, _ in long.alone(network)]


@pytest.mark.parametrize("fails", [-1, 0, 3])
def test_prompts_that_wait_go_together(
    models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """But for one that goes on from what will be kept of another. Where a pass fails, each goes by itself."""
    network = models["float32"].network
    rng, turns = random.Random(1), Turns(0, (1,))
    texts = [[0, *(rng.randrange(2, VOCABULARY) for _ in range(length - 1))] for length in (64, 40, 6, 70)]
    asked = [texts[0] + texts[1], *texts[1:], texts[0] + texts[3]]
    works = [Work((*ids,), SamplingParams(), 6, 99, False, None) for ids in asked]
    expected = [work.alone(network, turns) for work in works]
    passes: list[int] = []
    whole = type(network).layer_by_layer

    def counted(self: Network, *given: Any) -> Iterator[Any]:
        if any(span.tiles for span in given[2]):
            passes.append(len({id(span.cache) for span in given[2]}))
        for part, passed in enumerate(whole(self, *given)):
            if part == fails and passes[-1] > 1:
                raise RuntimeError("a pass fails")
            yield passed

    engine = Engine(network, turns, prefix_bytes=1 << 30)
    decoding = engine.run(Work((7,), SamplingParams(), 40, 99, False, None).sequence(network))
    if fails == 3:
        next(decoding)  # beside it, by halves of layers
    monkeypatch.setattr(type(network), "layer_by_layer", counted)
    monkeypatch.setattr(Pace, "tokens", lambda *_: 512)
    sequences = [work.sequence(network) for work in works]
    for sequence in sequences:
        engine.submit(sequence)
    assert [list(engine.run(sequence)) for sequence in sequences] == expected
    assert passes[0] == 4  # the fifth waits for the first turn of the first, and then goes on from it
    assert sequences[4].known == 64
    assert fails >= 0 or passes == [4, 2]
    decoding.close()
    assert engine._prompts._pass is None


def test_the_pace_of_a_prompt() -> None:
    pace = Pace()
    assert (pace.seconds(1), pace.tokens(0, 64, 512, 1)) == (0.0, 64)
    for seconds in (1.0, 9.0, 1.0):
        pace.decoded(seconds, 4, beside=False)
        pace.decoded(2 * seconds, 4, beside=True)
    pace.decoded(1.5, 8, beside=True)
    assert [pace.seconds(rows) for rows in (1, 4, 7, 8, 16)] == [0.325, 1.3, 1.3, 1.3 * 1.5, 1.3 * 1.5]
    for part, tokens in ((0.001, 512), (0.3, 256), (0.9, 64), (9.0, 64)):
        pace.took(7, 960, 64, part)
        assert pace.tokens(0, 64, 512, 4) in (tokens, tokens + 64)
    pace.took(7, 960, 64, 0.3)
    assert [pace.tokens(prefix, 64, 512, 4) for prefix in (100, 960, 2000, 9000)] == [256, 192, 128, 64]
    assert pace.expected(7, 0, 32) == pytest.approx(0.225)
    assert pace.expected(7, 960, 128) == pytest.approx(0.6 * 1088 / 1024)
    assert pace.expected(6, 960, 128) == 0


def test_memory_and_places(models: dict[str, LanguageModel]) -> None:
    """Sequences wait until they fit beside those that go on; what never fits is refused, and what waits too long."""
    network = models["float32"].network
    work = Work(tuple(range(40)), SamplingParams(), 20, 99, False, None)
    need = Cache.bytes_of(network.config, network.dtype, 60)
    cache = work.sequence(network)
    list(Engine(network).run(cache))
    assert cache.cache.nbytes <= need <= 1.5 * cache.cache.nbytes
    engine = Engine(network, memory=network.nbytes + 2 * need, most_waiting=3)
    sequences = [work.sequence(network) for _ in range(4)]
    runs = [engine.run(sequence) for sequence in sequences]
    next(runs[0])
    for sequence in sequences[1:]:
        engine.submit(sequence)
    next(runs[0])
    assert len(engine._going) == 2
    engine.submit(work.sequence(network))
    with pytest.raises(QueueFullError, match="engine: expected at most 3 sequences to wait, found one more"):
        engine.submit(work.sequence(network))
    assert [list(run) for run in runs[1:]] == [work.alone(network)] * 3
    large = Work(tuple(range(40)), SamplingParams(), 40_000, 99, False, None).sequence(network)
    with pytest.raises(ArgumentError, match=r"prompt: expected one .* found 40 tokens and max_new_tokens=40000"):
        next(engine.run(large))
    little = Engine(network, memory=network.nbytes + need, prefix_bytes=1 << 40)
    for first in range(3):
        ids = [first, *range(39)]
        sampler = Sampler(SamplingParams(), network.config.vocab_size)
        list(little.run(TokenSequence(ids, None, sampler, Collect(), most=20)))
        assert little.prefix.nbytes <= need


def test_one_that_fails_ends_alone(models: dict[str, LanguageModel]) -> None:
    network = models["float32"].network
    engine = Engine(network)
    work = Work(tuple(range(30)), SamplingParams(), 12, 99, False, None)
    expected = work.alone(network)
    good, bad = work.sequence(network), work.sequence(network, fails=4)
    wrong = Work((1, 2), SamplingParams(), 5, 99, False, None).sequence(network)
    wrong.ids = (1, VOCABULARY * 10**6)  # beyond the integers of a prompt
    wrong.own_cache, wrong.cache = True, Cache([], 0)  # and a cache of another model
    for each in (good, bad, wrong):
        engine.submit(each)
    found = list(engine.run(good))
    assert found == expected
    with pytest.raises(RuntimeError, match="the reader fails"):
        list(engine.run(bad))
    with pytest.raises(ValueError, match="zip"):
        list(engine.run(wrong))
    assert bad.tokens[:4] == good.tokens[:4]
    assert list(engine.run(work.sequence(network))) == expected
    assert not engine._going


def test_ctrl_c_is_for_who_presses_it(models: dict[str, LanguageModel]) -> None:
    """The main thread takes a step for all when it comes: the others lose nothing."""
    network = models["float32"].network
    engine = Engine(network)
    work = Work(tuple(range(40)), SamplingParams(temperature=1, seed=1), 40, 99, False, None)
    expected = work.alone(network)
    other = work.sequence(network)
    engine.submit(other)

    class Presses(Collect):
        def push(self, token: int, likelihood: Likelihood | None) -> Sequence[Any]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # an interrupt that is not held back comes here
            return super().push(token, likelihood)

    mine = work.sequence(network)
    mine.reader = Presses()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(engine.run(mine))
    assert signal.getsignal(signal.SIGINT) is before
    assert mine not in engine._going
    assert list(engine.run(other)) == expected


class _CtrlC:
    """For ``sys.setprofile``: Ctrl-C as a C function returns, those of locks among them: there Python looks for it."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        self._left -= event == "c_return"
        if not self._left:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_any_call_of_one_that_waits_is_no_other_error(models: dict[str, LanguageModel]) -> None:
    """And what the others wait for is as it was. (``threading.Condition`` may be left without its lock, which is a
    RuntimeError.)"""
    model, over = models["bfloat16"], threading.Event()

    def other(n: int) -> None:
        while not over.is_set():
            model.generate(f"{n}", max_new_tokens=40, temperature=0).text()

    heard = 0
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(other, n) for n in range(2)]
        try:
            for calls in range(1, 121, 2):
                generation = model.generate("Count to", max_new_tokens=3, temperature=0)
                sys.setprofile(_CtrlC(calls))
                try:
                    generation.text()
                except KeyboardInterrupt:
                    heard += 1
                finally:
                    sys.setprofile(None)
                assert not any(each.done() for each in others)
        finally:
            over.set()
        for each in others:
            each.result(20)
    assert heard > 30


def test_from_eight_threads(models: dict[str, LanguageModel]) -> None:
    """Every way in, of one model, at once: the answers that each has alone."""
    model = models["bfloat16"]
    count = [{"role": "user", "content": "Count to 7."}]
    hello = [{"role": "user", "content": "Hello, I am Ada."}]
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 3, "presence_penalty": 1.0, "temperature": 0.8}

    def turns() -> list[str]:
        session = model.session()
        first = session.chat(count, **options)
        return [first.text, session.chat([*count, first.message, *hello], **options).text]

    uses: list[Callable[[], Any]] = [
        lambda: model.chat(count, **options).text,
        lambda: [event.text for event in model.chat_stream(hello, **options)],
        lambda: model.generate("def f(x):", **options).text(),
        lambda: [result.text for result in model.chat_batch([count, hello], **options)],
        turns,
        lambda: model.chat(hello, logprobs=2, **options).logprobs,
        lambda: model.generate("import os\n" * 40, **options).text(),
        lambda: model.chat(count, json_schema={"type": "integer"}, **options).text,
    ]
    expected = [use() for use in uses]
    start = threading.Barrier(len(uses))

    def together(use: Callable[[], Any]) -> list[Any]:
        start.wait()
        return [use() for _ in range(3)]

    with ThreadPoolExecutor(len(uses)) as pool:
        for found, alone in zip(pool.map(together, uses), expected, strict=True):
            assert found == [alone] * 3
    assert not model.engine._going
    assert not model.engine._waiting


def test_a_forgotten_stream_gives_its_place_back(models: dict[str, LanguageModel]) -> None:
    model = models["float32"]
    for _ in range(20):
        next(iter(model.chat_stream([{"role": "user", "content": "Count to 7."}], max_new_tokens=50)))
    assert not model.engine._going
    assert model.chat([{"role": "user", "content": "Count to 7."}], temperature=0, enable_thinking=False).text


def test_activations_that_overflow_are_told_of_by_dtype() -> None:
    network = load_model(TINY, "float16").network
    broken = replace(network, norm=mx.full(network.norm.shape, mx.nan))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0), network.config.vocab_size)
    for each, options in ((sampler, {}), (Sampler(SamplingParams(), network.config.vocab_size), {"logprobs": 2})):
        sequence = TokenSequence([1, 2, 3], Cache.empty(network.config), each, Collect(), most=5, **options)
        with pytest.raises(NotFiniteError, match=r"found NaN: activations of float16 .* dtype bfloat16 or float32"):
            list(Engine(broken).run(sequence))


def test_a_cancelled_one_is_kept_after_its_step(models: dict[str, LanguageModel]) -> None:
    """And not within it, by a thread that had waited for the step before, for another."""
    network = models["float32"].network
    engine = Engine(network)
    one, other = (Work((n,), SamplingParams(), 9, 99, False, None).sequence(network) for n in (1, 2))
    engine._going, engine._driver = [one, other], -1  # a thread that takes a step
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(engine.cancel, one)
        while not engine._waiters:
            time.sleep(0.001)
        with engine._lock:  # the step ends, and the next begins before who waits gets to it
            engine._drop_cancelled()
            engine._cancelled, engine._driver = {other}, -2
            engine._changed()
        waits.result(9)
    assert one.ended
    assert not other.ended


def test_one_that_is_collected_within_the_lock_waits_for_nobody(models: dict[str, LanguageModel]) -> None:
    """A forgotten stream may be, wherever Python allocates: who takes a step needs the lock to end it."""
    network = models["float32"].network
    engine = Engine(network)
    forgotten = Work((1,), SamplingParams(), 9, 99, False, None).sequence(network)
    engine._going, engine._driver = [forgotten], -1  # a thread that takes a step

    def within() -> None:
        with engine._lock:
            engine.cancel(forgotten)

    thread = threading.Thread(target=within, daemon=True)
    thread.start()
    thread.join(9)
    assert not thread.is_alive()
    engine._leave()
    assert forgotten.ended


def test_at_the_end_of_the_process_no_step_is_taken(models: dict[str, LanguageModel]) -> None:
    """A daemon thread waits for good, between two steps; and what would wait for it in the main thread is told."""
    network = models["float32"].network
    engine = Engine(network)
    long = Work((1, 2), SamplingParams(), 4000, 9999, False, None).sequence(network)
    unasked, over = Work((4,), SamplingParams(), 2, 99, False, None).sequence(network), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        others = pool.submit(lambda: list(engine.run(long)))
        while not long.tokens:
            time.sleep(0.001)
        wakes = pool.submit(lambda: [engine.cancel(unasked) for _ in iter(over.is_set, True)])  # whoever waits
        engine.rest()
        over.set()
        wakes.result(9)
        count = len(long.tokens)
        with pytest.raises(BusyError, match="before the process ends"):
            list(engine.run(Work((3,), SamplingParams(), 2, 99, False, None).sequence(network)))
        time.sleep(0.02)
        assert len(long.tokens) == count < long.most
        engine._resting = None
        engine.cancel(long)
        others.result(9)


def test_a_use_within_a_step_is_an_error(models: dict[str, LanguageModel]) -> None:
    """It would wait for the step that it is in."""
    model = models["float32"]
    text, seen = "one two three " * 700, []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        try:
            model.generate("x", max_new_tokens=2).text()
        finally:
            assert model.engine._driver == threading.get_ident()  # the step goes on: no other thread may take one

    with pytest.raises(BusyError, match="outside of its steps"):
        model.generate(text, max_new_tokens=2, prompt_progress=progress).text()
    assert len(seen) == 1
    assert model.generate("x", max_new_tokens=2, temperature=0).text()
