"""A prompt's pass through the network without an engine, in pieces so that memory does not grow with its length."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta.engine.cuts import CHUNK, NO_TURNS, Cuts
from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network


def prefill(network: Network, tokens: mx.array, cache: Cache, *, chunk: int = CHUNK) -> mx.array:
    """Advance ``cache`` over tokens int [B, T], T >= 1, one turn -> logits [B, V] after the last one, lazily.

    chunk: the most tokens at once, a multiple of ALIGNED. Every piece but the last is evaluated on return.
    """
    if tokens.ndim != 2 or tokens.size == 0:
        raise ArgumentError(f"prompt: expected at least one token, found shape {list(tokens.shape)}")
    start, total = 0, tokens.shape[1]
    cuts = Cuts(range(total), NO_TURNS)
    while (end := cuts.pieces(start, total, chunk)[0].end) < total:
        *_, x = network.hidden_states(tokens[:, start:end], cache)
        mx.eval(x, cache.arrays())
        start = end
    return network(tokens[:, start:], cache, last_only=True)[:, 0]
