"""Shapes: JSON Schemas of tools, checked before they are used and then used to check values.

    shape = Shape(schema, "tool add: field 'input'")    # OSError(EINVAL) for what is no schema
    wrong = shape.wrong(arguments)                      # "" or a sentence that names the place

A schema may come from anybody (a tool, a server), so looking at a value with it must take bounded
time: nothing is fetched, regular expressions are those that match in linear time, and a schema that
refers to itself, or is long once its references are followed, is refused. Pure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

if TYPE_CHECKING:
    from jsonschema_rs import Validator

MOST_BYTES: Final = 128 << 10
"""Bytes of a schema, as JSON."""
MOST_PARTS: Final = 20_000
"""Schemas inside a schema, every reference followed."""
DEEPEST: Final = 100
"""Schemas inside each other, references followed."""
REGEX_BYTES: Final = 1 << 20
"""Bytes that one compiled regular expression may take."""
SHOWN: Final = 200
"""Characters of a value in a sentence."""

_ONE: Final = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items",
    "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_TABLES: Final = ("properties", "patternProperties", "dependentSchemas", "dependencies")
_REFUSED: Final = ("$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor")


class Shape:
    """A schema ready for use. field: what to name in errors."""

    def __init__(self, schema: dict[str, Any], field: str) -> None:
        self.schema = schema
        self._anything = not schema
        _check(schema, field)
        self._validator = None if self._anything else _compiled(schema, field)

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value and where, or "" when it fits."""
        validator = self._validator
        if validator is None:
            return ""
        try:
            if validator.is_valid(value):
                return ""
            found = next(validator.iter_errors(value))
        except ValueError as error:  # no JSON at all: bytes, or a key that is no text
            return f"holds what JSON can't: {error}"
        except RecursionError:
            return "is nested too deep"
        place = ".".join(str(step) for step in found.instance_path)
        return f"{f'at {place!r}: ' if place else ''}{_short(found.message)}"


def _compiled(schema: dict[str, Any], field: str) -> Validator:
    import jsonschema_rs  # a kernel without tools needs none of it

    try:
        return jsonschema_rs.validator_for(
            schema,
            retriever=_fetch,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=REGEX_BYTES),
            mask="it",  # a value may be long, or a secret
        )
    except (ValueError, jsonschema_rs.ValidationError) as error:
        first = str(getattr(error, "message", error)).splitlines()[0]
        raise _error(field, f"is no JSON Schema: {_short(first)}") from None


def _fetch(uri: str) -> NoReturn:
    raise ValueError(f"{uri} lies outside the schema; put what it refers to into $defs")


def _check(schema: dict[str, Any], field: str) -> None:
    try:
        size = len(msgspec.json.encode(schema))
    except (TypeError, ValueError, msgspec.EncodeError, RecursionError) as error:
        raise _error(field, f"is no JSON: {_short(str(error))}") from None
    if size > MOST_BYTES:
        raise _error(field, f"has {size} bytes, the limit is {MOST_BYTES}; describe less")
    _Measure(schema, field).measure(schema, 0)


class _Measure:
    """Counts the schemas inside one, each reference followed; raises OSError(EINVAL) beyond."""

    def __init__(self, root: dict[str, Any], field: str) -> None:
        self._root = root
        self._field = field
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def measure(self, schema: object, depth: int) -> int:
        """Return how many schemas there are in a schema."""
        if not isinstance(schema, dict):
            return 1
        if id(schema) in self._known:
            return self._known[id(schema)]
        if id(schema) in self._open:
            raise _error(self._field, "refers to itself; write out as many levels as are needed")
        if depth > DEEPEST:
            raise _error(self._field, f"nests schemas deeper than {DEEPEST}; make it flatter")
        self._open.add(id(schema))
        parts = 1 + sum(self.measure(part, depth + 1) for part in self._parts(schema))
        self._open.discard(id(schema))
        if parts > MOST_PARTS:
            raise _error(
                self._field, f"has more than {MOST_PARTS} parts, references followed; describe less"
            )
        self._known[id(schema)] = parts
        return parts

    def _parts(self, schema: dict[str, Any]) -> Iterator[object]:
        for name in _REFUSED:
            if name in schema:
                raise _error(self._field, f"uses {name!r}; refer to places in $defs with $ref")
        if "$ref" in schema:
            yield self._target(schema["$ref"])
        for name in _ONE:
            if isinstance(schema.get(name), dict):
                yield schema[name]
        for name in _LISTS:
            if isinstance(schema.get(name), list):
                yield from schema[name]
        for name in _TABLES:
            if isinstance(schema.get(name), dict):
                yield from schema[name].values()

    def _target(self, ref: object) -> object:
        """Return what a reference inside the schema means."""
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise _error(
                self._field, f"refers to {_short(str(ref))}: only '#/...' inside it is known"
            )
        place: object = self._root
        for step in ref[2:].split("/") if ref != "#" else []:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(place, dict) or name not in place:
                raise _error(self._field, f"refers to {_short(ref)}, which is not there")
            place = place[name]
        return place


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _error(field: str, sentence: str) -> OSError:
    return OSError(errno.EINVAL, f"{field} {sentence}")
