"""Time every op on the 9B's shapes: ``python -m bench.ops [--json] [--filter TEXT]``.

A case is reported only if its result matches its reference. Weights are rotated through a working set that no cache
holds, and each case's bandwidth is set against a plain read of memory timed in turn with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from bench.timing import WORKING_SET, ReadBandwidth, measure
from cases import BOUNDS, CASES, Arguments, Case, relative_rms
from mlx_delta import _core, ops

UNCHECKED = {"qmm-9b-lm_head": "mlx needs minutes to dequantize 248320 rows; the kernel is that of qmm-b6g64"}


@dataclass(frozen=True)
class Row:
    """What a case is reported as."""

    case: str
    bytes: int
    ms: float
    mad: float
    gbs: float
    read_gbs: float
    share: float  # of the read bandwidth, in per cent
    rms: float | None  # relative error; None: unchecked


def copied(value: object) -> object:
    """The same values elsewhere in memory."""
    if isinstance(value, list):
        return [copied(v) for v in value]
    if isinstance(value, ops.Matrix):
        if value.scales is None or value.biases is None:
            return ops.Matrix.plain(copied(value.weight))  # type: ignore[arg-type]
        weight, scales, biases = (mx.array(a) + 0 for a in (value.weight, value.scales, value.biases))
        placed([weight, scales, biases])
        return ops.Matrix.affine(weight, scales, biases, value.bits, value.group_size)
    if isinstance(value, mx.array):
        copy = mx.array(value) + 0
        placed([copy])
        return copy
    return value


def placed(arrays: list[mx.array]) -> None:
    """Evaluated, and in huge pages, as the weights of a loaded model are."""
    mx.eval(arrays)
    for array in arrays:
        _core.use_huge_pages(array)


def relative_error(case: Case, arguments: Arguments) -> float:
    pairs = zip(case.run(arguments), case.reference(arguments), strict=True)
    return max(relative_rms(found, expected) for found, expected in pairs)


def time_case(case: Case, bandwidth: ReadBandwidth, repeats: int) -> Row | str:
    """A row, or why there is none."""
    arguments = case.arguments(mx.bfloat16)
    error = None if case.id in UNCHECKED else relative_error(case, arguments)
    if error is not None and not error <= BOUNDS[mx.bfloat16]:
        return f"relative error {error:.1e}, above {BOUNDS[mx.bfloat16]:.0e}"
    results = case.run(arguments)
    mx.eval(results)
    nbytes = case.bytes(arguments, results)
    count = 1 if case.op == "embedding" else max(1, min(64, -(-WORKING_SET // nbytes)))
    sets = [{name: copied(value) for name, value in arguments.items()} for _ in range(count)]
    del arguments, results
    since = len(bandwidth)
    # One evaluation of all sets, as a token is one evaluation of all layers.
    time = measure(lambda: mx.eval([case.run(one) for one in sets]), repeats, bandwidth.sample)
    seconds, read = time.median / count, bandwidth.median(since)
    return Row(
        case.id, nbytes, 1e3 * seconds, 1e3 * time.mad / count, nbytes / seconds / 1e9, read / 1e9,
        100 * nbytes / seconds / read, error,
    )  # fmt: skip


def lines(args: argparse.Namespace) -> Iterator[str]:
    if not args.json:
        yield f"{_core.cpu_isa()}, {_core.cpu_threads()} threads, bfloat16; share: of a plain read timed in turn"
        yield f"{'case':42}{'MB':>9}{'ms':>10}{'MAD':>8}{'GB/s':>8}{'read':>8}{'share':>8}"
    bandwidth = ReadBandwidth()
    for case in CASES:
        if not case.real or args.filter not in case.id:
            continue
        row = time_case(case, bandwidth, args.repeats)
        if isinstance(row, str):
            yield json.dumps({"case": case.id, "refused": row}) if args.json else f"{case.id:42}refused: {row}"
        elif args.json:
            yield json.dumps(asdict(row))
        else:
            note = "  unchecked: " + UNCHECKED[case.id] if row.rms is None else ""
            yield (
                f"{row.case:42}{row.bytes / 1e6:9.3f}{row.ms:10.4f}{row.mad:8.4f}{row.gbs:8.1f}{row.read_gbs:8.1f}"
                f"{row.share:7.0f}%{note}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of a case; the median counts")
    for line in lines(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
