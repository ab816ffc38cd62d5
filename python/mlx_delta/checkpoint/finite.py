"""Whether weights are numbers: one NaN or infinity makes every logit NaN, and an answer of token 0 for ever."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.errors import CheckpointError

_PIECE = 1 << 18  # values looked at in one go, which stay in cache
_BITS = {  # each dtype as integers, and the bits of its infinity
    mx.bfloat16: (mx.uint16, 0x7F80),
    mx.float16: (mx.uint16, 0x7C00),
    mx.float32: (mx.uint32, 0x7F800000),
}


def read_finite(tensors: Iterable[Tensor], origin: Path) -> dict[str, mx.array]:
    """The tensors by name, in memory; every value of every float tensor is looked at.

    In a thread beside, as numpy lets Python go on: one looks at memory several times as fast as files are read.
    Raises: CheckpointError naming ``origin`` and the tensor.
    """
    found, checks = {}, []
    with ThreadPoolExecutor(1) as pool:
        for tensor in tensors:
            found[tensor.name] = array = tensor.load()
            mx.eval(array)
            if (bits := _bits(array)) is not None:
                checks.append((tensor, pool.submit(_are_finite, bits, _BITS[array.dtype][1])))
        for tensor, check in checks:
            if not check.result():
                raise _error(tensor, found[tensor.name], origin)
    return found


def _bits(array: mx.array) -> np.ndarray | None:
    """The bits of floats as unsigned integers, in place; None of other dtypes, whose values are numbers always."""
    if array.dtype not in _BITS:
        return None
    return np.array(array.reshape(-1).view(_BITS[array.dtype][0]), copy=False)


def _are_finite(bits: np.ndarray, infinity: int) -> bool:
    """As signed integers, a positive infinity and what lies behind it, NaN, are the largest; as unsigned ones, those
    with a sign are. Two reductions without a temporary; mx.isfinite takes some 20 times as long."""
    signed, negative = f"i{bits.itemsize}", infinity + (1 << 8 * bits.itemsize - 1)
    pieces = (bits[start : start + _PIECE] for start in range(0, bits.size, _PIECE))
    return all(int(p.view(signed).max()) < infinity and int(p.max()) < negative for p in pieces)


def _error(tensor: Tensor, array: mx.array, origin: Path) -> CheckpointError:
    values = np.array(array.astype(mx.float32))
    wrong = np.argwhere(~np.isfinite(values))
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    what = f"{origin}: {tensor.source_name}: expected finite weights"
    return CheckpointError(f"{what}, found {values[tuple(wrong[0])]} at {wrong[0].tolist()}{more}")
