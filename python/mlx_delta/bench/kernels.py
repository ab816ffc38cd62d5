"""Time every op on a model's shapes, each beside a plain read of memory timed in turn with it.

A case is reported only if its result matches its reference. Weights are rotated through a working set that no cache
holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from statistics import geometric_mean

import mlx.core as mx

from mlx_delta import _core, ops
from mlx_delta.bench.cases import Arguments, Case
from mlx_delta.bench.checks import check
from mlx_delta.bench.timing import ReadBandwidth, measure, working_set
from mlx_delta.errors import RedTests

_COMPUTE_BOUND = 100  # operations a byte
_MEMORY = 1 << 30  # bytes, for the sets of a case
# Bytes that one evaluation moves: a token of a large model is a hundred products in a row, and the first waits up to
# 0.3 ms for a thread to wake, a third of one product's time.
_EVALUATION = 1 << 30
_MOST_STEPS = 256


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


@dataclass(frozen=True)
class Summary:
    """Of the matrices: the bandwidth's share that one row reaches, and what eight rows cost in times of one."""

    share_mean: float  # geometric
    share_least: float
    eight_rows_mean: float | None  # geometric
    eight_rows_most: float | None


def summarize(rows: Iterable[Row]) -> Summary | None:
    """None where no matrix was timed with one row."""
    qmm = {row.case: row for row in rows if row.case.startswith("qmm-")}
    one = [row for row in qmm.values() if not row.case.endswith(("-m8", "-m512"))]
    if not one:
        return None
    shares = [row.share for row in one]
    costs = [qmm[f"{row.case}-m8"].ms / row.ms for row in one if f"{row.case}-m8" in qmm]
    return Summary(
        geometric_mean(shares), min(shares), geometric_mean(costs) if costs else None, max(costs, default=None)
    )


def _time_case(case: Case, bandwidth: ReadBandwidth, repeats: int) -> Row:
    arguments = case.arguments(mx.bfloat16)
    error = check(case, arguments)
    results = case.run(arguments)
    mx.eval(results)
    nbytes, bits = case.bytes(arguments, results), _bits(arguments)
    flops = None if case.flops is None else case.flops(arguments)
    # A matrix product of many rows is bound by arithmetic, and one row of an embedding is nowhere in a cache.
    heavy = (flops or 0) > _COMPUTE_BOUND * nbytes
    once = heavy or case.op == "embedding"
    count = 1 if once else _copies(nbytes, sum(a.nbytes for a in _arrays(arguments)))
    sets = [{name: _copied(value) for name, value in arguments.items()} for _ in range(count)]
    rounds = 1 if once else max(1, min(_EVALUATION // (count * nbytes), _MOST_STEPS // count))
    del arguments, results
    since = len(bandwidth)

    def prepare() -> list[mx.array]:
        bandwidth.sample()
        return steps(case, sets, rounds)

    # One evaluation of all sets, as a token is one evaluation of all layers; its graph is built before.
    time = measure(prepare, mx.eval, min(repeats, 5) if heavy else repeats)
    seconds, read = time.median / (rounds * count), bandwidth.median(since)
    return Row(
        case=case.id,
        bits=bits,
        bytes=nbytes,
        flops=flops,
        ms=1e3 * seconds,
        mad=1e3 * time.mad / (rounds * count),
        gbs=nbytes / seconds / 1e9,
        read_gbs=read / 1e9,
        share=nbytes / seconds / read,
        error=error,
    )


def steps(case: Case, sets: list[Arguments], rounds: int) -> list[mx.array]:
    """What to evaluate for ``rounds`` steps of every set. Nobody holds the states between."""
    results = [case.step(one)[0] for _ in range(rounds) for one in sets]
    return results + [one[state] for one in sets for state in case.states]


def _copies(moved: int, held: int) -> int:
    """How many sets of arguments no cache holds, by the bytes ``moved`` of each, and memory does, by those ``held``."""
    return max(1, min(-(-working_set() // moved), _MEMORY // held))


def _arrays(arguments: Arguments) -> list[mx.array | ops.Matrix]:
    values = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, (mx.array, ops.Matrix))]


def _bits(arguments: Arguments) -> str:
    """Widths of the matrices, "5+16" for two; "" without any."""
    matrices = [value for value in _arrays(arguments) if isinstance(value, ops.Matrix)]
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
        copy = (mx.array(value) + 0).astype(value.dtype)  # a mask stays bool
        _placed([copy])
        return copy
    return value


def _placed(arrays: list[mx.array]) -> None:
    """Evaluated, and in huge pages, as the weights of a loaded model are."""
    mx.eval(arrays)
    for array in arrays:
        _core.use_huge_pages(array)
