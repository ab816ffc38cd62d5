"""What single keywords of JSON Schema say of a value, and what its types are called; knows nothing of references."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeGuard

ALL = frozenset(("string", "integer", "number", "boolean", "null", "array", "object"))
NUMBERS = frozenset(("integer", "number"))

_TYPE_NAMES = [  # what a type's name begins with, in lower case
    (("str", "text", "varchar", "char", "enum"), frozenset(("string",))),
    (("int", "uint", "long", "short", "unsigned", "bigint"), frozenset(("integer",))),
    (("num", "float", "double", "decimal", "real"), NUMBERS),
    (("bool", "binary"), frozenset(("boolean",))),
    (("nul", "none", "nil"), frozenset(("null",))),
    (("arr", "list", "tuple", "sequence", "set"), frozenset(("array",))),
    (("obj", "dict", "map", "struct", "record"), frozenset(("object",))),
]


def type_of(value: Any) -> str:
    """The JSON type of a Python value."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def equal(a: Any, b: Any) -> bool:
    """As JSON has it: 1 is 1.0, and not true."""
    return hashable(a) == hashable(b)


def hashable(value: Any) -> Any:
    """The same for values that are equal as JSON has it, and for no others."""
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, list | tuple):
        return list, tuple(map(hashable, value))
    if isinstance(value, Mapping):
        return dict, frozenset((key, hashable(item)) for key, item in value.items())
    return value


def declared_types(kind: Any) -> frozenset[str]:
    if isinstance(kind, str):
        return _named_types(kind)
    if isinstance(kind, Sequence) and kind:
        return frozenset().union(*map(declared_types, kind))
    return ALL


@lru_cache
def _named_types(kind: str) -> frozenset[str]:
    """``int | None`` and ``Optional[int]`` too."""
    return frozenset().union(*map(_named_type, re.sub(r"^optional\[(.*)\]$", r"\1|null", kind.lower()).split("|")))


def with_integers(values: Sequence[Any]) -> frozenset[str]:
    """Their types; 3.0 may be written 3."""
    found = frozenset(map(type_of, values))
    return found | NUMBERS if found & NUMBERS else found


def _named_type(name: str) -> frozenset[str]:
    return next((types for starts, types in _TYPE_NAMES if name.strip().startswith(starts)), ALL)


def valid_string(value: str, schema: Mapping[str, Any]) -> bool:
    pattern = schema.get("pattern")
    return within(len(value), schema, "minLength", "maxLength") and (pattern is None or matches(pattern, value))


def valid_number(value: float, schema: Mapping[str, Any]) -> bool:
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is True or high is True:  # draft 4
        low, high = (schema.get(key) if flag is True else None for key, flag in (("minimum", low), ("maximum", high)))
    step = schema.get("multipleOf")
    return (
        within(value, schema, "minimum", "maximum")
        and (not _is_number(low) or value > low)
        and (not _is_number(high) or value < high)
        and (not _is_number(step) or step <= 0 or _is_multiple(value, step))
    )


def _is_multiple(value: float, step: float) -> bool:
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    quotient = value / step
    return math.isfinite(quotient) and quotient == int(quotient)


def within(size: float, schema: Mapping[str, Any], least: str, most: str) -> bool:
    low, high = schema.get(least), schema.get(most)
    return (not _is_number(low) or size >= low) and (not _is_number(high) or size <= high)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def matches(pattern: Any, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except (re.error, TypeError):
        return True
