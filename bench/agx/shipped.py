"""Every kernel that a published size in a recipe asks for: what is compiled when such a model loads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx

from mlx_delta import _core
from mlx_delta.arch.registry import architecture_of, parse_config
from mlx_delta.bench.sizes import CONFIGS
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.conversion.recipe import choose, plan, quantization_section
from mlx_delta.engine.kernels import needed
from mlx_delta.model.network import Network

SIZES = ("9B", "27B", "35B-A3B", "122B-A10B")
RECIPES = ("unsloth", None)  # None: uniform
BITS = (3, 4, 5, 6, 8)
DTYPES = (mx.bfloat16, mx.float16)
KV_BITS = (None, 8)
LAYERS, EXPERTS = 4, 16  # as many as make no kernel another: a layer of each kind


def shipped() -> dict[str, _core.Launch]:
    """By name, in an order that an interrupted run makes the most of: first one of each family, which are kernels that
    differ in the length of loops alone (K, and how many turns), then the others."""
    found: dict[str, _core.Launch] = {}
    for bits in BITS:
        for recipe in RECIPES:
            for size in SIZES:
                for network in networks(size, recipe, bits):
                    for launch in needed(network):
                        found.setdefault(launch.kernel, launch)
    seen: set[str] = set()
    first: dict[str, _core.Launch] = {}
    others: dict[str, _core.Launch] = {}
    for name, launch in found.items():
        of = family(name)
        (others if of in seen else first)[name] = launch
        seen.add(of)
    return first | others


def family(kernel: str) -> str:
    """The kernel's name without the arguments of its template that are numbers of columns or turns."""
    name = re.sub(r"^(qmm_[a-z]+_\d+_\d+)_\d+_(\d+)_\d+_", r"\1_K_\2_turns_", kernel)
    return re.sub(r"^((?:route_logits|experts_gate_up)_[a-z]+)_\d+_", r"\1_K_", name)


def networks(size: str, recipe: str | None, bits: int) -> Iterator[Network]:
    """In all dtypes, of activations and of keys and values. All weights are 0, one array of each shape."""
    text = {**CONFIGS[size]["text_config"], "num_hidden_layers": LAYERS}
    if "num_experts" in text:
        text["num_experts"] = EXPERTS
    config = parse_config({"model_type": CONFIGS[size].get("model_type", "qwen3_5"), "text_config": text}, size)
    architecture = architecture_of(config)
    chosen = choose(recipe, bits, 64, architecture.recipes).with_draft(64, architecture.recipes)
    assert chosen.base is not None
    shapes = architecture.text_shapes(config) | architecture.mtp_shapes(config)
    tensors = [Tensor(name, name, shape, mx.bfloat16, lambda: mx.array(0)) for name, shape in shapes.items()]
    plans = list(plan(tensors, chosen, architecture))
    zeros: dict[tuple[tuple[int, ...], mx.Dtype], mx.array] = {}
    weights = {
        entry.name: zeros.setdefault((entry.shape, entry.dtype), mx.zeros(entry.shape, entry.dtype))
        for each in plans
        for entry in each.entries
    }
    packed = parse_config({**config.raw, "quantization": quantization_section(plans, chosen.base)})
    for dtype in DTYPES:
        network = architecture.network(packed, weights, dtype)
        for kv_bits in KV_BITS:
            yield replace(network, kv_bits=kv_bits)
