"""What the result is run with is read before the first tensor is, by a dry run too; paths with ~."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_delta import Tokenizer, convert, load_model
from mlx_delta.checkpoint.safetensors import SafetensorsSource
from mlx_delta.errors import ConvertError, MlxDeltaError, TemplateError, TokenizerError
from mlx_delta.paths import expanded
from support import TINY

DAMAGES: dict[str, tuple[str, str | None, type[MlxDeltaError], str]] = {
    "no tokenizer": ("tokenizer.json", None, TokenizerError, "expected a checkpoint's tokenizer.json, found nothing"),
    "half a tokenizer": ("tokenizer.json", '{"version": "1.0", "model', TokenizerError, "expected JSON, found "),
    "no tokenizer in it": ("tokenizer.json", "{}", TokenizerError, "expected a tokenizer, found "),
    "settings": ("tokenizer_config.json", '{"a": 1,}', TokenizerError, "expected JSON, found "),
    "no end token": (
        "tokenizer_config.json",
        '{"eos_token": "</s>"}',
        TokenizerError,
        "eos_token: expected a token of",
    ),
    "defaults": ("generation_config.json", "[]", TokenizerError, "expected a JSON object, found an array"),
    "temperature": ("generation_config.json", '{"temperature": NaN}', TokenizerError, "temperature: expected a finite"),
    "end ids": ("generation_config.json", '{"eos_token_id": "2"}', TokenizerError, "eos_token_id: expected ids of"),
    "template": ("chat_template.jinja", "\n{% if %}", TemplateError, "chat template, line 2: expected Jinja, found: "),
    "template bytes": ("chat_template.jinja", "caf\udce9", TokenizerError, "expected UTF-8, found the byte 0xe9"),
    "special tokens": ("special_tokens_map.json", "[" * 999, ConvertError, "special_tokens_map.json: expected JSON"),
    "images": ("preprocessor_config.json", "\udcff", ConvertError, "preprocessor_config.json: expected UTF-8"),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "in")
    return tmp_path / "in"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dry_run", [False, True])
def test_damage_is_found_before_the_first_tensor(
    damage: str, dry_run: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(SafetensorsSource, "load", load)
    name, content, error, message = DAMAGES[damage]
    (checkpoint / name).unlink(missing_ok=True)
    if content is not None:
        (checkpoint / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(error, match=message) as found:
        convert(checkpoint, checkpoint.parent / "out", dry_run=dry_run)
    assert str(checkpoint) in str(found.value)
    assert [each.name for each in checkpoint.parent.iterdir()] == ["in"]


def test_no_template(checkpoint: Path) -> None:
    """A base model has none: said, and no reason to stop. Templates elsewhere count."""
    assert convert(checkpoint, checkpoint.parent / "out", dry_run=True).warnings == ()
    template = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.jinja").unlink()
    settings = {**json.loads((checkpoint / "tokenizer_config.json").read_text()), "chat_template": None}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    (warning,) = convert(checkpoint, checkpoint.parent / "out", dry_run=True).warnings
    assert warning.startswith(f"{checkpoint}: expected a chat template, found none")
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    assert convert(checkpoint, checkpoint.parent / "out", dry_run=True).warnings == ()


def test_home(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ in every path, as a string and as a Path; a directory named ~ is never made."""
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    monkeypatch.chdir(checkpoint.parent)
    Path("widths.json").write_text('{"*.lm_head": 8}')
    paths: list[Callable[[str], Path | str]] = [str, Path]
    for kind in paths:
        more = {"imatrix": kind("~/in/imatrix.gguf"), "overrides": kind("~/widths.json")}
        convert(kind("~/in"), kind("~/out"), fit=False, awq=False, force=True, **more)
        assert load_model(kind("~/out")).network.lm_head.bits == 8
        assert Tokenizer.from_dir(kind("~/out")).vocab_size > 0
    assert sorted(each.name for each in Path().iterdir()) == ["in", "out", "widths.json"]
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
