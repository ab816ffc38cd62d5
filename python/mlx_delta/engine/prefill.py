"""The prompt's pass through the network, in chunks so that memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network

CHUNK = 512  # tokens: enough rows to be bound by arithmetic, few enough that activations stay small
# Chunks of gated_delta and stretches of attention begin at multiples of so many tokens: a prompt that is cut there, and
# more than DECODE_TOKENS before its end, has the bits that it has in one pass.
ALIGNED = 64


def prefill(
    network: Network,
    tokens: mx.array,
    cache: Cache,
    *,
    mask: mx.array | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> mx.array:
    """Advance ``cache`` over tokens int [B, T], T >= 1 -> logits [B, V] after the last one, lazily.

    mask: bool [B, T] of left-padded prompts. Chunks are counted from the beginning of the sequence where ``cache`` ends
    at a multiple of ALIGNED, and from its end elsewhere. Every chunk but the last is evaluated on return; progress:
    called after each of these with the tokens done, and T.
    """
    if tokens.ndim != 2 or tokens.size == 0:
        raise ArgumentError(f"prompt: expected at least one token, found shape {list(tokens.shape)}")
    total = tokens.shape[1]
    before = cache.offset % chunk if cache.offset % ALIGNED == 0 else 0
    last = 0  # where the last chunk starts
    for end in range(chunk - before, total, chunk):
        part = slice(last, end)
        *_, x = network.hidden_states(tokens[:, part], cache, None if mask is None else mask[:, part])
        mx.eval(x, cache.arrays())
        last = end
        if progress is not None:
            progress(end, total)
    logits = network(tokens[:, last:], cache, mask=None if mask is None else mask[:, last:], last_only=True)
    return logits[:, 0]
