"""Random sequences for the engine, and random schedules of them: what each brings is what it brings alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mlx_delta.engine.cuts import NO_TURNS, Turns
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.identity import model_identity
from mlx_delta.engine.pace import Pace
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.engine.sequence import TokenSequence
from mlx_delta.engine.snapshots import Snapshots
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from support.reading import Collect, kept_bytes

VOCABULARY = 400


@dataclass(frozen=True)
class Work:
    """What a sequence is, to be made as often as wanted."""

    ids: tuple[int, ...]
    params: SamplingParams
    most: int
    stop: int
    steered: bool
    logprobs: int | None

    @classmethod
    def random(cls, rng: random.Random, turns: Turns, others: Sequence[Sequence[int]] = ()) -> Work:
        """Turns, every second one the assistant's, or no turn at all; the beginning may be that of another, of whose
        ids and answer ``others`` are."""
        ids: list[int] = []
        if others and rng.random() < 0.6:
            ids = list(rng.choice(others))
            ids = ids[: rng.randrange(min(len(ids), 300) + 1)] if rng.random() < 0.7 or len(ids) > 300 else ids
        for turn in range(rng.choice([1, 1, 1, 2, 2, 4])):
            opening = [turns.start or 0, *(turns.assistant if turn % 2 else ())] if rng.random() < 0.8 else []
            length = rng.choice([1, 2, 15, 16, 17, 40, 64, 65, 80, 81, 127, 150]) if rng.random() < 0.97 else 300
            ids += [*opening, *(rng.randrange(VOCABULARY) for _ in range(length))][:length]
        params = SamplingParams(
            temperature=rng.choice([0, 0.7, 1.5]),
            top_k=rng.choice([0, 5]),
            top_p=rng.choice([1, 0.8]),
            presence_penalty=rng.choice([0, 1.5]),
            repetition_penalty=rng.choice([1, 1.2]),
            seed=rng.randrange(1000),
        )
        logprobs = rng.choice([None, None, 3])
        return cls(tuple(ids), params, rng.randrange(1, 20), rng.randrange(1, 30), rng.random() < 0.3, logprobs)

    def sequence(self, network: Network, **reader: Any) -> TokenSequence:
        sampler = Sampler(self.params, network.config.vocab_size, self.ids)
        read = Collect(self.stop, steered=self.steered, **reader)
        options: dict[str, Any] = {"most": self.most, "logprobs": self.logprobs}
        return TokenSequence(self.ids, None, sampler, read, **options)

    def alone(self, network: Network, turns: Turns = NO_TURNS) -> list[Any]:
        return list(Engine(network, turns).run(self.sequence(network)))


class Family:
    """Works that begin alike, and what each brings alone: computed once, for many schedules."""

    def __init__(self, network: Network, turns: Turns, seed: int) -> None:
        rng = random.Random(seed)
        self.network, self.turns, self.model = network, turns, model_identity(network, turns)
        self.works: list[Work] = []
        self.expected: list[list[Any]] = []
        texts: list[list[int]] = []
        for _ in range(rng.randrange(2, 9)):
            work = Work.random(rng, turns, texts)
            self.works.append(work)
            self.expected.append(work.alone(network, turns))
            texts.append([*work.ids, *(token for token, _ in self.expected[-1])])

    def schedule(self, seed: int, folder: Path | None = None) -> None:
        """They come, go, are asked for and cancelled at random, over what is kept of others within a limit; prompts
        are cut anyhow. folder: where it is kept in files too, as if each schedule came after a restart."""
        rng = random.Random(seed)
        limit = rng.choice([0, 6_000_000, 40_000_000])
        memory = None
        if rng.random() < 0.3:  # that of the longest, and some more: they wait for each other, what is kept for them
            config, dtype = self.network.config, self.network.dtype
            needs = [Cache.bytes_of(config, dtype, len(work.ids) + work.most) for work in self.works]
            memory = self.network.nbytes + int(rng.choice([1, 2.5]) * max(needs))
        rows = rng.choice([2, 5, 16, 32])
        snapshots = None
        if folder is not None:
            most, least = rng.choice([1 << 30, 20_000_000]), rng.choice([1, 40])
            snapshots = Snapshots(folder, self.model, self.network.kv_bits, most, least)
        engine = Engine(
            self.network, self.turns, prefix_bytes=limit, memory=memory, most_rows=rows, snapshots=snapshots
        )
        engine._prompts.pace = RandomPace(rng)
        with patch("mlx_delta.engine.prompts.CHUNK", rng.choice([64, 192, 512])):
            self._run(engine, rng, seed)
        if snapshots is not None:
            snapshots.close()
        assert engine.prefix.nbytes <= limit
        assert not engine._going
        assert not engine._waiting
        assert not engine._cancelled

    def _run(self, engine: Engine, rng: random.Random, seed: int) -> None:
        going: dict[int, Any] = {}
        sequences: dict[int, TokenSequence] = {}
        found: dict[int, list[Any]] = {i: [] for i in range(len(self.works))}
        left, cancelled = list(range(len(self.works))), set()
        rng.shuffle(left)
        while left or going:
            if left and (not going or rng.random() < 0.4):
                i = left.pop()
                sequences[i] = self.works[i].sequence(self.network)
                going[i] = engine.run(sequences[i])
                if rng.random() < 0.5:
                    engine.submit(sequences[i])
                continue
            i = rng.choice(list(going))
            if rng.random() < 0.03:
                cancelled.add(i)
                going.pop(i).close()  # which does nothing where nobody has asked it yet
                engine.cancel(sequences[i])
                continue
            event = next(going[i], None)
            if event is None:
                going.pop(i)
            else:
                found[i].append(event)
        for i, events in found.items():
            whole = self.expected[i][: len(events)] if i in cancelled else self.expected[i]
            assert events == whole, (seed, i, self.works[i])
        assert kept_bytes(engine.prefix) == engine.prefix.nbytes


class RandomPace(Pace):
    """As if times were anything."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def seconds(self, rows: int) -> float:
        return self._rng.choice([0.0, 0.01, 1.0])

    def tokens(self, prefix: int, least: int, most: int, rows: int) -> int:
        return self._rng.randrange(least, most + 1, least)
