"""Fused operations of Qwen3.5 as MLX primitives, each beside its float32 reference in plain mlx.

``<op>`` and ``<op>_reference`` take the same arguments and return the same arrays; the reference is what tests and
benches compare with. Dims: B batch, T tokens, Hk/Hv key/value heads, Dk/Dv head dims, M rows, K in-features, N out-
features. The ops accept float32, float16 and bfloat16, sum in float32 and round once, at the end. They work lazily,
on non-contiguous inputs and under ``mx.compile``. A wrong shape, dtype or width raises ValueError:
"op: argument: expected ..., found ...".
"""

from mlx_delta.ops.attention import attention, attention_reference
from mlx_delta.ops.attention_prepare import attention_prepare, attention_prepare_reference
from mlx_delta.ops.attention_rows import attention_rows, attention_rows_reference
from mlx_delta.ops.conv1d import conv1d, conv1d_reference
from mlx_delta.ops.delta_mixer import delta_mixer, delta_mixer_reference
from mlx_delta.ops.delta_mixer_rows import delta_mixer_rows, delta_mixer_rows_reference
from mlx_delta.ops.embedding import embedding, embedding_reference
from mlx_delta.ops.experts import experts, experts_reference
from mlx_delta.ops.gated_delta import gated_delta, gated_delta_reference
from mlx_delta.ops.gated_norm import gated_norm, gated_norm_reference
from mlx_delta.ops.kv_rows import dequantize_kv, kv_row_bytes, quantize_kv
from mlx_delta.ops.matrix import Matrix, dense
from mlx_delta.ops.qmm import qmm, qmm_reference
from mlx_delta.ops.route import route, route_reference
from mlx_delta.ops.sample import sample, sample_reference

__all__ = [
    "Matrix",
    "attention",
    "attention_prepare",
    "attention_prepare_reference",
    "attention_reference",
    "attention_rows",
    "attention_rows_reference",
    "conv1d",
    "conv1d_reference",
    "delta_mixer",
    "delta_mixer_reference",
    "delta_mixer_rows",
    "delta_mixer_rows_reference",
    "dense",
    "dequantize_kv",
    "embedding",
    "embedding_reference",
    "experts",
    "experts_reference",
    "gated_delta",
    "gated_delta_reference",
    "gated_norm",
    "gated_norm_reference",
    "kv_row_bytes",
    "qmm",
    "qmm_reference",
    "quantize_kv",
    "route",
    "route_reference",
    "sample",
    "sample_reference",
]
