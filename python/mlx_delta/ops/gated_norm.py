"""gated_norm: what follows gated_delta in prefill. The mixer has it inside."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta import _core


def gated_norm(
    y: mx.array, z: mx.array, norm: mx.array, *, eps: float = 1e-6, stream: mx.Stream | mx.Device | None = None
) -> mx.array:
    """norm * y * rsqrt(mean(y^2) + eps) * silu(z) over the last axis, in float32, rounded once.

    Args:
        y, z: [.., D] float32, float16 or bfloat16, both the same.
        norm: [D], as it multiplies.

    Returns: [.., D] of y's dtype. Raises: ValueError naming the argument.
    Source: Hugging Face ``Qwen3_5RMSNormGated`` (modeling_qwen3_5.py).
    """
    return _core.gated_norm(y, z, norm, eps=eps, stream=stream)


def gated_norm_reference(y: mx.array, z: mx.array, norm: mx.array, *, eps: float = 1e-6) -> mx.array:
    """``gated_norm`` in float32."""
    y, z = y.astype(mx.float32), z.astype(mx.float32)
    return norm.astype(mx.float32) * y * mx.rsqrt(mx.mean(y * y, axis=-1, keepdims=True) + eps) * (z * mx.sigmoid(z))
