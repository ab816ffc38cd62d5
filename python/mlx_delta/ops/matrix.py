"""Weight matrices as the ops take them."""

from __future__ import annotations

import mlx.core as mx

from mlx_delta._core import Matrix, use_huge_pages

__all__ = ["Matrix", "dense", "part", "taken", "use_huge_pages"]


_BLOCK = 4096  # rows dequantized at a time: mlx's CPU fallback needs several times their float32 size


def dense(matrix: Matrix) -> mx.array:
    """The matrix as float32 [N, K], by mlx's own dequantization: w = scale * q + bias."""
    if matrix.bits == 0:
        return matrix.weight.astype(mx.float32)
    blocks = [rows(matrix, slice(i, i + _BLOCK)) for i in range(0, matrix.rows, _BLOCK)]
    return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks)


def part(matrix: Matrix, start: int, stop: int) -> Matrix:
    """The rows [start, stop) of the matrix, where they lie."""
    return _chosen(matrix, slice(start, stop))


def taken(matrix: Matrix, index: mx.array) -> Matrix:
    """A copy of the rows of these numbers, int [N]."""
    return _chosen(matrix, index)


def _chosen(matrix: Matrix, index: slice | mx.array) -> Matrix:
    weight = matrix.weight[index]
    if matrix.scales is None or matrix.biases is None:
        mx.eval(weight)
        return Matrix.plain(weight)
    scales, biases = matrix.scales[index], matrix.biases[index]
    mx.eval(weight, scales, biases)
    return Matrix.affine(weight, scales, biases, matrix.bits, matrix.group_size)


def rows(matrix: Matrix, index: slice | mx.array) -> mx.array:
    """The chosen rows as float32 [.., K], evaluated."""
    weight = matrix.weight[index]
    if matrix.scales is None or matrix.biases is None:
        return weight.astype(mx.float32)
    result = mx.dequantize(
        weight,
        matrix.scales[index].astype(mx.float32),
        matrix.biases[index].astype(mx.float32),
        group_size=matrix.group_size,
        bits=matrix.bits,
    )
    mx.eval(result)
    return result
