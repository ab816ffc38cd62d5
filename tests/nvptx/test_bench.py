"""bench.gpu_ptx without a GPU: what it writes is enough to run, on a device that runs the Metal text on the shim.

What is left to a GPU is the driver, and what the compiler makes of the shim's instructions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from bench import gpu_ptx, gpu_ptx_run
from bench.gpu_ptx_compile import write_folder
from bench.gpu_ptx_device import CudaDevice, DeviceError, Function
from bench.gpu_ptx_format import FormatError, Manifest, Recipe, generate, read_manifest
from bench.gpu_ptx_peers import Source, peers

from mlx_delta.bench.cases.launches import specialisations
from msl import Library

PEERS = ("mlx-lm-delta_mixer", "mlx-qmm-9b-down")
FILTERS = (*PEERS, "delta_mixer-b2t1", "qmm-mixed", "attention-b1t1h4", "attention_prepare-b2t7", "conv1d-b1t1c8192")


@cache
def texts_of_peers() -> dict[str, Source]:
    """The kernels that are not ours, by name."""
    return {kernel: source for peer in peers(PEERS) for kernel, source in peer.kernels.items()}


CPU = (Path(__file__).parent / "cpu", Path(__file__).parent / "shim")


class Emulator:
    """A device whose memory is numpy's and whose kernels are run by tests/msl."""

    name, driver, cache_bytes = "Emulator (of 32 lanes)", "none", 1 << 20

    def __init__(self) -> None:
        self._memory: dict[int, np.ndarray] = {}
        self._next = 1 << 20
        self._constants: dict[tuple[str, int], bytes] = {}

    def load(self, ptx: str, kernel: str) -> Function:
        assert f".visible .entry {kernel}(" in ptx
        return Function(ptx, kernel, 32, 0)

    def set_constant(self, function: Function, symbol: str, value: bytes) -> None:
        assert f"{symbol}[{len(value)}]" in function.module
        self._constants[function.handle, int(symbol.rsplit("_", 1)[1])] = value

    def allocate(self, nbytes: int) -> int:
        address, self._next = self._next, self._next + nbytes + 256
        self._memory[address] = np.full(nbytes, 0xEE, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self._memory[address]

    def upload(self, address: int, array: np.ndarray) -> None:
        self._memory[address][:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)

    def download(self, address: int, array: np.ndarray) -> None:
        array.view(np.uint8).reshape(-1)[:] = self._memory[address]

    def copy(self, to: int, from_: int, nbytes: int) -> None:
        self._memory[to][:nbytes] = self._memory[from_][:nbytes]

    def launch(
        self, function: Function, threadgroups: Sequence[int], threads: Sequence[int], buffers: Sequence[int]
    ) -> None:
        name = function.handle
        if name in texts_of_peers():
            text, name = texts_of_peers()[name].text, texts_of_peers()[name].name
        else:
            text = specialisations()[name].launch.source
        given = {i: self._constants[function.handle, i] for i in range(31) if (function.handle, i) in self._constants}
        free = [i for i in range(31) if i not in given]
        given |= dict(zip(free, (self._memory[address] for address in buffers), strict=False))
        Library(text, shim=CPU).launch(
            name, [given[i] for i in sorted(given)], threadgroups=threadgroups, threadgroup=threads
        )

    def synchronize(self) -> None: ...

    def time(self, work: Callable[[], None], repeats: int) -> list[float]:
        work()
        return [1e-3] * repeats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu_ptx") / "out"
    write_folder(out, FILTERS, ["bfloat16", "float32"])
    return out


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ptx, "CudaDevice", Emulator)
    monkeypatch.setattr(gpu_ptx_run, "COPY_BYTES", 1 << 10)
    monkeypatch.setattr(gpu_ptx_run, "MAX_SETS", 2)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["gpu_ptx", "run", *map(str, arguments)])
    return gpu_ptx.main()


def test_every_case_is_right(
    folder: Path, emulator: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = folder.parent / "results.jsonl"
    assert run(monkeypatch, folder, "--out", results) == 0, capsys.readouterr().out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {row["case"].split("-")[0] for row in rows} == {
        "attention", "attention_prepare", "conv1d", "delta_mixer", "mlx", "qmm"
    }  # fmt: skip
    assert all(row["error"] <= row["bound"] for row in rows)
    timed = [row for row in rows if row["us"] is not None]
    assert sorted(row["case"].split("-b")[0] for row in timed) == ["conv1d", "mlx-lm-delta_mixer", "mlx-qmm-9b-down"]
    assert timed[0]["gbs"] == pytest.approx(timed[0]["bytes"] / 0.5e-3 / 1e9)  # two sets in a millisecond
    assert timed[0]["share"] == pytest.approx(100 * timed[0]["gbs"] / timed[0]["copy_gbs"])
    assert sum(timed[0]["loads"][0].values()) > 0


@pytest.mark.parametrize("last_output", [0x3F, 0xFF], ids=["value", "nan"])
def test_a_wrong_result_is_named(
    last_output: int, folder: Path, emulator: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = Emulator.launch

    def wrong(self: Emulator, *arguments: object) -> None:
        launch(self, *arguments)  # type: ignore[arg-type]
        self._memory[max(self._memory)][:4] = last_output

    monkeypatch.setattr(Emulator, "launch", wrong)
    out = folder.parent / "wrong.jsonl"
    assert run(monkeypatch, folder, "--filter", "qmm-mixed", "--out", out) == 1
    assert "WRONG: error" in capsys.readouterr().out
    assert "NaN" not in out.read_text()


def test_recipes_stay_what_they_are() -> None:
    """On any machine and with any numpy; a folder made elsewhere is worthless otherwise."""
    assert generate(Recipe(3, 0, 0, -1), "uint32", 3).tolist() == [2271666066, 2561665993, 784506223]
    values = generate(Recipe(3, 1.0, 0.5, -1), "float32", 100000)
    assert abs(values.mean() - 1) < 0.01
    assert abs(values.std() - 0.5) < 0.01
    with pytest.raises(FormatError, match="a generated bfloat16 array of 5: expected checksum 00000001, found"):
        generate(Recipe(3, 0, 1, 1), "bfloat16", 5)


def test_without_a_gpu_it_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeviceError, match=r"cuda-python: expected|an NVIDIA GPU: expected|cuInit: CUDA_ERROR"):
        CudaDevice()
    assert run(monkeypatch, folder) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_wrong_arguments(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path) == 1
    assert "manifest.json: expected a folder made by `python -m bench.gpu_ptx compile`" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="expected a folder that does not exist yet"):
        write_folder(tmp_path, [""], ["bfloat16"])
    with pytest.raises(ValueError, match="--filter nonsense: expected part of the name of a case"):
        write_folder(tmp_path / "new", ["nonsense"], ["bfloat16"])
    assert not list(tmp_path.iterdir())
    assert isinstance(read_manifest(folder), Manifest)
    (tmp_path / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(FormatError, match=r"manifest\.json: format: expected 1, found 0"):
        read_manifest(tmp_path)
