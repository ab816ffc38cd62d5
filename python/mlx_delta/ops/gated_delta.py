"""gated_delta: the gated delta rule, sequential for few tokens and in chunks for many."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core


def gated_delta(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    state: mx.array | None = None,
    *,
    mask: mx.array | None = None,
    stream: mx.Stream | mx.Device | None = None,
) -> tuple[mx.array, mx.array]:
    """Run the recurrence; normalisation of q and k and the gates are inside.

    For each value head h, with key head h // (Hv / Hk) and state S [Dv, Dk]::

        q = q * rsqrt(sum(q^2) + 1e-6) * Dk^-0.5;   k = k * rsqrt(sum(k^2) + 1e-6)
        g = exp(-exp(A_log) * softplus(a + dt_bias));   beta = sigmoid(b)
        S = g * S;   S = S + beta * (v - S k) k^T;   y = S q        for each token

    Args:
        q, k: [B, T, Hk, Dk], raw.
        v: [B, T, Hv, Dv].
        a, b: [B, T, Hv], raw gate projections. q, k, v, a, b share one of float32, float16, bfloat16.
        A_log, dt_bias: [Hv], any float dtype.
        state: float32 [B, Hv, Dv, Dk]; None: zeros.
        mask: bool [B, T]; a token whose mask is false is not there: it leaves the state alone and its y is 0.

    Returns: (y [B, T, Hv, Dv] of v's dtype, new state float32). run(T) == run(T1) then run(T2) up to rounding:
        T > 16 runs in chunks of 64 tokens (WY form).
    Raises: ValueError naming the argument.
    Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464.
    """
    return _core.gated_delta(q, k, v, a, b, A_log, dt_bias, state, mask=mask, stream=stream)


def gated_delta_reference(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    A_log: mx.array,
    dt_bias: mx.array,
    state: mx.array | None = None,
    *,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """``gated_delta`` in float32, token by token."""
    q, k, v, a, b, A_log, dt_bias = (x.astype(mx.float32) for x in (q, k, v, a, b, A_log, dt_bias))
    B, T, Hk, Dk = q.shape
    Hv, Dv = v.shape[2:]
    q = mx.repeat(q * mx.rsqrt(mx.sum(q * q, -1, keepdims=True) + 1e-6) * Dk**-0.5, Hv // Hk, axis=2)
    k = mx.repeat(k * mx.rsqrt(mx.sum(k * k, -1, keepdims=True) + 1e-6), Hv // Hk, axis=2)
    g = mx.exp(-mx.exp(A_log) * mx.logaddexp(a + dt_bias, 0.0))
    beta = mx.sigmoid(b)
    S = mx.zeros((B, Hv, Dv, Dk)) if state is None else state
    rows = []
    for t in range(T):
        decayed = S * g[:, t, :, None, None]
        kt = k[:, t, :, None, :]
        delta = beta[:, t, :, None, None] * (v[:, t, :, :, None] - mx.sum(decayed * kt, -1, keepdims=True))
        new = decayed + delta * kt
        y = mx.sum(new * q[:, t, :, None, :], -1)
        if mask is not None:
            there = mask[:, t].astype(mx.bool_)
            new = mx.where(there[:, None, None, None], new, S)
            y = mx.where(there[:, None, None], y, 0.0)
        S = new
        rows.append(y)
    return mx.stack(rows, axis=1), S
