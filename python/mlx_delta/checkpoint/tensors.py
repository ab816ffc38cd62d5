"""Canonical tensors, and the check of a checkpoint's against the shapes that its model has.

Canonical names are MLX's: ``language_model.model.layers.N...``, ``language_model.lm_head.weight``, ``vision_tower.*``,
``mtp.*``. A quantized module has ``weight`` uint32 [.., N, K * bits / 32] and ``scales``, ``biases``
[.., N, K / group].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_delta.config import ModelConfig, Quantization
from mlx_delta.errors import CheckpointError

_SHOWN = 5  # problems listed in one error
Shapes = dict[str, tuple[int, ...]]
Ranges = tuple[tuple[int, int], ...]  # [start, stop) each


@dataclass(frozen=True)
class Tensor:
    """One canonical tensor; ``load`` gives its array, lazily, with this shape and dtype.

    load_part: an axis and ranges along it -> those parts, one behind the other, read without the rest; None where that
    takes all of it.
    """

    name: str
    source_name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    load: Callable[[], mx.array]
    load_part: Callable[[int, Ranges], mx.array] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


def taken(array: mx.array, axis: int, ranges: Ranges) -> mx.array:
    """The ranges along an axis, one behind the other."""
    axis %= array.ndim
    parts = [array[(slice(None),) * axis + (slice(start, stop),)] for start, stop in ranges if stop > start]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def base_name(name: str) -> str:
    """``x.weight`` of ``x.scales`` and ``x.biases``; any other name as it is."""
    for suffix in (".scales", ".biases"):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + ".weight"
    return name


def check_tensors(tensors: Mapping[str, Tensor], shapes: Shapes, config: ModelConfig, origin: Path) -> None:
    """Every tensor of ``shapes`` is there with its shape and a fitting dtype, quantized or not.

    Raises: CheckpointError with ``origin`` and the first few names: what was expected, what was found.
    """
    problems: list[str] = []
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" in tensors:
            problems += _quantized_problems(tensors, module, shape, config.module_quantization(module))
        else:
            problems += _problems(tensors, name, shape, packed=False)
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise CheckpointError("\n  ".join([f"{origin}: tensors do not fit config.json:", *problems[:_SHOWN], *more]))


def _quantized_problems(
    tensors: Mapping[str, Tensor], module: str, shape: tuple[int, ...], quantization: Quantization | None
) -> list[str]:
    if quantization is None:
        return [f"{module}.scales: expected a quantization section in config.json, found none"]
    if len(shape) not in (2, 3) or shape[-1] % quantization.group_size:
        return [f"{module}.scales: expected no quantization of {list(shape)} by {quantization.group_size}, found it"]
    *rows, columns = shape
    groups = (*rows, columns // quantization.group_size)
    return [
        *_problems(tensors, f"{module}.weight", (*rows, columns * quantization.bits // 32), packed=True),
        *_problems(tensors, f"{module}.scales", groups, packed=False),
        *_problems(tensors, f"{module}.biases", groups, packed=False),
    ]


def _problems(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], packed: bool) -> list[str]:
    found = tensors.get(name)
    if found is None:
        return [f"{name}: expected {list(shape)}, found nothing"]
    if found.shape != shape:
        return [f"{name}: expected {list(shape)}, found {list(found.shape)}"]
    fits = found.dtype == mx.uint32 if packed else mx.issubdtype(found.dtype, mx.floating)
    if not fits:
        return [f"{name}: expected {'packed uint32' if packed else 'a float dtype'}, found {found.dtype}"]
    return []
