"""The Metal kernels that a network needs, compiled before its first answer.

What is needed follows from the network itself: its graphs are built for every number of rows that decodes together,
and asked for their launches. Nothing is evaluated. A kernel's template arguments are what stays the same from then on,
so no length of context and no sampling setting asks for another.

macOS keeps what it has compiled, by text and GPU, for the next process (in its file system cache), so only the first
load on a machine waits for it; there is no cache of our own beside that one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby

import mlx.core as mx
import numpy as np

from mlx_delta import _core, ops
from mlx_delta._core import DECODE_TOKENS, Launch
from mlx_delta.errors import GpuError
from mlx_delta.model.network import Network
from mlx_delta.model.rows import Span
from mlx_delta.progress import Bars, of

# Kernels of one library: each has to read its whole file again, which a few share; more would leave cores idle.
_OF_A_LIBRARY = 8


def needed(network: Network) -> list[Launch]:
    """A launch of each kernel that generation asks for: prompts of any length, up to DECODE_TOKENS rows that decode
    together, of one sequence or of several, greedy and random choice."""
    found: dict[str, Launch] = {}
    for result in _results(network):
        for launch in _core.launches(result):
            found.setdefault(launch.kernel, launch)
    return list(found.values())


def _results(network: Network) -> Iterator[list[mx.array]]:
    for rows in range(1, DECODE_TOKENS + 2):  # the last is a prompt
        cache = network.empty_cache()
        logits = network(mx.zeros((1, rows), mx.int32), cache)[:, -1]
        yield [logits, *cache.arrays()]
    for count in (1, 2):  # tokens of each of two: mixers have kernels for several sequences, of one token and of more
        caches = [network.empty_cache() for _ in range(2)]
        x, _ = network.advance(
            mx.zeros(2 * count, mx.int32), None, [Span(cache, i * count, count) for i, cache in enumerate(caches)]
        )
        assert x is not None
        yield [x, *(array for cache in caches for array in cache.arrays())]
    size = network.config.vocab_size
    yield [ops.sample(logits, None, vocab_size=size), ops.sample(logits, mx.zeros(1, mx.uint64), vocab_size=size)]


def libraries(launches: Sequence[Launch]) -> list[list[Launch]]:
    """Launches by the library that they are compiled in: all of one file, the largest first."""
    found = []
    for _, group in groupby(sorted(launches, key=lambda launch: launch.file), key=lambda launch: launch.file):
        of_file = list(group)
        parts = -(-len(of_file) // _OF_A_LIBRARY)
        found += [of_file[part::parts] for part in range(parts)]
    return sorted(found, key=len, reverse=True)


def compile_kernels(network: Network) -> None:
    """Compile what ``network`` needs, on all cores, where MLX's default device is a GPU, and check that one.

    Raises: RuntimeError in Metal's words; GpuError.
    """
    if mx.default_device() != mx.Device(mx.gpu):
        return
    launches = needed(network)
    packed = any(matrix.bits for _, matrix in network.matrices())
    if packed:
        launches += _core.launches([_of_subnormals()])
    compile_launches(launches)
    if packed:
        check_subnormals()


def compile_launches(launches: Sequence[Launch]) -> list[_core.Compiled]:
    """Compile a kernel for each launch, on all cores; those that are there already are left out."""
    compiled = []
    with Bars() as bars, ThreadPoolExecutor(os.cpu_count()) as pool:
        show, done = bars.task("Metal kernels", of("compiled")), 0
        of_library = {pool.submit(_core.compile_kernels, each): len(each) for each in libraries(launches)}
        try:
            for future in as_completed(of_library):
                compiled += future.result()
                done += of_library[future]
                show(done, len(launches))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return compiled


def check_subnormals(multiplied: Callable[[mx.array], list[mx.array]] | None = None) -> None:
    """One product of packed weights, which the Metal kernels read as float16 subnormals: a GPU that flushes those to 0
    would answer as if every weight were 0.

    multiplied: what evaluates the product; None: MLX. Raises: GpuError.
    """
    product = _of_subnormals()
    result = product if multiplied is None else multiplied(product)[0]
    (found,) = np.array(result.reshape(-1)).tolist()
    if found != _SUM:
        raise GpuError(
            f"GPU: expected float16 subnormals to be kept, found that it flushes them: a product of packed weights is "
            f"{found:g} instead of {_SUM:g}. Run on the CPU instead: mx.set_default_device(mx.cpu)"
        )


def _of_subnormals() -> mx.array:
    weight = ops.Matrix.affine(
        mx.full((1, 8), 0x77777777, mx.uint32), mx.ones((1, 1)), mx.zeros((1, 1)), bits=4, group_size=64
    )
    return ops.qmm(mx.ones((1, 64)), [weight])


_SUM = 64 * 7.0
