"""Every JSON file that is read, is read here: the same damage is found, and named in the same words, in all of them.

What Python's ``json`` alone lets through: a byte order mark is an error there, a key given twice loses its first value,
``[[[[..`` ends in a RecursionError, and half of a surrogate pair fails when it is written again. NaN and Infinity are
left to whoever needs a number: Python writes them, and a config may hold one under a key that nobody reads.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20  # an index of ten thousand tensors is 1 MB, a tokenizer.json of 250,000 tokens 20 MB
MAX_DEPTH = 100  # a config is 4 deep; what is deeper than a few hundred cannot be written again
_NAMES: dict[type, str] = {dict: "object", list: "array", str: "string", bool: "bool", type(None): "null"}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(file: Path, error: type[ValueError], kind: type = dict, *, max_bytes: int = MAX_BYTES) -> Any:
    """The object (``kind`` dict) or array (list) in ``file``.

    Raises: ``error`` naming the file, what was expected and what was found; OSError when it cannot be read.
    """
    size = file.stat().st_size
    if size > max_bytes:
        raise error(f"{file}: expected a JSON file of at most {max_bytes} bytes, found {size}")
    return parse_json(file.read_bytes(), str(file), error, kind)


def parse_json(content: bytes | str, origin: str, error: type[ValueError], kind: type = dict) -> Any:
    """What ``content`` holds, UTF-8 with or without a byte order mark; ``origin`` names it in errors.

    Raises: ``error``, for whatever is not JSON of that kind with each key once, nested at most ``MAX_DEPTH`` deep.
    """
    wanted = f"a JSON {_NAMES[kind]}"
    text = content if isinstance(content, str) else decode_utf8(content, origin, error)
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise error(f"{origin}: expected {wanted}, found {'nothing but spaces' if text else 'an empty file'}")
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if _is_deep(value):
            raise RecursionError
    except RecursionError:
        raise error(f"{origin}: expected JSON at most {MAX_DEPTH} levels deep, found more") from None
    except ValueError as found:
        raise error(f"{origin}: expected JSON, found {str(found).partition(';')[0]}") from found
    if not isinstance(value, kind):
        raise error(f"{origin}: expected {wanted}, found {json_kind(value)}")
    if _SURROGATE.search(text) and not _is_text(value):
        raise error(f"{origin}: expected text in its strings, found half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def decode_utf8(content: bytes, origin: str, error: type[ValueError]) -> str:
    """Text of bytes, its byte order mark dropped. Raises: ``error`` naming the first byte that is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        byte, line = content[found.start], content.count(b"\n", 0, found.start) + 1
        raise error(f"{origin}: expected UTF-8, found the byte 0x{byte:02x} in line {line}") from found


def json_kind(value: Any) -> str:
    """What JSON calls the type of ``value``: "an object", "an array", "a number".."""
    name = _NAMES.get(type(value), "number")
    return name if name == "null" else f"{'an' if name[0] in 'ao' else 'a'} {name}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} twice in one object")
    return result


def _is_deep(value: Any) -> bool:
    """Whether arrays and objects are nested more than ``MAX_DEPTH`` deep, found level by level, without recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for each in chain.from_iterable(inner) if isinstance(each, (dict, list))]
        if not level:
            return False
    return True


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
