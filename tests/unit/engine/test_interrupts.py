"""Ctrl-C where one thread takes a step that others wait for, and what Python collects meanwhile."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytest

from mlx_delta import load_model
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.sample import SamplingParams
from mlx_delta.engine.sequence import TokenSequence
from mlx_delta.model.network import Network
from support import TINY
from support.works import Work


@pytest.fixture(scope="module")
def network() -> Network:
    return load_model(TINY, "float32").network


def sequence_of(network: Network, ids: Sequence[int], most: int) -> TokenSequence:
    return Work(tuple(ids), SamplingParams(), most, 999, False, None).sequence(network)


class _CtrlC:
    """For ``sys.setprofile``: Ctrl-C at the so many-th call of a function of the engine's, where Python looks for it,
    unless it is held back there. where: the function."""

    def __init__(self, calls: int) -> None:
        self._left = calls
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith(("/engine.py", "/blocks.py", "/streams.py")):
            self._left -= 1
            if not self._left:
                sys.setprofile(None)
                self.where = frame.f_code.co_name
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_at_any_call_leaves_nobody_waiting(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of one sequence alone hears it at once; but the engine is left as after any step, which others that came
    meanwhile wait for."""
    places = set()
    for calls in range(1, 1000):
        engine, begun = Engine(network), threading.Event()
        other = threading.Thread(target=lambda e=engine: list(e.run(sequence_of(network, (5, 6), 3))), daemon=True)
        whole = engine._steps.take

        def take(
            going: list[TokenSequence],
            engine: Engine = engine,
            begun: threading.Event = begun,
            other: threading.Thread = other,
            whole: Any = whole,
        ) -> None:
            if not begun.is_set():
                profile = sys.getprofile()
                sys.setprofile(None)
                begun.set()
                other.start()
                while not engine._waiters:
                    time.sleep(0.0005)
                sys.setprofile(profile)
            whole(going)

        monkeypatch.setattr(engine._steps, "take", take)
        pressed, mine = _CtrlC(calls), engine.run(sequence_of(network, (1, 2, 3), 2))
        sys.setprofile(pressed)
        try:
            list(mine)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        if not pressed.where:
            break
        places.add(pressed.where)
        if begun.is_set():
            other.join(9)
            assert not other.is_alive(), pressed.where
        assert len(list(engine.run(sequence_of(network, (9,), 2)))) == 2, pressed.where
    assert {"_events", "_step", "_drive", "_leave", "later_interrupt"} <= places


def test_one_that_comes_as_the_step_begins_is_not_interrupted(network: Network) -> None:
    """Whether Ctrl-C is held back is decided when it is known whose step it is."""
    engine, other = Engine(network), sequence_of(network, range(40), 4)
    expected = list(Engine(network).run(sequence_of(network, range(40), 4)))
    admit, take = engine._admit, engine._steps.take

    def admits() -> None:
        if not other.ended:
            engine.submit(other)
        admit()

    def takes(going: list[TokenSequence]) -> None:
        signal.raise_signal(signal.SIGINT)
        take(going)

    engine._admit, engine._steps.take = admits, takes  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(engine.run(sequence_of(network, (1, 2), 4)))
    assert other.computing or other.tokens  # its step was taken
    engine._steps.take = take  # type: ignore[method-assign]
    assert list(engine.run(other)) == expected


def test_one_that_is_collected_while_another_is_dropped(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have ended, whichever Python collects in the midst of the other's end."""
    engine = Engine(network)
    sequences = [sequence_of(network, (n,), 9) for n in range(4)]
    engine._going = list(sequences)
    left: list[TokenSequence] = []

    def leave(sequence: TokenSequence) -> None:
        left.append(sequence)
        if len(left) == 1:
            engine.cancel(next(each for each in sequences[:3] if each not in {sequence, *engine._cancelled}))

    monkeypatch.setattr(engine._prompts, "leave", leave)
    engine._cancelled = set(sequences[:2])
    engine._leave()
    assert {id(each) for each in left} == {id(each) for each in sequences[:3]}
    assert [each.ended for each in sequences] == [True, True, True, False]
    assert (engine._going, engine._cancelled) == (sequences[3:], set())
