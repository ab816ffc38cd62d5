"""What checking drafts costs and gains: passes of k + 1 rows against one, in turn; and whole answers with and without.

With random weights nothing can be right, so how often a draft is accepted is drawn: all that such a pass does is done
(drafts by the head, the rows, the choice of tokens, waiting for them, states taken back to the rows that count).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import mlx.core as mx
import numpy as np

from mlx_delta.engine.draft import MtpDrafter
from mlx_delta.engine.prefill import prefill
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from mlx_delta.model.rows import Span


@dataclass(frozen=True)
class Simulated:
    """Medians. pass_ms: of a pass without drafts; checking_ms, drafting_ms: of the rows with ``drafts``, and of making
    them. tokens: of a pass on average. speedup: of the whole, tokens by time, against passes without drafts."""

    drafts: int
    acceptance: float
    pass_ms: float
    drafting_ms: float
    checking_ms: float
    tokens: float
    speedup: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def simulate(
    network: Network, *, drafts: Sequence[int], acceptance: float, context: int, rounds: int
) -> list[Simulated]:
    """Of each number of ``drafts``, ``rounds`` passes and as many without drafts in turn, behind ``context`` tokens."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, network.config.vocab_size, max(2, context)).tolist()
    cache = Cache.empty(network.config)
    mx.eval(prefill(network, mx.array([text]), cache), cache.arrays())
    head = MtpDrafter(network, text)
    token = mx.array([1], dtype=mx.int32)
    results = []
    for count in drafts:
        plain, drafting, checking, tokens = list[float](), list[float](), list[float](), list[int]()
        for turn in range(rounds + 1):  # the first warms up
            start = time.perf_counter()
            text += np.array(token).tolist()
            x, _ = network.advance(token, None, [Span(cache, 0)])
            assert x is not None
            token = mx.argmax(network.logits(x)[:, 0], axis=-1).astype(mx.int32)
            mx.eval(token, cache.arrays())
            passed = time.perf_counter()
            head.see(x, len(text))
            drafted, _ = head.draft(token, count)
            assert drafted is not None
            mx.eval(drafted)
            made = time.perf_counter()
            cache.begin_drafts()
            x, _ = network.advance(mx.concatenate([token, drafted]), None, [Span(cache, 0, count + 1)])
            assert x is not None
            chosen = mx.argmax(network.logits(x)[:, 0], axis=-1).astype(mx.int32)
            mx.eval(chosen)
            kept = 1 + next((i for i in range(count) if rng.random() >= acceptance), count)
            cache.end_drafts(kept, count + 1)
            mx.eval(cache.arrays())
            end = time.perf_counter()
            text += np.array(mx.concatenate([token, drafted]))[:kept].tolist()
            head.see(x.reshape(1, count + 1, -1)[:, :kept], len(text))
            token = chosen[kept - 1 : kept]
            if turn:
                plain.append(passed - start)
                drafting.append(made - passed)
                checking.append(end - made)
                tokens.append(kept)
        one, making, check = (statistics.median(times) for times in (plain, drafting, checking))
        expected = sum(acceptance**i for i in range(count + 1))
        results.append(
            Simulated(
                count, acceptance, 1e3 * one, 1e3 * making, 1e3 * check, expected, expected * one / (making + check)
            )
        )
    return results


def answers(model: LanguageModel, prompts: Sequence[str], tokens: int, rounds: int) -> dict[str, object]:
    """Greedy answers with speculation and without in turn -> tokens a second of both, the ratio, and the drafts."""
    rates: dict[str, list[float]] = {"off": [], "auto": []}
    drafted = accepted = 0
    for turn in range(rounds + 1):
        for prompt in prompts:
            for speculate, found in rates.items():
                made = model.generate(prompt, max_new_tokens=tokens, temperature=0, speculate=speculate)
                made.text()
                if turn and made.tokens_per_second:
                    found.append(made.tokens_per_second)
                    drafted, accepted = drafted + made.drafted_tokens, accepted + made.accepted_tokens
    off, auto = (statistics.median(found) if found else 0.0 for found in rates.values())
    return {
        "tokens_per_second": off,
        "tokens_per_second_speculating": auto,
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
        "speedup": statistics.median(b / a for a, b in zip(rates["off"], rates["auto"], strict=True)) if off else 0.0,
    }
