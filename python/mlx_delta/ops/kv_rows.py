"""Keys and values in 8 bits: how a row of the cache, one token of one head, is laid out (csrc/kv_layout.h), in mlx.

``attention_prepare`` writes such rows, ``attention`` reads them; here is the reference for both.
"""

from __future__ import annotations

import mlx.core as mx

GROUP = 64  # columns that share a scale
_LEAST = 2.0**-100  # scales below count as 0


def kv_row_bytes(head_dim: int) -> int:
    """Of one token and head: int8 for each column, then a bfloat16 for each ``GROUP`` of them, the last maybe short."""
    return head_dim + 2 * _groups(head_dim)


def quantize_kv(x: mx.array) -> mx.array:
    """x [.., D] -> rows uint8 [.., kv_row_bytes(D)]::

        scale = bfloat16(max |x| / 127)     of each group
        q = round(x / scale)                to nearest even, by way of 1 / scale

    A group with a value that is not finite has a NaN for a scale, and all of it is read as NaN.
    """
    *rows, D = x.shape
    x = x.astype(mx.float32)
    fill = GROUP * _groups(D) - D
    grouped = mx.pad(x, [(0, 0)] * len(rows) + [(0, fill)]).reshape(*rows, -1, GROUP)
    largest = mx.max(mx.abs(grouped), axis=-1)
    stored = mx.where(mx.all(mx.isfinite(grouped), axis=-1), largest / 127, mx.nan).astype(mx.bfloat16)
    scale = stored.astype(mx.float32)[..., None]
    q = mx.where(scale >= _LEAST, mx.round(grouped * (1 / mx.maximum(scale, _LEAST))), 0)
    columns = q.astype(mx.int8).reshape(*rows, -1)[..., :D]
    return mx.concatenate([mx.contiguous(columns).view(mx.uint8), stored.view(mx.uint8)], axis=-1)


def dequantize_kv(rows: mx.array, head_dim: int) -> mx.array:
    """Rows of ``quantize_kv`` -> float32 [.., head_dim]: q scale."""
    q = mx.contiguous(rows[..., :head_dim]).view(mx.int8).astype(mx.float32)
    scale = mx.contiguous(rows[..., head_dim:]).view(mx.bfloat16).astype(mx.float32)
    return q * mx.repeat(scale, GROUP, axis=-1)[..., :head_dim]


def _groups(head_dim: int) -> int:
    return -(-head_dim // GROUP)
