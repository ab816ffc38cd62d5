"""What is a name on the Hub, and what is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_delta.hub.cache import wanted_files
from mlx_delta.hub.names import HubName, parse_name
from mlx_delta.hub.path import model_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen/Qwen3.5-9B", HubName("Qwen/Qwen3.5-9B")),
        ("Qwen/Qwen3.5-9B@v1.0", HubName("Qwen/Qwen3.5-9B", "v1.0")),
        (f"a_b/c.d@{COMMIT}", HubName("a_b/c.d", COMMIT)),
        ("a/b@refs/pr/3", HubName("a/b", "refs/pr/3")),
        ("a/b@refs/pr/3/q4/x.gguf", HubName("a/b", "refs/pr/3", "q4/x.gguf")),
        ("unsloth/Q-GGUF/Q-Q4_K_M.gguf", HubName("unsloth/Q-GGUF", None, "Q-Q4_K_M.gguf")),
        ("a/b@main/BF16/x-00001.gguf", HubName("a/b", "main", "BF16/x-00001.gguf")),
    ],
)
def test_names(text: str, name: HubName) -> None:
    assert parse_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    ["model", "./a/b", "../a/b", "/a/b", "~/a/b", "a/b/c", "a/b/", "a//b", "dir/x.gguf", "a/b@", "a b/c", "", "a/b@x/y",
     "https://huggingface.co/a/b", "a\\b", "a/.b", "-a/b"],
)  # fmt: skip
def test_paths(text: str) -> None:
    assert parse_name(text) is None
    assert model_path(text) == Path(text).expanduser()


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_path("org/name") == Path("org/name")
    assert model_path(Path("org/other")) == Path("org/other")


def test_files_of_a_model() -> None:
    """Those beside the weights are told by patterns in which no ``*`` is a ``/``."""
    wanted = ["config.json", "additional_chat_templates/tool_use.jinja", "chat_template.jinja", "model.safetensors"]
    other = [
        "README.md",
        "onnx/config.json",
        "chat_template.d/x",
        "additional_chat_templates/a/b.jinja",
        "x/tokenizer.json",
    ]
    found = wanted_files(HubName("org/name"), [*other, *wanted[1:], "config.json"], False, Path)
    assert sorted(found) == sorted(wanted)
