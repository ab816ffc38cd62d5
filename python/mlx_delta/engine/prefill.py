"""The prompt's pass through the network, in pieces so that memory does not grow with its length.

Where a prompt is cut does not show in its bits: pieces end at multiples of ``ALIGNED`` from its first token, and none
is so short that it would be taken for decoding (``DECODE_TOKENS``), unless all of the prompt is.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_delta._core import DECODE_TOKENS
from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network

CHUNK = 512  # tokens: enough rows to be bound by arithmetic, few enough that activations stay small
ALIGNED = 64  # tokens: chunks of gated_delta and stretches of attention begin at multiples of it, from a prompt's first


def piece_end(start: int, end: int, chunk: int = CHUNK) -> int:
    """Where the piece of a prompt from ``start`` ends, of which ``end - start`` tokens are left.

    chunk: a multiple of ALIGNED. The last piece takes up to DECODE_TOKENS more, rather than leave them to another.
    """
    return end if end - start <= chunk + DECODE_TOKENS else start + chunk


def prefill(
    network: Network, tokens: mx.array, cache: Cache, *, mask: mx.array | None = None, chunk: int = CHUNK
) -> mx.array:
    """Advance ``cache`` over tokens int [B, T], T >= 1 -> logits [B, V] after the last one, lazily.

    mask: bool [B, T] of left-padded prompts. Every piece but the last is evaluated on return.
    """
    if tokens.ndim != 2 or tokens.size == 0:
        raise ArgumentError(f"prompt: expected at least one token, found shape {list(tokens.shape)}")
    start, total = 0, tokens.shape[1]
    while (end := piece_end(start, total, chunk)) < total:
        *_, x = network.hidden_states(tokens[:, start:end], cache, None if mask is None else mask[:, start:end])
        mx.eval(x, cache.arrays())
        start = end
    logits = network(tokens[:, start:], cache, mask=None if mask is None else mask[:, start:], last_only=True)
    return logits[:, 0]
