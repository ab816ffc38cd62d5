"""The prompt's pass through the network, in chunks so that memory does not grow with its length."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network

CHUNK = 512  # tokens: enough rows to be bound by arithmetic, few enough that activations stay small


def prefill(
    network: Network, tokens: mx.array, cache: Cache, *, mask: mx.array | None = None, chunk: int = CHUNK
) -> mx.array:
    """Advance ``cache`` over tokens int [B, T], T >= 1 -> logits [B, V] after the last one, lazily.

    mask: bool [B, T] of left-padded prompts. Every chunk but the last is evaluated on return.
    """
    if tokens.ndim != 2 or tokens.size == 0:
        raise ArgumentError(f"prompt: expected at least one token, found shape {list(tokens.shape)}")
    total = tokens.shape[1]
    last = (total - 1) // chunk * chunk  # where the last chunk starts
    for start in range(0, last, chunk):
        part = slice(start, start + chunk)
        *_, x = network.hidden_states(tokens[:, part], cache, None if mask is None else mask[:, part])
        mx.eval(x, cache.arrays())
    logits = network(tokens[:, last:], cache, mask=None if mask is None else mask[:, last:], last_only=True)
    return logits[:, 0]
