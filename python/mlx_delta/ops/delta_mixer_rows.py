"""delta_mixer_rows: delta_mixer of several sequences, each with states of its own, in one primitive."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.ops.delta_mixer import delta_mixer_reference


def delta_mixer_rows(
    projection: mx.array,
    conv_weight: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    conv_states: Sequence[mx.array | None],
    delta_states: Sequence[mx.array | None],
    *,
    key_heads: int,
    key_dim: int,
    eps: float = 1e-6,
    counts: Sequence[int] | None = None,
    pending: Sequence[mx.array | None] | None = None,
    keep: Sequence[bool] | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """``delta_mixer`` of several sequences at once, whose tokens are rows of one projection.

    ::

        y[r], .. = delta_mixer(projection[r], .., conv_states[i], delta_states[i], pending=pending[i], keep=keep[i])
                                                                                        r: the rows of sequence i

    Args:
        projection: [R, 1, 2 Hk Dk + 2 Hv Dv + 2 Hv], the rows of the first sequence, of the second, and so on.
        conv_weight, A_log, dt_bias, norm, key_heads, key_dim, eps: see ``delta_mixer``.
        conv_states, delta_states: of each sequence [1, 3, C] and float32 [1, Hv, Dv, Dk], or None: zeros.
        counts: how many rows each sequence has, R in all; None: one.
        pending: of each sequence [1, P, ..], or None, see ``delta_mixer``; None: of none.
        keep: of each sequence; None: True.

    Returns: (y [R, 1, Hv Dv], conv states, delta states). Those of a sequence have the bits that ``delta_mixer`` gives
        of it alone. States stay arrays of their own, each updated in place where nobody else holds it. A GPU takes up
        to 8 sequences of one token (keep, none pending), or 6 others, in a launch. Raises: ValueError naming the
        argument.
    """
    return _core.delta_mixer_rows(
        projection,
        conv_weight,
        A_log,
        dt_bias,
        norm,
        conv_states,
        delta_states,
        key_heads=key_heads,
        key_dim=key_dim,
        eps=eps,
        counts=counts,
        pending=pending,
        keep=keep,
        stream=stream,
    )


def delta_mixer_rows_reference(
    projection: mx.array,
    conv_weight: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    norm: mx.array,
    conv_states: Sequence[mx.array | None],
    delta_states: Sequence[mx.array | None],
    *,
    key_heads: int,
    key_dim: int,
    eps: float = 1e-6,
    counts: Sequence[int] | None = None,
    pending: Sequence[mx.array | None] | None = None,
    keep: Sequence[bool] | None = None,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """``delta_mixer_rows`` in float32: one sequence after the other."""
    rows, convs, deltas = list[mx.array](), list[mx.array](), list[mx.array]()
    first = 0
    for i, (conv, delta) in enumerate(zip(conv_states, delta_states, strict=True)):
        last = first + (1 if counts is None else counts[i])
        y, conv, delta = delta_mixer_reference(
            projection[first:last].swapaxes(0, 1),
            conv_weight,
            A_log,
            dt_bias,
            norm,
            conv,
            delta,
            key_heads=key_heads,
            key_dim=key_dim,
            eps=eps,
            pending=None if pending is None else pending[i],
            keep=True if keep is None else keep[i],
        )
        rows.append(y.swapaxes(0, 1))
        convs.append(conv)
        deltas.append(delta)
        first = last
    return mx.concatenate(rows), convs, deltas
