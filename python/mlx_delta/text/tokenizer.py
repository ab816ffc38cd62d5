"""A checkpoint's tokenizer, chat template and generation defaults; knows nothing of models, sampling or messages.

Reads ``tokenizer.json`` (byte-level BPE, as every Qwen3.5 checkpoint has), and beside it, where present,
``tokenizer_config.json``, ``generation_config.json``, ``config.json`` and ``chat_template.jinja``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tokenizers

from mlx_delta.arch.base import Markup
from mlx_delta.arch.checkpoint import Checkpoint
from mlx_delta.arch.registry import markup_of
from mlx_delta.errors import ArgumentError, TokenizerError
from mlx_delta.json_files import decode_utf8, read_json
from mlx_delta.paths import expanded


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
    eos_token_ids: ids that end an answer. special_ids: added tokens flagged special, which no text shows; the tags of
    thoughts and tool calls are never among them, whatever the file says.
    markup: the architecture's. chat_templates: the checkpoint's Jinja sources by name, {} without any; chat_template:
    the default one, or None.
    special_tokens: those that the tokenizer's configuration names, such as ``eos_token``, for templates.
    generation_defaults: what generation_config.json recommends.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        markup: Markup,
        eos_token_ids: Sequence[int] = (),
        chat_template: str | Mapping[str, str] | None = None,
        generation_defaults: GenerationDefaults | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        self.markup = markup
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_token_ids = tuple(eos_token_ids)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, t in added.items() if t.special and t.content not in markup.tags)
        self.chat_templates = (
            {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        )
        self.special_tokens = dict(special_tokens or {})
        self.generation_defaults = generation_defaults or GenerationDefaults()
        self._token_bytes: dict[int, bytes] = {}  # of those that were asked for

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")

    @classmethod
    def from_dir(cls, path: Path | str, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Read the tokenizer of the checkpoint in directory ``path``. config: its config.json, if it was read before.

        Raises: TokenizerError naming the file, what was expected and what was found.
        """
        path = expanded(path)
        file = path / "tokenizer.json"
        if not file.is_file():
            raise TokenizerError(f"{file}: expected a checkpoint's tokenizer.json, found nothing")
        backend = _backend(file)
        settings, generation = _read(path / "tokenizer_config.json"), _read(path / "generation_config.json")
        defaults = _generation_defaults(generation, path / "generation_config.json")
        config = _read(path / "config.json") if config is None else config
        markup = markup_of(config.get("model_type"))
        eos = _eos_token_ids(backend, path, generation, settings, config, markup.ends)
        return cls(backend, markup, eos, _chat_templates(path, settings), defaults, _special_tokens(path, settings))

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        """That of a checkpoint of any format: its files may be rebuilt from metadata, and be in no directory.

        Raises: TokenizerError naming the file, what was expected and what was found.
        """
        path, config = checkpoint.path, checkpoint.config.raw
        if path.is_dir():
            return cls.from_dir(path, config)
        with TemporaryDirectory() as directory:
            for name, content in checkpoint.side_files().items():
                file = Path(directory) / name
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)
            try:
                return cls.from_dir(directory, config)
            except TokenizerError as error:
                raise TokenizerError(str(error).replace(directory, str(path.parent))) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; added tokens written out in it are parsed as tokens, and no others are added.

        Raises: ArgumentError for what is no text, or cannot be written in UTF-8 (see ``check_text``).
        """
        check_text(text, "text")
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ``ids``, with U+FFFD for bytes that are not UTF-8; unknown ids (padding) give nothing."""
        kept = [i for i in ids if i not in self.special_ids] if skip_special else list(ids)
        return self._backend.decode(kept, skip_special_tokens=False)

    def to_json(self) -> str:
        """tokenizer.json, as read."""
        return self._backend.to_str()

    def token_id(self, content: str) -> int | None:
        """The id of the token whose vocabulary entry is exactly ``content``, such as ``"</think>"``."""
        return self._backend.token_to_id(content)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, perhaps part of a character, that a token stands for; b"" for an unknown id (padding)."""
        found = self._token_bytes.get(token_id)
        if found is None:
            found = self._token_bytes[token_id] = _bytes_of(self._backend.id_to_token(token_id))
        return found


def _bytes_of(token: str | None) -> bytes:
    if token is None:
        return b""
    try:
        return bytes([_BYTES[char] for char in token])
    except KeyError:  # an added token with a character outside the alphabet (a space, say) stands for itself
        return token.encode()


def _backend(file: Path) -> tokenizers.Tokenizer:
    content = read_json(file, TokenizerError)
    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8-sig"))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{file}: expected a tokenizer, found {error}") from error
    decoder = content.get("decoder")
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind != "ByteLevel":
        raise TokenizerError(f"{file}: decoder: expected 'ByteLevel', found {kind!r}")
    # What a training run had set: a prompt is neither cut nor filled up here.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read(file: Path) -> dict[str, Any]:
    """The object in ``file``; {} where there is no such file, for all these files but tokenizer.json are optional."""
    return read_json(file, TokenizerError) if file.is_file() else {}


def _generation_defaults(generation: Mapping[str, Any], file: Path) -> GenerationDefaults:
    """What the file says; null is absent. Raises: TokenizerError naming the key of a value that cannot be meant."""
    found: dict[str, Any] = {}
    for field in fields(GenerationDefaults):
        value = generation.get(field.name)
        if value is None:
            continue
        kind, fits = _DEFAULTS[field.name]
        right = type(value) is bool if kind == "true or false" else type(value) in (int, float) and fits(value)
        if not right or ("integer" in kind and type(value) is not int):
            raise TokenizerError(f"{file}: {field.name}: expected {kind}, found {value!r:.80}")
        found[field.name] = value
    return GenerationDefaults(**found)


_DEFAULTS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "do_sample": ("true or false", bool),
    "temperature": ("a finite number >= 0", lambda x: 0 <= x < math.inf),
    "top_k": ("a positive integer or 0", lambda x: x >= 0),
    "top_p": ("a number > 0 and <= 1", lambda x: 0 < x <= 1),
    "min_p": ("a number >= 0 and <= 1", lambda x: 0 <= x <= 1),
    "presence_penalty": ("a finite number", math.isfinite),
    "repetition_penalty": ("a finite number > 0", lambda x: 0 < x < math.inf),
    "max_new_tokens": ("a positive integer", lambda x: x > 0),
}


def _eos_token_ids(
    backend: tokenizers.Tokenizer,
    path: Path,
    generation: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    ends: Sequence[str],
) -> tuple[int, ...]:
    """What all the files say, taken together, and the two tokens that this family's models end with.

    Together, because each file alone has been seen to lack one: the published Qwen3.5 configs name <|endoftext|> alone,
    and a chat answer ends in the tokenizer's eos_token <|im_end|>.
    Raises: TokenizerError naming the file for what is no id, or no token, of this tokenizer.
    """
    text = config.get("text_config")
    found: list[int] = []
    for name, section in (
        ("generation_config.json", generation),
        ("config.json", text if isinstance(text, dict) else {}),
        ("config.json", config),
    ):
        found += _ids(section.get("eos_token_id"), path / name, backend)
    token = settings.get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None:
        token_id = backend.token_to_id(content) if isinstance(content, str) else None
        if token_id is None:
            where = path / "tokenizer_config.json"
            raise TokenizerError(f"{where}: eos_token: expected a token of tokenizer.json, found {token!r:.80}")
        found.append(token_id)
    known = (backend.token_to_id(token) for token in ends)
    return tuple(dict.fromkeys([*found, *(token_id for token_id in known if token_id is not None)]))


def _ids(value: Any, file: Path, backend: tokenizers.Tokenizer) -> list[int]:
    """An id, a list of ids or null, checked."""
    ids: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    wrong = [i for i in ids if type(i) is not int or not 0 <= i < 1 << 32 or backend.id_to_token(i) is None]
    if wrong:
        raise TokenizerError(f"{file}: eos_token_id: expected ids of tokenizer.json's tokens, found {wrong[0]!r:.80}")
    return ids


def _chat_templates(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """additional_chat_templates/NAME.jinja with chat_template.jinja, else with tokenizer_config.json's chat_template (a
    string, or a list of named ones), else with chat_template.json, where processors kept it."""
    further = sorted((path / "additional_chat_templates").glob("*.jinja"))
    files = {"default": path / "chat_template.jinja"} | {file.stem: file for file in further}
    found = {
        name: decode_utf8(file.read_bytes(), str(file), TokenizerError)
        for name, file in files.items()
        if file.is_file()
    }
    if "default" in found:
        return found
    for name, section in (
        ("tokenizer_config.json", settings),
        ("chat_template.json", _read(path / "chat_template.json")),
    ):
        template = section.get("chat_template")
        if isinstance(template, list):
            named = [entry for entry in template if isinstance(entry, dict)]
            template = {entry.get("name"): entry.get("template") for entry in named} or None
        elif template is not None:
            template = {"default": template}
        if template is None:
            continue
        wrong = [x for pair in template.items() for x in pair if not isinstance(x, str)]
        if wrong:
            where = f"{path / name}: chat_template"
            raise TokenizerError(f"{where}: expected text, or a list of names with templates, found {wrong[0]!r:.80}")
        return template | found
    return found


def _special_tokens(path: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Name -> content, of what ends in ``_token`` and is text or has a content; tokenizer_config.json goes first."""
    further = [settings.get(key) for key in ("extra_special_tokens", "model_specific_special_tokens")]
    sections = [_read(path / "special_tokens_map.json"), *further, settings]
    found = {}
    for section in sections:
        for name, token in section.items() if isinstance(section, dict) else ():
            content = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(content, str):
                found[name] = content
    return found


def check_text(text: Any, where: str) -> None:
    """Raises: ArgumentError naming ``where``, for what is no str, or holds half of a surrogate pair: that has no UTF-8.

    Such halves are what Python makes of bytes that are not UTF-8 (``surrogateescape``), and what is left of an emoji
    that JavaScript cut.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"{where}: expected text, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"{text[error.start]!r} at {error.start}"
        raise ArgumentError(f"{where}: expected text that is UTF-8, found {found}") from None
