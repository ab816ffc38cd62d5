"""Importance matrices: for every projection, how large each of its inputs is on calibration text.

importance[k] = mean over tokens of x_k^2, float32 [K], by canonical module name
("language_model.model.layers.0.mlp.up_proj"), in the canonical order of channels.
Formats: llama.cpp's GGUF (``llama-imatrix``), ``<tensor>.in_sum2`` F32 [K] and ``<tensor>.counts`` F32 [1], and its
older .dat: int32 count of entries; each int32 length, name, int32 calls, int32 K, float32 [K] of mean * calls; then,
in newer files, int32 chunks and the length and name of the text. Little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from mlx_delta.checkpoint.gguf_names import canonical_from_gguf, grouped_from_tiled
from mlx_delta.checkpoint.names import canonical_name
from mlx_delta.checkpoint.tensors import expected_shapes
from mlx_delta.config import ModelConfig, Quantization
from mlx_delta.convert.errors import ConvertError

Importance = Mapping[str, np.ndarray]


def read_imatrix(path: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """Every module's importance found in ``path``; entries of other models' tensors and unknown suffixes are ignored.

    Tensors may go by llama.cpp's names, Hugging Face's under any prefix, or MLX's.
    Raises: ConvertError when the file is missing, is of neither format, or names no tensor of this model.
    """
    if not path.is_file():
        raise ConvertError(f"{path}: expected an importance matrix, found no such file")
    with path.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    means = _read_gguf(path) if is_gguf else _read_legacy(path)
    known, result = expected_shapes(config), {}
    for name, values in means.items():
        from_gguf = canonical_from_gguf(name, config.text.num_layers)
        canonical = from_gguf or canonical_name(name)
        if canonical not in known:
            continue
        # The inputs of ssm_out are value heads, which llama.cpp keeps in its own order.
        if from_gguf and canonical.endswith("linear_attn.out_proj.weight") and values.size == config.text.value_dim:
            values = grouped_from_tiled(values, config.text)
        result[canonical.removesuffix(".weight")] = values
    if not result:
        found = ", ".join(sorted(means)[:3]) or "no tensors"
        raise ConvertError(f"{path}: expected the importance of this model's tensors, found none that match: {found}")
    return result


def measured_channels(
    shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, Quantization | None]
) -> dict[str, int]:
    """The modules whose importance conversion can use, with their K: quantized matrices of the layers."""
    return {
        name.removesuffix(".weight"): shapes[name][1]
        for name, width in widths.items()
        if width is not None and name.startswith("language_model.model.layers.")
    }


def check_importance(importance: Importance, channels: Mapping[str, int], path: Path) -> list[str]:
    """The modules of ``channels`` (name -> K) whose importance is missing.

    Raises: ConvertError when none is there, or when one has another number of channels.
    """
    for module, count in channels.items():
        if module in importance and importance[module].size != count:
            raise ConvertError(f"{path}: {module}: expected {count} channels, found {importance[module].size}")
    missing = [module for module in channels if module not in importance]
    if missing and len(missing) == len(channels):
        raise ConvertError(f"{path}: expected the importance of {missing[0]} and others, found none of them")
    return missing


def _read_gguf(path: Path) -> dict[str, np.ndarray]:
    """Tensor -> mean of x^2. A tensor that no token reached has no mean."""
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ConvertError(f"{path}: expected an importance matrix in GGUF form, found {error}") from error
    stored = {
        tensor.name: np.asarray(tensor.data, dtype=np.float32) for tensor in reader.tensors if _is_sum(tensor.name)
    }
    result = {}
    for name in (name.removesuffix(".in_sum2") for name in stored if name.endswith(".in_sum2")):
        count = float(stored.get(f"{name}.counts", np.zeros(1)).sum())
        if count > 0:
            result[name] = (stored[f"{name}.in_sum2"].reshape(-1) / count).astype(np.float32)
    return result


def _is_sum(name: str) -> bool:
    return name.endswith((".in_sum2", ".counts"))


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    result: dict[str, np.ndarray] = {}
    try:
        (entries,) = struct.unpack_from("<i", data)
        offset = 4
        for _ in range(entries):
            (length,) = struct.unpack_from("<i", data, offset)
            name = struct.unpack_from(f"<{length}s", data, offset + 4)[0].decode()
            calls, count = struct.unpack_from("<ii", data, offset + 4 + length)
            offset += 12 + length
            values = np.frombuffer(data, "<f4", count, offset)
            offset += values.nbytes
            if calls > 0 and count > 0:
                result[name] = (values / np.float32(calls)).astype(np.float32)
    except (struct.error, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ConvertError(
            f"{path}: expected an importance matrix in GGUF form or llama.cpp's older .dat, found neither ({error})"
        ) from error
    return result
