"""The Metal kernels that a network needs, compiled before its first answer.

What is needed follows from the network itself: its graphs are built for every number of rows that decodes together,
and asked for their launches. Nothing is evaluated. A kernel's template arguments are what stays the same from then on,
so no length of context and no sampling setting asks for another.

macOS keeps what it has compiled, by text and GPU, for the next process (in its file system cache), so only the first
load on a machine waits for it; there is no cache of our own beside that one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby

import mlx.core as mx

from mlx_delta import _core, ops
from mlx_delta._core import DECODE_TOKENS, Launch
from mlx_delta.model.cache import Cache
from mlx_delta.model.network import Network
from mlx_delta.progress import Bars, of

# Kernels of one library: each has to read its whole file again, which a few share; more would leave cores idle.
_OF_A_LIBRARY = 8


def needed(network: Network) -> list[Launch]:
    """A launch of each kernel that generation asks for: prompts of any length, up to DECODE_TOKENS rows that decode
    together, greedy and random choice."""
    found: dict[str, Launch] = {}
    for result in _results(network):
        for launch in _core.launches(result):
            found.setdefault(launch.kernel, launch)
    return list(found.values())


def _results(network: Network) -> Iterator[list[mx.array]]:
    for rows in range(1, DECODE_TOKENS + 2):  # the last is a prompt
        cache = Cache.empty(network.config)
        logits = network(mx.zeros((1, rows), mx.int32), cache)[:, -1]
        yield [logits, *cache.arrays()]
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
    """Compile what ``network`` needs, on all cores, where MLX's default device is a GPU.

    Raises: RuntimeError in Metal's words.
    """
    if mx.default_device() != mx.Device(mx.gpu):
        return
    launches = needed(network)
    with Bars() as bars, ThreadPoolExecutor(os.cpu_count()) as pool:
        show, done = bars.task("Metal kernels", of("compiled")), 0
        of_library = {pool.submit(_core.compile_kernels, each): len(each) for each in libraries(launches)}
        try:
            for future in as_completed(of_library):
                future.result()
                done += of_library[future]
                show(done, len(launches))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
