"""attention_rows: attention_prepare and attention of several sequences, each with its own cache, in one primitive."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.attention import attention_reference
from mlx_delta.ops.attention_prepare import attention_prepare_reference


def attention_rows(
    projection: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    *,
    offsets: Sequence[int],
    rope_theta: float,
    rope_dim: int,
    rope_sections: tuple[int, int, int],
    scale: float,
    eps: float = 1e-6,
    counts: Sequence[int] | None = None,
    positions: mx.array | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """``attention_prepare`` and ``attention`` of several sequences at once, whose tokens are rows of one projection.

    ::

        q, .. = attention_prepare(projection[r], q_norm, k_norm, keys[i], values[i], offset=offsets[i])
        y[r]  = attention(q, projection[r], keys[i], values[i], length=offsets[i] + counts[i])
                                                                                        r: the rows of sequence i

    Args:
        projection: [R, 1, (2 Hq + 2 Hkv) D], the rows of the first sequence, of the second, and so on; few of each.
        q_norm, k_norm, rope_theta, rope_dim, rope_sections, eps: see ``attention_prepare``.
        keys, values: of each sequence [1, Hkv, S, D] of projection's dtype, S its own; or of all in 8 bits, see
            ``attention_prepare``.
        offsets: of each sequence, how many tokens came before, whose rows of keys and values are valid.
        scale: see ``attention``.
        counts: how many rows each sequence has, R in all; None: one.
        positions: int [R], or [3, R] (T, H, W); None: from a sequence's offset on.

    Returns: (y [R, 1, Hq D], keys, values). Every row has the bits that it has alone, as its sequence's next token.
        Keys and values stay arrays of their own, each updated in place where nobody else holds it. A GPU takes up to 8
        sequences in a launch of each of three kernels. Raises: ValueError naming the argument.
    """
    return _core.attention_rows(
        projection,
        q_norm,
        k_norm,
        keys,
        values,
        offsets=offsets,
        rope_theta=rope_theta,
        rope_dim=rope_dim,
        rope_sections=rope_sections,
        scale=scale,
        eps=eps,
        counts=counts,
        positions=positions,
        stream=stream,
    )


def attention_rows_reference(
    projection: mx.array,
    q_norm: mx.array,
    k_norm: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    *,
    offsets: Sequence[int],
    rope_theta: float,
    rope_dim: int,
    rope_sections: tuple[int, int, int],
    scale: float,
    eps: float = 1e-6,
    counts: Sequence[int] | None = None,
    positions: mx.array | None = None,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """``attention_rows`` in float32: one sequence after the other. Attention reads the query, and what is in the cache,
    as their dtype holds them."""
    rows, new_keys, new_values = list[mx.array](), list[mx.array](), list[mx.array]()
    first = 0
    for i, offset in enumerate(offsets):
        last = first + (1 if counts is None else counts[i])
        of_one = projection[first:last].swapaxes(0, 1)
        q, k, v = attention_prepare_reference(
            of_one,
            q_norm,
            k_norm,
            keys[i],
            values[i],
            offset=offset,
            rope_theta=rope_theta,
            rope_dim=rope_dim,
            rope_sections=rope_sections,
            eps=eps,
            positions=None if positions is None else positions[..., None, first:last],
        )
        cached = (x.astype(of.dtype) for x, of in ((k, keys[i]), (v, values[i])))
        y = attention_reference(q.astype(of_one.dtype), of_one, *cached, length=offset + last - first, scale=scale)
        rows.append(y.swapaxes(0, 1))
        new_keys.append(k)
        new_values.append(v)
        first = last
    return mx.concatenate(rows), new_keys, new_values
