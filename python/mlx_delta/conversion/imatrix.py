"""Importance matrices: for every projection, how large each of its inputs is on calibration text.

importance[k] = mean over tokens of x_k^2, float32 [K], by canonical module name
("language_model.model.layers.0.mlp.up_proj"), in the canonical order of channels. Files have llama.cpp's names and its
order of value heads (``imatrix_file`` is their format); this is the one place that translates both ways.

Experts have importance each, [E, K], over the tokens that came to it. Few tokens say little, and text of one kind
leaves experts without any, so each is drawn to what is known without an imatrix, all channels alike, as by ``PRIOR``
more tokens: it is then rounded as it would be without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlx_delta.arch.registry import architecture_of
from mlx_delta.config import ModelConfig, Quantization
from mlx_delta.conversion.imatrix_file import Calibration, Means, read_means, write_dat, write_gguf
from mlx_delta.errors import ImatrixError
from mlx_delta.model.experts import EXPERTS
from mlx_delta.model.network import LAYERS

Importance = Mapping[str, np.ndarray]
FORMATS = {"gguf": write_gguf, "dat": write_dat}


def read_imatrix(path: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Every module's importance found in ``path``; entries of other models' tensors and unknown suffixes are ignored.

    Tensors may go by llama.cpp's names, Hugging Face's under any prefix, or MLX's.
    Raises: ImatrixError when the file is missing, is of neither format, or names no tensor of this model.
    """
    known, result = architecture_of(config).text_shapes(config), {}
    for canonical, means in _canonical(path, config).items():
        shape, values = known[canonical], means.values
        if len(shape) == 3 and values.size == shape[0] * shape[2]:
            values = drawn(values.reshape(shape[0], -1), _tokens(means, shape[0]))
        result[canonical.removesuffix(".weight")] = values
    return result


def unseen_experts(path: Path, config: ModelConfig) -> tuple[int, int]:
    """How many experts of all layers no token came to, and how many came in ``path``."""
    known, unseen, total = architecture_of(config).text_shapes(config), 0, 0
    for canonical, means in _canonical(path, config).items():
        if canonical.endswith(f"{EXPERTS}down_proj.weight"):
            tokens = _tokens(means, known[canonical][0])
            unseen, total = unseen + int((tokens == 0).sum()), total + tokens.size
    return unseen, total


PRIOR = 512.0  # tokens


def drawn(means: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Means [E, K] of ``tokens`` [E] each, and of PRIOR more whose squares are, in every channel, the mean of all."""
    counts = np.minimum(tokens, 1e12)[:, None]
    typical = (means * counts).sum() / max(counts.sum() * means.shape[1], 1e-30)
    return ((means * counts + PRIOR * typical) / (counts + PRIOR)).astype(np.float32)


def _tokens(means: Means, experts: int) -> np.ndarray:
    """How many each expert had; in a file that does not say: many, or none."""
    if means.tokens is not None and means.tokens.size == experts:
        return means.tokens
    return np.where(means.values.reshape(experts, -1).any(axis=1), 1e12, 0)


def _canonical(path: Path, config: ModelConfig) -> dict[str, Means]:
    """The means by canonical tensor, channels in canonical order. Raises: as ``read_imatrix``."""
    means, architecture = read_means(path), architecture_of(config)
    known, gguf, result = architecture.text_shapes(config), architecture.gguf, {}
    for name, each in means.items():
        stored = None if gguf is None else gguf.canonical_name(name, config.text.num_layers)
        canonical = stored or architecture.canonical_name(name)
        if canonical not in known:
            continue
        if gguf is not None and stored is not None:
            each = replace(each, values=gguf.inputs_from(stored, each.values, config.text))
        result[canonical] = each
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
    counts = {gguf.stored_name(f"{module}.weight"): values for module, values in run.counts.items()}
    FORMATS[form](path, replace(run, sums=sums, counts=counts))


def measured_channels(
    shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, Quantization | None]
) -> dict[str, int]:
    """The modules whose importance conversion can use, with their K: quantized matrices of the layers."""
    return {
        name.removesuffix(".weight"): shapes[name][-1]
        for name, width in widths.items()
        if width is not None and name.startswith(f"{LAYERS}.")
    }


def check_importance(importance: Importance, channels: Mapping[str, int], path: Path) -> list[str]:
    """The modules of ``channels`` (name -> K) whose importance is missing.

    Raises: ImatrixError when none is there, or when one has another number of channels.
    """
    for module, count in channels.items():
        if module in importance and importance[module].shape[-1] != count:
            raise ImatrixError(f"{path}: {module}: expected {count} channels, found {importance[module].shape[-1]}")
    missing = [module for module in channels if module not in importance]
    if missing and len(missing) == len(channels):
        raise ImatrixError(f"{path}: expected the importance of {missing[0]} and others, found none of them")
    return missing
