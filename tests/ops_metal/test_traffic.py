"""The bytes that each kernel moves for a token of the 9B, counted access by access, against those that it must move.

Shapes are the 9B's, with at most 4096 rows of a matrix: rows are alike, and what they share weighs more in fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import pytest
from emulate import counted

from mlx_delta import ops
from mlx_delta.bench.cases import BOUNDS, CASES, Case, relative_rms
from mlx_delta.bench.cases.draws import Zeros
from support.report import report

ROWS = 4096
LIMIT = 1.03
TITLE = "A token of the 9B (bfloat16, 2000 tokens of context): launches, bytes that must move, and that do"

# How often a token of the 9B needs each case: 24 gated-delta and 8 attention layers, with an MLP each.
LAUNCHES = {
    "embedding-9b": 1,
    "qmm-9b-in_proj": 24,
    "delta_mixer-b1t1h16x2d128": 24,
    "qmm-9b-qkv": 8,
    "attention_prepare-b1t1h16:4d256at2000axes0": 8,
    "attention-b1t1h16:4d256l2000": 8,
    "qmm-9b-out_proj": 24 + 8,
    "qmm-9b-gate_up": 24 + 8,
    "qmm-9b-down": 24 + 8,
    "qmm-9b-lm_head": 1,
}
TOKEN = [next(c for c in CASES if c.id == name) for name in LAUNCHES]
OTHERS = [c for c in CASES if c.real and c.op != "sample" and c not in TOKEN]


@dataclass(frozen=True)
class Moved:
    """Bytes of one case.

    whole: what the op has to move. least: the same with fewer rows, as is all that follows. touched: of inputs and
    outputs, each once. streamed: inputs that no cache keeps, for each threadgroup that reads them, the others once,
    and what is written as often as it is. repeated: accesses to weights, states and the KV cache, above one a byte.
    scratch: written and read between launches.
    """

    launches: int
    whole: int
    least: int
    touched: int
    streamed: int
    repeated: int
    scratch: int


def scaled_down(value: object) -> object:
    """At most ROWS rows of each matrix."""
    if isinstance(value, list):
        return [scaled_down(v) for v in value]
    if not isinstance(value, ops.Matrix):
        return value
    if value.scales is None or value.biases is None:
        return ops.Matrix.plain(value.weight[:ROWS])
    parts = (part[:ROWS] for part in (value.weight, value.scales, value.biases))
    return ops.Matrix.affine(*parts, value.bits, value.group_size)


@cache
def moved(case: Case) -> Moved:
    vocabulary = case.op == "embedding" or case.thinned
    arguments = case.make(mx.bfloat16, Zeros()) if vocabulary else case.arguments(mx.bfloat16)
    whole = case.bytes(arguments, case.run(arguments))
    arguments = {name: scaled_down(value) for name, value in arguments.items()}
    if arguments.get("residual") is not None:
        arguments["residual"] = arguments["residual"][:, :ROWS]
    results = case.run(arguments)
    found, traffic = counted(results)
    for result, expected in zip(found, results, strict=True):  # the CPU's kernels, held to the reference by tests/ops
        assert relative_rms(result, expected) <= BOUNDS[mx.bfloat16]
    names = ("touched", "streamed", "repeated", "scratch")
    return Moved(traffic["launches"], whole, case.bytes(arguments, results), *(traffic[name] for name in names))


@pytest.mark.parametrize("case", TOKEN + OTHERS, ids=lambda case: case.id)
def test_moves_hardly_more_bytes_than_it_must(case: Case) -> None:
    found = moved(case)
    if case in TOKEN:
        report(
            TITLE,
            f"{case.id:44}{LAUNCHES[case.id]:4} x {found.launches}"
            f"{LAUNCHES[case.id] * found.whole / 1e6:12.3f} MB"
            f"{100 * found.touched / found.least:9.2f} % touched{100 * found.streamed / found.least:9.2f} % streamed"
            f"{100 * found.scratch / found.least:8.2f} % scratch",
        )
    assert found.touched <= LIMIT * found.least
    assert found.streamed <= LIMIT * found.least
    assert found.repeated <= (LIMIT - 1) * found.least


def test_launches_of_a_token() -> None:
    """At most 6 a layer of the 32 and 6 more; sampling's own are counted in tests/unit/model/test_model.py."""
    total = sum(LAUNCHES[case.id] * moved(case).launches for case in TOKEN)
    report(TITLE, f"{total} launches, of at most {6 * 32 + 6}")
    assert total <= 6 * 32 + 6 - 4
