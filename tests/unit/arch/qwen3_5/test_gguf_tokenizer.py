"""A tokenizer rebuilt from a GGUF file: every id as it is there, whatever types its producer gave; or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from mlx_delta.arch.qwen3_5.gguf_tokenizer import tokenizer_files
from mlx_delta.errors import CheckpointError
from mlx_delta.text.tokenizer import Tokenizer
from support import TINY
from support.gguf_files import metadata

TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>")
TEXT = "<|im_start|>user\ndef f(x):  return 42  # e\u0301t\u00e9<|im_end|>\n<think>\n<tool_call><|fim_pad|>x"


@pytest.fixture(scope="module")
def original() -> Tokenizer:
    return Tokenizer.from_dir(TINY)


@pytest.fixture
def keys() -> dict[str, Any]:
    return metadata()


def retyped(keys: dict[str, Any], kind: TokenType, *tokens: str) -> None:
    for i, token in enumerate(keys["tokenizer.ggml.tokens"]):
        if token in tokens or (not tokens and i >= 4070):
            keys["tokenizer.ggml.token_type"][i] = int(kind)


def rebuilt(keys: dict[str, Any], directory: Path) -> Tokenizer:
    for name, content in tokenizer_files(keys, Path("t.gguf")).items():
        (directory / name).write_bytes(content)
    return Tokenizer.from_dir(directory)


@pytest.mark.parametrize("kind", ["NORMAL", "CONTROL", "USER_DEFINED"])
@pytest.mark.parametrize(
    "tokens", [TAGS, ("<|im_start|>",), ("<|endoftext|>", "</think>"), ("<|fim_pad|>",), ()], ids=str
)
def test_types_shift_no_ids(
    kind: str, tokens: tuple[str, ...], keys: dict[str, Any], original: Tokenizer, tmp_path: Path
) -> None:
    retyped(keys, TokenType[kind], *tokens)
    found = rebuilt(keys, tmp_path)
    for i, token in enumerate(keys["tokenizer.ggml.tokens"]):
        assert found.token_id(token) == i
    assert found.encode(TEXT) == original.encode(TEXT)
    assert found.decode(range(4096)) == original.decode(range(4096))
    if kind != "USER_DEFINED":  # which says that they are not special
        assert found.special_ids == original.special_ids


def test_ids_in_the_midst_of_the_vocabulary(keys: dict[str, Any], original: Tokenizer, tmp_path: Path) -> None:
    """Added tokens that lie between words, and rows without a token before them."""
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    for old, new in ((4094, 300), (4071, 40)):
        tokens[old], tokens[new] = tokens[new], tokens[old]
        kinds[old], kinds[new] = kinds[new], kinds[old]
    tokens[3000:3000], kinds[3000:3000] = ["[PAD3000]", "x" * 9], [int(TokenType.UNUSED)] * 2
    for key in ("eos", "padding"):
        keys[f"tokenizer.ggml.{key}_token_id"] += 2
    found = rebuilt(keys, tmp_path)
    for i, token in enumerate(tokens):
        assert found.token_id(token) == (None if i in (3000, 3001) else i)
    spelled = [original.token_bytes(i) for i in original.encode(TEXT)]
    assert [found.token_bytes(i) for i in found.encode(TEXT)] == spelled


def test_padding_by_either_producer(keys: dict[str, Any], original: Tokenizer, tmp_path: Path) -> None:
    """llama.cpp types the rows without a token UNUSED, Ollama USER_DEFINED: no text has them."""
    keys["tokenizer.ggml.tokens"] += ["[PAD4096]", "[PAD4097]", "[PAD0]"]
    keys["tokenizer.ggml.token_type"] += [int(TokenType.UNUSED), *[int(TokenType.USER_DEFINED)] * 2]
    found = rebuilt(keys, tmp_path)
    assert found.vocab_size == 4096
    assert found.to_json() == original.to_json()
    assert found.encode("[PAD0]") == original.encode("[PAD0]")


@pytest.mark.parametrize(
    ("edit", "eos"),
    [
        ({}, [4072, 4070]),
        ({"eos_token_id": 4070, "eot_token_id": 4072}, [4070, 4072]),
        ({"eos_token_id": 4070, "eom_token_id": 4071}, [4070, 4071]),
        ({"eos_token_id": None, "eos_token_ids": [7, 8]}, [7, 8, 4070]),
        ({"eos_token_id": None}, [4070]),
    ],
)
def test_every_end_counts(edit: dict[str, Any], eos: list[int], keys: dict[str, Any]) -> None:
    files = tokenizer_files(keys | {f"tokenizer.ggml.{key}": value for key, value in edit.items()}, Path("t.gguf"))
    assert json.loads(files["generation_config.json"])["eos_token_id"] == eos


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"merges": None}, r"expected the key tokenizer\.ggml\.merges, found nothing"),
        ({"merges": []}, r"merges: expected a list of str, found \[\]"),
        ({"merges": ["ab"]}, r"merges: expected two tokens with a space between them, found 'ab' as number 0"),
        ({"merges": ["a b", "zzz y"]}, "expected a tokenizer in its metadata, found: .*zzz"),
        ({"tokens": None}, r"expected the key tokenizer\.ggml\.tokens, found nothing"),
        ({"tokens": "text"}, "tokens: expected a list of str, found 'text'"),
        ({"tokens": [1, 2]}, r"tokens: expected a list of str, found \[1, 2\]"),
        ({"token_type": None}, r"expected the key tokenizer\.ggml\.token_type, found nothing"),
        ({"token_type": [1, 1]}, "token_type: expected 4096 types, one a token, found 2"),
        ({"eos_token_id": 9999}, "eos_token_id: expected an id from 0 to 4095, found 9999"),
        ({"eos_token_id": -1}, "eos_token_id: expected an id from 0 to 4095, found -1"),
        ({"eot_token_id": "<|im_end|>"}, "eot_token_id: expected an id from 0 to 4095, found '<"),
        ({"eos_token_ids": [1, True]}, "eos_token_ids: expected an id from 0 to 4095, found True"),
        ({"padding_token_id": 1.0}, "padding_token_id: expected an id from 0 to 4095, found 1.0"),
        ({"model": "llama"}, "model: expected gpt2, found llama"),
        ({"pre": None}, "pre: expected qwen35 or qwen2, found None"),
    ],
)
def test_what_makes_no_tokenizer(edit: dict[str, Any], message: str, keys: dict[str, Any]) -> None:
    changed = keys | {f"tokenizer.ggml.{key}": value for key, value in edit.items()}
    with pytest.raises(CheckpointError, match=rf"t\.gguf: .*{message}|t\.gguf: {message}"):
        tokenizer_files({key: value for key, value in changed.items() if value is not None}, Path("t.gguf"))


def test_a_token_given_twice(keys: dict[str, Any]) -> None:
    tokens = keys["tokenizer.ggml.tokens"]
    tokens[500] = tokens[400]
    with pytest.raises(CheckpointError, match=r"tokens: expected each token once, found .* as 400 and 500"):
        tokenizer_files(keys, Path("t.gguf"))


def test_a_template_that_is_no_text(keys: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.chat_template: expected text, found \['a'\]"):
        tokenizer_files(keys | {"tokenizer.chat_template": ["a"]}, Path("t.gguf"))


def test_named_templates(keys: dict[str, Any], tmp_path: Path) -> None:
    named = {"": "D", ".tool_use": "T{{ bos_token }}", "../up": "no"}
    keys |= {f"tokenizer.chat_template{name}": template for name, template in named.items()}
    files = tokenizer_files(keys | {"tokenizer.ggml.bos_token_id": 5}, Path("t"))
    assert files["chat_template.jinja"] == b"D"
    assert [name for name in files if "/" in name] == ["additional_chat_templates/tool_use.jinja"]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.chat_templates == {"default": "D", "tool_use": "T{{ bos_token }}"}
    assert tokenizer.special_tokens["bos_token"] == keys["tokenizer.ggml.tokens"][5]
