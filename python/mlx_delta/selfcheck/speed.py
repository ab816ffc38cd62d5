"""How fast a GPU is: memory, ops beside MLX's own, a whole token, and what command buffers and wired memory do."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlx_delta import ops
from mlx_delta.bench.cases import cases_of
from mlx_delta.bench.cases.draws import quantized
from mlx_delta.bench.kernels import Refusal, time_cases
from mlx_delta.bench.random_model import random_network
from mlx_delta.bench.timing import ReadBandwidth
from mlx_delta.bench.whole_model import bench_decode
from mlx_delta.example import example_checkpoint
from mlx_delta.loading import load_model
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from mlx_delta.selfcheck.way import Way

_REPEATS = 5
# (operations, "MB") of a command buffer: MLX's own choice, and larger ones.
_LIMITS = [None, (50, 50), (100, 100), (200, 200), (400, 400), (1000, 1000)]


def bandwidth(way: Way) -> dict[str, Any]:
    """GB/s of a read and of a copy by size, and seconds of what has no size: a launch behind another, an evaluation."""
    sizes = [1 << n for n in ((22, 24, 26, 28, 30) if way.name == "gpu" else (22, 24))]
    found: dict[str, Any] = {"read": {}, "copy": {}}
    for size in sizes:
        data = mx.zeros(size // 4, mx.float32) + 1
        mx.eval(data)
        times = max(1, (1 << 28) // size)
        read, copy = evaluated(mx.max, [data] * times), evaluated(lambda a: a + 1, [data] * times)
        found["read"][size] = round(size * times / read / 1e9, 1)
        found["copy"][size] = round(2 * size * times / copy / 1e9, 1)
    small = mx.zeros(32)
    mx.eval(small)
    found["us a launch"] = round(1e6 * evaluated(lambda x: _chain(x, 512), [small]) / 512, 2)
    found["us an evaluation"] = round(1e6 * evaluated(lambda x: x + 1, [small]), 1)
    return found


def evaluated(op: Callable[[Any], mx.array], given: Sequence[Any]) -> float:
    """Seconds of one evaluation of ``op`` of each."""
    return _seconds(lambda: mx.eval([op(each) for each in given]))


def _chain(x: mx.array, length: int) -> mx.array:
    for _ in range(length):
        x = mx.abs(x)
    return x


def _seconds(run: Callable[[], None]) -> float:
    """The median of a few runs, after one."""
    run()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def times(way: Way) -> dict[str, Any]:
    """Each op at published shapes, beside a read of memory in turn with it; and products beside MLX's own."""
    sizes = ("9B", "0.8B") if way.name == "gpu" else ("0.8B",)
    read = ReadBandwidth()
    rows: dict[str, Any] = {}
    for size in sizes:
        chosen = [case for case in cases_of(size) if case.real and not case.name.endswith("-m512")]
        if way.name != "gpu":
            chosen = [case for case in chosen if "out_proj" in case.name]
        for row in time_cases(chosen, read, _REPEATS):
            rows[f"{size} {row.case}"] = (
                {"refused": row.refused}
                if isinstance(row, Refusal)
                else {"ms": round(row.ms, 4), "GB/s": round(row.gbs, 1), "read GB/s": round(row.read_gbs, 1)}
            )
    return {"ops": rows, "products": _products(12288 if way.name == "gpu" else 512)}


def _products(N: int, K: int = 4096) -> dict[str, Any]:
    """ms of one product of N x K weights, ours and MLX's, by width and rows; sets of weights that no cache holds."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = {}
    for bits in (2, 3, 4, 5, 6, 8):
        uncached = (1 << 28) // (N * K * bits // 8) if N > 512 else 2
        sets = [quantized(rng, N, K, bits) for _ in range(max(2, uncached))]
        mx.eval([a for one in sets for a in (one.weight, one.scales, one.biases)])
        for M in (1, 2, 4, 8, 16):
            x = mx.ones((M, K), mx.bfloat16)
            ours = evaluated(lambda one, x=x: ops.qmm(x, [one]), sets)  # type: ignore[misc]
            theirs = evaluated(lambda one, x=x: _mlx_product(x, one), sets)  # type: ignore[misc]
            found[f"{bits} bits, {M} rows"] = [round(1e3 * each / len(sets), 4) for each in (ours, theirs)]
    return found


def _mlx_product(x: mx.array, w: ops.Matrix) -> mx.array:
    assert w.scales is not None
    return mx.quantized_matmul(x, w.weight, w.scales, w.biases, True, w.group_size, w.bits)


def _network(way: str, *sizes: str) -> tuple[str, Network]:
    """The first size whose weights take a quarter of the memory at most; on a CPU the example model."""
    if way != "gpu":
        return "example", load_model(example_checkpoint()).network
    memory = int(mx.device_info()["memory_size"])
    billions = {"9B": 9, "2B": 2, "0.8B": 0.8}
    size = next((each for each in sizes if billions[each] * 0.6e9 * 4 <= memory), "0.8B")
    return size, random_network(size)


def token(way: Way) -> dict[str, Any]:
    """Decoding by a random model of a published size; seconds of the first tokens, ms of building one's graph."""
    size, network = _network(way.name, "9B", "2B")
    firsts = []
    for _ in range(3):
        cache = Cache.empty(network.config)
        start = time.perf_counter()
        mx.eval(network(mx.array([[1]]), cache), *cache.arrays())
        firsts.append(round(time.perf_counter() - start, 4))
    start = time.perf_counter()
    for _ in range(10):
        network(mx.array([[1]]), cache.copy())
    graph = (time.perf_counter() - start) / 10
    contexts, tokens = ([0, 2000], 64) if way.name == "gpu" else ([0], 4)
    rows = bench_decode(network, contexts=contexts, tokens=tokens, rounds=3, bandwidth=ReadBandwidth())
    return {
        "size": size,
        "first tokens": firsts,
        "ms of a graph": round(1e3 * graph, 3),
        "decode": [row.as_dict() for row in rows],
    }


def limits(way: Way) -> dict[str, Any]:
    """Tokens a second by the limits of a command buffer, with memory wired and not: each in a process of its own."""
    found = {}
    for limit in _LIMITS if way.name == "gpu" else _LIMITS[:2]:
        for wired in (False, True) if way.name == "gpu" else (False,):
            environment = dict(os.environ)
            if limit is not None:
                environment |= {"MLX_MAX_OPS_PER_BUFFER": str(limit[0]), "MLX_MAX_MB_PER_BUFFER": str(limit[1])}
            command = [
                sys.executable,
                "-c",
                f"from mlx_delta.selfcheck.speed import decode_of_child; decode_of_child({way.name!r}, {wired})",
            ]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            name = f"{limit or 'as MLX has them'}{', wired' if wired else ''}"
            found[name] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-300:]}
    return found


def decode_of_child(way: str, wired: bool) -> None:
    """What a process of ``limits`` does."""
    mx.set_default_device(mx.Device(mx.gpu if way == "gpu" else mx.cpu))
    if wired:
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    size, network = _network(way, "2B")
    (row,) = bench_decode(network, contexts=[0], tokens=32 if way == "gpu" else 4, rounds=2, bandwidth=ReadBandwidth())
    print(json.dumps({"size": size, "tokens a second": round(row.tokens_per_second, 1)}))
