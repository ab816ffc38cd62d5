"""The benches: what they refuse, what they report, and that random models are what they claim to be."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from bench import peers
from bench.random_gguf import write_gguf
from gguf import GGUFReader
from gguf.quants import dequantize
from typer.testing import CliRunner

from mlx_delta import _core, ops
from mlx_delta.arch.qwen3_5.gguf_names import canonical_from_gguf, gguf_from_canonical
from mlx_delta.bench import timing
from mlx_delta.bench.cases import CASES, cases_of
from mlx_delta.bench.checks import check, check_ops
from mlx_delta.bench.kernels import Row, Summary, steps, summarize
from mlx_delta.bench.random_model import random_network, recipe_plans, write_model
from mlx_delta.bench.sizes import CONFIGS
from mlx_delta.bench.timing import Time, last_level_cache, working_set
from mlx_delta.bench.whole_model import filled_cache
from mlx_delta.cli.main import app
from mlx_delta.engine.prefill import prefill
from mlx_delta.errors import RedTests
from mlx_delta.loading import load_model


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 0.8B in four layers with a small vocabulary and MLP."""
    text = {**CONFIGS["0.8B"]["text_config"], "num_hidden_layers": 4, "vocab_size": 4096, "intermediate_size": 512}
    monkeypatch.setitem(CONFIGS, "0.8B", {"text_config": text})


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def wrong_conv1d(*args: Any, **options: Any) -> tuple[mx.array, ...]:
    y, state = ops.conv1d_reference(*args, **options)
    return 1.01 * y, state


def test_kernels_report_bytes_times_and_shares() -> None:
    rows = objects(run("kernels", "--shape", "0.8B", "--filter", "gate_up", "--repeats", "3", "--json"))
    assert [row["case"] for row in rows] == [f"qmm-0.8b-gate_up{end}" for end in ("", "-m8", "-m512")]
    row = rows[0]
    weights = 2 * 512 * 1024 * 3.5 / 8  # gate and up at 3 bits, with a half bit of scales and biases
    small = 2 * 1024 + 4 * 1024 + 2 * 512  # x, its norm, the result
    assert row["bytes"] == weights + small
    assert row["bits"] == "3"
    assert row["flops"] == 2 * 2 * 512 * 1024
    assert row["gbs"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
    assert row["share"] == pytest.approx(row["gbs"] / row["read_gbs"])
    assert 0 < row["error"] < 4e-3


def test_a_summary_of_the_matrices() -> None:
    def row(case: str, ms: float, share: float) -> Row:
        return Row(case, "3", 1, 1, ms, 0.0, 1.0, 1.0, share, 0.0)

    rows = [row("qmm-9b-down", 1.0, 0.9), row("qmm-9b-qkv", 2.0, 0.4), row("conv1d-x", 1.0, 0.1)]
    eight = [row("qmm-9b-down-m8", 2.0, 0.5), row("qmm-9b-qkv-m8", 16.0, 0.1), row("qmm-9b-qkv-m512", 1.0, 0.0)]
    assert summarize(rows) == Summary(pytest.approx(0.6), 0.4, None, None)
    assert summarize([*rows, *eight]) == Summary(pytest.approx(0.6), 0.4, pytest.approx(4.0), 8.0)
    assert summarize(rows[2:]) is None


def test_kernels_refuse_what_differs_from_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "conv1d", wrong_conv1d)
    error = run("kernels", "--shape", "0.8b", "--filter", "conv1d", "--repeats", "1", code=1)
    assert "1 of 1 cases differ" in error
    assert "expected a relative error of at most 4e-03, found 1.0e-02" in error


@pytest.mark.parametrize("command", ["decode", "prefill"])
def test_nothing_is_reported_while_an_op_is_wrong(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "conv1d", wrong_conv1d)
    assert "conv1d-" in run(command, "--shape", "0.8b", code=1)


def test_a_result_of_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.op == "conv1d")
    monkeypatch.setattr(ops, "conv1d", lambda *args, **options: (mx.array(mx.nan),) * 2)
    with pytest.raises(RedTests, match="found nan"):
        check(case, case.arguments(mx.bfloat16))


def test_ops_are_checked_in_small_and_at_any_shape() -> None:
    assert check_ops() == sum(not case.real for case in CASES)
    for case in cases_of("0.8B"):
        if case.real and not case.name.endswith("16000"):
            check(case, case.arguments(mx.bfloat16))


@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_every_op_is_timed_by_steps(op: str) -> None:
    case = next(case for case in CASES if case.op == op and not case.real)
    arguments = case.arguments(mx.bfloat16)
    before = {name: arguments[name] for name in case.states}
    results = case.step(arguments)
    assert len(results) > len(case.states)
    assert all(arguments[name] is not old for name, old in before.items())


@pytest.mark.parametrize("op", ["attention_prepare", "delta_mixer", "conv1d"])
def test_timed_steps_update_their_states_in_place(op: str) -> None:
    """As in decoding: copying a cache would be timed instead of the op."""
    case = next(case for case in CASES if case.op == op and case.real)
    sets = [case.arguments(mx.bfloat16) for _ in range(2)]
    mx.eval(sets)
    largest = max(one[name].nbytes for one in sets for name in case.states)
    more = []
    for _ in range(6):  # what the warm-up leaves must not be held either
        todo = steps(case, sets, rounds=3)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(todo)
        more.append(mx.get_peak_memory() - before - sum(result.nbytes for result in todo[: 3 * len(sets)]))
    # The least: on a busy machine MLX may free something late; a state that is copied is copied every time, whole.
    assert min(more[1:]) < largest


def test_thinned_comparisons_see_every_segment() -> None:
    """An error in one row that is compared shows, in each segment."""
    case = next(case for case in cases_of("0.8B") if case.id == "qmm-0.8b-in_proj-m8")
    arguments = case.arguments(mx.bfloat16)
    ((found, expected),) = case.compare(arguments)
    (whole,) = case.run(arguments)
    rows = [segment.rows for segment in arguments["segments"]]
    assert found.shape == expected.shape == (8, sum(-(-n // case.every) for n in rows))
    assert mx.array_equal(found[:, -1], whole[:, sum(rows[:-1]) + (rows[-1] - 1) // case.every * case.every])


@pytest.mark.parametrize("size", ["0.8B", "27B"])
def test_the_cases_of_a_size_cover_every_matrix(size: str) -> None:
    """By the bytes that its plan has for a layer of each kind."""
    _, plans = recipe_plans(size, layers=4)
    planned = sum(p.nbytes for p in plans if len(p.shape) == 2 and (".layers.0." in p.name or ".layers.3." in p.name))
    cases = {c.name.split("-", 1)[1]: c for c in cases_of(size) if c.op == "qmm" and c.real}
    per_layer = [*("in_proj", "out_proj", "qkv", "out_proj"), *("gate_up", "down") * 2]
    found = {name: cases[name].arguments(mx.bfloat16)["segments"] for name in set(per_layer)}
    assert planned == sum(matrix.nbytes for name in per_layer for matrix in found[name])


def test_decode_ends_with_one_object() -> None:
    arguments = ("--shape", "0.8b", "--context", "0", "--context", "300", "--tokens", "2", "--repeats", "2", "--json")
    _, row = objects(run("decode", *arguments))
    network = random_network("0.8B")
    assert row["bytes_per_token"] == network.bytes_per_token
    assert row["bandwidth_share"] == pytest.approx(
        row["tokens_per_second"] * row["bytes_per_token"] / row["read_bandwidth_gbs"] / 1e9
    )
    config = network.config
    states = 3 * 4 * config.value_dim * config.linear_key_head_dim
    assert row["cache_bytes_per_token"] == states + 300 * 2 * 2 * config.num_key_value_heads * config.head_dim
    assert row["weight_bytes"] < row["peak_memory_bytes"] < row["weight_bytes"] + 600e6
    assert (row["context"], row["layers"], row["load_seconds"]) == (300, 4, None)


def test_prefill_ends_with_one_object() -> None:
    (row,) = objects(run("prefill", "--shape", "0.8b", "--tokens", "40", "--repeats", "2", "--json"))
    assert (row["tokens"], row["rounds"]) == (40, 2)
    assert row["tokens_per_second"] > 0


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    run("model", "--shape", "0.8B", "--layers", "2", "--output", tmp_path / "model")
    (row,) = objects(run("decode", "--model", tmp_path / "model", "--tokens", "2", "--repeats", "1", "--json"))
    assert row["layers"] == 2
    assert row["load_seconds"] > 0
    table = run("decode", "--model", tmp_path / "model", "--context", "0", "--context", "9", "--repeats", "1")
    assert "loaded in" in table
    assert "% of the first" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--shape", "8b"], "--shape: expected one of 0.8B, 2B, 4B, 9B, 27B, 35B-A3B, 122B-A10B, found 8b"),
        (["kernels", "--filter", "nothing"], "--filter: expected a part of a case's name"),
        (["decode", "--layers", "33"], "--layers: expected 1 to 32 for the 9B, found 33"),
        (["decode", "--layers", "2", "--model", "x"], "--layers: expected it with --shape"),
        (["decode", "--model", "nowhere"], "nowhere: expected a model directory, found nothing"),
        (["decode", "--plot", "nowhere/x.png"], "--plot: expected a file in a directory that exists"),
    ],
)
def test_wrong_arguments(arguments: Sequence[str], message: str) -> None:
    assert message in run(*arguments, code=1)


def test_a_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mlx_delta.plot.find_spec", lambda name: None)
    error = run("kernels", "--plot", tmp_path / "x.png", code=1)
    assert "pip install 'mlx-delta[plot]'" in error


def test_a_roofline(tmp_path: Path) -> None:
    png = tmp_path / "roofline.png"
    run("kernels", "--shape", "0.8b", "--filter", "down", "--repeats", "1", "--plot", png)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_network_in_memory_is_the_one_on_disk(tmp_path: Path) -> None:
    write_model("0.8B", tmp_path / "model", layers=4)
    loaded, made = load_model(tmp_path / "model").network, random_network("0.8B", layers=4)
    tokens = mx.array([[5, 6, 7]])
    results = [network(tokens, filled_cache(network, 0, 0)) for network in (loaded, made)]
    assert mx.array_equal(*results)
    assert 0.1 < float(mx.std(results[0].astype(mx.float32))) < 10  # plausible logits


def test_a_filled_cache_has_the_shapes_of_a_prefilled_one() -> None:
    network = random_network("0.8B")
    real = filled_cache(network, 0, 0)
    mx.eval(prefill(network, mx.array([list(range(40))]), real))
    made = filled_cache(network, 40, 41)
    assert [(a.shape, a.dtype) for a in made.arrays()] == [(a.shape, a.dtype) for a in real.arrays()]
    assert made.offset == real.offset == 40


def test_the_median_and_its_deviation() -> None:
    assert Time.of([1.0, 2.0, 4.0, 8.0, 3.0]) == Time(3.0, 1.0, 5)


def test_the_working_set_is_beyond_every_cache() -> None:
    assert working_set() > 4 * last_level_cache() > 0


def test_the_reader_reads_every_whole_line_once() -> None:
    """By its checksum: the sum of the 64-bit words from one cache line's start to another's end."""
    array = mx.array(np.random.default_rng(0).integers(0, 2**32, size=3 << 20, dtype=np.uint32))
    mx.eval(array)
    values = np.array(array, copy=False)
    skipped = -values.ctypes.data % 64 // 4
    lines = values[skipped:][: (values.size - skipped) // 16 * 16]
    assert _core.read_all(array) == int(lines.view(np.uint64).sum(dtype=np.uint64))


@pytest.mark.parametrize(("device", "reads"), [(mx.DeviceType.cpu, 1), (mx.DeviceType.gpu, 8)])
def test_the_read_bandwidth_is_that_of_the_device(
    device: mx.DeviceType, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts its readings. A GPU reads several times in one evaluation."""
    monkeypatch.setattr(timing, "working_set", lambda: 1 << 16)
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=device))
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    bandwidth = timing.ReadBandwidth()
    bandwidth.sample()
    assert bandwidth.median() == reads << 16


def test_multiply_adds_are_counted() -> None:
    before = _core.cpu_isa()
    for isa in _core.cpu_isas():
        _core.use_cpu_isa(isa)
        lanes = 16 if isa.startswith("avx512") else 8 if isa.startswith("avx2") else 4
        assert _core.multiply_add(10) == 10 * 2 * 12 * lanes * 4 * _core.cpu_threads()
    _core.use_cpu_isa(before)


def test_a_random_gguf_is_of_the_size_and_the_values_that_it_claims(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    nbytes = write_gguf("0.8B", file)
    _, plans = recipe_plans("0.8B")
    shapes = {plan.name: plan.shape for plan in plans}
    tensors = {canonical_from_gguf(t.name, 4): t for t in GGUFReader(file).tensors}
    assert {name: tuple(int(n) for n in reversed(t.shape)) for name, t in tensors.items()} == {
        name: shape[:2] if len(shape) == 3 else shape for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        if len(shape) == 2:
            values = dequantize(tensors[name].data, tensors[name].tensor_type)
            assert np.std(values) == pytest.approx(shape[1] ** -0.5, rel=0.1), name
            assert abs(np.mean(values)) < 0.1 * np.std(values), name
    assert nbytes == pytest.approx(random_network("0.8B").bytes_per_token, rel=0.02)
    assert all(canonical_from_gguf(gguf_from_canonical(name), 4) == name for name in shapes)


def test_peers_run_in_turn_and_are_set_against_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mlx-lm on the very checkpoint; for llama-bench a script that answers as it does."""
    answer = [{"n_prompt": 8, "n_gen": 0, "avg_ts": 50.0}, {"n_prompt": 0, "n_gen": 2, "avg_ts": 0.5}]
    script = tmp_path / "llama-bench"
    script.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    script.chmod(0o755)
    arguments = ["--shape", "0.8b", "--rounds", "2", "--tokens", "2", "--prompt", "8", "--directory", str(tmp_path)]
    peers.main([*arguments, "--llama-bench", str(script)])
    result = json.loads(capsys.readouterr().out)
    speeds, ratios = result["tokens_per_second"], result["ratios"]
    assert set(speeds) == {"mlx-delta", "mlx-lm", "llama.cpp"}
    assert ratios["llama.cpp"]["prefill"] == pytest.approx(speeds["mlx-delta"]["prefill"] / 50)
    assert ratios["llama.cpp"]["decode"] == pytest.approx(speeds["mlx-delta"]["decode"] / 0.5)
    assert ratios["mlx-lm"]["decode"] > 1
    assert (tmp_path / "0.8B.gguf").is_file()


def test_a_peer_that_fails_is_named(tmp_path: Path) -> None:
    script = tmp_path / "llama-bench"
    script.write_text("#!/bin/sh\necho unknown architecture >&2\nexit 3\n")
    script.chmod(0o755)
    arguments = ["--shape", "0.8b", "--rounds", "1", "--tokens", "2", "--prompt", "0", "--peers", "llama.cpp"]
    with pytest.raises(SystemExit, match=r"llama-bench: exit status 3: unknown architecture"):
        peers.main([*arguments, "--llama-bench", str(script), "--directory", str(tmp_path)])
