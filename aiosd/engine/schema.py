"""JSON Schema as a grammar: every text that the grammar describes validates.

`grammar` writes GBNF. What can't be kept to is refused with OSError(EINVAL) that names each such
keyword and where it stands; nothing is dropped silently. What is generated may be less than the
schema would let through: an object has its declared properties only, in their order; between
tokens stands one blank at most, so a text can't run away in white space; numbers have 15 digits.

llama_cpp has a converter too, which drops what it does not know, lets raw control characters into
strings, loses backslashes in constants and sibling keywords: its texts don't always validate.
"""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aiosd.engine import decimal, pattern

MOST_DEPTH: Final = 64
SHOWN: Final = 8  # refused keywords that a message names

NOTES: Final = {
    "title", "description", "default", "examples", "example", "$comment", "$schema", "$id", "$defs",
    "definitions", "deprecated", "readOnly", "writeOnly", "discriminator",
}  # fmt: skip
"""Keywords that say nothing about which texts are valid."""

KEYWORDS: Final = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
"""What is kept to, by type."""

PRIMITIVES: Final = {
    "ws": '" "?',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}"',
    "array": '"[" ws (value ("," ws value)*)? "]"',
    "string": r'"\"" char* "\""',
    "char": pattern.CHAR,
    "number": '"-"? whole ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "integer": '"0" | "-"? [1-9] [0-9]{0,14}',
    "whole": '"0" | [1-9] [0-9]{0,14}',
    "boolean": '"true" | "false"',
    "null": '"null"',
}

_DATE = (
    '[1-9] [0-9]{3} "-" (("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
    ' | ("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30")'
    ' | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
)
_HOUR = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]'
_TIME = f'{_HOUR} ":" [0-5] [0-9] ("." [0-9]{{1,6}})? ("Z" | [-+] {_HOUR})'
_OCTET = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9]? [0-9])'
FORMATS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": '[0-9a-f]{8} ("-" [0-9a-f]{4}){3} "-" [0-9a-f]{12}',
    "ipv4": f'{_OCTET} ("." {_OCTET}){{3}}',
    "email": '[a-z0-9]{1,32} ("." [a-z0-9]{1,16}){0,2} "@" ([a-z0-9]{1,32} "."){1,2} [a-z]{2,6}',
}


def grammar(text: str) -> str:
    """Return the grammar (GBNF) of a JSON Schema given as JSON; raises OSError(EINVAL)."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _invalid(f"it is not JSON: {e}") from e
    return _Converter(schema).grammar()


def several(schemas: Sequence[Any]) -> tuple[list[str], dict[str, str]]:
    """Return an expression for each of several schemas, and the rules that they name.

    References are from their list: number N is #/schemas/N. Raises OSError(EINVAL).
    """
    return _Converter({"schemas": list(schemas)}).several()


def target(schema: Any, ref: Any) -> Any:
    """Return what a reference within a schema points to; None when there is none."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return None
    found = schema
    for part in ref.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
    return found


class _Converter:
    """Walks over one schema."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}
        self._refused: list[str] = []
        self._depth = 0

    def grammar(self) -> str:
        """Convert the whole."""
        root = self._visit(self._schema, "#")
        self._check()
        return "\n".join([f"root ::= {root}", *(f"{n} ::= {r}" for n, r in self._rules.items())])

    def several(self) -> tuple[list[str], dict[str, str]]:
        """Convert a list of them."""
        schemas = enumerate(self._schema["schemas"])
        rights = [self._visit(schema, f"#/schemas/{i}") for i, schema in schemas]
        self._check()
        return rights, self._rules

    def _check(self) -> None:
        """Raise OSError for what was refused."""
        if self._refused:
            shown = ", ".join(self._refused[:SHOWN])
            more = len(self._refused) - SHOWN
            raise _invalid(f"can't be kept to: {shown}" + (f" and {more} more" if more > 0 else ""))

    # Rules.

    def _primitive(self, name: str) -> str:
        if name not in self._rules:
            self._rules[name] = PRIMITIVES[name]
            for other in re.findall("[a-z]+", PRIMITIVES[name]):
                if other in PRIMITIVES:
                    self._primitive(other)
        return name

    def _rule(self, right: str) -> str:
        """Give a name to the right side of a rule."""
        name = f"n{len(self._rules)}"
        self._rules[name] = right
        return name

    def _refuse(self, what: str, where: str) -> str:
        self._refused.append(f"{what} at {where}")
        return '""'

    # Schemas.

    def _visit(self, schema: Any, where: str) -> str:
        """Return an expression for what a schema lets through."""
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _invalid(f"schemas in schemas, more than {MOST_DEPTH} deep, at {where}")
        try:
            if schema is True:
                return self._primitive("value")
            if not isinstance(schema, dict):
                return self._refuse("a schema that nothing satisfies", where)
            return self._choose(schema, where)
        finally:
            self._depth -= 1

    def _choose(self, schema: dict[str, Any], where: str) -> str:
        for keyword, convert in self._whole().items():
            if keyword in schema:
                beside = set(schema) - NOTES - {keyword}
                if keyword in ("const", "enum"):
                    beside -= {"type"}
                for other in sorted(beside):
                    self._refuse(f"{other} beside {keyword}", where)
                return convert(schema, where)
        for other in sorted(set(schema) - NOTES - {"type"} - set().union(*KEYWORDS.values())):
            if other != "uniqueItems" or schema[other] is not False:
                self._refuse(other, where)
        types = self._types(schema, where)
        if not types:
            return self._primitive("value")
        return _either(self._typed(kind, schema, where) for kind in types)

    def _whole(self) -> dict[str, Callable[[dict[str, Any], str], str]]:
        """The keywords that decide on their own."""
        return {
            "$ref": self._ref,
            "const": self._const,
            "enum": self._enum,
            "anyOf": self._any_of,
            "oneOf": self._one_of,
            "allOf": self._all_of,
        }

    def _types(self, schema: dict[str, Any], where: str) -> list[str]:
        """The types to generate; none: all of them, without any keyword."""
        given = schema.get("type")
        if given is None:
            return [kind for kind, keywords in KEYWORDS.items() if keywords & set(schema)]
        types = given if isinstance(given, list) else [given]
        for kind in types:
            if not isinstance(kind, str) or kind not in KEYWORDS:
                self._refuse(f"type {kind!r}", where)
                return ["null"]
        allowed = set().union(*(KEYWORDS[kind] for kind in types))
        if "number" in types and "integer" not in types:
            allowed -= KEYWORDS["integer"]  # a range of numbers, which is not kept to
        for keyword in sorted(set(schema) & set().union(*KEYWORDS.values()) - allowed):
            if "number" in types and keyword in KEYWORDS["integer"]:
                self._refuse(f"{keyword} of a number", where)
        if "number" in types:
            return [kind for kind in types if kind != "integer"]
        return types

    def _typed(self, kind: str, schema: dict[str, Any], where: str) -> str:
        if kind == "object":
            return self._object(schema, where)
        if kind == "array":
            return self._array(schema, where)
        if kind == "string":
            return self._string(schema, where)
        if kind == "integer":
            return self._integer(schema, where)
        return self._primitive(kind)

    def _ref(self, schema: dict[str, Any], where: str) -> str:
        ref = schema["$ref"]
        if ref not in self._refs:
            meant = target(self._schema, ref)
            if meant is None:
                return self._refuse(f"$ref {ref!r}", where)
            name = self._refs[ref] = f"ref{len(self._refs)}"
            self._rules[name] = self._visit(meant, str(ref))
        return self._refs[ref]

    def _const(self, schema: dict[str, Any], where: str) -> str:
        return self._constants([schema["const"]], schema, where)

    def _enum(self, schema: dict[str, Any], where: str) -> str:
        values = schema["enum"]
        if not isinstance(values, list):
            return self._refuse("enum that is no list", where)
        return self._constants(values, schema, where)

    def _constants(self, values: list[Any], schema: dict[str, Any], where: str) -> str:
        types = schema.get("type", list(KEYWORDS))
        types = types if isinstance(types, list) else [types]
        fitting = [value for value in values if _is_of(value, types)]
        if not fitting:
            return self._refuse("a choice without any value", where)
        try:
            return _either(_literal(_compact(value)) for value in fitting)
        except ValueError:
            return self._refuse("a constant that is not JSON", where)

    def _any_of(self, schema: dict[str, Any], where: str) -> str:
        return self._union("anyOf", schema["anyOf"], where)

    def _one_of(self, schema: dict[str, Any], where: str) -> str:
        parts = schema["oneOf"]
        if isinstance(parts, list):
            shapes = [_Shape(self._resolved(part)) for part in parts]
            for i, one in enumerate(shapes):
                for j, other in enumerate(shapes):
                    if i != j and not one.excludes(other):
                        what = f"oneOf (a value of {i} may satisfy {j} too; use anyOf)"
                        return self._refuse(what, where)
        return self._union("oneOf", parts, where)

    def _all_of(self, schema: dict[str, Any], where: str) -> str:
        parts = schema["allOf"]
        if not isinstance(parts, list) or len(parts) != 1:
            return self._refuse("allOf of more than one", where)
        return self._visit(parts[0], f"{where}/allOf/0")

    def _union(self, keyword: str, parts: Any, where: str) -> str:
        if not isinstance(parts, list) or not parts:
            return self._refuse(f"{keyword} without alternatives", where)
        return _either(self._visit(p, f"{where}/{keyword}/{i}") for i, p in enumerate(parts))

    def _resolved(self, schema: Any) -> Any:
        for _ in range(MOST_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = target(self._schema, schema["$ref"])
        return schema

    # Types.

    def _object(self, schema: dict[str, Any], where: str) -> str:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            return self._refuse("properties that are no map, or required that is no list", where)
        ws = self._primitive("ws")
        if not properties and not required:
            if more is False:
                return f'"{{" {ws} "}}"'
            value = self._visit(more, f"{where}/additionalProperties")
            return self._map(f'{self._primitive("string")} ":" {ws} {_grouped(value)}', ws)
        members = []
        for name in [*properties, *(name for name in required if name not in properties)]:
            inside = properties.get(name, more)
            value = self._visit(inside, f"{where}/properties/{name}")
            pair = self._rule(f'{_literal(_compact(name))} ":" {ws} {_grouped(value)}')
            members.append((pair, name in required))
        return f'"{{" {ws} {self._members(members, ws)} "}}"'

    def _map(self, pair: str, ws: str) -> str:
        name = self._rule(pair)
        return f'"{{" {ws} ({name} ("," {ws} {name})*)? "}}"'

    def _members(self, members: list[tuple[str, bool]], ws: str) -> str:
        """Members in order, the optional ones left out or not, with commas between them."""
        first = later = '""'  # from a member on: before any, and after at least one was written
        for pair, needed in reversed(members):
            begun = f"{pair} {later}"
            follow = f'"," {ws} {begun}'
            first = self._rule(begun if needed else f"{begun} | {first}")
            later = self._rule(follow if needed else f"{follow} | {later}")
        return first

    def _array(self, schema: dict[str, Any], where: str) -> str:
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if not isinstance(prefix, list) or isinstance(items, list):
            return self._refuse("items as a list (use prefixItems)", where)
        if not _is_count(least) or not (most is None or _is_count(most)):
            return self._refuse("minItems or maxItems that is no count", where)
        if items is False:
            most = len(prefix) if most is None else min(most, len(prefix))
        if most is not None and most < least:
            return self._refuse(f"minItems {least} above the most, {most},", where)
        ws = self._primitive("ws")
        comma = f' "," {ws} '
        fixed = [
            _grouped(self._visit(item, f"{where}/prefixItems/{i}"))
            for i, item in enumerate(prefix[:most])
        ]
        if most == len(fixed) or ("items" not in schema and fixed and least <= len(fixed)):
            return f'"[" {ws} {comma.join(fixed)} "]"'
        item = self._rule(self._visit(items, f"{where}/items"))
        least, most = max(0, least - len(fixed)), most if most is None else most - len(fixed)
        more = f'("," {ws} {item}){_bounds(least, most)}'
        if fixed:
            return f'"[" {ws} {comma.join(fixed)} {more} "]"'
        more = f'("," {ws} {item}){_bounds(max(0, least - 1), most if most is None else most - 1)}'
        inside = f"({item} {more}){'' if least else '?'}"
        return f'"[" {ws} {inside} "]"'

    def _string(self, schema: dict[str, Any], where: str) -> str:
        shaping: list[str] = [k for k in ("pattern", "format") if k in schema]
        bounded: list[str] = [k for k in ("minLength", "maxLength") if k in schema]
        if len(shaping) + bool(bounded) > 1:
            return self._refuse(" beside ".join(shaping + bounded), where)
        if "format" in schema:
            right = FORMATS.get(str(schema["format"]))
            if right is None:
                return self._refuse(f"format {schema['format']!r}", where)
            return self._rule(rf'"\"" {_grouped(right)} "\""')
        char = self._primitive("char")
        if "pattern" in schema:
            try:
                inside = pattern.grammar(str(schema["pattern"]), char)
            except ValueError as e:
                return self._refuse(f"pattern ({e})", where)
            return self._rule(rf'"\"" {inside} "\""')
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if not _is_count(least) or not (most is None or (_is_count(most) and most >= least)):
            return self._refuse("minLength or maxLength that is no count, or above it", where)
        return self._rule(rf'"\"" {char}{_bounds(least, most)} "\""')

    def _integer(self, schema: dict[str, Any], where: str) -> str:
        if not KEYWORDS["integer"] & set(schema):
            return self._primitive("integer")
        limits = {key: schema[key] for key in KEYWORDS["integer"] if key in schema}
        if not all(_is_number(value) for value in limits.values()):
            return self._refuse("a limit that is no number", where)
        low = max(
            math.ceil(limits.get("minimum", -decimal.MOST)),
            math.floor(limits.get("exclusiveMinimum", -decimal.MOST - 1)) + 1,
        )
        high = min(
            math.floor(limits.get("maximum", decimal.MOST)),
            math.ceil(limits.get("exclusiveMaximum", decimal.MOST + 1)) - 1,
        )
        if low > high or max(abs(low), abs(high)) > decimal.MOST:
            return self._refuse(f"a range of integers from {low} to {high}", where)
        return self._rule(decimal.between(low, high))


class _Shape:
    """What can be said of a schema's values without looking at them: for oneOf."""

    def __init__(self, schema: Any) -> None:
        self._schema: Mapping[str, Any] = schema if isinstance(schema, dict) else {}
        given = self._schema.get("type", [])
        self.types = {given} if isinstance(given, str) else set(given)
        if "number" in self.types:
            self.types.add("integer")

    def excludes(self, other: _Shape) -> bool:
        """Whether no value made for this one satisfies the other one."""
        if self.types and other.types and not self.types & other.types:
            return True
        mine, theirs = _choices(self._schema), _choices(other._schema)
        if mine and theirs and not mine & theirs:
            return True
        properties = self._schema.get("properties", {})
        required = self._schema.get("required", [])
        for name in required if isinstance(properties, dict) else ():
            mine = _choices(properties.get(name))
            theirs = _choices(other._schema.get("properties", {}).get(name))
            if mine and theirs and not mine & theirs:
                return True
        return False


def _choices(schema: Any) -> set[str]:
    """The values that a schema names, as JSON; none when it names no values."""
    if not isinstance(schema, dict):
        return set()
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return {_compact(value) for value in values}


def _is_of(value: Any, types: list[str]) -> bool:
    """Whether a constant is of one of these types."""
    if isinstance(value, bool) or value is None:
        return ("null" if value is None else "boolean") in types
    if isinstance(value, int | float):
        return "number" in types or ("integer" in types and value == int(value))
    return {"str": "string", "list": "array", "dict": "object"}[type(value).__name__] in types


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _literal(text: str) -> str:
    """Quote a text for GBNF."""
    plain = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return _quoted("".join(plain))


def _either(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def _grouped(expression: str) -> str:
    return f"({expression})"


def _bounds(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _invalid(message: str) -> OSError:
    return OSError(errno.EINVAL, f"schema: {message}")
