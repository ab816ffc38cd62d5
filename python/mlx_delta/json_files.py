"""Every JSON file that is read, is read here: the same damage is found, and named in the same words, in all of them.

What Python's ``json`` alone lets through: a byte order mark is an error there, a key given twice loses its first value,
``[[[[..`` ends in a RecursionError, and half of a surrogate pair fails when it is written again. NaN and Infinity are
left to whoever needs a number, such as ``Section``: Python writes them, and a config may hold one that nobody reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20  # an index of ten thousand tensors is 1 MB, a tokenizer.json of 250,000 tokens 20 MB
MAX_DEPTH = 100  # a config is 4 deep; what is deeper than a few hundred cannot be written again
_NAMES: dict[type, str] = {dict: "object", list: "array", str: "string", bool: "bool", type(None): "null"}
_MAX_INTEGER, _MAX_NUMBER = (1 << 31) - 1, 1e30  # more is a slip: sizes are products of a few of them
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


class Section:
    """An object of a config file. Its values are asked for by the kind that they must have; null is absent everywhere.

    origin: the file, and where in it, for errors: every method raises ``error`` naming it, the key, what was expected
    and what was found.
    """

    def __init__(self, values: Mapping[str, Any], origin: str, error: type[ValueError]) -> None:
        self.values = {key: value for key, value in values.items() if value is not None}
        self.origin = origin
        self._error = error

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = _MAX_INTEGER) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not least <= value <= most:
            kind = {1: "a positive integer", 0: "an integer of at least 0"}.get(
                least, f"an integer of at least {least}"
            )
            # The bound is worth a word only to who went over it.
            raise self.wrong(key, f"{kind} up to {most}" if type(value) is int and value > most else kind)
        return value

    def number(self, key: str, default: float, *, most: float = _MAX_NUMBER) -> float:
        """A positive one."""
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not 0 < value <= most:
            raise self.wrong(key, "a positive number" if most == _MAX_NUMBER else f"a positive number up to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def array(self, key: str, kind: type) -> list[Any] | None:
        """All of one kind, bool apart from int; None where there is none."""
        value = self.values.get(key)
        if value is not None and not (isinstance(value, list) and all(type(each) is kind for each in value)):
            raise self.wrong(key, f"an array of {'integers' if kind is int else 'strings'}")
        return value

    def section(self, key: str, origin: str | None = None) -> Section:
        """An empty one where there is none. origin: its own, where its keys alone would not say which one it is."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Section(value, origin or self.origin, self._error)

    def wrong(self, key: str, expected: str) -> ValueError:
        found = repr(self.values[key]) if key in self.values else "nothing"
        return self._error(f"{self.origin}: {key}: expected {expected}, found {found:.80}")


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
