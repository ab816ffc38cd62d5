"""What is compiled when a model loads is all that its answers ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_delta import _core
from mlx_delta.engine import kernels
from mlx_delta.engine.kernels import compile_kernels, libraries, needed
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model
from mlx_delta.model.cache import Cache, KeyValues
from support import ROOT

OPS = [path.stem for path in (ROOT / "metal").glob("*.metal") if hasattr(_core, path.stem)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The kernels of every op that is called from now on."""
    found: set[str] = set()

    def noting(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = op(*arguments, **options)
            first = result[0] if isinstance(result, list | tuple) else result
            with contextlib.suppress(ValueError):  # MLX's own there
                found.update(launch.kernel for launch in _core.plan(first)[0].launches)
            return result

        return call

    for name in OPS:
        monkeypatch.setattr(_core, name, noting(getattr(_core, name)))
    return found


def answer_in_many_ways(model: LanguageModel) -> None:
    chats: Sequence[Any] = [[{"role": "user", "content": "Hi" * n}] for n in (1, 300, 2)]
    model.chat_batch(chats, max_new_tokens=4, preset="instruct", seed=1)
    session = model.session()
    for text in ("Hello", "Go on"):
        session.chat([{"role": "user", "content": text}], max_new_tokens=3, temperature=0)
    for length in (1, 5, 16, 17, 600):
        model.generate(list(range(length)), max_new_tokens=2, temperature=0.8, top_p=0.9, repetition_penalty=1.1).text()
    model.generate([1, 2, 3], max_new_tokens=130).text()


def test_an_answer_asks_for_no_kernel_that_loading_did_not(tiny: Path, asked: set[str], device: mx.Device) -> None:
    model = load_model(tiny)
    compiled, late = {launch.kernel for launch in needed(model.network)}, _core.kernels_compiled_late()
    asked.clear()
    answer_in_many_ways(model)
    assert len(asked) > 25
    assert asked <= compiled
    assert _core.kernels_compiled_late() == late


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_nor_does_a_long_context(tiny: Path, dtype: str) -> None:
    network = load_model(tiny, dtype).network
    compiled = {launch.kernel for launch in needed(network)}
    for offset in (0, 127, 1000, 8000):
        cache = Cache.empty(network.config)
        for state in cache.layers:
            if offset and isinstance(state, KeyValues):
                shape = (1, network.config.num_key_value_heads, offset, network.config.head_dim)
                state.keys = state.values = mx.zeros(shape, network.dtype)
        cache.offset = offset
        asked = _core.launches([network(mx.array([[1]]), cache)])
        assert {launch.kernel for launch in asked} <= compiled


def test_each_is_compiled_once_and_a_large_file_in_parts(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = load_model(tiny).network
    compiled: list[str] = []
    monkeypatch.setattr(
        kernels._core, "compile_kernels", lambda each: compiled.extend(one.kernel for one in each) or []
    )
    compile_kernels(network)
    assert compiled == []  # not on a CPU
    monkeypatch.setattr("mlx_delta.progress.INTERVAL", 0.0)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    compile_kernels(network)
    assert sorted(compiled) == sorted(launch.kernel for launch in needed(network))
    assert f"Metal kernels: {len(compiled)}/{len(compiled)} compiled, 100 %" in capsys.readouterr().err
    parts = libraries(needed(network))
    assert all(len({launch.file for launch in part}) == 1 for part in parts)
    assert [len(part) for part in parts if part[0].file == "qmm"] == [7, 6, 6, 6]


def test_what_metal_refuses_ends_loading(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_model(tiny).network

    def refuse(launches: Sequence[_core.Launch]) -> None:
        raise RuntimeError(f"metal/{launches[0].file}.metal: Metal refuses the text: no")

    monkeypatch.setattr(kernels._core, "compile_kernels", refuse)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    with pytest.raises(RuntimeError, match="Metal refuses the text: no"):
        compile_kernels(network)
