"""What a GPU computes, against what it should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_delta import _core, ops
from mlx_delta.bench.cases import BOUNDS, CASES, DTYPES, Case, relative_rms
from mlx_delta.bench.cases.draws import quantized
from mlx_delta.bench.whole_model import Tokens
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.kernels import check_subnormals
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.engine.sequence import TokenSequence
from mlx_delta.errors import GpuError, RedTests
from mlx_delta.example import example_checkpoint
from mlx_delta.loading import load_model
from mlx_delta.model.cache import Cache, KeyValues
from mlx_delta.selfcheck.way import Way

_MOST_FAILURES = 20
_NEIGHBOURS = 3  # to either side of the worst value


def subnormals(way: Way) -> dict[str, Any]:
    """Packed weights are read as float16 subnormals: flushed, all of them would be 0."""
    check_subnormals(lambda product: way.evaluate([product]))
    return {"this GPU keeps float16 subnormals": True}


def functions(way: Way) -> dict[str, Any]:
    """Largest errors of functions over the ranges that kernels use them in, and how single operations behave."""
    rng = np.random.default_rng(0)
    spans = {"near": (-4.0, 4.0), "wide": (-80.0, 80.0), "angles": (0.0, 3e5), "positive": (1e-3, 1e3)}
    values = {name: rng.uniform(low, high, 512).astype(np.float32) for name, (low, high) in spans.items()}
    found = {name: _probed(way, x) for name, x in values.items()}
    exact: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "exp": np.exp,
        "log": np.log,
        "cos": np.cos,
        "sin": np.sin,
        "rsqrt": lambda x: 1 / np.sqrt(x),
    }
    ranges = {"exp": "wide", "log": "positive", "cos": "angles", "sin": "angles", "rsqrt": "positive"}
    errors = {}
    for probe in _core.PROBES:
        name = probe.rpartition(":")[2]
        if name in exact:
            true = exact[name](values[ranges[name]].astype(np.float64))
            off = np.abs(found[ranges[name]][probe] - true)
            errors[probe] = {"absolute": float(off.max()), "relative": float((off / np.abs(true)).max())}
    if errors["precise::cos"]["absolute"] > 1e-5 or errors["precise::exp"]["relative"] > 1e-5:
        raise GpuError(f"GPU: expected precise functions, found errors {errors}")
    return {"errors": errors, **_single_operations(way, values["near"])}


def _single_operations(way: Way, near: np.ndarray) -> dict[str, Any]:
    edges = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 200.0, -200.0] * 4, np.float32)
    at_edges, at_near = _probed(way, edges), _probed(way, near)
    halves = _probed(way, np.arange(1, 1025, dtype=np.uint32).view(np.float32))["low half as float"]
    ties = np.array([0x3F808000, 0x3F818000] * 16, np.uint32).view(np.float32)
    rounded = _probed(way, ties)["bfloat"][:2].view(np.uint32)
    square = near.astype(np.float32) ** 2 - np.float32(1)
    groups = near.reshape(-1, 32).astype(np.float64).sum(axis=1)
    sums = at_near["simd_sum"].reshape(-1, 32)[:, 0]
    return {
        "exp of inf, -inf, NaN, 0, -0, 1e-40, 200, -200": [
            [str(value) for value in at_edges[f"{kind}::exp"][:8].tolist()] for kind in ("precise", "fast")
        ],
        "half subnormals as float": bool(np.array_equal(halves, np.arange(1, 1025) * 2.0**-24)),
        "ties to bfloat16 go to even": rounded.tolist() == [0x3F800000, 0x3F820000],
        "x*x-1 is contracted": not np.array_equal(at_near["x*x-1"], square),
        "error of simd_sum": float(np.abs(sums - groups).max()),
        "thread_elements": [at_near[f"thread_elements {i}"][:32].astype(int).tolist() for i in (0, 1)],
    }


def _probed(way: Way, values: np.ndarray) -> dict[str, np.ndarray]:
    (found,) = way.evaluate([_core.probe(mx.array(values))])
    return dict(zip(_core.PROBES, np.array(found), strict=True))


def cases(way: Way) -> dict[str, Any]:
    """Every small case of the registry against its reference, in every dtype; emulated, one of each op."""
    chosen = [case for case in CASES if not case.real]
    dtypes = list(DTYPES.values())
    if way.name == "emulate":
        chosen, dtypes = list({case.op: case for case in reversed(chosen) if _has_kernel(case)}.values()), [mx.bfloat16]
    worst: dict[str, float] = {}
    failures: list[dict[str, Any]] = []
    for case in chosen:
        for dtype in dtypes:
            arguments = case.arguments(dtype)
            try:
                found = way.evaluate(case.run(arguments))
            except ValueError as refused:  # head dims that a GPU has no kernel for
                worst[f"{case.id}: {refused}"[:200]] = 0.0
                continue
            for result, expected in zip(found, case.reference(arguments), strict=True):
                error = relative_rms(result, expected)
                name = f"{case.op} {dtype}".replace("mlx.core.", "")
                worst[name] = max(worst.get(name, 0.0), error)
                if not error <= BOUNDS[dtype]:
                    where = _worst(result, expected)
                    failures.append({"case": case.id, "dtype": str(dtype), "error": str(error), **where})
    if failures:
        raise RedTests(f"{len(failures)} results differ from their reference: {failures[:_MOST_FAILURES]}")
    return {"cases": len(chosen), "worst relative error": worst}


def _has_kernel(case: Case) -> bool:
    try:
        _core.plan(case.run(case.arguments(mx.bfloat16))[0])
    except ValueError:
        return False
    return True


def _worst(found: mx.array, expected: mx.array) -> dict[str, Any]:
    """Where two differ most, with what is beside it, as bits."""
    f, e = (np.array(a.astype(mx.float32)).reshape(-1) for a in (found, expected))
    at = int(np.argmax(np.where(np.isnan(f), np.inf, np.abs(f - e))))
    beside = slice(max(0, at - _NEIGHBOURS), at + _NEIGHBOURS + 1)
    return {
        "shape": list(found.shape),
        "index": at,
        "found": [f"{bits:08x}" for bits in f[beside].view(np.uint32)],
        "expected": [f"{bits:08x}" for bits in e[beside].view(np.uint32)],
    }


def rows(way: Way) -> dict[str, Any]:
    """A row of qmm has the same bits whatever the others are, for every width."""
    rng = np.random.default_rng(1)
    few = way.name == "emulate"
    counts: Sequence[int] = (1, 5) if few else range(1, 16)
    differ = []
    for bits in (3,) if few else (2, 3, 4, 5, 6, 8):
        weight = quantized(rng, 96, 512, bits)
        x = mx.array(rng.standard_normal((16, 512)).astype(np.float32)).astype(mx.bfloat16)
        (all_rows,) = way.evaluate([ops.qmm(x, [weight])])
        for count in counts:
            (some,) = way.evaluate([ops.qmm(x[:count], [weight])])
            if not mx.array_equal(some, all_rows[:count]):
                differ.append([bits, count])
    if differ:
        raise RedTests(f"rows of qmm: expected the bits that 16 rows have, found others at [bits, rows] {differ}")
    return {"rows": list(counts)}


def states(way: Way) -> dict[str, Any]:
    """Tokens of the example model, each set off before the one before it is read, against one evaluation each.

    States are updated in place while work that reads them is in flight. slope: bytes of memory a token, of which the
    KV cache's are told beside it.
    """
    length = {"gpu": 2000, "cpu": 200, "emulate": 60}[way.name]
    network = load_model(example_checkpoint()).network
    prompt = [1, 2, 3, 4]
    cache, next_, stepwise = Cache.empty(network.config), mx.array([prompt]), []
    for _ in range(length):
        logits = network(next_, cache, last_only=True)[:, 0]
        token = ops.sample(logits, vocab_size=network.config.vocab_size)
        mx.eval(token, *cache.arrays())
        next_ = token[None]
        stepwise += np.array(token).tolist()
    sampler = Sampler(SamplingParams(), network.config.vocab_size)
    sequence = TokenSequence(prompt, Cache.empty(network.config), sampler, Tokens(), most=length)
    memory, pipelined = [], []
    for token_id in Engine(network).run(sequence):
        pipelined.append(token_id)
        memory.append(mx.get_active_memory())
    if pipelined != stepwise:
        first = next(i for i, (a, b) in enumerate(zip(pipelined, stepwise, strict=True)) if a != b)
        raise RedTests(f"states: expected the tokens that come one by one, found others pipelined from {first} on")
    third = length // 3
    kept = sum(
        2 * a.nbytes // a.shape[2]
        for layer in sequence.cache.layers
        if isinstance(layer, KeyValues)
        for a in layer.arrays()[:1]
    )
    return {
        "tokens": length,
        "slope": round((memory[-1] - memory[third]) / (length - third)),
        "KV cache a token": kept,
        "kernels compiled late": _core.kernels_compiled_late(),
    }
