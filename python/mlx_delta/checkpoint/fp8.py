"""Official FP8 checkpoints: float8 e4m3 values, and beside each such weight the scales of its blocks.

    w[i, j] = e4m3[i, j] * weight_scale_inv[i // a, j // b]        blocks of a x b, [128, 128] as published

``weight_scale_inv`` is what e4m3 is multiplied by, whatever its name says. A value has 4 significant bits and is
presented as bfloat16, which has 8. Source: the quantization_config of Qwen's FP8 checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from mlx_delta.checkpoint.source import Source, TensorInfo
from mlx_delta.errors import CheckpointError

_SCALES = "_scale_inv"


class Fp8Source:
    """``source`` with its FP8 weights as bfloat16, and without their scales.

    Raises: CheckpointError naming the file and the tensor whose scales are missing or of another shape.
    """

    def __init__(self, source: Source, block: tuple[int, int]) -> None:
        self._source, self._block = source, block
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            if name.endswith(_SCALES):
                continue
            scales = source.tensors.get(name + _SCALES)
            if scales is None:
                self.tensors[name] = info
                continue
            expected = tuple(-(-n // b) for n, b in zip(info.shape, block, strict=False))
            if info.dtype != mx.uint8 or len(info.shape) != 2:
                found = f"{info.dtype} {list(info.shape)}"
                raise CheckpointError(f"{info.file}: {name}: expected FP8 [N, K] beside its scales, found {found}")
            if scales.shape != expected:
                what = f"{scales.file}: {name}{_SCALES}: expected {list(expected)}"
                raise CheckpointError(f"{what}, found {list(scales.shape)}")
            self.tensors[name] = TensorInfo(info.shape, mx.bfloat16, 2 * info.nbytes, info.file)

    @property
    def path(self) -> Path:
        return self._source.path

    def load(self, name: str) -> mx.array:
        """The tensor, lazily."""
        if name not in self.tensors or name + _SCALES not in self._source.tensors:
            return self._source.load(name)
        values, scales = self._source.load(name), self._source.load(name + _SCALES)
        return (mx.from_fp8(values, mx.float32) * _spread(scales, values.shape, self._block)).astype(mx.bfloat16)

    def side_files(self) -> dict[str, bytes]:
        return self._source.side_files()


def _spread(scales: mx.array, shape: tuple[int, ...], block: tuple[int, int]) -> mx.array:
    """Each value's scale."""
    rows = mx.repeat(scales.astype(mx.float32), block[0], axis=0)[: shape[0]]
    return mx.repeat(rows, block[1], axis=1)[:, : shape[1]]
