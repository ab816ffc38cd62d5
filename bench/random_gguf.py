"""A GGUF of a published size with random weights, for llama.cpp: the recipe's mix in the K-quants closest to it.

K-quants have the widths of the recipe at its bytes within 2 % (3.44, 4.5, 5.5 and 6.56 bits a weight, where affine
groups of 64 take 3.5, 4.5, 5.5 and 6.5). Any bits are valid blocks once the float16 scales in them are finite; those
are set so that the values have the variance of a fresh layer. Usage: python -m bench.random_gguf 9B FILE [--layers N]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape

from mlx_delta.arch.qwen3_5.gguf_names import gguf_from_canonical
from mlx_delta.bench.random_model import recipe_plans
from mlx_delta.bench.sizes import CONFIGS, size_named
from mlx_delta.config import TextConfig
from mlx_delta.conversion.recipe import TensorPlan


@dataclass(frozen=True)
class KQuant:
    """Where a block of 256 values has its float16 scale, and its offsets theirs, and what they are at variance 1.

    Deviations follow from uniform bits: of (scale - 32) * (q - 4) for Q3_K, and so on.
    """

    kind: GGMLQuantizationType
    scale_at: int
    scale: float
    offset_at: int | None = None
    offset: float = 0.0


# Layouts: llama.cpp ggml/src/ggml-common.h, block_q3_K to block_q6_K.
K_QUANTS = {
    3: KQuant(GGMLQuantizationType.Q3_K, 108, 1 / 43),
    4: KQuant(GGMLQuantizationType.Q4_K, 0, 1 / 250, 2, 7.5 / 250),
    5: KQuant(GGMLQuantizationType.Q5_K, 0, 1 / 500, 2, 15.5 / 500),
    6: KQuant(GGMLQuantizationType.Q6_K, 208, 1 / 1370),
}


def write_gguf(size: str, out: Path, layers: int | None = None) -> int:
    """Write ``out``, which appears whole or not at all. The bytes of weights that decoding a token reads of it."""
    config, plans = recipe_plans(size, layers=layers)
    name = "qwen35" if config.text.experts is None else "qwen35moe"
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        writer = GGUFWriter(partial, name)
        context = CONFIGS[size]["text_config"]["max_position_embeddings"]
        for key, value in _metadata(name, config.text, context).items():
            add_metadata(writer, key, value)
        for plan in plans:
            kind = _kind(plan)
            shape = quant_shape_to_byte_shape(_shape(plan), kind)
            nbytes = math.prod(shape)
            writer.add_tensor_info(gguf_from_canonical(plan.name), shape, np.dtype(np.uint8), nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in _arrays(plans):
            writer.write_tensor_data(array)
        writer.close()
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return bytes_per_token(plans, config.text)


def bytes_per_token(plans: list[TensorPlan], text: TextConfig) -> int:
    """Every matrix once, but of an embedding that is not tied one row, and of experts those that a token chooses."""
    total = 0
    for plan in plans:
        if len(_shape(plan)) < 2:
            continue
        block, size = GGML_QUANT_SIZES[_kind(plan)]
        *experts, rows, columns = _shape(plan)
        whole = plan.component != "embed_tokens" or text.tie_word_embeddings
        total += (rows if whole else 1) * columns // block * size * (_chosen(text) if experts else 1)
    return total


def _chosen(text: TextConfig) -> int:
    assert text.experts is not None
    return text.experts.chosen


def _kind(plan: TensorPlan) -> GGMLQuantizationType:
    """The closest K-quant; bfloat16 stays for matrices, and everything small is float32, as llama.cpp has it."""
    if plan.quantization is not None:
        return K_QUANTS[plan.quantization.bits].kind
    small = len(plan.shape) != 2 or plan.name.endswith(_GATES)
    return GGMLQuantizationType.F32 if small else GGMLQuantizationType.BF16


_GATES = ("mlp.gate.weight", "mlp.shared_expert_gate.weight")


def _shape(plan: TensorPlan) -> tuple[int, ...]:
    if plan.name.endswith("conv1d.weight"):
        return plan.shape[:2]  # of [C, 4, 1]
    return plan.shape[1:] if plan.name.endswith("shared_expert_gate.weight") else plan.shape


def _arrays(plans: list[TensorPlan]) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for plan in plans:
        kind, shape = _kind(plan), _shape(plan)
        if plan.quantization is not None:
            yield _blocks(rng, K_QUANTS[plan.quantization.bits], shape)
        elif kind == GGMLQuantizationType.BF16:
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
            yield (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            values = 0.02 * rng.standard_normal(shape, dtype=np.float32)
            if plan.name.endswith("A_log"):
                values = -np.exp(values)  # GGUF has -exp(A_log)
            elif "norm" in plan.name:
                values = values + 1
            yield values.astype(np.float32).view(np.uint8)


def _blocks(rng: np.random.Generator, quant: KQuant, shape: tuple[int, ...]) -> np.ndarray:
    *rows, columns = shape
    block, size = GGML_QUANT_SIZES[quant.kind]
    data = rng.integers(0, 256, size=(math.prod(shape) // block, size), dtype=np.uint8)
    deviation = columns**-0.5
    data[:, quant.scale_at : quant.scale_at + 2] = np.array([quant.scale * deviation], np.float16).view(np.uint8)
    if quant.offset_at is not None:
        data[:, quant.offset_at : quant.offset_at + 2] = np.array([quant.offset * deviation], np.float16).view(np.uint8)
    return data.reshape(*rows, -1)


def _metadata(name: str, text: TextConfig, context: int) -> dict[str, object]:
    """What llama.cpp's converter writes for Qwen3.5, but for a tokenizer: llama-bench needs none."""
    feed_forward = {f"{name}.feed_forward_length": text.intermediate_size}
    if text.experts is not None:
        feed_forward = {
            f"{name}.expert_count": text.experts.count,
            f"{name}.expert_used_count": text.experts.chosen,
            f"{name}.expert_feed_forward_length": text.intermediate_size,
            f"{name}.expert_shared_feed_forward_length": text.experts.shared_size,
        }
    return {
        "general.file_type": 12,  # its name for a mix around Q3_K
        f"{name}.block_count": text.num_layers,
        f"{name}.context_length": context,
        f"{name}.vocab_size": text.vocab_size,
        f"{name}.embedding_length": text.hidden_size,
        **feed_forward,
        f"{name}.attention.head_count": text.num_attention_heads,
        f"{name}.attention.head_count_kv": text.num_key_value_heads,
        f"{name}.attention.key_length": text.head_dim,
        f"{name}.attention.value_length": text.head_dim,
        f"{name}.attention.layer_norm_rms_epsilon": text.rms_norm_eps,
        f"{name}.rope.dimension_sections": [*text.rope.sections, 0],
        f"{name}.rope.dimension_count": text.rope.dim,
        f"{name}.rope.freq_base": text.rope.theta,
        f"{name}.ssm.conv_kernel": text.linear_conv_kernel_dim,
        f"{name}.ssm.state_size": text.linear_key_head_dim,
        f"{name}.ssm.group_count": text.linear_num_key_heads,
        f"{name}.ssm.time_step_rank": text.linear_num_value_heads,
        f"{name}.ssm.inner_size": text.value_dim,
        f"{name}.full_attention_interval": 4,
        "tokenizer.ggml.model": "none",
    }


def add_metadata(writer: GGUFWriter, key: str, value: object) -> None:
    """With the types that llama.cpp's converter gives: unsigned integers, float32, arrays of what they hold."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="such as 9b or 35b-a3b")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="only so many layers")
    arguments = parser.parse_args()
    try:
        nbytes = write_gguf(size_named(arguments.size), arguments.out, arguments.layers)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.out}: {nbytes / 1e9:.3f} GB a token")


if __name__ == "__main__":
    main()
