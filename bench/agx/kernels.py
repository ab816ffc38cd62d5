"""What the table is made of: our kernels as plan() launches them at the 9B's shapes, and MLX's for the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from bench.agx.machine import Program, Region, Trips
from bench.agx.shipped import shipped
from mlx_delta import _core, ops
from mlx_delta.bench.cases import CASES, Case
from mlx_delta.bench.cases.draws import Zeros, quantized
from mlx_delta.bench.cases.experts import experts_case, route_case
from mlx_delta.bench.cases.launches import specialisations
from support.launches import threads_of
from support.mlx_kernels import QUANTIZED, mlx_source

WIDTHS = (2, 3, 4, 5, 6, 8)
HIDDEN, INNER, VOCABULARY = 4096, 12288, 248320  # the 9B's
EXPERTS_HIDDEN, EXPERTS_INNER, EXPERTS, CHOSEN = 2048, 512, 256, 8  # the 35B-A3B's
QMV_ROWS, QMV_SIMDGROUPS = 4, 2  # of MLX's affine_qmv_fast: rows a simdgroup, simdgroups a threadgroup


@dataclass(frozen=True)
class Entry:
    """A kernel to compile. text: may cost time, so it is asked for when needed. threads: of a threadgroup.

    lane_bytes: of weights, states or cache that one lane reads and writes, which its slots are divided by; 0: not told.
    trips: how often a loop of the machine code runs in one simdgroup, the mean over simdgroups.
    """

    label: str
    text: Callable[[], str]
    kernel: str
    threads: int
    lane_bytes: float = 0
    trips: Trips | None = None


def entries() -> Iterator[Entry]:
    """The table's rows, in its order."""
    for M in (1, 2, 4, 8):
        for bits in WIDTHS if M == 1 else (3, 4, 6):
            yield qmm(f"qmm {bits} bits, {M} row{'s' if M > 1 else ''}", M, HIDDEN, [(INNER, bits)])
    for M in (1, 2, 4, 8):
        yield qmm(f"gate and up 3 bits, norm, SwiGLU, {M}", M, HIDDEN, [(INNER, 3)] * 2, norm=True, swiglu=True)
    yield qmm("down 4 bits, K = 12288, residual, 1", 1, INNER, [(HIDDEN, 4)], residual=True)
    yield qmm("lm_head 6 bits, norm, 1", 1, HIDDEN, [(VOCABULARY, 6)], norm=True)
    for M in (1, 8):
        yield qmm(f"bfloat16, residual, {M}", M, HIDDEN, [(HIDDEN, 0)], residual=True)
    for M in (1, 4):
        in_proj = [(2 * HIDDEN, 5), (HIDDEN, 5), (32, 0), (32, 0)]
        yield replace(qmm(f"in_proj 5 bits and bfloat16, norm, {M}", M, HIDDEN, in_proj, norm=True), trips=None)
        mixed = [(INNER, 3), (INNER, 4)]
        yield replace(qmm(f"gate 3 and up 4 bits, norm, {M}", M, HIDDEN, mixed, norm=True, swiglu=True), trips=None)
    yield from experts_entries()
    for bits in WIDTHS:
        yield peer(bits)
    for label, case, moved, trips in OTHERS:
        found = next(c for c in CASES if c.id == case)
        for number, launch in enumerate(launches_of(found)):
            name = label if number == 0 else f"{label}: its {number + 1}. launch"
            known = trips if number == 0 else None
            yield entry(name, launch, moved, known and known(threads_of(launch) // 32))


def all_specialisations(tests: bool) -> Iterator[Entry]:
    """Every kernel that a model asks for, and with ``tests`` those that a case needs, in all dtypes; no slots."""
    launches = shipped()
    if tests:
        launches |= {name: use.launch for name, use in specialisations().items() if name not in launches}
    for launch in launches.values():
        if all(launch.threadgroups):  # not the host's copies of words
            yield entry(launch.kernel, launch, 0, None)


def entry(label: str, launch: _core.Launch, moved: float, trips: Trips | None) -> Entry:
    """moved: bytes in all, of what its slots are divided by."""
    threadgroups = int(np.prod(launch.threadgroups))
    threads = threads_of(launch)
    return Entry(label, lambda: launch.source, launch.kernel, threads, moved / (threadgroups * threads), trips)


def qmm(
    label: str,
    M: int,
    K: int,
    segments: list[tuple[int, int]],
    norm: bool = False,
    residual: bool = False,
    swiglu: bool = False,
) -> Entry:
    """segments: (rows, bits); 0 bits: bfloat16."""
    zeros = Zeros()
    matrices = [
        quantized(zeros, N, K, bits) if bits else ops.Matrix.plain(mx.zeros((N, K), mx.bfloat16))
        for N, bits in segments
    ]
    columns = segments[0][0] if swiglu else sum(N for N, _ in segments)
    result = ops.qmm(
        mx.zeros((M, K), mx.bfloat16),
        matrices,
        norm=mx.zeros(K) if norm else None,
        residual=mx.zeros((M, columns), mx.bfloat16) if residual else None,
        activation="swiglu" if swiglu else None,
    )
    launch = _core.plan(result)[0].launches[0]
    rows_of_x, _, _, simdgroups, turns = map(int, launch.kernel.split("_")[2:7])  # its template's arguments
    trips = qmm_trips(rows_of_x, K, simdgroups, turns, packed=segments[0][1] > 0)
    return entry(label, launch, sum(m.nbytes for m in matrices), trips)


def experts_entries() -> Iterator[Entry]:
    """route and experts of one row, and qmm's products of as many columns. 1 to 16 rows have the same kernels."""
    K, inner = EXPERTS_HIDDEN, EXPERTS_INNER
    for bits in (3, 4, 6):
        width = bits / 8 + 4 / 64  # bytes of a weight
        case = experts_case("", 1, K, inner, EXPERTS, CHOSEN, ((bits, 64),) * 3, (bits, 64))
        gate_up, down = launches_of(case)
        of_one = (CHOSEN + 1) * inner * K * width
        yield entry(f"experts {bits} bits, gate and up", gate_up, 2 * of_one, experts_trips(K / 1024, 1, 0))
        yield qmm(f"the same by qmm, N = {inner}", 1, K, [(inner, bits)] * 2, norm=True, swiglu=True)
        columns = CHOSEN * inner
        simdgroups = threads_of(down) // 32
        trips = experts_trips(columns / 1024, columns / (512 * simdgroups), 1 / simdgroups)
        yield entry(f"experts {bits} bits, down", down, of_one, trips)
        yield qmm(f"the same by qmm, K = {columns}, N = {K}", 1, columns, [(K, bits)], residual=True)
    route = launches_of(route_case("", 1, K, EXPERTS, CHOSEN, mx.bfloat16, mx.bfloat16))
    yield entry("route, router bfloat16", route[0], 0, None)
    yield entry("route, router bfloat16: its 2. launch", route[1], 0, None)


def launches_of(case: Case) -> list[_core.Launch]:
    return _core.plan(case.run(case.make(mx.bfloat16, Zeros()))[0])[0].launches


def qmm_trips(M: int, K: int, simdgroups: int, turns: int, packed: bool) -> Trips:
    """Regions of metal/qmm.metal by what is in them: groups of rows, a lane's blocks of columns, the staging of x."""
    staged = 16 * 32 * simdgroups / M  # columns of x at a time
    stagings = max(K / 1024 if staged < 1024 else K / staged, 1)

    def stages(program: Program, region: Region) -> bool:
        return region.loop and "lstore" in {i.name for i in program.body(region)}

    def trips(program: Program, region: Region) -> float | None:
        names = {i.name for i in program.instructions[region.first : region.last + 1]}
        if stages(program, region) and not any(other.loop and other in region for other in program.regions):
            return 2 * stagings
        if any(other.loop and other in region and not stages(program, other) for other in program.regions):
            return turns if region.loop else None
        if region.loop and {"ffma", "load"} <= names:
            return turns * (K / 1024 if packed else K / 256)
        if "barrier" in names and not region.loop and region.first > 0:
            return stagings
        return None

    return trips


def experts_trips(turns: float, stagings: float, alone: float) -> Trips:
    """Regions of metal/experts.metal, of one row. turns: of 1024 columns of the chosen experts, in which x is staged so
    often. alone: how often a simdgroup does what not every one does: of one row none asks which pair comes next, and in
    down one of them stages the shared expert's x. The chosen and the shared one are two branches, of which a simdgroup
    takes one, or one behind the other."""

    def trips(program: Program, region: Region) -> float | None:
        def names(of: Region) -> set[str]:
            return {i.name for i in program.instructions[of.first : of.last + 1]}

        def takes_turns(of: Region) -> bool:
            return of.loop and {"ffma", "lload"} <= names(of)

        def in_turns(of: Region) -> bool:
            return any(takes_turns(other) and of in other for other in program.regions)

        def is_alone(of: Region) -> bool:
            return not of.loop and "lstore" in names(of) and "ffma" not in names(of) and not in_turns(of)

        branches = [
            other
            for other in program.regions
            if not other.loop and other.first > 0 and any(takes_turns(loop) and loop in other for loop in program.loops)
        ]
        share = 1 / max(1, len(branches))
        if region in branches:
            return share
        if takes_turns(region):
            return share * turns
        if not region.loop and "barrier" in names(region) and in_turns(region):
            return share * stagings
        if region.loop and "lstore" in names(region) and not any(other in region for other in program.loops):
            if in_turns(region):
                return 2 * share * stagings
            return 2 * (alone if any(is_alone(other) and region in other for other in program.regions) else 1)
        return alone if is_alone(region) else None

    return trips


def peer(bits: int) -> Entry:
    """MLX's product of one row with a packed matrix."""
    values = 8 if bits in (6, 8) else 16  # a lane takes at a time
    lane_bytes = QMV_ROWS * HIDDEN * (bits / 8 + 4 / 64) / 32

    def trips(program: Program, region: Region) -> float | None:
        longest = max(program.loops, key=lambda other: other.last - other.first)
        return HIDDEN / (32 * values) if region == longest else None

    def text() -> str:
        return mlx_source(QUANTIZED, f"affine_qmv_fast<bfloat16_t, 64, {bits}, false>")

    return Entry(f"MLX affine_qmv_fast {bits} bits", text, "kernel", 32 * QMV_SIMDGROUPS, lane_bytes, trips)


def once(simdgroups: int) -> Trips:
    """One token."""
    return lambda program, region: None


def attention_trips(simdgroups: int) -> Trips:
    """2000 rows in 16 splits of 125 rows, 4 at a time; sums of as many simdgroups as there are."""

    def trips(program: Program, region: Region) -> float | None:
        if not region.loop:
            return None
        names = {i.name for i in program.body(region)}
        return 125 / (4 * simdgroups) if "load" in names and "exp2" in names else simdgroups

    return trips


# label, case, bytes that count (states in and out, or keys and values), trips for so many simdgroups
OTHERS: list[tuple[str, str, float, Callable[[int], Trips] | None]] = [
    ("delta_mixer", "delta_mixer-b1t1h16x2d128", 32 * 128 * 128 * 8, once),
    ("gated_delta", "gated_delta-b1t1h1x2d128", 2 * 128 * 128 * 8, once),
    ("gated_delta of a prompt", "gated_delta-b1t200h1x2d128", 0, None),
    ("attention, 2000 rows", "attention-b1t1h16:4d256l2000", 4 * 2000 * 256 * 4, attention_trips),
    ("attention_prepare", "attention_prepare-b1t1h16:4d256at2000axes0", 0, None),
    ("conv1d", "conv1d-b1t1c8192", 0, None),
    ("embedding", "embedding-9b", 0, None),
    ("sample, top_k and top_p", "sample-vocabulary-top_k-top_p", 0, None),
]
