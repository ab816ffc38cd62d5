"""Affine quantization by a weighted least-squares fit of each group's scale and bias, without its shrinkage.

Of a group of weights w_k with importances h_k (mean x_k^2 of what they multiply), find s, b and integers q_k in
[0, 2^bits - 1] that minimise

    sum_k h_k (w_k - s q_k - b)^2.

Given s and b, q_k = round((w_k - b) / s). Given q, s and b are a weighted linear regression of w on q: with w centred
on its weighted mean, s = H <wq> / (H <qq> - <q>^2) and b = -s <q> / H, where H = sum h and <.> sums with weights h, and
what the error falls by is s <wq>. The two alternate, from the best of a grid of ranges [lo, hi] inside the group's own
(cutting off outliers costs little and makes the steps finer).

Least squares shrinks: its residual is orthogonal to what it fits, so <w (sq + b)> = <ww> - E, and all outputs come out
too small by the same part, 3 % at 3 bits. Errors at random average out over a layer's channels; this one goes through
gate, up and down and adds up over the layers. (With it, a quarter less error moved the tiny model's KLD by only 7 %;
without it, by 27 %.) So w * <ww> / (<ww> - E) is fitted in the end, which restores <w (sq + b)> = <ww>.

At last s is rounded to bfloat16, s and its neighbours are tried, and b follows from each by least squares before it is
rounded too.

``fit`` is a CPU kernel (csrc/cpu/fit_affine.cpp) on all cores, and ``fit_reference`` the same in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_delta import _core
from mlx_delta.config import Quantization

# bits -> the narrowest range tried, as a part of the group's; what 4 x 4 ranges from there to all of it gained over
# min and max alone, in weighted error, is a tenth at 3 bits and a twelfth at 6.
_NARROWEST = {2: 0.45, 3: 0.6, 4: 0.75, 5: 0.85, 6: 0.92, 8: 0.96}
_RANGES = 4
_ROUNDS = 3  # of alternation; more than these changed the error by less than 0.3 %
_BFLOAT16_STEPS = (-1, 0, 1)


@dataclass(frozen=True)
class Fit:
    """MLX's affine form: packed uint32 [N, K * bits / 32], scales and biases bfloat16 [N, K / group].

    errors float32 [N, K / group]: what each group's sum_k h_k (w_k - s q_k - b)^2 came to.
    """

    packed: mx.array
    scales: mx.array
    biases: mx.array
    errors: mx.array


def fit(weight: mx.array, width: Quantization, importance: np.ndarray | None = None) -> Fit:
    """Quantize ``weight`` [N, K], any float dtype, K a multiple of the group; importance float32 [K] (None: equal)."""
    h = np.ones(weight.shape[1], np.float32) if importance is None else importance.astype(np.float32)
    weight, weights = mx.contiguous(weight), mx.array(h)
    mx.eval(weight, weights)
    return Fit(*_core.fit_affine(weight, weights, width.bits, width.group_size))


def fit_error(weight: mx.array, width: Quantization, importance: np.ndarray) -> float:
    """sum_nk h_k (w_nk - s q_nk - b)^2 of ``weight`` as ``fit`` quantizes it."""
    return float(np.array(fit(weight, width, importance).errors).sum(dtype=np.float64))


def fit_reference(weight: mx.array, width: Quantization, importance: np.ndarray | None = None) -> Fit:
    """``fit`` in numpy, all groups at once."""
    matrix = np.array(weight.astype(mx.float32))
    rows, columns = matrix.shape
    h = np.broadcast_to(np.float32(1) if importance is None else importance.astype(np.float32), matrix.shape)
    # A group is a column, so that every operation runs along rows, and its sums are additions of rows.
    w, h = (np.ascontiguousarray(part.reshape(-1, width.group_size).T) for part in (matrix, h))
    q, s, b, _ = fit_groups(w, h, width.bits)
    errors = (h * (w - s * q - b) ** 2).sum(axis=0).reshape(rows, -1)
    packed = pack(np.ascontiguousarray(q.T).reshape(rows, columns), width.bits)
    scales, biases = (mx.array((v.view(np.uint32) >> 16).astype(np.uint16).reshape(rows, -1)) for v in (s, b))
    return Fit(mx.array(packed), scales.view(mx.bfloat16), biases.view(mx.bfloat16), mx.array(errors))


def pack(q: np.ndarray, bits: int) -> np.ndarray:
    """Integers [N, K] below 2^bits, K a multiple of 32 -> uint32 [N, K * bits / 32]: one little-endian stream a row."""
    rows, columns = q.shape
    shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
    eights = (q.reshape(rows, columns // 8, 8).astype(np.uint64) << shifts).sum(axis=-1, dtype=np.uint64)
    stream = eights[..., None].view(np.uint8)[..., :bits]  # of each uint64, the bytes that eight values fill
    return np.ascontiguousarray(stream).reshape(rows, -1).view(np.uint32)


def fit_groups(w: np.ndarray, h: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(q [n, M], s [M], b [M], stretch [M]) of groups w [n, M] with importances h [n, M], float32.

    s and b are bfloat16 values, and q = round((w * stretch - b) / s).
    """
    top = np.float32(2**bits - 1)
    total = h.sum(axis=0)
    centre = np.multiply(w, h).sum(axis=0) / total
    x = w - centre
    low, high = x.min(axis=0), x.max(axis=0)
    q, hq, product = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    best = [np.full_like(low, -1), np.zeros_like(low), np.zeros_like(low)]  # fall of the error, s, b

    def regress(scale: np.ndarray, bias: np.ndarray) -> None:
        _round(x, scale, bias, top, q)
        np.multiply(h, q, out=hq)
        sum_q = hq.sum(axis=0)
        sum_qq = np.multiply(hq, q, out=product).sum(axis=0)
        sum_wq = np.multiply(hq, x, out=product).sum(axis=0)
        spread = total * sum_qq - sum_q * sum_q
        sound = spread > 1e-6 * total * sum_qq  # else all q are the same, and b alone fits them
        scale = np.where(sound, total * sum_wq / np.where(sound, spread, 1), 0)
        found = (scale * sum_wq, scale, -scale * sum_q / total)
        better = found[0] > best[0]
        for old, new in zip(best, found, strict=True):
            np.copyto(old, new, where=better)

    parts = np.linspace(_NARROWEST[bits], 1, _RANGES, dtype=np.float32)
    for below in parts:
        for above in parts:
            regress((above * high - below * low) / top, below * low)
    for _ in range(_ROUNDS):
        regress(best[1], best[2])
    gain = _gain(x, h, product, total * centre * centre, best[0])
    q, scale, bias = _rounded(w * gain, h, total, best[1] * gain, (best[2] + centre) * gain, top)
    return q, scale, bias, gain


def _gain(x: np.ndarray, h: np.ndarray, scratch: np.ndarray, offset: np.ndarray, explained: np.ndarray) -> np.ndarray:
    """<ww> / (<ww> - E) of each group, from <xx> of its centred weights: E = <xx> - explained, <ww> = <xx> + offset."""
    spread = np.multiply(np.multiply(x, x, out=scratch), h, out=scratch).sum(axis=0)
    whole = spread + offset
    kept = np.minimum(offset + explained, whole)
    # A group of which less than half is kept is noise at this width: nothing to stretch.
    return np.where(kept > whole / 2, whole / np.where(kept > 0, kept, 1), np.float32(1))


def _rounded(
    w: np.ndarray, h: np.ndarray, total: np.ndarray, scale: np.ndarray, bias: np.ndarray, top: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best q, s, b with s and b in bfloat16, s within one step of ``scale``."""
    q, rest, error = np.empty_like(w), np.empty_like(w), np.full_like(scale, np.inf)
    best_s, best_b = np.ones_like(scale), np.zeros_like(scale)
    nearest = to_bfloat16(np.where(scale > 0, scale, 1))
    for step in _BFLOAT16_STEPS:
        s = (nearest.view(np.int32) + np.int32(step * 2**16)).view(np.float32)
        _round(w, s, bias, top, q)
        np.subtract(w, np.multiply(q, s, out=q), out=rest)
        b = to_bfloat16(np.multiply(rest, h, out=rest).sum(axis=0) / total)
        _round(w, s, b, top, q)
        np.subtract(w, np.multiply(q, s, out=q), out=rest)
        rest -= b
        np.multiply(rest, rest, out=rest)
        found = np.multiply(rest, h, out=rest).sum(axis=0)
        better = found < error
        for old, new in ((error, found), (best_s, s), (best_b, b)):
            np.copyto(old, new, where=better)
    _round(w, best_s, best_b, top, q)
    return q, best_s, best_b


def _round(w: np.ndarray, scale: np.ndarray, bias: np.ndarray, top: np.float32, out: np.ndarray) -> None:
    """out = round((w - bias) / scale), within [0, top]."""
    inverse = 1 / np.where(scale > 0, scale, 1)
    np.multiply(w, inverse, out=out)
    np.subtract(out, bias * inverse, out=out)
    np.rint(out, out=out)
    np.clip(out, 0, top, out=out)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
