"""The experts of a checkpoint as canonical tensors: one of each kind for all experts, [E, N, K].

    fused        ``mlp.experts.gate_up_proj`` [E, 2I, H], gate rows first, and ``mlp.experts.down_proj`` [E, H, I]
    one by one   ``mlp.experts.7.gate_proj.weight`` [I, H], ``.up_proj``, ``.down_proj`` [H, I]; quantized too
    canonical    ``mlp.switch_mlp.gate_proj.weight`` [E, I, H], ``.up_proj``, ``.down_proj``: MLX's, as they are

A checkpoint may have several: Qwen3.5 has its body fused, and its MTP head's experts one by one.
Source: Hugging Face ``modeling_qwen3_5_moe.py``, mlx-lm ``qwen3_5_moe.py``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import mlx.core as mx

from mlx_delta.checkpoint.source import Source, TensorInfo
from mlx_delta.checkpoint.tensors import Ranges, taken
from mlx_delta.config import ModelConfig
from mlx_delta.errors import CheckpointError

_FUSED = re.compile(r"(.*\bmlp\.)experts\.(gate_up_proj|down_proj)")
_SINGLE = re.compile(r"(.*\bmlp\.)experts\.(\d+)\.((?:gate|up|down)_proj\.\w+)")


class ExpertSource:
    """``source`` with its experts put together, or cut, under ``switch_mlp`` names with the checkpoint's own prefix.

    Raises: CheckpointError naming the file and the tensor that does not fit the others, or that is missing.
    """

    def __init__(self, source: Source, config: ModelConfig) -> None:
        assert config.text.experts is not None
        self._source = source
        self.tensors: dict[str, TensorInfo] = {}
        self._loads: dict[str, Callable[[], mx.array]] = {}
        self._parts: dict[str, Callable[[int, Ranges], mx.array]] = {}
        singles: dict[str, dict[int, str]] = defaultdict(dict)
        for name, info in source.tensors.items():
            if found := _FUSED.fullmatch(name):
                self._fused(found[1], found[2], name, info)
            elif found := _SINGLE.fullmatch(name):
                singles[f"{found[1]}switch_mlp.{found[3]}"][int(found[2])] = name
            else:
                self._add(name, info, partial(source.load, name))
                self._parts[name] = partial(self._read_part, name)
        for name, stored in singles.items():
            self._stacked(name, stored, config.text.experts.count)

    @property
    def path(self) -> Path:
        return self._source.path

    def load(self, name: str) -> mx.array:
        """The tensor, lazily. Raises: CheckpointError when there is none of the name."""
        if name not in self._loads:
            raise CheckpointError(f"{self.path}: expected a tensor {name}, found nothing")
        return self._loads[name]()

    def load_part(self, name: str, axis: int, ranges: Ranges) -> mx.array:
        """The ranges along an axis of the tensor ``name``, one behind the other, and where the source has such parts no
        more of it is read."""
        return self._parts[name](axis, ranges)

    def side_files(self) -> dict[str, bytes]:
        return self._source.side_files()

    def _add(self, name: str, info: TensorInfo, load: Callable[[], mx.array]) -> None:
        if name in self.tensors:
            raise CheckpointError(f"{info.file}: expected one {name}, found its experts in two layouts")
        self.tensors[name], self._loads[name] = info, load

    def _read_part(self, stored: str, axis: int, ranges: Ranges) -> mx.array:
        part = getattr(self._source, "load_part", None)
        return taken(self._source.load(stored), axis, ranges) if part is None else part(stored, axis, ranges)

    def _fused(self, prefix: str, kind: str, stored: str, info: TensorInfo) -> None:
        if len(info.shape) != 3 or (kind == "gate_up_proj" and info.shape[1] % 2):
            expected = "[E, 2I, H]" if kind == "gate_up_proj" else "[E, H, I]"
            raise CheckpointError(f"{info.file}: {stored}: expected {expected}, found {list(info.shape)}")
        if kind == "down_proj":
            name = f"{prefix}switch_mlp.down_proj.weight"
            self._add(name, info, partial(self._source.load, stored))
            self._parts[name] = partial(self._read_part, stored)
            return
        experts, rows, columns = info.shape
        half = TensorInfo((experts, rows // 2, columns), info.dtype, info.nbytes // 2, info.file)
        for half_index, part in enumerate(("gate_proj", "up_proj")):
            rows_of = slice(half_index * (rows // 2), (half_index + 1) * (rows // 2))
            name = f"{prefix}switch_mlp.{part}.weight"
            self._add(name, half, partial(self._cut, stored, rows_of))
            self._parts[name] = partial(self._cut_part, stored, rows_of)

    def _cut(self, stored: str, rows: slice) -> mx.array:
        return mx.contiguous(self._source.load(stored)[:, rows])  # a copy: a view would keep the other half in memory

    def _cut_part(self, stored: str, rows: slice, axis: int, ranges: Ranges) -> mx.array:
        """Of one half: ranges along its rows, or the ranges along another axis, of its rows alone."""
        if axis % 3 == 1:
            return self._read_part(
                stored, axis, tuple((rows.start + start, rows.start + stop) for start, stop in ranges)
            )
        return mx.contiguous(taken(self._cut(stored, rows), axis, ranges))

    def _stacked(self, name: str, stored: dict[int, str], count: int) -> None:
        if sorted(stored) != list(range(count)):
            wrong = next((i for i in range(count) if i not in stored), max(stored))
            fault = f"none for {wrong}" if wrong < count else f"one for {wrong}"
            raise CheckpointError(f"{self.path}: {name}: expected experts 0 to {count - 1}, found {fault}")
        names = [stored[i] for i in range(count)]
        infos = [self._source.tensors[each] for each in names]
        first = infos[0]
        for each, info in zip(names, infos, strict=True):
            if (info.shape, info.dtype) != (first.shape, first.dtype):
                what = f"{info.file}: {each}: expected {list(first.shape)} of {first.dtype} as {names[0]} has"
                raise CheckpointError(f"{what}, found {list(info.shape)} of {info.dtype}")
        nbytes = sum(info.nbytes for info in infos)
        self._add(name, TensorInfo((count, *first.shape), first.dtype, nbytes, first.file), partial(self._stack, names))
        self._parts[name] = partial(self._stack_parts, names)

    def _stack(self, names: Sequence[str]) -> mx.array:
        return mx.stack([self._source.load(name) for name in names])

    def _stack_parts(self, names: Sequence[str], axis: int, ranges: Ranges) -> mx.array:
        if axis % 3 == 0:
            return mx.stack([self._source.load(names[i]) for start, stop in ranges for i in range(start, stop)])
        return mx.stack([self._read_part(name, axis % 3 - 1, ranges) for name in names])
