"""Which files are a model: one rule for a directory here and for a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_delta.checkpoint.source import convert_first, gguf_file
from mlx_delta.errors import CheckpointError, HubError
from mlx_delta.hub.cache import wanted_files
from mlx_delta.hub.names import HubName

NO_MODELS = ["mmproj-F16.gguf", "Qwen3.5-9B-mmproj-BF16.gguf", "MMPROJ.gguf", "notes.txt"]


def wanted(files: list[str], gguf: bool = True) -> list[str]:
    return wanted_files(HubName("org/name", None, None), files, gguf, lambda: Path())


def test_vision_towers_are_no_models(tmp_path: Path) -> None:
    for name in NO_MODELS:
        (tmp_path / name).touch()
    assert gguf_file(tmp_path) is None
    with pytest.raises(HubError, match=r"expected config\.json and model"):
        wanted(NO_MODELS)
    (tmp_path / "Qwen3.5-9B-Q4_K_M.gguf").touch()
    assert gguf_file(tmp_path) == tmp_path / "Qwen3.5-9B-Q4_K_M.gguf"
    assert wanted([*NO_MODELS, "Qwen3.5-9B-Q4_K_M.gguf"]) == ["Qwen3.5-9B-Q4_K_M.gguf"]


def test_two_models(tmp_path: Path) -> None:
    names = ["a.gguf", "b.gguf"]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"expected one \.gguf file, found a\.gguf, b\.gguf"):
        gguf_file(tmp_path)
    with pytest.raises(HubError, match=r"expected one \.gguf file, found a\.gguf, b\.gguf"):
        wanted([*NO_MODELS, *names])


def test_gguf_where_it_will_not_do() -> None:
    with pytest.raises(HubError, match=r"^org/name/a\.gguf: expected safetensors, found GGUF: convert it first, "):
        wanted(["a.gguf"], gguf=False)
    assert convert_first("x.gguf").endswith("mlx-delta convert -i x.gguf -o DIRECTORY")
