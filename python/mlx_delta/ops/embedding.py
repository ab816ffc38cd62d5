"""embedding: rows of a (quantized) table."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.matrix import Matrix, rows


def embedding(
    tokens: mx.array, table: Matrix, dtype: mx.Dtype, *, stream: mx.Stream | mx.Device | None = None
) -> mx.array:
    """y[..] = table[tokens[..]], dequantized row by row: the table stays quantized in memory.

    Args:
        tokens: integers [..].
        table: [N, K].
        dtype: float32, float16 or bfloat16.

    Returns: [.., K] of ``dtype``. A token outside [0, N) gives a row of NaN (ids are known only when the graph runs).
    Raises: ValueError naming the argument.
    """
    return _core.embedding(tokens, table, dtype, stream=stream)


def embedding_reference(tokens: mx.array, table: Matrix, dtype: mx.Dtype) -> mx.array:
    """``embedding`` in float32; ``dtype`` is not applied."""
    return rows(table, tokens)
