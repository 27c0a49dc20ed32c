"""Metadata: what a caller says about its records, kept as JSON, and how it is searched.

    text = pack(args.metadata, "add_memory")       # checked and encoded
    clause, values = match(args.metadata)          # SQL that holds for rows with these fields

What must hold: what is kept is JSON of a bounded size, the same when it is read again; keys and
values reach SQLite as values, never as SQL.
"""

from __future__ import annotations

import errno
import math
from typing import Any, Final

import msgspec

LIMIT: Final = 16 << 10
"""Bytes that metadata may have as JSON."""

_encode = msgspec.json.Encoder().encode
_TYPES: Final = {bool: ("true", "false"), int: ("integer", "real"), float: ("integer", "real")}


def pack(metadata: dict[str, Any], call: str) -> str:
    """Return metadata as JSON; raises OSError(EINVAL) for what is too large or no JSON."""
    if not metadata:
        return "{}"
    for name, value in metadata.items():
        _check(value, f"{call}: metadata: field {name[:64]!r}")
    text = _encode(metadata)
    if len(text) > LIMIT:
        raise OSError(
            errno.EINVAL, f"{call}: metadata: {len(text)} bytes as JSON, the limit is {LIMIT}"
        )
    return text.decode()


def unpack(text: str) -> dict[str, Any]:
    """Return packed metadata as it was given."""
    found: dict[str, Any] = msgspec.json.decode(text)
    return found


def match(metadata: dict[str, Any], call: str) -> tuple[str, list[object]]:
    """Return a condition on a column `metadata`, beginning with `and`, and its values.

    It holds where every field is there with an equal value; "" when there are none.
    """
    pack(metadata, call)
    clause, values = "", []
    for name, value in metadata.items():
        types = _types(value)
        marks = ", ".join("?" * len(types))
        clause += (
            " and exists (select 1 from json_each(metadata) as field"
            f" where field.key = ? and field.type in ({marks}) and field.value is ?)"
        )
        values += [name, *types, _value(value)]
    return clause, values


def _check(value: object, place: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise OSError(errno.EINVAL, f"{place}: {value} is not finite")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise OSError(errno.EINVAL, f"{place}: {value} has more than 64 bits")
    if isinstance(value, list):
        for item in value:
            _check(item, place)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise OSError(errno.EINVAL, f"{place}: a key is no text: {key!r}")
            _check(item, place)
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise OSError(errno.EINVAL, f"{place}: a {type(value).__name__} can't be kept as JSON")


def _types(value: object) -> tuple[str, ...]:
    """Return the names that SQLite's JSON has for what may equal a value."""
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return (str(value).lower(),)
    if isinstance(value, str):
        return ("text",)
    return _TYPES.get(type(value)) or (("array",) if isinstance(value, list) else ("object",))


def _value(value: object) -> object:
    """Return a value as SQLite's json_each shows it."""
    if isinstance(value, list | dict):
        return _encode(value).decode()
    return int(value) if isinstance(value, bool) else value
