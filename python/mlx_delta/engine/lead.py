"""One engine on several ranks, of which rank 0 alone hears what is asked.

Every rank takes the same steps over the same sequences, each with its share of the network, so that a step's sums find
their partners. What rank 0 is asked, and what is cancelled, it tells the others at the border of a step; all do it at
the same border. What a step does depends on nothing else: where it would, on the time or on a machine's memory, rank
0's answer counts (``Network.agreed``).

The border of a step is one small gathering: how much rank 0 has to tell, and of every rank what its sequences have come
to, so that ranks that are not at the same place end with an error. While sequences are under way it is set off a step
before it is read, so that nobody waits for it: what is asked takes effect two steps later. While nothing is under way
the ranks meet every ``_IDLE`` seconds, and sleep in between.
"""

from __future__ import annotations

import io
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_delta.distributed.ranks import Ranks
from mlx_delta.engine.blocks import later_interrupt
from mlx_delta.engine.prefix import PrefixCache
from mlx_delta.engine.sequence import TokenSequence, Told
from mlx_delta.errors import MlxDeltaError, RankError

_IDLE = 0.03  # seconds
_ENDED = "ranks: expected them to go on, found that they have ended"


@dataclass(frozen=True)
class _Command:
    """What rank 0 tells. sequence: its own."""

    facts: dict[str, Any]
    arrays: dict[str, mx.array]
    sequence: TokenSequence | None = None


class Led(Protocol):
    """An engine, as it is led."""

    prefix: PrefixCache

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""

    def accept(self, sequence: TokenSequence) -> None:
        """It goes on beside the others from the next step on."""

    def drop(self, sequence: TokenSequence) -> None:
        """It ends."""

    def take_step(self) -> None:
        """One step of all that are under way."""

    def end_all(self, error: Exception) -> None:
        """All that is under way ends with the error."""


class Lead:
    """make: a sequence, of what rank 0 has told of it.

    ``run`` takes all steps, in one thread of each rank; it returns on all of them after rank 0's ``end``.
    What other threads call takes no lock, which Ctrl-C could leave taken.
    """

    def __init__(self, engine: Led, ranks: Ranks, make: Callable[[Told], TokenSequence]) -> None:
        self._engine = engine
        self._ranks = ranks
        self._make = make
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._numbers = itertools.count(1)  # of sequences that are submitted
        self._over = False
        # Of the thread that takes the steps:
        self._asked: list[_Command] = []  # that the others have not been told
        self._sequences: dict[int, TokenSequence] = {}  # under way, by their numbers
        self._telling: list[_Command] = []  # of the border that is set off
        self._packed = b""
        self._border: Callable[[], np.ndarray] | None = None

    def submit(self, sequence: TokenSequence) -> None:
        """Raises: RankError when the ranks have parted."""
        facts, arrays = sequence.told()
        json.dumps(facts)  # raises here, and not between the ranks
        sequence.number = next(self._numbers)
        self._tell({"do": "submit", "number": sequence.number, **facts}, arrays, sequence)
        if self._over:  # perhaps before that, and nobody hears of it
            raise RankError(_ENDED)

    def cancel(self, sequence: TokenSequence) -> None:
        self._tell({"do": "cancel", "number": sequence.number})

    def forget(self, keys: Sequence[int]) -> None:
        self._tell({"do": "forget", "keys": list(keys)})

    @property
    def over(self) -> bool:
        """Whether the ranks have parted."""
        return self._over

    def end(self) -> None:
        self._tell({"do": "end"})

    @contextmanager
    def led(self, failed: Callable[[BaseException], None] | None = None) -> Iterator[bool]:
        """A block in which rank 0 (true) asks what it likes, from any thread; others enter it (false) when it has left
        it. failed: told, on rank 0, of what ended the ranks before that. Raises: as ``run``."""
        if self._ranks.rank:
            self.run()
            yield False
            return
        with ThreadPoolExecutor(1, "ranks") as pool:
            try:
                with later_interrupt():  # a thread that the pool has not yet noted would go on for ever
                    steps = pool.submit(self.run)
                if failed is not None:
                    steps.add_done_callback(lambda done: failed(error) if (error := done.exception()) else None)
                yield True
            finally:
                with later_interrupt():
                    self.end()
        steps.result()

    def run(self) -> None:
        """Raises: RankError where ranks are not at the same place; RuntimeError of MLX's where one is gone; what went
        wrong in a step, and perhaps on this rank alone."""
        try:
            while self._meet():
                if self._engine.idle:
                    self._sleep()
                    continue
                self._engine.take_step()
                for sequence in self._sequences.values():
                    if self._ranks.rank:
                        sequence.events.clear()
                    if sequence.error is not None and not isinstance(sequence.error, MlxDeltaError):
                        raise sequence.error
        finally:
            self._over = True
            self._take_asked()
            for command in (*self._telling, *self._asked):  # perhaps behind the end
                if command.sequence is not None:
                    self._engine.accept(command.sequence)
            self._engine.end_all(RankError(_ENDED))

    def _tell(
        self, facts: dict[str, Any], arrays: dict[str, mx.array] | None = None, sequence: TokenSequence | None = None
    ) -> None:
        self._commands.put(_Command(facts, arrays or {}, sequence))

    def _take_asked(self) -> None:
        with suppress(Empty):
            while True:
                self._asked.append(self._commands.get_nowait())

    def _sleep(self) -> None:
        if self._ranks.rank:
            time.sleep(_IDLE)
            return
        with suppress(Empty):
            self._asked.append(self._commands.get(timeout=_IDLE))

    def _meet(self) -> bool:
        """Do what rank 0 says for this border; whether to go on."""
        border = self._set_off() if self._border is None else self._border
        found = border()
        if (found[:, 1] != found[0, 1]).any():
            raise RankError(
                f"ranks: expected all at the same place, found another than rank 0's on "
                f"{np.flatnonzero(found[:, 1] != found[0, 1]).tolist()}"
            )
        commands = self._heard(int(found[0, 0]))
        self._sequences = {number: each for number, each in self._sequences.items() if not each.ended}
        for command in commands:
            if command.facts["do"] == "end":
                return False
            self._follow(command)
        self._border = None if self._engine.idle else self._set_off()
        return True

    def _set_off(self) -> Callable[[], np.ndarray]:
        if not self._ranks.rank:
            self._take_asked()
            self._telling, self._asked = self._asked, []
            self._packed = _pack(self._telling) if self._telling else b""
        places = [(number, each.ended, len(each.tokens)) for number, each in self._sequences.items()]
        place = zlib.crc32(repr(places).encode()) >> 1
        return self._ranks.exchange((len(self._packed), place))

    def _heard(self, size: int) -> list[_Command]:
        if not size:
            return []
        packed = self._ranks.from_first(self._packed, size)
        return self._telling if not self._ranks.rank else _unpack(packed)

    def _follow(self, command: _Command) -> None:
        facts = command.facts
        if facts["do"] == "forget":
            self._engine.prefix.forget(facts["keys"])
        elif facts["do"] == "submit":
            sequence = command.sequence or self._make((facts, command.arrays))
            self._sequences[facts["number"]] = sequence
            self._engine.accept(sequence)
        elif facts["number"] in self._sequences:
            self._engine.drop(self._sequences[facts["number"]])


def _pack(commands: Sequence[_Command]) -> bytes:
    arrays = {f"{i}.{name}": array for i, each in enumerate(commands) for name, array in each.arrays.items()}
    arrays["none"] = mx.zeros(1)  # a file without arrays is none
    out = io.BytesIO()
    mx.save_safetensors(out, arrays, {"commands": json.dumps([each.facts for each in commands])})
    return out.getvalue()


def _unpack(packed: bytes) -> list[_Command]:
    loaded: Any = mx.load(io.BytesIO(packed), format="safetensors", return_metadata=True)
    arrays, about = loaded
    found = []
    for i, facts in enumerate(json.loads(about["commands"])):
        found.append(_Command(facts, {n.partition(".")[2]: a for n, a in arrays.items() if n.startswith(f"{i}.")}))
        mx.eval(found[-1].arrays)
    return found
