"""Shares of a model: what each rank reads and holds, and that together they give what the whole model does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5.shares import shares, stages
from mlx_delta.arch.registry import parse_config
from mlx_delta.bench.random_model import recipe_plans
from mlx_delta.bench.sizes import CONFIGS
from mlx_delta.checkpoint.finite import read_finite
from mlx_delta.checkpoint.safetensors import SafetensorsSource
from mlx_delta.checkpoint.tensors import Tensor
from mlx_delta.conversion.pipeline import convert
from mlx_delta.distributed.loading import load_shared
from mlx_delta.distributed.network import SharedNetwork
from mlx_delta.distributed.ranks import Ranks
from mlx_delta.errors import RankError
from mlx_delta.loading import load_model
from mlx_delta.model.cache import Cache, KeyValues
from support import TINY
from support.experts import write_experts
from support.ranks import Threads, on_ranks

PROMPT, STEPS = list(range(40, 70)), 3


def together(path: Path, size: int, use: Callable[[SharedNetwork], Any], *, by_layers: bool = False) -> list[Any]:
    """What ``use`` gives on each rank."""

    def run(ranks: Threads) -> Any:
        return use(load_shared(open_checkpoint(path), mx.float32, ranks, read))

    return on_ranks(size, run, by_layers=by_layers)


def read(tensors: dict[str, Tensor]) -> dict[str, mx.array]:
    return read_finite(tensors.values(), TINY)


def logits(network: Any) -> np.ndarray:
    """A prompt's, and those of tokens after it."""
    cache = Cache.empty(network.config)
    found = [network(mx.array([PROMPT]), cache)]
    found += [network.decode(mx.array([token]), [cache])[None] for token in PROMPT[:STEPS]]
    *_, x = network.hidden_states(mx.array([PROMPT]), Cache.empty(network.config))
    hidden = network.draft(mx.array([PROMPT[1:]]), network.hidden(x)[:, :-1], KeyValues(), 0)
    found.append(network.draft_logits(hidden))
    return np.array(mx.concatenate(found, axis=1))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(TINY, tmp_path_factory.mktemp("quantized") / "q4", bits=4, keep_mtp=True).path


@pytest.fixture(scope="module")
def quantized_experts(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(experts, tmp_path_factory.mktemp("quantized") / "experts", bits=4, keep_mtp=True).path


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("kind", ["plain", "quantized", "experts", "quantized_experts"])
def test_together_they_are_the_model(kind: str, size: int, request: pytest.FixtureRequest) -> None:
    """Among four, two ranks have no attention heads. The experts have two units of columns, or one where they are
    quantized, and the shared one four, or two: so there are ranks with none of the one, or of the other, or of both."""
    path = TINY if kind == "plain" else request.getfixturevalue(kind)
    whole = load_model(path, "float32").network
    checkpoint = open_checkpoint(path)
    found = together(path, size, lambda network: (logits(network), network.weight_bytes))
    expected = logits(whole)
    for got, held in found:
        # Experts of random weights magnify the last digits: trained ones stay within 1e-5 too (docs).
        assert np.abs(got - expected).max() < (1e-5 if "experts" not in kind else 3e-6 * np.abs(expected).max())
        assert np.array_equal(got, found[0][0])
        if "experts" in kind:
            continue
        total = sum(tensor.nbytes for tensor in {**checkpoint.text_tensors(), **checkpoint.mtp_tensors()}.values())
        assert max(held) <= total / size + 0.05 * total
        assert max(held) <= 1.1 * min(held)
        assert sum(held) < 1.15 * total  # key heads, keys and values that more than one rank reads; norms


@pytest.mark.parametrize(("kind", "size"), [("plain", 4), ("quantized", 2), ("quantized_experts", 3)])
def test_by_layers_they_give_the_bits_of_the_model(kind: str, size: int, request: pytest.FixtureRequest) -> None:
    path = TINY if kind == "plain" else request.getfixturevalue(kind)
    expected = logits(load_model(path, "float32").network)
    checkpoint = open_checkpoint(path)
    total = sum(tensor.nbytes for tensor in {**checkpoint.text_tensors(), **checkpoint.mtp_tensors()}.values())
    for got, held in together(path, size, lambda network: (logits(network), network.weight_bytes), by_layers=True):
        assert np.array_equal(got, expected)
        assert max(held) <= total / size + 0.05 * total


def test_a_rank_reads_its_part_alone(quantized: Path) -> None:
    checkpoint = open_checkpoint(quantized)
    tensors = checkpoint.text_tensors()
    for name in ("layers.0.mlp.down_proj.weight", "layers.0.linear_attn.in_proj_qkv.scales", "embed_tokens.weight"):
        tensor = tensors[f"language_model.model.{name}"]
        assert tensor.load_part is not None
        whole = np.array(tensor.load().astype(mx.float32))
        for axis, ranges in ((0, ((1, 3), (7, 8))), (-1, ((0, 2), (3, 4))), (0, ((5, 5), (6, 9)))):
            expected = np.concatenate([whole.take(range(*part), axis) for part in ranges], axis)
            assert np.array_equal(np.array(tensor.load_part(axis, ranges).astype(mx.float32)), expected)


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_reads_what_it_holds(size: int, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"whole": 0, "part": 0, "calls": 0}

    def counted(kind: str, of: Callable[..., Any], nbytes: Callable[[Any], int]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            found = of(*arguments)
            asked[kind] += nbytes(found)
            return found

        return count

    monkeypatch.setattr(SafetensorsSource, "load", counted("whole", SafetensorsSource.load, lambda x: x.nbytes))
    monkeypatch.setattr(
        SafetensorsSource, "load_part", counted("part", SafetensorsSource.load_part, lambda x: x.nbytes)
    )
    monkeypatch.setattr(os, "preadv", counted("calls", os.preadv, int))
    checkpoint = open_checkpoint(quantized)
    total = sum(tensor.nbytes for tensor in {**checkpoint.text_tensors(), **checkpoint.mtp_tensors()}.values())
    held = together(quantized, size, lambda network: network.weight_bytes)[0]
    assert sum(held) <= asked["whole"] + asked["part"] < 1.02 * sum(held)  # convolutions are read whole
    assert asked["whole"] + asked["part"] < size * (total / size + 0.05 * total)
    assert 0.5 * asked["part"] < asked["calls"] <= asked["part"]  # pieces of a page are mapped


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_shares_cover_every_tensor_once(ranks: int) -> None:
    """Heads, columns and rows; key heads that are read on several ranks are there more than once."""
    checkpoint = open_checkpoint(TINY)
    tensors = checkpoint.text_tensors()
    parts = shares(checkpoint.config, ranks, {name: tensor.nbytes for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        found = [share.part(name) for share in parts]
        if found[0] is None:
            assert tensor.nbytes < 8192
            continue
        length = tensor.shape[found[0].axis]
        taken = [i for part in found if part is not None for start, stop in part.ranges for i in range(start, stop)]
        assert set(taken) == set(range(length))
        assert (
            len(taken) == length or "in_proj_qkv" in name or "conv1d" in name or ".k_proj" in name or ".v_proj" in name
        )


# What the published config of Qwen3.5-397B-A17B has other than the 122B's.
_397B = {"hidden_size": 4096, "num_hidden_layers": 60, "num_experts": 512, "num_experts_per_tok": 10}


@pytest.mark.parametrize("size", [*CONFIGS, "397B-A17B"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_shares_of_the_published_sizes_are_even(size: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 4 bits: what a rank holds, and reads of the files."""
    large = CONFIGS["122B-A10B"]
    monkeypatch.setitem(CONFIGS, "397B-A17B", {**large, "text_config": {**large["text_config"], **_397B}})
    config, plans = recipe_plans(size, None, 4)
    config = parse_config({**config.raw, "quantization": {"bits": 4, "group_size": 64}})
    sizes = {plan.name: plan.nbytes for plan in plans}
    total = sum(sizes.values())
    for share in (*shares(config, ranks, sizes), *stages(config, ranks, sizes)):
        held = 0.0
        for plan in plans:
            part = share.part(plan.name)
            taken = 0 if part is None else sum(stop - start for start, stop in part.ranges)
            held += plan.nbytes * (1 if part is None else taken / plan.shape[part.axis])
        assert held <= total / ranks + 0.05 * total


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_rank_reads_its_part_of_experts(one_by_one: bool, tmp_path: Path) -> None:
    tensors = open_checkpoint(write_experts(tmp_path / "model", one_by_one=one_by_one)).text_tensors()
    for name in ("gate_proj", "up_proj", "down_proj"):
        tensor = tensors[f"language_model.model.layers.1.mlp.switch_mlp.{name}.weight"]
        whole = np.array(tensor.load().astype(mx.float32))
        assert tensor.load_part is not None
        for axis in (-3, -2, -1):
            expected = np.concatenate([whole.take(range(1, 3), axis), whole.take(range(5, 8), axis)], axis)
            assert np.array_equal(np.array(tensor.load_part(axis, ((1, 3), (5, 8))).astype(mx.float32)), expected)


class Lost(Ranks):
    """Rank 0 of two, of whom the other's connection is lost: its place holds what was there before."""

    def __init__(self) -> None:
        self.rank, self.size, self._calls = 0, 2, 0

    def gather(self, x: mx.array) -> mx.array:
        return mx.stack([x, mx.zeros_like(x)])

    def sum(self, x: mx.array) -> mx.array:
        return x + 1


def test_what_a_lost_connection_leaves_is_not_taken_for_an_answer() -> None:
    """As MLX's ring leaves it, with no error."""
    assert np.isnan(np.array(Lost().columns(mx.ones((3, 1, 4)), (4, 4)))).all()
    lost = "rank 0 of 2: expected all ranks to go on, found a connection lost"
    with pytest.raises(RankError, match=lost):
        Lost().numbers(5)
    border = Lost().exchange((0, 7))
    with pytest.raises(RankError, match=lost):
        border()
    with pytest.raises(RankError, match=lost):
        Lost().from_first(b"abc", 3)
    with pytest.raises(RankError, match=lost):
        Lost().check_same({"mlx": "0.32.4"})


def test_ranks_that_are_not_alike_are_told() -> None:
    def check(ranks: Ranks) -> str:
        with pytest.raises(RankError) as raised:
            ranks.check_same({"mlx": "0.32.4", "the checkpoint": f"of rank {ranks.rank}"})
        return str(raised.value)

    for error in on_ranks(2, check):
        assert error.startswith("the checkpoint: expected the same on all 2 ranks, found another on [1]")


def start(directory: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """``mlx-delta generate`` on two ranks over the ring, as mlx.launch starts them."""
    with socket.socket() as a, socket.socket() as b:
        for each in (a, b):
            each.bind(("127.0.0.1", 0))
        hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in (a, b)]
    (directory / "hosts.json").write_text(json.dumps(hosts))
    environment = {**os.environ, "MLX_HOSTFILE": str(directory / "hosts.json")}
    command = [sys.executable, "-m", "mlx_delta", "generate", "--model", str(TINY), *arguments]
    return [
        subprocess.Popen(
            command,
            env={**environment, "MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_two_processes_generate(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    hot = ["--temperature", "50", "--top-k", "0", "--top-p", "1", "--seed", "1", "--max-tokens", "200"]
    ended += start(tmp_path, "--prompt", "What is the capital of Italy?", *hot, "--json")
    first, second = [process.communicate(timeout=120)[0] for process in ended]
    assert [process.returncode for process in ended] == [0, 0]
    assert second == ""
    answer = json.loads(first)
    assert answer["ranks"] == 2
    assert max(answer["weight_bytes"]) < 1.05 * sum(answer["weight_bytes"]) / 2
    assert first.isascii()  # what mlx.launch passes on whole
    assert not answer["text"].isascii()


def test_a_rank_that_dies_ends_the_others(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    ended += start(tmp_path, "--prompt", "import os", "--raw", "--temperature", "0", "--max-tokens", "8000")
    assert ended[0].stdout is not None
    assert ended[0].stdout.read(1)
    ended[1].send_signal(signal.SIGINT)  # which rank 0 alone would hear
    assert len(ended[0].stdout.read(100)) == 100
    ended[1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    _, errors = ended[0].communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert ended[0].returncode == 1
    assert "rank 0 of 2: expected all ranks to go on, found" in errors
    assert "Traceback" not in errors
