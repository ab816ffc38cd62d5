"""Conversion at full size: an official checkpoint with random weights, how long it takes, and in how much memory.

    python -m bench.full_size 9B DIR            write DIR/source, 19 GB in 4 shards, and its importance matrix
    python -m bench.full_size 35B-A3B DIR --layers 2
    python -m bench.full_size 9B DIR --convert  convert it to DIR/out, beside the time that copying the files takes
    python -m bench.full_size 9B DIR --convert --calibrate TEXT     with error feedback

One JSON line a result. Weights repeat every 64 MB, which conversion does not notice; DIR needs 45 GB. ``--layers 4``,
when writing, is a cut of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta.arch.registry import architecture_of, parse_config, read_config
from mlx_delta.bench.sizes import CONFIGS
from mlx_delta.calibrate.layers import CHUNKS, layer_calibration
from mlx_delta.checkpoint.safetensors import Entry, write_safetensors
from mlx_delta.cli.demo import example_checkpoint
from mlx_delta.config import ModelConfig
from mlx_delta.conversion.imatrix import write_imatrix
from mlx_delta.conversion.imatrix_file import Calibration
from mlx_delta.conversion.pipeline import convert

SHARDS = 4
_POOL = 1 << 25  # random values, 64 MB
# Of the 9B and the 27B, but for what follows from the text model.
_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "in_channels": 3,
}


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official layout: text model, vision tower, MTP head, whose experts are one by one."""
    shapes, architecture = {}, architecture_of(config)
    for name, shape in architecture.text_shapes(config).items():
        official = name.removeprefix("language_model.").replace("model.", "model.language_model.", 1)
        shapes[official] = (shape[0], 1, shape[1]) if "conv1d" in name else shape
    for name in [name for name in shapes if ".switch_mlp." in name]:
        shape, before = shapes.pop(name), name.partition("switch_mlp.")[0]
        if name.endswith("gate_proj.weight"):
            shapes[f"{before}experts.gate_up_proj"] = (shape[0], 2 * shape[1], shape[2])
        elif name.endswith("down_proj.weight"):
            shapes[f"{before}experts.down_proj"] = shape
    head: dict[str, tuple[int, ...]] = {}
    for name, shape in architecture.mtp_shapes(config).items():
        before, experts, after = name.partition("switch_mlp.")
        head |= {f"{before}experts.{e}.{after}": shape[1:] for e in range(shape[0])} if experts else {name: shape}
    return {**shapes, **_vision_shapes(config.text.hidden_size), **head}


def _vision_shapes(out: int) -> dict[str, tuple[int, ...]]:
    size, inner, patch = _VISION["hidden_size"], _VISION["intermediate_size"], _VISION["patch_size"]
    merged = size * _VISION["spatial_merge_size"] ** 2
    linear = {"attn.qkv": (3 * size, size), "attn.proj": (size, size)}
    linear |= {"mlp.linear_fc1": (inner, size), "mlp.linear_fc2": (size, inner)}
    modules: dict[str, tuple[int, ...]] = {
        "patch_embed.proj": (size, _VISION["in_channels"], _VISION["temporal_patch_size"], patch, patch),
        "merger.norm": (size,),
        "merger.linear_fc1": (merged, merged),
        "merger.linear_fc2": (out, merged),
    }
    for block in range(_VISION["depth"]):
        modules |= {f"blocks.{block}.{name}": (size,) for name in ("norm1", "norm2")}
        modules |= {f"blocks.{block}.{name}": shape for name, shape in linear.items()}
    shapes: dict[str, tuple[int, ...]] = {"pos_embed.weight": (_VISION["num_position_embeddings"], size)}
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"model.visual.{name}": shape for name, shape in shapes.items()}


def write_checkpoint(size: str, out: Path, layers: int | None) -> None:
    """Write ``out`` as the official one is laid out, with random weights of a freshly initialised layer's variance."""
    vision = {**_VISION, "out_hidden_size": CONFIGS[size]["text_config"]["hidden_size"]}
    raw: dict[str, Any] = {
        "model_type": CONFIGS[size].get("model_type", "qwen3_5"),
        "text_config": _text_config(size, layers),
        "vision_config": vision,
    }
    config = parse_config(raw, f"configs.json: {size}")
    entries = [Entry(name, shape, mx.bfloat16) for name, shape in official_shapes(config).items()]
    out.mkdir(parents=True)
    total, done = sum(entry.nbytes for entry in entries), 0
    shards: list[list[Entry]] = [[] for _ in range(SHARDS)]
    for entry in entries:
        shards[done * SHARDS // total].append(entry)
        done += entry.nbytes
    pool = np.random.default_rng(0).standard_normal(_POOL, np.float32)
    names = [f"model-{i:05}-of-{SHARDS:05}.safetensors" for i in range(1, SHARDS + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(out / name, shard, _random(shard, pool))
    index = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (out / "config.json").write_text(json.dumps(raw, indent=2))
    shutil.copy(example_checkpoint() / "tokenizer.json", out)


def _random(entries: Sequence[Entry], pool: np.ndarray) -> Iterator[tuple[str, mx.array]]:
    for entry in entries:
        scale, count = 0.02 if len(entry.shape) == 1 else entry.shape[-1] ** -0.5, entry.nbytes // 2
        values = mx.array(pool[:count] * np.float32(scale)).astype(mx.bfloat16)
        yield entry.name, mx.tile(values, -(-count // _POOL))[:count].reshape(entry.shape)


def _text_config(size: str, layers: int | None) -> dict[str, Any]:
    text = dict(CONFIGS[size]["text_config"])
    if layers is not None:
        text["num_hidden_layers"] = layers
    text["eos_token_id"] = list(read_config(example_checkpoint()).text.eos_token_id)  # of the tokenizer beside it
    return text


def write_importance(size: str, file: Path, layers: int | None) -> None:
    """An importance matrix for ``size`` that spans four orders of magnitude."""
    raw = {"model_type": CONFIGS[size].get("model_type", "qwen3_5"), "text_config": _text_config(size, layers)}
    config = parse_config(raw, size)
    rng = np.random.default_rng(1)
    read = {
        name.removesuffix(".weight"): (*shape[:-2], shape[-1])
        for name, shape in architecture_of(config).text_shapes(config).items()
        if name.startswith("language_model.model.layers.") and ("_proj" in name)
    }
    sums = {module: np.exp(rng.normal(0, 1.5, shape)) for module, shape in read.items()}
    counts = {module: np.ones(shape[0]) for module, shape in read.items() if len(shape) == 2}
    write_imatrix(file, Calibration(sums, 1, 1, ("random",), counts), config, "gguf")


def copy_seconds(source: Path, out: Path) -> float:
    """Copy the shards, to the disk."""
    start = time.perf_counter()
    out.mkdir()
    for file in sorted(source.glob("*.safetensors")):
        shutil.copyfile(file, out / file.name)
        with (out / file.name).open("rb") as stream:
            os.fsync(stream.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def convert_figures(source: Path, imatrix: Path, out: Path, texts: Sequence[Path], chunks: int) -> dict[str, object]:
    """Convert by the recipe; ``cores`` is CPU time over wall time."""
    start, cpu = time.perf_counter(), time.process_time()
    calibration = layer_calibration(source, texts, max_chunks=chunks) if texts else None
    report = convert(source, out, recipe="unsloth", imatrix=imatrix, calibration=calibration, force=True)
    wall = time.perf_counter() - start
    return {
        "tensors": report.tensors,
        "bytes": report.bytes_written,
        "seconds": round(wall, 1),
        "cores": round((time.process_time() - cpu) / wall, 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=[size for size in CONFIGS if size in ("9B", "27B", "35B-A3B")])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--convert", action="store_true")
    parser.add_argument("--calibrate", type=Path, action="append", default=[])
    parser.add_argument("--max-chunks", type=int, default=CHUNKS)
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    source, imatrix = arguments.directory / "source", arguments.directory / "imatrix.gguf"
    if not arguments.convert:
        write_checkpoint(arguments.size, source, arguments.layers)
        write_importance(arguments.size, imatrix, arguments.layers)
        return
    out, texts = arguments.directory / "out", arguments.calibrate
    print(json.dumps({"convert": convert_figures(source, imatrix, out, texts, arguments.max_chunks)}))
    print(json.dumps({"copy": {"seconds": round(copy_seconds(source, arguments.directory / "copy"), 1)}}))


if __name__ == "__main__":
    main()
