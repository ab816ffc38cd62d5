"""Canonical tensors as what layers hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_delta.config import ModelConfig
from mlx_delta.errors import CheckpointError
from mlx_delta.ops import Matrix


@dataclass(frozen=True)
class Weights:
    """The tensors under ``root``, by the rest of their names."""

    config: ModelConfig
    tensors: Mapping[str, mx.array]
    root: str = ""

    def under(self, name: str) -> Weights:
        """Those of a part: ``under("model.layers.0")``."""
        return Weights(self.config, self.tensors, f"{self.root}{name}.")

    def matrix(self, name: str) -> Matrix:
        """The module's weight as it is stored, quantized where it has scales; [E, N, K] of experts as [E * N, K]."""
        module = f"{self.root}{name}"
        weight, scales = _rows(self.tensors[f"{module}.weight"]), self.tensors.get(f"{module}.scales")
        if scales is None:
            return Matrix.plain(weight)
        width = self.config.module_quantization(module)
        if width is None:
            raise CheckpointError(f"{module}: expected a width in config.json, for it has scales, found none")
        biases = _rows(self.tensors[f"{module}.biases"])
        return Matrix.affine(weight, _rows(scales), biases, width.bits, width.group_size)

    def parameter(self, name: str) -> mx.array:
        """A small parameter, float32."""
        return self.tensors[f"{self.root}{name}"].astype(mx.float32)


def _rows(array: mx.array) -> mx.array:
    return array.reshape(-1, array.shape[-1])
