"""Ranks that do what rank 0 is asked: its answers are those of one process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_delta.bench.throughput import Led, bench_throughput, followed
from mlx_delta.engine.lead import Lead
from mlx_delta.engine.steps import Steps
from mlx_delta.errors import ArgumentError, MlxDeltaError, RankError
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from support import TINY
from support.ranks import Shared, Threads, on_ranks


def led(
    use: Callable[[LanguageModel], Any],
    after: Callable[[LanguageModel], Any] = lambda model: None,
    *,
    by_layers: bool = False,
) -> list[Any]:
    """What ``use`` gives on rank 0, and ``after`` on the others when it is over."""

    def run(ranks: Threads) -> Any:
        model = load_model(TINY, "float32", ranks=ranks)
        with model.led(ranks) as leads:
            return use(model) if leads else after(model)

    return on_ranks(2, run, by_layers=by_layers)


def asked(*texts: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def answers(model: LanguageModel) -> dict[str, Any]:
    """A session of two turns, several at once, each kind of drafts, a picture in two turns, a document."""
    found: dict[str, Any] = {}
    session = model.session()
    first = session.chat(asked("What is the capital of Italy?"), temperature=0, max_new_tokens=8).text
    second = session.chat(
        asked("What is the capital of Italy?", first, "And of Spain?"), temperature=0.8, seed=5, max_new_tokens=8
    )
    found["session"] = (first, second.text, second.usage.cached_tokens)
    session.reset()
    found["forgotten"] = session.nbytes
    batch = model.chat_batch(
        [asked(f"Number {i}, please. {'word ' * 40 * i}") for i in range(3)], temperature=0.7, seed=3, max_new_tokens=6
    )
    found["batch"] = [each.text for each in batch]
    for drafts in (3, "auto"):
        generation = model.generate("Count: 1 2 3 4 1 2 3 4 1", max_new_tokens=12, temperature=0, speculate=drafts)
        found[f"drafts {drafts}"] = generation.text()
    picture = {"type": "image", "image": Image.new("RGB", (64, 64), (200, 30, 60))}
    shown = [picture, {"type": "text", "text": "What is it?"}]
    first = model.chat(asked(shown), temperature=0, max_new_tokens=4).text
    found["picture"] = first, model.chat(asked(shown, first, "Sure?"), temperature=0, max_new_tokens=4).text
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    found["document"] = model.chat(asked("A number"), temperature=0, max_new_tokens=12, json_schema=schema).text
    return found


def test_answers_are_those_of_one_process() -> None:
    expected = answers(load_model(TINY, "float32"))
    found, others = led(answers, lambda model: (model.engine.idle, model.engine.prefix.nbytes > 0))
    assert found == expected
    assert others == (True, True)


def test_by_layers_too() -> None:
    """Several at once, a long prompt, drafts, the prefix cache."""

    def use(model: LanguageModel) -> Any:
        batch = [asked(f"Number {i}, please. {'word ' * 150 * i}") for i in range(2)]
        found = [each.text for each in model.chat_batch(batch, temperature=0.7, seed=3, max_new_tokens=5)]
        again = model.chat(batch[1], temperature=0, max_new_tokens=5, speculate=2)
        return found, again.text, again.usage.cached_tokens

    expected = use(load_model(TINY, "float32"))
    found, idle = led(use, lambda model: model.engine.idle, by_layers=True)
    assert found == expected
    assert idle


def test_an_answer_is_ended_on_all() -> None:
    def use(model: LanguageModel) -> Any:
        stream = model.chat_stream(asked("Tell me a story"), temperature=0, max_new_tokens=3000, enable_thinking=False)
        next(stream)
        stream.close()
        waiting = model.generate("import", max_new_tokens=3000)
        waiting.close()
        return stream.result().finish_reason, model.engine.idle, model.generate("a", max_new_tokens=2).text()

    found, idle = led(use, lambda model: model.engine.idle)
    assert found[0] == "interrupted"
    assert found[1]
    assert idle


def test_nan_ends_one_answer_and_not_the_ranks() -> None:
    """Both ranks see it, in the logits that they share."""

    def run(ranks: Threads) -> Any:
        model = load_model(TINY, "float32", ranks=ranks)
        with model.led(ranks) as leads:
            if not leads:
                return model.engine.idle
            with pytest.raises(MlxDeltaError, match="found NaN"):
                model.generate([model.config.text.vocab_size - 1] * 3, temperature=0, max_new_tokens=4).text()
            return model.generate("a", temperature=0, max_new_tokens=2).text()

    broken = mx.array([[np.nan]])
    mx.eval(broken)  # what is lazy, only this thread could evaluate
    hidden = Threads.columns
    with pytest.MonkeyPatch.context() as patch:
        seen = threading.local()

        def columns(self: Threads, x: mx.array, counts: Any) -> mx.array:
            seen.count = getattr(seen, "count", 0) + 1
            found = hidden(self, x, counts)
            return found + broken if seen.count == 1 else found

        patch.setattr(Threads, "columns", columns)
        text, idle = on_ranks(2, run)
    assert isinstance(text, str)
    assert idle


def test_what_others_would_not_hear_of_is_refused() -> None:
    def use(model: LanguageModel) -> None:
        with pytest.raises(ArgumentError, match="forward: expected a model that one process runs"):
            model.forward([[1, 2]])

    led(use)


def test_ranks_that_are_not_at_the_same_place_end() -> None:
    """One of them has lost a token."""

    def run(ranks: Threads) -> str:
        model = load_model(TINY, "float32", ranks=ranks)
        if ranks.rank:
            step = model.engine.take_step

            def forgetful() -> None:
                step()
                for each in model.engine._going:
                    if len(each.tokens) == 3:
                        each.tokens.append(0)

            model.engine.take_step = forgetful  # type: ignore[method-assign]
        try:
            with model.led(ranks) as leads:
                if leads:
                    model.generate("import", max_new_tokens=50, temperature=0).text()
        except RankError as error:
            return str(error)
        return "nothing"

    for error in on_ranks(2, run):
        assert "ranks: expected" in error


def test_ctrl_c_at_a_bad_moment_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heard in the middle of it, a thread would be known to itself alone and go on with the others for ever, or a
    sequence would have its number and not be told."""
    moments = ["start", "submit", "cancel", "end"]
    shared = Shared(2)

    def loaded(rank: int) -> tuple[Threads, LanguageModel]:
        ranks = Threads(rank, 2, shared, False)
        return ranks, load_model(TINY, "float32", ranks=ranks)

    def follow() -> None:
        ranks, model = loaded(1)
        for _ in moments:
            with model.led(ranks):
                assert model.engine.idle

    other = threading.Thread(target=follow)
    other.start()
    ranks, model = loaded(0)
    starts, tells = threading.Thread.start, Lead._tell

    def start(self: threading.Thread) -> None:
        starts(self)
        if moment == "start" and self.name.startswith("ranks"):
            signal.raise_signal(signal.SIGINT)

    def tell(self: Lead, facts: dict[str, Any], *rest: Any) -> None:
        if facts["do"] == moment:
            signal.raise_signal(signal.SIGINT)
        tells(self, facts, *rest)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(Lead, "_tell", tell)

    def lead() -> None:
        with model.led(ranks):
            generation = model.generate("import", max_new_tokens=1000)
            next(generation)
            generation.close()

    for moment in moments:  # noqa: B007 - start and tell read it
        with pytest.raises(KeyboardInterrupt):
            lead()
    other.join(timeout=60)
    assert not other.is_alive()


def test_what_is_asked_too_late_ends() -> None:
    """The ranks have parted, and nobody hears of it any more."""

    def use(model: LanguageModel) -> None:
        lead = model.engine.lead
        assert lead is not None
        lead.end()
        with pytest.raises(RankError, match="ranks: expected them to go on, found that they have ended"):
            model.generate("import", max_new_tokens=1000).text()

    led(use)


def test_many_sequences_are_timed() -> None:
    """By rank 0: as many tokens as one process generates."""

    def timed(ranks: Threads | None) -> list[tuple[int, int, int]]:
        network = load_model(TINY, "float32", ranks=ranks).network
        led: Led = (lambda engine: nullcontext(True)) if ranks is None else lambda engine: followed(engine, ranks)
        rows = bench_throughput(network, concurrency=[1, 2], prompt=4, tokens=4, rounds=1, led=led)
        return [(row.concurrency, row.sequences, row.tokens) for row in rows]

    assert on_ranks(2, timed) == [timed(None), []]


def test_ctrl_c_as_clients_are_begun_leaves_none_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    network, submit, begun = load_model(TINY).network, ThreadPoolExecutor.submit, list[Any]()

    def interrupted(*given: Any) -> Any:
        if len(begun) == 2:  # one has warmed up
            raise KeyboardInterrupt
        begun.append(submit(*given))
        return begun[-1]

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench_throughput(network, concurrency=[2], prompt=4, tokens=4, rounds=1)
    assert isinstance(begun[-1].exception(9), threading.BrokenBarrierError)


def test_ctrl_c_waits_for_the_step_under_way_and_for_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client has a prompt of several pieces: its next token is as many steps away."""
    network, take, steps, before = load_model(TINY).network, Steps.take, [0], list[int]()

    def pressed(self: Steps, going: Any) -> None:
        steps[0] += 1
        if len(going) == 4 and not before:
            before.append(steps[0])
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)  # the main thread looks for it every half a second
        take(self, going)

    monkeypatch.setattr(Steps, "take", pressed)
    with pytest.raises(KeyboardInterrupt):
        bench_throughput(network, concurrency=[4], prompt=1500, tokens=4, rounds=1)
    assert steps[0] - before[0] <= 2
