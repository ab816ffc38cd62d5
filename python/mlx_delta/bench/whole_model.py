"""Decode and prefill of a whole network, in rounds, with a plain read of memory before each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import mlx.core as mx
import numpy as np

from mlx_delta.bench.memory import peak_arrays, peak_resident
from mlx_delta.bench.timing import ReadBandwidth, Time
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.likelihood import Likelihood
from mlx_delta.engine.prefill import prefill
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.engine.sequence import Clock, TokenSequence
from mlx_delta.errors import RedTests
from mlx_delta.model.cache import Cache, DeltaState, KeyValues, in_huge_pages, kv_bytes
from mlx_delta.model.network import Network
from mlx_delta.ops import quantize_kv


@dataclass(frozen=True)
class Decode:
    """Decoding of one sequence, greedily, behind ``context`` tokens.

    bytes_per_token: of weights. cache_bytes_per_token: states and the keys and values of ``context`` tokens, read once.
    bandwidth_share: of the read bandwidth, by the weights alone. Peaks: what decoding held at most, weights and all, in
    arrays and in the process (None where the system does not tell).
    """

    tokens_per_second: float
    tokens_per_second_mad: float
    rounds: int
    tokens: int
    context: int
    bytes_per_token: int
    cache_bytes_per_token: int
    read_bandwidth_gbs: float
    bandwidth_share: float
    weight_bytes: int
    peak_memory_bytes: int
    peak_resident_bytes: int | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Tokens:
    """Reads a sequence to its end: its tokens are its events."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.finish_reason: str | None = None

    def allowed(self) -> None:
        return None

    def push(self, token: int, likelihood: Likelihood | None) -> list[int]:
        return [token]


@dataclass(frozen=True)
class Prefill:
    """The prompt's pass: all its tokens, and the logits of the last one."""

    tokens_per_second: float
    tokens_per_second_mad: float
    rounds: int
    tokens: int
    context: int
    read_bandwidth_gbs: float
    weight_bytes: int
    peak_memory_bytes: int
    peak_resident_bytes: int | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def bench_decode(
    network: Network, *, contexts: Sequence[int], tokens: int, rounds: int, bandwidth: ReadBandwidth
) -> list[Decode]:
    """For each of ``contexts`` the median of ``rounds`` rounds of ``tokens`` tokens, in turn.

    A context's cache is filled with random values. Raises: RedTests when logits are not finite.
    """
    sampler = Sampler(SamplingParams(), network.config.vocab_size)
    caches = [filled_cache(network, n, n + (rounds + 1) * (tokens + 1) + 1) for n in contexts]
    for cache in caches:
        _checked(network(mx.array([[1]]), cache)[:, 0])
    engine = Engine(network)
    times: list[list[float]] = [[] for _ in contexts]
    for index in range(rounds + 1):
        for cache, seconds in zip(caches, times, strict=True):
            bandwidth.sample()
            prompt = [1] * (cache.offset + 1)  # of which the cache covers all but the last
            generated = engine.run(TokenSequence(prompt, cache, sampler, Tokens(), most=tokens + 1))
            next(generated)
            start = time.perf_counter()
            for _ in generated:
                pass
            if index:  # the first round warms up
                seconds.append((time.perf_counter() - start) / tokens)
    read = bandwidth.median()
    return [
        _decoded(network, n, tokens, Time.of(seconds), read, bandwidth)
        for n, seconds in zip(contexts, times, strict=True)
    ]


def _decoded(
    network: Network, context: int, tokens: int, seconds: Time, read: float, bandwidth: ReadBandwidth
) -> Decode:
    return Decode(
        tokens_per_second=1 / seconds.median,
        tokens_per_second_mad=seconds.mad / seconds.median**2,
        rounds=seconds.runs,
        tokens=tokens,
        context=context,
        bytes_per_token=network.bytes_per_token,
        cache_bytes_per_token=_cache_bytes(network, context),
        read_bandwidth_gbs=read / 1e9,
        bandwidth_share=network.bytes_per_token / seconds.median / read,
        weight_bytes=weight_bytes(network),
        peak_memory_bytes=peak_arrays() - bandwidth.nbytes,
        peak_resident_bytes=_without(peak_resident(), bandwidth),
    )


def bench_prefill(network: Network, *, context: int, tokens: int, rounds: int, bandwidth: ReadBandwidth) -> Prefill:
    """The median of ``rounds`` prompts of ``tokens`` random tokens behind ``context`` others."""
    rng = np.random.default_rng(0)
    prompt = mx.array(rng.integers(0, network.config.vocab_size, size=(1, tokens)))
    times = []
    for index in range(rounds + 1):
        cache = filled_cache(network, context, context + tokens)
        bandwidth.sample()
        start = time.perf_counter()
        logits = prefill(network, prompt, cache)
        mx.eval(logits)
        if index:  # the first warms up
            times.append((time.perf_counter() - start) / tokens)
        _checked(logits)
    seconds = Time.of(times)
    return Prefill(
        tokens_per_second=1 / seconds.median,
        tokens_per_second_mad=seconds.mad / seconds.median**2,
        rounds=rounds,
        tokens=tokens,
        context=context,
        read_bandwidth_gbs=bandwidth.median() / 1e9,
        weight_bytes=weight_bytes(network),
        peak_memory_bytes=peak_arrays() - bandwidth.nbytes,
        peak_resident_bytes=_without(peak_resident(), bandwidth),
    )


def filled_cache(network: Network, length: int, room: int) -> Cache:
    """The cache of one sequence after ``length`` tokens, with random values and room for ``room`` tokens.

    What prefilling so many tokens would leave, as far as time goes.
    """
    config, dtype, cache = network.config, network.dtype, network.empty_cache()
    cache.offset = length
    if not length:
        return cache
    key = mx.random.key(0)
    for layer in cache.layers:
        key, first, second = mx.random.split(key, 3)
        if isinstance(layer, DeltaState):
            heads = (1, config.linear_num_value_heads, config.linear_value_head_dim, config.linear_key_head_dim)
            layer.conv = mx.random.normal((1, config.linear_conv_kernel_dim - 1, config.conv_dim), dtype, key=first)
            layer.delta = 0.1 * mx.random.normal(heads, key=second)
        else:
            assert isinstance(layer, KeyValues)
            rows = (1, config.num_key_value_heads, -(-room // 256) * 256, config.head_dim)
            drawn = (mx.random.normal(rows, dtype, key=each) for each in (first, second))
            layer.keys, layer.values = (in_huge_pages(x if layer.bits is None else quantize_kv(x)) for x in drawn)
        mx.eval(layer.arrays())
    return cache


def weight_bytes(network: Network) -> int:
    """Of the matrices: all of them, the embedding once."""
    matrices = {id(matrix): matrix.nbytes for _, matrix in network.matrices()}
    return sum(matrices.values()) + (0 if network.config.tie_word_embeddings else network.embed_tokens.nbytes)


def _without(nbytes: int | None, bandwidth: ReadBandwidth) -> int | None:
    return None if nbytes is None else nbytes - bandwidth.nbytes


def _cache_bytes(network: Network, context: int) -> int:
    config = network.config
    linear = config.layer_types.count("linear_attention")
    state = 4 * config.value_dim * config.linear_key_head_dim
    rows = kv_bytes(config, network.dtype, network.kv_bits)
    return linear * state + (config.num_layers - linear) * context * rows


def _checked(logits: mx.array) -> mx.array:
    """Evaluated. Raises: RedTests unless all are finite."""
    if not mx.all(mx.isfinite(logits)).item():
        raise RedTests("logits: expected finite values, found NaN or infinity")
    return logits
