"""The tokenizer of a GGUF file, as the files that a checkpoint directory has: byte-level BPE as Qwen3.5 uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mlx_delta.checkpoint.source import CheckpointError

# How text is cut before merging. Source: Qwen3.5's tokenizer.json; qwen2's knows no combining marks (\p{M}).
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"qwen35": _SPLIT, "qwen2": _SPLIT.replace(r"[\p{L}\p{M}]+", r"\p{L}+").replace(r"\p{M}", "")}
# GGUF calls every <|...|> a control token; Qwen's tokenizer has these as plain added tokens, which decoding shows.
_NOT_SPECIAL = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
_SAMPLING = {"top_k": "top_k", "top_p": "top_p", "temp": "temperature", "min_p": "min_p"}


def tokenizer_files(metadata: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """File name -> content: tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja.

    Raises: CheckpointError naming a key that is missing or of another tokenizer.
    """
    for key, known in (("model", ("gpt2",)), ("pre", tuple(_SPLITS))):
        found = metadata.get(f"tokenizer.ggml.{key}")
        if found not in known:
            raise CheckpointError(f"{path}: tokenizer.ggml.{key}: expected {' or '.join(known)}, found {found}")
    for key in ("tokens", "token_type", "merges"):
        if f"tokenizer.ggml.{key}" not in metadata:
            raise CheckpointError(f"{path}: expected the key tokenizer.ggml.{key}, found nothing")
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    files = {
        "tokenizer.json": _tokenizer(metadata, tokens).to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(_tokenizer_config(metadata, tokens)),
        "generation_config.json": _json(_generation_config(metadata, tokens)),
    }
    template = metadata.get("tokenizer.chat_template")
    return files | ({"chat_template.jinja": template.encode()} if template else {})


def _tokenizer(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    kinds: Sequence[int] = metadata["tokenizer.ggml.token_type"]
    added = {i for i, kind in enumerate(kinds) if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)}
    padding = {i for i, kind in enumerate(kinds) if kind == TokenType.UNUSED}  # rows without a token
    vocabulary = {token: i for i, token in enumerate(tokens) if i not in added | padding}
    merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    result.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLITS[metadata["tokenizer.ggml.pre"]]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    result.decoder = decoders.ByteLevel()
    # Ids are given out in order from the vocabulary's end, which is where the added tokens of these models are.
    result.add_tokens(
        [
            AddedToken(
                tokens[i],
                special=kinds[i] == TokenType.CONTROL and tokens[i] not in _NOT_SPECIAL,
                normalized=False,
            )
            for i in sorted(added)
        ]
    )
    return result


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _tokenizer_config(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False}
    for key in ("eos", "padding"):
        found = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if found is not None:
            config["pad_token" if key == "padding" else "eos_token"] = tokens[found]
    template = metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if template else {})


def _generation_config(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Both ends of an answer, <|im_end|> and <|endoftext|>: GGUF names one, Qwen's own files both."""
    ends = [metadata.get("tokenizer.ggml.eos_token_id"), _index(tokens, "<|endoftext|>")]
    config: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(i for i in ends if i is not None))}
    padding = metadata.get("tokenizer.ggml.padding_token_id")
    if padding is not None:
        config["pad_token_id"] = padding
    sampling = {
        name: value if isinstance(value, int) else float(f"{value:.7g}")  # float32 in GGUF
        for key, name in _SAMPLING.items()
        if (value := metadata.get(f"general.sampling.{key}")) is not None
    }
    return config | ({"do_sample": True, **sampling} if sampling else {})


def _index(tokens: Sequence[str], token: str) -> int | None:
    return tokens.index(token) if token in tokens else None


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
