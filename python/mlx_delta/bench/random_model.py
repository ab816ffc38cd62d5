"""A converted Qwen3.5 of any published size with random weights, made directly in packed form.

What decodes a model at full size without downloading one: the recipe's widths, the real shapes, plausible values (so
that no activation overflows), and a small tokenizer. No float matrix is made on the way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_delta.arch.registry import architecture_of, parse_config, read_config
from mlx_delta.bench.sizes import config_of
from mlx_delta.checkpoint.atomic import atomic_directory
from mlx_delta.checkpoint.safetensors import write_safetensors
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.config import ModelConfig
from mlx_delta.conversion.recipe import Recipe, TensorPlan, choose, plan, quantization_section
from mlx_delta.example import example_checkpoint
from mlx_delta.model.network import Network
from mlx_delta.ops.matrix import use_huge_pages

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def recipe_plans(
    size: str, recipe: str | None = "unsloth", bits: int | None = None, layers: int | None = None
) -> tuple[ModelConfig, list[TensorPlan]]:
    """The text model of ``size`` ("9B") and what the recipe makes of each of its tensors."""
    config, plans, _ = _planned(size, recipe, bits, layers)
    return config, plans


def random_network(
    size: str,
    recipe: str | None = "unsloth",
    bits: int | None = None,
    layers: int | None = None,
    progress: Progress | None = None,
    head: bool = False,
) -> Network:
    """The network in memory, evaluated, in huge pages, as a loaded one is; activations bfloat16. head: an MTP
    head too."""
    config, plans, chosen = _planned(size, recipe, bits, layers, head)
    weights = {}
    for name, array in _arrays(plans, progress):
        mx.eval(array)
        weights[name] = array
    for weight in weights.values():
        use_huge_pages(weight)
    return architecture_of(config).network(_quantized(config, plans, chosen), weights, mx.bfloat16)


def write_model(
    size: str,
    out: Path,
    recipe: str | None = "unsloth",
    bits: int | None = None,
    layers: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> None:
    """Write config.json, model.safetensors and a tokenizer to ``out``, one tensor in memory at a time.

    ``out`` appears whole or not at all. Raises: ConvertError when it is there already (``force`` replaces a model).
    """
    config, plans, chosen = _planned(size, recipe, bits, layers)
    with atomic_directory(out, example_checkpoint(), force) as partial:
        entries = [entry for each in plans for entry in each.entries]
        write_safetensors(partial / "model.safetensors", entries, _arrays(plans, progress))
        shutil.copy(example_checkpoint() / "tokenizer.json", partial)
        raw = dict(_quantized(config, plans, chosen).raw)
        end = read_config(example_checkpoint()).text.eos_token_id  # of the tokenizer that goes with it
        raw["text_config"] = {**raw["text_config"], "eos_token_id": list(end)}
        (partial / "config.json").write_text(json.dumps(raw, indent=2))


def _planned(
    size: str, recipe: str | None, bits: int | None, layers: int | None, head: bool = False
) -> tuple[ModelConfig, list[TensorPlan], Recipe]:
    config = config_of(size, layers)
    architecture = architecture_of(config)
    chosen = choose(recipe, bits, 64, architecture.recipes).with_draft(64, architecture.recipes)
    shapes = {**architecture.text_shapes(config), **(architecture.mtp_shapes(config) if head else {})}
    tensors = [Tensor(name, name, shape, mx.bfloat16, lambda: mx.array(0)) for name, shape in shapes.items()]
    return config, list(plan(tensors, chosen, architecture)), chosen


def _quantized(config: ModelConfig, plans: list[TensorPlan], recipe: Recipe) -> ModelConfig:
    assert recipe.base is not None
    return parse_config({**config.raw, "quantization": quantization_section(plans, recipe.base)})


def _arrays(plans: list[TensorPlan], progress: Progress | None) -> Iterator[tuple[str, mx.array]]:
    rng = np.random.default_rng(0)
    done, total = 0, sum(each.nbytes for each in plans)
    for each in plans:
        name, shape = each.name, each.shape
        inputs = shape[1] if name.endswith("conv1d.weight") else shape[-1]
        if each.quantization is None:
            center = 1.0 if name.endswith("norm.weight") or "layernorm" in name else 0.0
            scale = 0.02 if len(shape) == 1 else inputs**-0.5
            values = rng.standard_normal(shape, dtype=np.float32) * scale + center
            yield name, mx.array(values).astype(each.dtype)
        else:
            packed, scales, biases = each.entries
            levels = 2**each.quantization.bits
            # Values uniform on [-r, r] have the variance 1 / K of a freshly initialised layer.
            step = mx.full(scales.shape, 2 * (3 / inputs) ** 0.5 / (levels - 1))
            yield packed.name, mx.array(rng.integers(0, 2**32, size=packed.shape, dtype=np.uint32))
            yield scales.name, step.astype(mx.bfloat16)
            yield biases.name, (-step * (levels - 1) / 2).astype(mx.bfloat16)
        done += each.nbytes
        if progress is not None:
            progress(done, total)
