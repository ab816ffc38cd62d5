"""The tokenizer of a GGUF file, as the files that a checkpoint directory has: byte-level BPE as Qwen3.5 uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mlx_delta.arch.qwen3_5.markup import MARKUP
from mlx_delta.errors import CheckpointError

# How text is cut before merging. Source: Qwen3.5's tokenizer.json; qwen2's knows no combining marks (\p{M}).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"qwen35": _SPLIT, "qwen2": _SPLIT.replace(r"[\p{L}\p{M}]+", r"\p{L}+").replace(r"\p{M}", "")}
# GGUF calls every <|...|> a control token, and some files all tags; Qwen's tokenizer has these as plain added tokens,
# which decoding shows.
_NOT_SPECIAL = (
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    *MARKUP.tags,
)
_SAMPLING = {"top_k": "top_k", "top_p": "top_p", "temp": "temperature", "min_p": "min_p"}
_ENDS = ("eos", "eot", "eom")  # each "tokenizer.ggml.X_token_id": of an answer, of a turn, of a message
_PADDING = re.compile(r"\[PAD\d+\]")  # rows without a token: UNUSED to llama.cpp, USER_DEFINED to Ollama
_TEMPLATE = re.compile(r"tokenizer\.chat_template(?:\.(?P<name>[\w-]+))?")
_TAG = re.compile(r"<\|?[^\s<>]+>")


def tokenizer_files(metadata: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """File name -> content: tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja, and
    further templates where transformers saves them.

    Every token has the id that it has in the file, whatever its type is there.
    Raises: CheckpointError naming a key that is missing, or makes no such tokenizer.
    """
    for key, known in (("model", ("gpt2",)), ("pre", tuple(_SPLITS))):
        found = metadata.get(f"tokenizer.ggml.{key}")
        if found not in known:
            raise CheckpointError(f"{path}: tokenizer.ggml.{key}: expected {' or '.join(known)}, found {found}")
    tokens, kinds = _tokens(metadata, path)
    files = {
        "tokenizer.json": _tokenizer_json(tokens, kinds, metadata, path).encode(),
        "tokenizer_config.json": _json(_tokenizer_config(metadata, tokens, path)),
        "generation_config.json": _json(_generation_config(metadata, tokens, path)),
    }
    templates = _templates(metadata, path)
    default = {"chat_template.jinja": templates.pop("default")} if "default" in templates else {}
    named = {f"additional_chat_templates/{name}.jinja": template for name, template in templates.items()}
    return files | {name: template.encode() for name, template in [*default.items(), *named.items()]}


def token_ids(metadata: Mapping[str, Any], key: str, path: Path) -> list[int]:
    """The id, or ids, of the key ``tokenizer.ggml.<key>``; none where it is missing.

    Raises: CheckpointError for what is no id of a token.
    """
    name = f"tokenizer.ggml.{key}"
    value = metadata.get(name)
    ids: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    count = len(_list(metadata, "tokens", str, path))
    for found in ids:
        if type(found) is not int or not 0 <= found < count:
            raise CheckpointError(f"{path}: {name}: expected an id from 0 to {count - 1}, found {found!r:.80}")
    return ids


def _tokens(metadata: Mapping[str, Any], path: Path) -> tuple[list[str], list[int]]:
    """Every token with its type."""
    tokens, kinds = _list(metadata, "tokens", str, path), _list(metadata, "token_type", int, path)
    if len(tokens) != len(kinds):
        what = f"{path}: tokenizer.ggml.token_type"
        raise CheckpointError(f"{what}: expected {len(tokens)} types, one a token, found {len(kinds)}")
    kinds = [int(TokenType.UNUSED) if _PADDING.fullmatch(t) else k for t, k in zip(tokens, kinds, strict=True)]
    seen: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind != TokenType.UNUSED and seen.setdefault(token, i) != i:
            what = f"{path}: tokenizer.ggml.tokens"
            raise CheckpointError(f"{what}: expected each token once, found {token!r} as {seen[token]} and {i}")
    return tokens, kinds


def _list(metadata: Mapping[str, Any], key: str, kind: type, path: Path) -> list[Any]:
    name = f"tokenizer.ggml.{key}"
    value = metadata.get(name)
    if value is None:
        raise CheckpointError(f"{path}: expected the key {name}, found nothing")
    if not isinstance(value, list) or not value or type(value[0]) is not kind:
        raise CheckpointError(f"{path}: {name}: expected a list of {kind.__name__}, found {value!r:.80}")
    return value


def _tokenizer_json(tokens: Sequence[str], kinds: Sequence[int], metadata: Mapping[str, Any], path: Path) -> str:
    merges = [_pair(merge, i, path) for i, merge in enumerate(_list(metadata, "merges", str, path))]
    added = _added(tokens, kinds, merges)
    known = {token: i for i, token in enumerate(tokens) if kinds[i] != TokenType.UNUSED}
    vocabulary = {token: i for token, i in known.items() if i not in added}
    # An added token gets the first id behind the vocabulary, unless the vocabulary has it: so where the added ones are
    # not what ends it, they are in it, where no merge leads to them.
    if set(added) != set(range(len(vocabulary), len(known))):
        vocabulary = known
    try:
        text = _build(vocabulary, merges, added, metadata["tokenizer.ggml.pre"])
        found = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: expected a tokenizer in its metadata, found: {error}") from error
    if found != known:
        wrong = next(iter(dict(known.items() ^ found.items())))
        what = f"{path}: tokenizer.ggml.tokens: expected a tokenizer with the same ids"
        raise CheckpointError(f"{what}, found {wrong!r} as {found.get(wrong)} instead of {known.get(wrong)}")
    return text


def _added(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, str]]) -> dict[int, AddedToken]:
    """The tokens that are found in a text before it is cut and merged, by id.

    Those typed so, and tags typed as words that no merge makes: of use only as added tokens, which is what they were.
    """
    made = {left + right for left, right in merges}
    result = {}
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        is_lost = kind == TokenType.NORMAL and token not in made and _TAG.fullmatch(token)
        if not is_lost and kind not in (TokenType.CONTROL, TokenType.USER_DEFINED):
            continue
        special = (token.startswith("<|") if is_lost else kind == TokenType.CONTROL) and token not in _NOT_SPECIAL
        result[i] = AddedToken(token, special=special, normalized=False)
    return result


def _build(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], added: Mapping[int, AddedToken], split: str
) -> str:
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    result.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(_SPLITS[split]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    result.decoder = decoders.ByteLevel()
    result.add_tokens([added[i] for i in sorted(added)])
    return result.to_str(pretty=True)


def _pair(merge: str, index: int, path: Path) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        what = f"{path}: tokenizer.ggml.merges: expected two tokens with a space between them"
        raise CheckpointError(f"{what}, found {merge!r:.80} as number {index}")
    return left, right


def _tokenizer_config(metadata: Mapping[str, Any], tokens: Sequence[str], path: Path) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False}
    for key, name in (("eos", "eos_token"), ("bos", "bos_token"), ("padding", "pad_token")):
        for token_id in token_ids(metadata, f"{key}_token_id", path)[:1]:
            config[name] = tokens[token_id]
    default = _templates(metadata, path).get("default")
    return config | ({"chat_template": default} if default else {})


def _templates(metadata: Mapping[str, Any], path: Path) -> dict[str, str]:
    """By name: ``tokenizer.chat_template`` is the default one, ``tokenizer.chat_template.NAME`` another."""
    found = {}
    for key, template in metadata.items():
        match = _TEMPLATE.fullmatch(key)
        if match is None:
            continue
        if not isinstance(template, str):
            raise CheckpointError(f"{path}: {key}: expected text, found {template!r:.80}")
        if template:
            found[match["name"] or "default"] = template
    return found


def _generation_config(metadata: Mapping[str, Any], tokens: Sequence[str], path: Path) -> dict[str, Any]:
    """Every end of an answer that the file names, and <|endoftext|>; what it recommends for sampling."""
    ends = [i for key in _ENDS for i in token_ids(metadata, f"{key}_token_id", path)]
    ends += token_ids(metadata, "eos_token_ids", path)  # Ollama's
    ends += [tokens.index("<|endoftext|>")] if "<|endoftext|>" in tokens else []
    config: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends))}
    for padding in token_ids(metadata, "padding_token_id", path)[:1]:
        config["pad_token_id"] = padding
    sampling = {
        name: float(f"{value:.7g}") if isinstance(value, float) else value  # float32 in GGUF
        for key, name in _SAMPLING.items()
        if (value := metadata.get(f"general.sampling.{key}")) is not None
    }
    return config | ({"do_sample": True, **sampling} if sampling else {})


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
