"""conv1d: depthwise causal convolution of width 4 with SiLU, carrying its state from call to call."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core


def conv1d(
    x: mx.array,
    weight: mx.array,
    state: mx.array | None = None,
    *,
    mask: mx.array | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, mx.array]:
    """Convolve every channel on its own over the tokens.

    ::

        h = concat(state, x)                                        [B, 3 + T, C]
        y[b, t, c] = silu(sum_j weight[c, j] * h[b, t + j, c])      [B, T, C]
        new state = h[:, -3:]                                       [B, 3, C], oldest first

    Args:
        x: [B, T, C], float32, float16 or bfloat16.
        weight: [C, 4], or [C, 1, 4] or [C, 4, 1] as checkpoints have it; any float dtype; the newest token's tap last.
        state: [B, 3, C] of x's dtype; None: zeros.
        mask: bool [B, T]; a token whose mask is false is not there: the window skips it and its y is 0.

    Returns: (y, new state), both of x's dtype. run(T) == run(T1) then run(T2).
    Raises: ValueError naming the argument.
    Source: Hugging Face ``torch_causal_conv1d_update`` (modeling_qwen3_5.py).
    """
    return _core.conv1d(x, weight, state, mask=mask, stream=stream)


def conv1d_reference(
    x: mx.array, weight: mx.array, state: mx.array | None = None, *, mask: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """``conv1d`` in float32, token by token."""
    B, T, C = x.shape
    w = weight.astype(mx.float32).reshape(C, 4)
    window = mx.zeros((B, 3, C)) if state is None else state.astype(mx.float32)
    rows = []
    for t in range(T):
        extended = mx.concatenate([window, x[:, t : t + 1].astype(mx.float32)], axis=1)  # [B, 4, C]
        y = mx.sum(extended * w.T, axis=1)
        y = y * mx.sigmoid(y)
        if mask is None:
            window = extended[:, 1:]
        else:
            there = mask[:, t].astype(mx.bool_)
            y = mx.where(there[:, None], y, 0.0)
            window = mx.where(there[:, None, None], extended[:, 1:], window)
        rows.append(y)
    return mx.stack(rows, axis=1), window
