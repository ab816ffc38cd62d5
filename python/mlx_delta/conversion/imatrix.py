"""Importance matrices: for every projection, how large each of its inputs is on calibration text.

importance[k] = mean over tokens of x_k^2, float32 [K], by canonical module name
("language_model.model.layers.0.mlp.up_proj"), in the canonical order of channels. Files have llama.cpp's names and its
order of value heads (``imatrix_file`` is their format); this is the one place that translates both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlx_delta.arch.registry import architecture_of
from mlx_delta.config import ModelConfig, Quantization
from mlx_delta.conversion.imatrix_file import Calibration, read_means, write_dat, write_gguf
from mlx_delta.errors import ImatrixError
from mlx_delta.model.network import LAYERS

Importance = Mapping[str, np.ndarray]
FORMATS = {"gguf": write_gguf, "dat": write_dat}


def read_imatrix(path: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Every module's importance found in ``path``; entries of other models' tensors and unknown suffixes are ignored.

    Tensors may go by llama.cpp's names, Hugging Face's under any prefix, or MLX's.
    Raises: ImatrixError when the file is missing, is of neither format, or names no tensor of this model.
    """
    means, architecture = read_means(path), architecture_of(config)
    known, gguf, result = architecture.text_shapes(config), architecture.gguf, {}
    for name, values in means.items():
        stored = None if gguf is None else gguf.canonical_name(name, config.text.num_layers)
        canonical = stored or architecture.canonical_name(name)
        if canonical not in known:
            continue
        if gguf is not None and stored is not None:
            values = gguf.inputs_from(stored, values, config.text)
        result[canonical.removesuffix(".weight")] = values
    if not result:
        found = ", ".join(sorted(means)[:3]) or "no tensors"
        raise ImatrixError(f"{path}: expected the importance of this model's tensors, found none that match: {found}")
    return result


def write_imatrix(path: Path, run: Calibration, config: ModelConfig, form: str) -> None:
    """Write what a run measured, its sums by canonical module name, as llama.cpp writes it: "gguf" or "dat"."""
    gguf = architecture_of(config).gguf
    if gguf is None:
        raise ImatrixError(f"{path}: expected a model that llama.cpp has names for, found {config.model_type}")
    sums = {
        gguf.stored_name(f"{module}.weight"): gguf.inputs_to(f"{module}.weight", values, config.text)
        for module, values in run.sums.items()
    }
    FORMATS[form](path, Calibration(sums, run.chunks, run.chunk_size, run.datasets))


def measured_channels(
    shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, Quantization | None]
) -> dict[str, int]:
    """The modules whose importance conversion can use, with their K: quantized matrices of the layers."""
    return {
        name.removesuffix(".weight"): shapes[name][1]
        for name, width in widths.items()
        if width is not None and name.startswith(f"{LAYERS}.")
    }


def check_importance(importance: Importance, channels: Mapping[str, int], path: Path) -> list[str]:
    """The modules of ``channels`` (name -> K) whose importance is missing.

    Raises: ImatrixError when none is there, or when one has another number of channels.
    """
    for module, count in channels.items():
        if module in importance and importance[module].size != count:
            raise ImatrixError(f"{path}: {module}: expected {count} channels, found {importance[module].size}")
    missing = [module for module in channels if module not in importance]
    if missing and len(missing) == len(channels):
        raise ImatrixError(f"{path}: expected the importance of {missing[0]} and others, found none of them")
    return missing
