"""The same damage in every JSON file that is read: one error that names the file, and no traceback of another kind."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_delta.arch.checkpoint import open_checkpoint
from mlx_delta.arch.qwen3_5 import QWEN3_5
from mlx_delta.arch.registry import read_config
from mlx_delta.calibrate.chunks import read_text
from mlx_delta.conversion.auto import read_sensitivity
from mlx_delta.conversion.recipe import uniform, with_overrides
from mlx_delta.errors import CheckpointError, ConfigError, ConvertError, TokenizerError
from mlx_delta.json_files import MAX_DEPTH, parse_json, read_json
from mlx_delta.text.tokenizer import Tokenizer
from support import TINY

DEEP = 100_000
DAMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "found an empty file"),
    "blank": (b" \n", "found nothing but spaces"),
    "cut": (b'{"a": 1, "b', "expected JSON, found Unterminated string"),
    "comma": (b'{"a": 1,}', "expected JSON, found "),
    "comment": (b'{"a": 1} // so', "expected JSON, found Extra data"),
    "array": (b'[{"a": 1}]', "expected a JSON object, found an array"),
    "string": (b'"a"', "expected a JSON object, found a string"),
    "number": (b"NaN", "expected a JSON object, found a number"),
    "null": (b"null", "expected a JSON object, found null"),
    "false": (b"false", "expected a JSON object, found a bool"),
    "twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "expected JSON, found the key 'c' twice in one object"),
    "latin-1": (b'{"a": "\xe9"}', "expected UTF-8, found the byte 0xe9 in line 1"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "expected UTF-8, found the byte 0xff in line 1"),
    "surrogate": (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
    "deep arrays": (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "expected JSON at most 100 levels deep, found more"),
    "deep objects": (b'{"a":' * 150 + b"1" + b"}" * 150, "expected JSON at most 100 levels deep, found more"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "expected JSON, found Exceeds the limit"),
}

UNIFORM = uniform(4, 64, QWEN3_5.recipes)


def _header(path: Path) -> object:
    """The file's content as the header of a safetensors file."""
    content = (path / "header.json").read_bytes()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    for file in (path / "model.safetensors.index.json", *path.glob("model-*.safetensors")):
        file.unlink(missing_ok=True)
    return open_checkpoint(path)


READERS: dict[str, tuple[Callable[[Path], object], type[ValueError]]] = {
    "config.json": (read_config, ConfigError),
    "tokenizer.json": (Tokenizer.from_dir, TokenizerError),
    "tokenizer_config.json": (Tokenizer.from_dir, TokenizerError),
    "generation_config.json": (Tokenizer.from_dir, TokenizerError),
    "model.safetensors.index.json": (open_checkpoint, CheckpointError),
    "header.json": (_header, CheckpointError),
    "widths.json": (
        lambda path: with_overrides(UNIFORM, path / "widths.json", ["a"]),
        ConvertError,
    ),
    "sensitivity.json": (lambda path: read_sensitivity(path / "sensitivity.json"), ConvertError),
    "chats.jsonl": (lambda path: read_text(path / "chats.jsonl", Tokenizer.from_dir(TINY)), ValueError),
    "schema.json": (lambda path: read_json(path / "schema.json", ValueError), ValueError),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The tiny checkpoint's small files; its weights as links."""
    for file in TINY.iterdir():
        if file.suffix == ".safetensors":
            (tmp_path / file.name).symlink_to(file)
        else:
            shutil.copy(file, tmp_path)
    return tmp_path


# A line of a .jsonl without anything is passed over, and a header without anything is the file format's business.
NO_DAMAGE = [("chats.jsonl", "empty"), ("chats.jsonl", "blank"), ("header.json", "empty")]


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name in READERS for damage in DAMAGES if (name, damage) not in NO_DAMAGE]
)
def test_damage_is_named(name: str, damage: str, checkpoint: Path) -> None:
    content, message = DAMAGES[damage]
    read, error = READERS[name]
    (checkpoint / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read(checkpoint)
    shown = str(caught.value)
    assert "\n" not in shown
    assert len(shown) < 400
    shown_name = {"header.json": "model.safetensors"}.get(name, name)
    assert shown_name in shown
    if name == "chats.jsonl":
        assert "in line 1" in shown or "chats.jsonl:1" in shown


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_byte_order_mark_changes_nothing(name: str, checkpoint: Path) -> None:
    config, tokenizer = read_config(checkpoint), Tokenizer.from_dir(checkpoint)
    for file in (name, "chat_template.jinja"):
        (checkpoint / file).write_bytes(b"\xef\xbb\xbf" + (checkpoint / file).read_bytes())
    assert read_config(checkpoint) == config
    found = Tokenizer.from_dir(checkpoint)
    assert found.to_json() == tokenizer.to_json()
    assert found.chat_template == tokenizer.chat_template
    assert (found.eos_token_ids, found.generation_defaults) == (tokenizer.eos_token_ids, tokenizer.generation_defaults)


def test_marks_in_the_other_files(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 4}')
    assert with_overrides(UNIFORM, file, ["a"]).rules[0][0] == "a"
    file.write_bytes(b'\xef\xbb\xbf{"a": {"3": 0.5}}')
    assert read_sensitivity(file) == {"a": {3: 0.5}}
    chats = tmp_path / "chats.jsonl"
    chats.write_bytes('\ufeff{"text": "one"}\r\n\r\n{"text": "two\u2028three"}\r\n'.encode())
    assert read_text(chats) == "onetwo\u2028three"
    chats.with_suffix(".txt").write_bytes("\ufeffone\r\ntwo\rthree".encode())
    assert read_text(chats.with_suffix(".txt")) == "one\ntwo\nthree"
    chats.write_bytes(b'{"text": "one"}\n\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"chats\.jsonl: expected UTF-8, found the byte 0xff in line 3"):
        read_text(chats)


def test_what_is_right_is_left_alone() -> None:
    """NaN is for whoever needs a number to refuse; whole surrogate pairs are characters."""
    found = parse_json(b'{"a": [NaN, -Infinity, 1e999], "b": "\\ud83d\\ude00", "c": {"a": null}}', "x", ValueError)
    assert json.dumps(found) == '{"a": [NaN, -Infinity, Infinity], "b": "\\ud83d\\ude00", "c": {"a": null}}'
    deepest = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse_json(f'{{"a": {deepest}}}', "x", ValueError)["a"]
    with pytest.raises(ValueError, match="levels deep"):
        parse_json(f'{{"a": [{deepest}]}}', "x", ValueError)
    assert parse_json("[1]", "x", ValueError, list) == [1]
    with pytest.raises(ValueError, match="x: expected a JSON array, found an object"):
        parse_json("{}", "x", ValueError, list)


def test_a_file_is_not_read_whole_before_its_size_is_known(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(ConfigError, match=r"config\.json: expected a JSON file of at most \d+ bytes, found 1099511627"):
        read_config(tmp_path)
