"""A converted Qwen3.5 of any published size with random weights, written directly in packed form.

What decodes a model at full size without downloading one: the recipe's widths, the real shapes, plausible values (so
that no activation overflows), and a tokenizer of single bytes. Usage: python -m bench.random_model 9B DIR
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_delta.checkpoint.tensors import Tensor, expected_shapes
from mlx_delta.cli.demo import example_checkpoint
from mlx_delta.config import ModelConfig
from mlx_delta.convert.recipe import TensorPlan, choose, plan, quantization_section
from mlx_delta.convert.write import write_safetensors

CONFIGS: dict[str, dict] = json.loads((Path(__file__).parent / "configs.json").read_text())


def recipe_plans(
    size: str, recipe: str | None = "unsloth", bits: int | None = None
) -> tuple[ModelConfig, list[TensorPlan]]:
    """The text model of ``size`` ("9B") and what the recipe makes of each of its tensors."""
    raw = {"model_type": "qwen3_5", "text_config": CONFIGS[size]["text_config"]}
    config = ModelConfig.from_dict(raw, f"configs.json: {size}")
    shapes = expected_shapes(config)
    tensors = [Tensor(name, name, shape, mx.bfloat16, lambda: mx.array(0)) for name, shape in shapes.items()]
    return config, list(plan(tensors, choose(recipe, bits, 64)))


def write_model(size: str, out: Path, recipe: str | None = "unsloth", bits: int | None = None) -> None:
    """Write config.json, model.safetensors and a tokenizer to ``out``, one tensor in memory at a time."""
    config, plans = recipe_plans(size, recipe, bits)
    chosen = choose(recipe, bits, 64)
    assert chosen.base is not None
    out.mkdir(parents=True)
    entries = [entry for each in plans for entry in each.entries]
    write_safetensors(out / "model.safetensors", entries, _arrays(plans))
    section = quantization_section(plans, chosen.base)
    shutil.copy(example_checkpoint() / "tokenizer.json", out)
    (out / "config.json").write_text(json.dumps({**config.raw, "quantization": section}, indent=2))


def _arrays(plans: list[TensorPlan]) -> Iterator[tuple[str, mx.array]]:
    rng = np.random.default_rng(0)
    for each in plans:
        name, shape = each.name, each.shape
        if each.quantization is None:
            center = 1.0 if name.endswith("norm.weight") or "layernorm" in name else 0.0
            scale = 0.02 if len(shape) == 1 else shape[1] ** -0.5
            values = rng.standard_normal(shape, dtype=np.float32) * scale + center
            yield name, mx.array(values).astype(each.dtype)
            continue
        packed, scales, biases = each.entries
        levels = 2**each.quantization.bits
        # Values uniform on [-r, r] have the variance 1 / K of a freshly initialised layer.
        step = mx.full(scales.shape, 2 * (3 / shape[1]) ** 0.5 / (levels - 1))
        yield packed.name, mx.array(rng.integers(0, 2**32, size=packed.shape, dtype=np.uint32))
        yield scales.name, step.astype(mx.bfloat16)
        yield biases.name, (-step * (levels - 1) / 2).astype(mx.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=CONFIGS)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write_model(arguments.size, arguments.out)


if __name__ == "__main__":
    main()
