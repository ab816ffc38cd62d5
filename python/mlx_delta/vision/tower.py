"""The vision tower: patches to what the text model reads in the placeholders' places.

    x = patches @ W_patch + b + position embedding, bilinear from a square grid
    x = x + proj(attention(rope(q), rope(k), v)),  [q | k | v] = qkv(LayerNorm(x)), within one frame
    x = x + fc2(gelu_tanh(fc1(LayerNorm(x))))                                       depth times both
    y = fc2(gelu(fc1(merge x merge patches of LayerNorm(x), side by side)))

All pictures are one pass: matrices are read once. A row of ``qmm`` has the same bits whatever the others are, and
frames do not see each other, so a picture's features do not depend on which others there are (on a CPU: MLX's attention
on Metal promises nothing).
Source: Hugging Face ``Qwen3_5VisionModel`` (modeling_qwen3_5.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import mlx.core as mx
import numpy as np

from mlx_delta import ops
from mlx_delta.model.weights import Weights
from mlx_delta.ops import Matrix
from mlx_delta.vision.attention import attention
from mlx_delta.vision.config import VisionConfig
from mlx_delta.vision.patches import Grid, Patches

_EPS = 1e-6
_ROWS = 8192  # patches at a time where a row is wider than the model: memory stays bounded, bits are the same


@dataclass(frozen=True)
class _Linear:
    matrix: Matrix
    bias: mx.array

    @classmethod
    def of(cls, w: Weights, name: str, dtype: mx.Dtype) -> _Linear:
        return cls(w.matrix(name), w.tensors[f"{w.root}{name}.bias"].astype(dtype))

    def __call__(self, x: mx.array) -> mx.array:
        shape = (*x.shape[:-1], self.bias.shape[0])
        return ops.qmm(x, (self.matrix,), residual=mx.broadcast_to(self.bias, shape))


@dataclass(frozen=True)
class _Norm:
    weight: mx.array
    bias: mx.array

    @classmethod
    def of(cls, w: Weights, name: str) -> _Norm:
        return cls(w.parameter(f"{name}.weight"), w.parameter(f"{name}.bias"))

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x.astype(mx.float32), self.weight, self.bias, _EPS).astype(x.dtype)


@dataclass(frozen=True)
class _Block:
    heads: int
    norm1: _Norm
    qkv: _Linear
    proj: _Linear
    norm2: _Norm
    fc1: _Linear
    fc2: _Linear

    def __call__(self, x: mx.array, frames: Sequence[tuple[int, int]], rotation: tuple[mx.array, mx.array]) -> mx.array:
        x = x + self.proj(self._attend(self.qkv(self.norm1(x)), frames, rotation))
        return x + _by_rows(lambda rows: self.fc2(_gelu_tanh(self.fc1(self.norm2(rows)))), x)

    def _attend(
        self, qkv: mx.array, frames: Sequence[tuple[int, int]], rotation: tuple[mx.array, mx.array]
    ) -> mx.array:
        """frames: how many of how many patches, in order."""
        n, width = qkv.shape
        q, k, v = mx.split(qkv.reshape(n, 3, self.heads, width // (3 * self.heads)), 3, axis=1)
        q, k, v = _rope(q[:, 0], rotation), _rope(k[:, 0], rotation), v[:, 0]
        parts, first = [], 0
        for count, length in frames:
            last = first + count * length
            rows = (a[first:last].reshape(count, length, self.heads, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
            parts.append(attention(*rows).transpose(0, 2, 1, 3).reshape(count * length, -1))
            first = last
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)


@dataclass(frozen=True)
class Tower:
    """``tower(list of patches)`` -> features [tokens of all, out_size] of ``dtype``, in their order, lazily."""

    config: VisionConfig
    dtype: mx.Dtype
    patch: _Linear
    positions: mx.array
    blocks: tuple[_Block, ...]
    norm: _Norm
    fc1: _Linear
    fc2: _Linear

    @classmethod
    def from_weights(cls, config: VisionConfig, w: Weights, dtype: mx.Dtype) -> Tower:
        """w: the tower's canonical tensors."""

        def linear(name: str) -> _Linear:
            return _Linear.of(w, name, dtype)

        # [out, frame, row, column, channel], and a row of patches is [channel, frame, row, column].
        weight = w.tensors[f"{w.root}patch_embed.proj.weight"].transpose(0, 4, 1, 2, 3).reshape(config.hidden_size, -1)
        return cls(
            config=config,
            dtype=dtype,
            patch=_Linear(Matrix.plain(weight), w.tensors[f"{w.root}patch_embed.proj.bias"].astype(dtype)),
            positions=w.parameter("pos_embed.weight"),
            blocks=tuple(
                _Block(
                    config.heads,
                    _Norm.of(w, f"blocks.{i}.norm1"),
                    linear(f"blocks.{i}.attn.qkv"),
                    linear(f"blocks.{i}.attn.proj"),
                    _Norm.of(w, f"blocks.{i}.norm2"),
                    linear(f"blocks.{i}.mlp.linear_fc1"),
                    linear(f"blocks.{i}.mlp.linear_fc2"),
                )
                for i in range(config.depth)
            ),
            norm=_Norm.of(w, "merger.norm"),
            fc1=linear("merger.linear_fc1"),
            fc2=linear("merger.linear_fc2"),
        )

    def __call__(self, patches: Sequence[Patches]) -> mx.array:
        x = self.hidden_states(patches)
        merged = self.norm(x).reshape(-1, self.config.hidden_size * self.config.merge**2)
        return self.fc2(_gelu(self.fc1(merged)))

    def hidden_states(self, patches: Sequence[Patches]) -> mx.array:
        """[patches of all, hidden_size], before the merger."""
        x = mx.concatenate([self._embedded(each) for each in patches])
        grids = [each.grid for each in patches]
        x = x + mx.concatenate([self._position_embedding(grid) for grid in grids]).astype(self.dtype)
        rotation = self._rotation(grids)
        lengths = [grid.height * grid.width for grid in grids for _ in range(grid.frames)]
        frames = [(len(list(same)), length) for length, same in groupby(lengths)]
        for block in self.blocks:
            x = block(x, frames, rotation)
            mx.eval(x)  # a picture of 16 million pixels has 65,536 rows: what one layer needs is let go
        return x

    def _embedded(self, patches: Patches) -> mx.array:
        settings, count = patches.settings, self.config.frames * self.config.patch**2
        mean, std = (
            mx.array(np.repeat(np.array(each) * 255, count), mx.float32) for each in (settings.mean, settings.std)
        )

        def embedded(rows: mx.array) -> mx.array:
            return self.patch(((rows.astype(mx.float32) - mean) / std).astype(self.dtype))

        return _by_rows(embedded, mx.array(patches.rows))

    def _position_embedding(self, grid: Grid) -> mx.array:
        """float32 [patches, hidden_size]: bilinear, the corners of the learned grid on those of the picture."""
        sides = []
        for count in (grid.height, grid.width):
            at = np.linspace(0, self.config.side - 1, count, dtype=np.float32)
            low = at.astype(np.int64)
            sides.append((low, np.minimum(low + 1, self.config.side - 1), at - low))
        (top, bottom, down), (left, right, across) = sides
        corners = [
            (top, 1 - down, left, 1 - across),
            (top, 1 - down, right, across),
            (bottom, down, left, 1 - across),
            (bottom, down, right, across),
        ]
        embedding = mx.array(0.0)
        for rows, of_row, columns, of_column in corners:
            index = (rows[:, None] * self.config.side + columns)[_order(grid)]
            weight = (of_row[:, None] * of_column)[_order(grid)]
            embedding = embedding + self.positions[mx.array(index)] * mx.array(weight)[:, None]
        return mx.tile(embedding, (grid.frames, 1))

    def _rotation(self, grids: Sequence[Grid]) -> tuple[mx.array, mx.array]:
        """cos, sin float32 [patches, 1, head_dim / 2]: frequencies of the row, then of the column."""
        dim = self.config.head_dim // 2
        frequencies = self.config.rope_theta ** -(np.arange(0, dim, 2, dtype=np.float32) / dim)
        angles = []
        for grid in grids:
            row, column = (a[_order(grid)] for a in np.indices((grid.height, grid.width)))
            angle = np.concatenate([row[:, None] * frequencies, column[:, None] * frequencies], axis=1)
            angles.append(np.tile(angle.astype(np.float32), (grid.frames, 1)))
        angle = np.concatenate(angles)[:, None]
        return mx.array(np.cos(angle)), mx.array(np.sin(angle))


def _order(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of each patch of a frame, in the order of ``Patches.rows``."""
    m = grid.merge
    blocks = np.indices((grid.height, grid.width)).reshape(2, grid.height // m, m, grid.width // m, m)
    row, column = blocks.transpose(0, 1, 3, 2, 4).reshape(2, -1)
    return row, column


def _rope(x: mx.array, rotation: tuple[mx.array, mx.array]) -> mx.array:
    """x [n, H, D]; (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) on its halves."""
    cos, sin = rotation
    x1, x2 = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def _by_rows(f: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    if x.shape[0] <= _ROWS:
        return f(x)
    done = []
    for first in range(0, x.shape[0], _ROWS):
        done.append(f(x[first : first + _ROWS]))
        mx.eval(done[-1])
    return mx.concatenate(done)


def _gelu_tanh(x: mx.array) -> mx.array:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which is x sigmoid of twice that."""
    h = x.astype(mx.float32)
    return (h * mx.sigmoid((2 * math.sqrt(2 / math.pi)) * h * (1 + 0.044715 * h * h))).astype(x.dtype)


def _gelu(x: mx.array) -> mx.array:
    h = x.astype(mx.float32)
    return (0.5 * h * (1 + mx.erf(h / math.sqrt(2)))).astype(x.dtype)
