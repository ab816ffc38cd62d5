"""Checkpoints in 8 and 4 bit floats: e4m3 or packed e2m1 values, and beside each such weight its scales.

    official FP8        w = e4m3 * weight_scale_inv      [N / 128, K / 128], of blocks
    FP8 of others       w = e4m3 * weight_scale          one; one a row, [N, 1]; or of blocks
    NVFP4, ModelOpt     w = e2m1 * weight_scale * weight_scale_2          weight uint8 [N, K / 2]
    NVFP4, compressed-  w = e2m1 * weight_scale / weight_global_scale     weight_packed uint8 [N, K / 2]
        tensors

``weight_scale_inv`` is what e4m3 is multiplied by, whatever its name says. NVFP4's weight_scale is e4m3 itself, one for
16 values, and the scale of all is float32; of two e2m1 values in a byte the first is in the low bits. Published models
mix these forms. A value has at most 8 significant bits before its float32 scale; it is presented as bfloat16, rounded
once from the float32 product.

Sources: the quantization_config of Qwen's FP8 checkpoints; vLLM's readers of ModelOpt's and compressed-tensors' files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx

from mlx_delta.checkpoint.source import Source, TensorInfo
from mlx_delta.errors import CheckpointError

_GROUP = 16  # values of a scale in NVFP4
_SCALES = ("_scale_inv", "_scale", "_scale_2", "_global_scale")
# Of activations and KV caches, which are not quantized here.
_ASIDE = ("input_scale", "input_global_scale", "k_scale", "v_scale", "q_scale")
_REFUSED = ("pre_quant_scale", "weight_zero_point", "weight_g_idx")  # they change what the weights mean


class ScaledSource:
    """``source`` with its scaled weights as bfloat16 under their plain names, and without their scales.

    block: rows and columns that share a scale where scales are of blocks.
    Raises: CheckpointError naming the file and the tensor whose dtype, scales or scales' shape do not fit.
    """

    def __init__(self, source: Source, block: tuple[int, int] = (128, 128)) -> None:
        self._source, self._block = source, block
        self.tensors: dict[str, TensorInfo] = {}
        self._loads: dict[str, Callable[[], mx.array]] = {}
        for stored, info in source.tensors.items():
            what = stored.rpartition(".")[2]
            if what in _REFUSED:
                raise CheckpointError(f"{info.file}: {stored}: expected weights with scales alone, found {what}")
            name = stored.removesuffix("_packed")
            if what in _ASIDE or self._is_scale(stored):
                continue
            scales = next((name + end for end in _SCALES[:2] if name + end in source.tensors), None)
            if name == stored and scales is None:
                self.tensors[name], self._loads[name] = info, partial(source.load, name)
                continue
            if scales is None:
                raise CheckpointError(f"{info.file}: {stored}: expected {name}_scale beside it, found nothing")
            divisor, factor = (name + end in source.tensors for end in ("_global_scale", "_scale_2"))
            if divisor or factor or name != stored:
                self._fp4(name, stored, "_global_scale" if divisor else "_scale_2")
            else:
                self._fp8(name, scales)

    @property
    def path(self) -> Path:
        return self._source.path

    def load(self, name: str) -> mx.array:
        """The tensor, lazily. Raises: CheckpointError when there is none of the name."""
        return self._loads[name]() if name in self._loads else self._source.load(name)

    def side_files(self) -> dict[str, bytes]:
        return self._source.side_files()

    def _is_scale(self, name: str) -> bool:
        of = [name.removesuffix(end) for end in _SCALES if name.endswith(end)]
        return any(each in self._source.tensors or f"{each}_packed" in self._source.tensors for each in of)

    def _add(self, name: str, shape: tuple[int, ...], file: Path, load: Callable[[], mx.array]) -> None:
        self.tensors[name], self._loads[name] = TensorInfo(shape, mx.bfloat16, 2 * math.prod(shape), file), load

    def _fp8(self, name: str, scales: str) -> None:
        info, found = self._source.tensors[name], self._source.tensors[scales]
        if info.dtype != mx.uint8 or len(info.shape) < 2:
            what = f"{info.file}: {name}: expected FP8 [N, K] beside its scales"
            raise CheckpointError(f"{what}, found {info.dtype} {list(info.shape)}")
        *before, rows, _ = info.shape
        blocks = (*before, *(-(-n // b) for n, b in zip(info.shape[-2:], self._block, strict=True)))
        others = [] if scales.endswith("_inv") else [(*before, rows, 1), (*before, rows), (1,), ()]
        kinds = [blocks, *others]
        if found.shape not in kinds:
            expected = " or ".join(str(list(kind)) for kind in kinds)
            raise CheckpointError(f"{found.file}: {scales}: expected {expected}, found {list(found.shape)}")
        by = (lambda s: _spread(s, info.shape, self._block)) if found.shape == blocks else _by_row
        self._add(name, info.shape, info.file, partial(self._load_fp8, name, scales, by))

    def _load_fp8(self, name: str, scales: str, by: Callable[[mx.array], mx.array]) -> mx.array:
        scale = by(self._source.load(scales).astype(mx.float32))
        return (mx.from_fp8(self._source.load(name), mx.float32) * scale).astype(mx.bfloat16)

    def _fp4(self, name: str, stored: str, end: str) -> None:
        info, tensors = self._source.tensors[stored], self._source.tensors
        if info.dtype != mx.uint8 or len(info.shape) < 2 or 2 * info.shape[-1] % _GROUP:
            what = f"{info.file}: {stored}: expected NVFP4, uint8 [N, K / 2] with K a multiple of {_GROUP}"
            raise CheckpointError(f"{what}, found {info.dtype} {list(info.shape)}")
        *before, halves = info.shape
        for scales, kinds, dtype in (
            (f"{name}_scale", [(*before, 2 * halves // _GROUP)], mx.uint8),
            (f"{name}{end}", [(), (1,)], mx.float32),
        ):
            if scales not in tensors:
                raise CheckpointError(f"{info.file}: {stored}: expected {scales} beside it, found nothing")
            found, expected = tensors[scales], " or ".join(str(list(kind)) for kind in kinds)
            if found.shape not in kinds or found.dtype != dtype:
                what = f"{found.file}: {scales}: expected {'FP8' if dtype == mx.uint8 else dtype} {expected}"
                raise CheckpointError(f"{what}, found {found.dtype} {list(found.shape)}")
        self._add(name, (*before, 2 * halves), info.file, partial(self._load_fp4, name, stored, end))

    def _load_fp4(self, name: str, stored: str, end: str) -> mx.array:
        packed, scales = self._source.load(stored).view(mx.uint32), self._source.load(f"{name}_scale")
        overall = self._source.load(name + end).reshape(())
        values = mx.dequantize(packed, scales, group_size=_GROUP, bits=4, mode="nvfp4", dtype=mx.float32)
        return (values / overall if end == "_global_scale" else values * overall).astype(mx.bfloat16)


def _by_row(scales: mx.array) -> mx.array:
    """One scale for all, or one a row in whichever shape."""
    return scales.reshape(()) if scales.size == 1 else scales if scales.shape[-1] == 1 else scales[..., None]


def _spread(scales: mx.array, shape: tuple[int, ...], block: tuple[int, int]) -> mx.array:
    """Each value's scale."""
    rows = mx.repeat(scales, block[0], axis=-2)[..., : shape[-2], :]
    return mx.repeat(rows, block[1], axis=-1)[..., : shape[-1]]
