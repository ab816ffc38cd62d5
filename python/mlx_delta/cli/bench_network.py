"""The network that a bench runs: a model's, or one of random weights in a published size's shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_delta.cli.ranks import check_alone
from mlx_delta.errors import ArgumentError
from mlx_delta.progress import Bars, megabytes

if TYPE_CHECKING:
    from mlx_delta.distributed.ranks import Ranks
    from mlx_delta.model.network import Network


def open_network(
    shape: str,
    layers: int | None,
    directory: str | None,
    ranks: Ranks | None = None,
    kv_bits: int | None = None,
) -> tuple[Network, dict[str, Any]]:
    """What to run, with its facts, once the ops are known to be right."""
    from mlx_delta import _core
    from mlx_delta.bench.checks import check_ops
    from mlx_delta.bench.memory import reset_peak
    from mlx_delta.bench.sizes import size_named
    from mlx_delta.loading import check_kv_bits

    if directory is not None and layers is not None:
        raise ArgumentError(f"layers: expected it with --shape, found it with --model {directory}")
    size = size_named(shape)
    check_kv_bits(kv_bits)
    if ranks is None:
        check_alone("this one")
    check_ops()
    facts: dict[str, Any] = {"isa": _core.cpu_isa(), "threads": _core.cpu_threads()}
    if directory is not None:
        return _loaded(directory, facts, ranks, kv_bits)
    from mlx_delta.bench.random_model import random_network

    with Bars() as bars:
        network = random_network(size, layers=layers, progress=bars.task("random weights", megabytes))
    reset_peak()  # making the weights took more memory than having them
    return replace(network, kv_bits=kv_bits), {
        "model": f"{size}, random weights",
        "layers": network.config.num_layers,
        **facts,
        "load_seconds": None,
    }


def _loaded(
    model: str, facts: dict[str, Any], ranks: Ranks | None, kv_bits: int | None
) -> tuple[Network, dict[str, Any]]:
    import time

    from mlx_delta.bench.memory import reset_peak
    from mlx_delta.hub.path import model_path
    from mlx_delta.loading import load_model

    directory = model_path(model)
    reset_peak()
    start = time.perf_counter()
    network = load_model(directory, ranks=ranks, kv_bits=kv_bits).network
    seconds = time.perf_counter() - start
    facts |= {"model": model, "layers": network.config.num_layers, "load_seconds": seconds}
    if ranks is not None:
        facts["ranks"] = ranks.size
    return network, facts
