"""Time every op on a model's shapes, each beside a plain read of memory timed in turn with it.

A case is reported only if its result matches its reference. Weights are rotated through a working set that no cache
holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import mlx.core as mx

from mlx_delta import _core, ops
from mlx_delta.bench.cases import Case
from mlx_delta.bench.checks import RedTests, check
from mlx_delta.bench.timing import ReadBandwidth, measure, working_set

_COMPUTE_BOUND = 100  # operations a byte


@dataclass(frozen=True)
class Row:
    """What a case is reported as. bytes: what the op has to move, once; share: of the read bandwidth."""

    case: str
    bits: str
    bytes: int
    flops: int | None
    ms: float
    mad: float
    gbs: float
    read_gbs: float
    share: float
    error: float  # relative rms, against the reference

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Refusal:
    """A case that is not reported, and why."""

    case: str
    refused: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def time_cases(cases: Iterable[Case], bandwidth: ReadBandwidth, repeats: int) -> Iterator[Row | Refusal]:
    """A row for each case, as it is ready."""
    for case in cases:
        try:
            yield _time_case(case, bandwidth, repeats)
        except RedTests as error:
            yield Refusal(case.id, str(error))


def _time_case(case: Case, bandwidth: ReadBandwidth, repeats: int) -> Row:
    arguments = case.arguments(mx.bfloat16)
    error = check(case, arguments)
    results = case.run(arguments)
    mx.eval(results)
    nbytes = case.bytes(arguments, results)
    bits = _bits(arguments)
    flops = None if case.flops is None else case.flops(arguments)
    # A matrix product of many rows is bound by arithmetic, and one row of an embedding is nowhere in a cache.
    heavy = (flops or 0) > _COMPUTE_BOUND * nbytes
    count = 1 if heavy or case.op == "embedding" else max(1, min(64, -(-working_set() // nbytes)))
    sets = [{name: _copied(value) for name, value in arguments.items()} for _ in range(count)]
    del arguments, results
    since = len(bandwidth)
    # One evaluation of all sets, as a token is one evaluation of all layers.
    time = measure(
        lambda: mx.eval([case.step(one) for one in sets]), min(repeats, 5) if heavy else repeats, bandwidth.sample
    )
    seconds, read = time.median / count, bandwidth.median(since)
    return Row(
        case=case.id,
        bits=bits,
        bytes=nbytes,
        flops=flops,
        ms=1e3 * seconds,
        mad=1e3 * time.mad / count,
        gbs=nbytes / seconds / 1e9,
        read_gbs=read / 1e9,
        share=nbytes / seconds / read,
        error=error,
    )


def _bits(arguments: dict[str, object]) -> str:
    """Widths of the matrices, "5+16" for two; "" without any."""
    values = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    matrices = [value for value in values if isinstance(value, ops.Matrix)]
    return "+".join(dict.fromkeys(str(m.bits or 8 * m.weight.itemsize) for m in matrices))


def _copied(value: object) -> object:
    """The same values elsewhere in memory."""
    if isinstance(value, list):
        return [_copied(v) for v in value]
    if isinstance(value, ops.Matrix):
        if value.scales is None or value.biases is None:
            return ops.Matrix.plain(_copied(value.weight))  # type: ignore[arg-type]
        weight, scales, biases = (mx.array(a) + 0 for a in (value.weight, value.scales, value.biases))
        _placed([weight, scales, biases])
        return ops.Matrix.affine(weight, scales, biases, value.bits, value.group_size)
    if isinstance(value, mx.array):
        copy = mx.array(value) + 0
        _placed([copy])
        return copy
    return value


def _placed(arrays: list[mx.array]) -> None:
    """Evaluated, and in huge pages, as the weights of a loaded model are."""
    mx.eval(arrays)
    for array in arrays:
        _core.use_huge_pages(array)
