"""JSON Schema, as far as a text needs it to be read as the value that its schema means.

Lax where tools are: types by other names (``int``, ``float``, ``str``, ``dict``, ``STRING``, ``int | None``), OpenAPI's
``nullable``, draft 4 to 2020-12, definitions that lie beside what refers to them. What cannot be understood (an unknown
type or keyword, a reference that leads nowhere, a pattern that is none) demands nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlx_delta.chat.schema_values import (
    ALL,
    NUMBERS,
    declared_types,
    equal,
    hashable,
    matches,
    type_of,
    valid_number,
    valid_string,
    with_integers,
    within,
)

_DEPTH = 64  # of definitions within a schema
_IMPLIED = {  # keywords that say something of one type alone
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "propertyNames"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength", "pattern", "format"),
}
_UNIONS = ("anyOf", "oneOf")


class Schema:
    """A schema with all that its references need: of an object, whose properties are the parameters of a tool."""

    def __init__(self, root: Any) -> None:
        self._root = root if isinstance(root, Mapping) else {}
        self._properties: dict[str, Any] = {}  # those that were asked for
        self._named: dict[str, Any] | None = None  # looked for where a reference does not say where it leads

    def resolve(self, reference: Any) -> Any:
        """What a reference such as ``#/$defs/Unit`` points to; {} where there is no such thing."""
        found: Any = self._root
        for part in str(reference).partition("#")[2].strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
                found = found[int(name)]
            elif name:
                if self._named is None:
                    self._named = _definitions(self._root)
                return self._named.get(str(reference).rstrip("/").replace("#", "/").rpartition("/")[2], {})
        return found

    # --- parameters ---------------------------------------------------------------------------------------------------

    def parameter(self, name: str) -> Any:
        """What the schema says of a property, taken together; None where it says nothing."""
        if name not in self._properties:
            self._properties[name] = _all(list(self._parts(self._root, name, frozenset())))
        return self._properties[name]

    def _parts(self, schema: Any, name: str, above: frozenset[int]) -> Iterator[Any]:
        """above: the schemas that this one is part of, lest a cycle of references has no end."""
        if not isinstance(schema, Mapping) or id(schema) in above:
            return
        above |= {id(schema)}
        own = [_mapping(schema.get("properties")).get(name)]
        own += [part for pattern, part in _mapping(schema.get("patternProperties")).items() if matches(pattern, name)]
        own = [part for part in own if part is not None]
        yield from own or [part for part in [schema.get("additionalProperties")] if isinstance(part, Mapping)]
        for part in self._conjuncts(schema):
            yield from self._parts(part, name, above)
        for parts in self._alternatives(schema):
            found = [_all(list(self._parts(part, name, above))) for part in parts]
            found = [part for part in found if part is not None]
            if found:
                yield {"anyOf": found}

    def names(self) -> frozenset[str] | None:
        """Of all properties; None where it says of none, or takes any further ones."""
        return None if self.takes_further() else self.declared() or None

    def takes_further(self) -> bool:
        """Whether it says that there may be properties that it does not name."""
        nodes = self._nodes(self._root)
        return any(_allows(node.get("additionalProperties")) or node.get("patternProperties") for node in nodes)

    def declared(self) -> frozenset[str]:
        """Of the properties that it names."""
        return frozenset(name for node in self._nodes(self._root) for name in _mapping(node.get("properties")))

    def required(self) -> frozenset[str]:
        """The properties that must be there."""
        found: set[str] = set()
        for schema in self._nodes(self._root, unions=False):
            names = schema.get("required")
            found.update(name for name in (names if isinstance(names, list | tuple) else ()) if isinstance(name, str))
        return frozenset(found)

    def _nodes(self, schema: Any, *, unions: bool = True) -> list[Mapping[str, Any]]:
        """The schema and all that it is put together from, each once."""
        found: dict[int, Mapping[str, Any]] = {}
        waiting = [schema]
        while waiting:
            part = waiting.pop()
            if isinstance(part, Mapping) and id(part) not in found:
                found[id(part)] = part
                waiting += self._conjuncts(part)
                waiting += [p for parts in self._alternatives(part) for p in parts] if unions else []
        return list(found.values())

    def _conjuncts(self, schema: Mapping[str, Any]) -> list[Any]:
        referred = [self.resolve(schema[key]) for key in ("$ref", "$dynamicRef", "$recursiveRef") if key in schema]
        return [*referred, *_list(schema.get("allOf"))]

    def _alternatives(self, schema: Mapping[str, Any]) -> list[list[Any]]:
        found = [_list(schema[key]) for key in _UNIONS if key in schema]
        return [*found, [schema[key] for key in ("then", "else") if key in schema]]

    # --- types --------------------------------------------------------------------------------------------------------

    def types(self, schema: Any) -> frozenset[str]:
        """The JSON types that a schema allows; a number may be an integer."""
        found = self._types(schema, {})
        return ALL if found is None else found

    def _types(self, schema: Any, known: dict[int, frozenset[str] | None]) -> frozenset[str] | None:
        """None: what a cycle of references says of itself, which is nothing."""
        if not isinstance(schema, Mapping):
            return ALL
        if id(schema) in known:
            return known[id(schema)]
        known[id(schema)] = None
        found = declared_types(schema.get("type"))
        if "const" in schema:
            found &= with_integers([schema["const"]])
        if isinstance(schema.get("enum"), list | tuple):
            found &= with_integers(schema["enum"])
        parts = [self._types(part, known) for part in self._conjuncts(schema)]
        if None in parts and found == ALL:
            return None
        for types in parts:
            found = found if types is None else found & types
        for key in _UNIONS:
            members = [self._types(part, known) for part in _list(schema.get(key))]
            any_of = [types for types in members if types is not None]
            found = found & frozenset().union(*any_of) if any_of else found
        known[id(schema)] = found | {"null"} if schema.get("nullable") is True else found
        return known[id(schema)]

    def implied(self, schema: Any) -> frozenset[str]:
        """The types that its keywords speak of."""
        nodes = self._nodes(schema)
        found = {kind for kind, keys in _IMPLIED.items() for key in keys if any(key in node for node in nodes)}
        return frozenset(found) | (NUMBERS if "number" in found else frozenset())

    def enumerated(self, schema: Any) -> bool:
        """Whether it allows certain values alone."""
        return self._enumerated(schema, frozenset())

    def _enumerated(self, schema: Any, above: frozenset[int]) -> bool:
        if not isinstance(schema, Mapping) or id(schema) in above:
            return False
        above |= {id(schema)}
        if "const" in schema or "enum" in schema or any(self._enumerated(p, above) for p in self._conjuncts(schema)):
            return True
        unions = [_list(schema.get(key)) for key in _UNIONS]
        return any(parts and all(self._enumerated(part, above) for part in parts) for parts in unions)

    def choices(self, schema: Any) -> list[Any]:
        """The values that it allows, where these are certain ones alone; [] else."""
        if not self.enumerated(schema):
            return []
        nodes = self._nodes(schema)
        found = [node["const"] for node in nodes if "const" in node]
        found += [value for node in nodes for value in _list(node.get("enum"))]
        once = {repr(hashable(value)): value for value in reversed(found)}
        return [value for value in reversed(once.values()) if self.valid(value, schema)]

    # --- validity -----------------------------------------------------------------------------------------------------

    def valid(self, value: Any, schema: Any = None) -> bool:
        """Whether a value follows a schema, or the root; what nests too deep to be checked does not."""
        try:
            return self._valid(value, self._root if schema is None else schema, {})
        except RecursionError:
            return False

    def _valid(self, value: Any, schema: Any, known: dict[tuple[int, int], bool]) -> bool:
        if not isinstance(schema, Mapping):
            return schema is not False
        key = id(value), id(schema)
        if key not in known:
            known[key] = True  # what a cycle of references says of itself
            known[key] = self._follows(value, schema, known)
        return known[key]

    def _follows(self, value: Any, schema: Mapping[str, Any], known: dict[tuple[int, int], bool]) -> bool:
        if value is None and schema.get("nullable") is True:
            return True
        kinds = declared_types(schema.get("type"))
        if type_of(value) not in kinds and not ("integer" in kinds and isinstance(value, float) and value.is_integer()):
            return False
        if "const" in schema and not equal(value, schema["const"]):
            return False
        if isinstance(schema.get("enum"), list | tuple) and not any(equal(value, member) for member in schema["enum"]):
            return False
        if isinstance(value, str):
            kept = valid_string(value, schema)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            kept = valid_number(value, schema)
        elif isinstance(value, list):
            kept = self._valid_array(value, schema, known)
        elif isinstance(value, dict):
            kept = self._valid_object(value, schema, known)
        else:
            kept = True
        return kept and self._valid_combination(value, schema, known)

    def _valid_combination(self, value: Any, schema: Mapping[str, Any], known: dict[tuple[int, int], bool]) -> bool:
        def follows(part: Any) -> bool:
            return self._valid(value, part, known)

        if not all(map(follows, self._conjuncts(schema))):
            return False
        if _list(schema.get("anyOf")) and not any(map(follows, schema["anyOf"])):
            return False
        if _list(schema.get("oneOf")) and sum(map(follows, schema["oneOf"])) != 1:
            return False
        if "not" in schema and follows(schema["not"]):
            return False
        if "if" in schema:
            return follows(schema.get("then" if follows(schema["if"]) else "else", True))
        return True

    def _valid_array(self, value: list[Any], schema: Mapping[str, Any], known: dict[tuple[int, int], bool]) -> bool:
        items, first = schema.get("items", True), _list(schema.get("prefixItems"))
        if isinstance(items, list):  # before 2020-12
            items, first = schema.get("additionalItems", True), items
        each = all(self._valid(item, part, known) for item, part in zip(value, first, strict=False))
        if not (each and all(self._valid(item, items, known) for item in value[len(first) :])):
            return False
        if schema.get("uniqueItems") is True and len(set(map(hashable, value))) < len(value):
            return False
        if "contains" in schema:
            count = sum(self._valid(item, schema["contains"], known) for item in value)
            if not schema.get("minContains", 1) <= count <= schema.get("maxContains", count):
                return False
        return within(len(value), schema, "minItems", "maxItems")

    def _valid_object(
        self, value: dict[str, Any], schema: Mapping[str, Any], known: dict[tuple[int, int], bool]
    ) -> bool:
        properties, patterns = _mapping(schema.get("properties")), _mapping(schema.get("patternProperties"))
        for name, item in value.items():
            parts = [properties[name]] if name in properties else []
            parts += [part for pattern, part in patterns.items() if matches(pattern, name)]
            parts = parts or [schema.get("additionalProperties", True)]
            if not all(self._valid(item, part, known) for part in parts):
                return False
            if not self._valid(name, schema.get("propertyNames", True), known):
                return False
        needed = schema.get("required")
        if isinstance(needed, list | tuple) and any(name not in value for name in needed):
            return False
        for key in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, part in _mapping(schema.get(key)).items():
                if name in value and not (
                    all(other in value for other in part) if isinstance(part, list) else self._valid(value, part, known)
                ):
                    return False
        return within(len(value), schema, "minProperties", "maxProperties")


def _definitions(root: Any) -> dict[str, Any]:
    """By name, wherever in the schema they are; the outer ones first."""
    found: dict[str, Any] = {}
    level = [root]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for schema in level:
            if isinstance(schema, Mapping):
                for key in ("$id", "$anchor"):
                    if isinstance(schema.get(key), str):
                        found.setdefault(schema[key], schema)
                for key in ("$defs", "definitions"):
                    for name, part in _mapping(schema.get(key)).items():
                        found.setdefault(name, part)
                below += schema.values()
            elif isinstance(schema, list):
                below += schema
        level = below
    return found


def _all(parts: list[Any]) -> Any:
    return {"allOf": parts} if len(parts) > 1 else parts[0] if parts else None


def _allows(schema: Any) -> bool:
    """Whether the schema was given and allows anything: an empty one allows all."""
    return isinstance(schema, Mapping) or bool(schema)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
