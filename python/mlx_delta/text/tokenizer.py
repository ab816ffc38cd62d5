"""A checkpoint's tokenizer, chat template and generation defaults; knows nothing of models, sampling or messages.

Reads ``tokenizer.json`` (byte-level BPE, as every Qwen3.5 checkpoint has), and beside it, where present,
``tokenizer_config.json``, ``generation_config.json``, ``config.json`` and ``chat_template.jinja``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tokenizers


class TokenizerError(ValueError):
    """A tokenizer file is missing, is not valid, or is of a kind that this package does not run."""


@dataclass(frozen=True)
class GenerationDefaults:
    """The sampling parameters that generation_config.json recommends; None where it says nothing."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def _unicode_to_byte() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _unicode_to_byte()


class Tokenizer:
    """Text to token ids and back. Use ``Tokenizer.from_dir``.

    vocab_size: highest known id + 1; logits rows from there on are padding and must never be sampled.
    eos_token_ids: ids that end an answer. special_ids: added tokens flagged special (``<think>`` is not one of them).
    chat_template: the checkpoint's Jinja source, or None. generation_defaults: what generation_config.json recommends.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
        generation_defaults: GenerationDefaults | None = None,
    ) -> None:
        self._backend = backend
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_token_ids = tuple(eos_token_ids)
        self.special_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self.chat_template = chat_template
        self.generation_defaults = generation_defaults or GenerationDefaults()

    @classmethod
    def from_dir(cls, path: Path | str) -> Tokenizer:
        """Read the tokenizer of the checkpoint in directory ``path``.

        Raises: TokenizerError naming the file, what was expected and what was found.
        """
        path = Path(path)
        file = path / "tokenizer.json"
        if not file.is_file():
            raise TokenizerError(f"{file}: expected a checkpoint's tokenizer.json, found nothing")
        _read_json(file)
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{file}: expected a tokenizer, found {error}") from error
        decoder = json.loads(backend.decoder.__getstate__())["type"] if backend.decoder else None
        if decoder != "ByteLevel":
            raise TokenizerError(f"{file}: decoder: expected 'ByteLevel', found {decoder!r}")
        settings = _read_json(path / "tokenizer_config.json")
        generation = _read_json(path / "generation_config.json")
        names = {field.name for field in fields(GenerationDefaults)}
        defaults = GenerationDefaults(**{key: value for key, value in generation.items() if key in names})
        eos = _eos_token_ids(backend, generation, _read_json(path / "config.json"), settings)
        return cls(backend, eos, _chat_template(path, settings), defaults)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; added tokens written out in it are parsed as tokens, and no others are added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ``ids``, with U+FFFD for bytes that are not UTF-8; unknown ids (padding) give nothing."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def to_json(self) -> str:
        """tokenizer.json, as read."""
        return self._backend.to_str()

    def token_id(self, content: str) -> int | None:
        """The id of the token whose vocabulary entry is exactly ``content``, such as ``"</think>"``."""
        return self._backend.token_to_id(content)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, perhaps part of a character, that a token stands for; b"" for an unknown id (padding)."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes([_BYTES[char] for char in token])
        except KeyError:  # an added token with a character outside the alphabet (a space, say) stands for itself
            return token.encode()


def _read_json(file: Path) -> dict[str, Any]:
    """The object in ``file``; {} where there is no such file, for all these files but tokenizer.json are optional."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file}: expected JSON, found {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def _eos_token_ids(
    backend: tokenizers.Tokenizer, generation: Mapping[str, Any], config: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[int, ...]:
    """generation_config.json decides; without it, what config.json and tokenizer_config.json say taken together.

    Together, because the published Qwen3.5 configs name <|endoftext|> alone, and a chat answer ends in the
    tokenizer's eos_token <|im_end|>.
    """
    found = _ids(generation.get("eos_token_id"))
    if found:
        return found
    text = config.get("text_config") or {}
    found = _ids(text.get("eos_token_id", config.get("eos_token_id")))
    token = settings.get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    last = _ids(backend.token_to_id(content)) if content else ()
    return tuple(dict.fromkeys(found + last))


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _chat_template(path: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else tokenizer_config.json's chat_template: a string, or a list of named ones."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
