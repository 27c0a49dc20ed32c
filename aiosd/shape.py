"""Shapes: JSON Schemas of tools, checked before they are used and then used to check values.

    shape = Shape(schema, "tool add: field 'input'")    # OSError(EINVAL) for what is no schema
    wrong = shape.wrong(arguments)                      # "" or a sentence that names the place

A schema may come from anybody (a tool, a server), so looking at a value with it must take bounded
time: nothing is fetched, regular expressions are those that match in linear time, and a schema that
is long once its references are followed is refused. One may refer to itself, as that of a tree
does, where each round goes further into the value; a value is refused then where it is too deep, or
where looking at its parts in several ways would multiply too often. Pure.
"""

from __future__ import annotations

import errno
from collections import Counter
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
DEEPEST_VALUE: Final = 64
"""Levels of a value that a schema which refers to itself may look at."""
MOST_LOOKS: Final = 20_000_000
"""Schemas that one which refers to itself may try on parts of a value."""
SHOWN: Final = 200
"""Characters of a value in a sentence."""

HERE, ITEM, MEMBER, NAMED = "here", "item", "member", "named"
_PLACES: Final = {
    HERE: (
        "allOf", "anyOf", "contentSchema", "dependencies", "dependentSchemas", "else", "if", "not",
        "oneOf", "then",
    ),
    ITEM: ("additionalItems", "contains", "items", "prefixItems", "unevaluatedItems"),
    MEMBER: (
        "additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties",
    ),
    NAMED: ("properties",),
}  # fmt: skip
"""Keywords that hold schemas, by what those look at: the value itself, or a part of it."""
_TABLES: Final = ("dependencies", "dependentSchemas", "patternProperties", "properties")
_REFUSED: Final = ("$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor")


class Shape:
    """A schema ready for use. field: what to name in errors."""

    def __init__(self, schema: dict[str, Any], field: str) -> None:
        self.schema = schema
        self._anything = not schema
        self._loops = _check(schema, field)
        self._validator = None if self._anything else _compiled(schema, field)

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value and where, or "" when it fits."""
        validator = self._validator
        if validator is None:
            return ""
        if self._loops is not None and self._loops.too_much(value):
            return "is too deep, or has too many parts, for a schema that refers to itself"
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


def _check(schema: dict[str, Any], field: str) -> _Loops | None:
    """Refuse what can't be used; return what is to be known of one that refers to itself."""
    try:
        size = len(msgspec.json.encode(schema))
    except (TypeError, ValueError, msgspec.EncodeError, RecursionError) as error:
        raise _error(field, f"is no JSON: {_short(str(error))}") from None
    if size > MOST_BYTES:
        raise _error(field, f"has {size} bytes, the limit is {MOST_BYTES}; describe less")
    measure = _Measure(schema, field)
    parts = measure.measure(schema, 0)
    return measure.loops(parts) if measure.heads else None


class _Loops:
    """What is known of a schema that refers to itself.

    ways: in which it looks at one part of a value from the one around it, at most: so often the
    looks multiply with each level. parts: schemas that it tries on one value.
    """

    def __init__(self, ways: int, parts: int) -> None:
        self.ways = ways
        self._most = MOST_LOOKS // parts

    def too_much(self, value: object) -> bool:
        """Whether looking at a value might take too long."""
        left, times, parts = self._most, 1, [value]
        for _ in range(DEEPEST_VALUE):
            left -= times * len(parts)
            if left < 0:
                return True
            parts = [inner for part in parts for inner in _inside(part)]
            if not parts:
                return False
            times *= self.ways
        return True


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


class _Measure:
    """Counts the schemas inside one, each reference followed; raises OSError(EINVAL) beyond.

    heads: schemas that are referred to from inside themselves, by id.
    """

    def __init__(self, root: dict[str, Any], field: str) -> None:
        self.heads: set[int] = set()
        self._root = root
        self._field = field
        self._known: dict[int, int] = {}
        self._open: set[int] = set()
        self._edges: dict[int, list[tuple[str, int]]] = {}  # what it looks at, and with which

    def measure(self, schema: object, depth: int) -> int:
        """Return how many schemas there are in a schema; one inside itself counts as one."""
        if not isinstance(schema, dict):
            return 1
        if id(schema) in self._known:
            return self._known[id(schema)]
        if id(schema) in self._open:
            self.heads.add(id(schema))
            return 1
        if depth > DEEPEST:
            raise _error(self._field, f"nests schemas deeper than {DEEPEST}; make it flatter")
        self._open.add(id(schema))
        inside = list(self._parts(schema))
        self._edges[id(schema)] = [(where, id(one)) for where, one in inside]
        parts = 1 + sum(self.measure(part, depth + 1) for _, part in inside)
        self._open.discard(id(schema))
        if parts > MOST_PARTS:
            raise _error(
                self._field, f"has more than {MOST_PARTS} parts, references followed; describe less"
            )
        self._known[id(schema)] = parts
        return parts

    def loops(self, parts: int) -> _Loops:
        """Return what is to be known of a schema that refers to itself.

        parts: how many there are in it. Raises OSError(EINVAL) where it never goes into the value.
        """
        looping = self._looping()
        looks: dict[int, Counter[str]] = {}
        for one in self._edges:  # in the order of `measure`, so that none goes deep
            self._looks(one, looping, looks, ())
        return _Loops(max(1, *map(_ways, looks.values())), parts)

    def _looping(self) -> set[int]:
        """Return the schemas from which one that refers to itself is reached."""
        into: dict[int, list[int]] = {}
        for one, edges in self._edges.items():
            for _, other in edges:
                into.setdefault(other, []).append(one)
        found, todo = set(self.heads), list(self.heads)
        while todo:
            new = [one for one in into.get(todo.pop(), ()) if one not in found]
            found.update(new)
            todo += new
        return found

    def _looks(
        self, one: int, looping: set[int], known: dict[int, Counter[str]], above: tuple[int, ...]
    ) -> Counter[str]:
        """Return how often a schema looks at each part of its value with one that loops."""
        if one in above:
            raise _error(
                self._field,
                "refers to itself without going into the value; do so under properties or items",
            )
        if one not in known:
            found: Counter[str] = Counter()
            for where, other in self._edges.get(one, ()):
                if where == HERE:
                    found.update(self._looks(other, looping, known, (*above, one)))
                elif other in looping:
                    found[where] += 1
            known[one] = found
        return known[one]

    def _parts(self, schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
        """Yield the schemas in a schema, and what each looks at; ":NAME" is the part of a name."""
        for name in _REFUSED:
            if name in schema:
                raise _error(self._field, f"uses {name!r}; refer to places in $defs with $ref")
        if "$ref" in schema:
            yield HERE, self._target(schema["$ref"])
        for where, keywords in _PLACES.items():
            for keyword in keywords:
                inside = schema.get(keyword)
                if keyword in _TABLES and isinstance(inside, dict):
                    for name, part in inside.items():
                        yield f":{name}" if where == NAMED else where, part
                elif isinstance(inside, dict):
                    yield where, inside
                elif isinstance(inside, list):
                    for part in inside:
                        yield where, part

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


def _ways(looks: Counter[str]) -> int:
    """Return how often one part of a value is looked at, at most."""
    named = max((count for where, count in looks.items() if where[0] == ":"), default=0)
    return max(looks[ITEM], named + looks[MEMBER])


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _error(field: str, sentence: str) -> OSError:
    return OSError(errno.EINVAL, f"{field} {sentence}")
