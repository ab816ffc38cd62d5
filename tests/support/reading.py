"""What comes of sequences: a reader of their tokens, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.prefix import PrefixCache
from mlx_delta.engine.sample import Allowed
from mlx_delta.engine.sequence import Clock


@dataclass
class Collect:
    """Reads tokens until ``stop`` of them are there; fails at ``fails``; allows some ids alone at every third token."""

    stop: int = 1 << 30
    fails: int = -1
    steered: bool = False
    clock: Clock = field(default_factory=Clock)
    finish_reason: str | None = None
    seen: list[int] = field(default_factory=list)

    def allowed(self) -> Allowed | None:
        return range(100, 140) if self.steered and len(self.seen) % 3 == 2 else None

    def push(self, token: int, likelihood: Likelihood | None) -> Sequence[Any]:
        if len(self.seen) == self.fails:
            raise RuntimeError("the reader fails")
        self.seen.append(token)
        if len(self.seen) == self.stop:
            self.finish_reason = "stop"
        return [(token, likelihood and (likelihood.logprob, likelihood.top))]


def kept_bytes(prefix: PrefixCache) -> int:
    """Counted node by node: what the tree says of itself in ``nbytes``."""
    waiting, total = [prefix._root], 0
    while waiting:
        node = waiting.pop()
        total += node.row_bytes + node.state_bytes
        assert node.parent is None or node.children or node.states is not None
        waiting += node.children
    return total
