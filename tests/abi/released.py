"""What an ABI level promised, as JSON: numbers, names, fields in order, types, defaults.

    python -m tests.abi.released       # writes level<N>.json of the present level, if there is none

Done once for each level, when it is released; from then on test_abi.py holds the table to it.
Limits on values are not part of it: they may be widened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from aiosd.abi import LEVEL
from aiosd.abi.call import Syscall
from aiosd.abi.table import TABLE

HERE = Path(__file__).parent


def describe() -> dict[str, Any]:
    """Describe the present table and all records that it mentions."""
    records: dict[str, Any] = {}
    calls = {str(number): _call(call, records) for number, call in TABLE.items()}
    return {"level": LEVEL, "calls": calls, "records": dict(sorted(records.items()))}


def _call(call: Syscall, records: dict[str, Any]) -> dict[str, Any]:
    arguments = inspect.type_info(call.args)
    assert isinstance(arguments, inspect.StructType)
    return {
        "name": call.name,
        "since": call.since,
        "needs": call.needs,
        "errors": list(call.errors),
        "fields": _fields(arguments, records),
        "reply": _words(inspect.type_info(call.reply), records),
        "chunk": _words(inspect.type_info(call.chunk), records),
    }


def _fields(struct: inspect.StructType, records: dict[str, Any]) -> list[dict[str, Any]]:
    return [_field(field, records) for field in struct.fields]


def _field(field: inspect.Field, records: dict[str, Any]) -> dict[str, Any]:
    told = {"name": field.encode_name, "type": _words(field.type, records)}
    if field.default is not msgspec.NODEFAULT:
        told["default"] = msgspec.to_builtins(field.default)
    elif field.default_factory is not msgspec.NODEFAULT:
        told["default"] = msgspec.to_builtins(field.default_factory())
    return told


def _words(kind: inspect.Type, records: dict[str, Any]) -> str:
    """Return a type in words; enters the records that it mentions."""
    match kind:
        case inspect.StructType(cls=cls):
            if cls.__name__ not in records:
                records[cls.__name__] = None  # it may mention itself
                records[cls.__name__] = _fields(kind, records)
            return str(cls.__name__)
        case inspect.ListType(item_type=item):
            return f"list[{_words(item, records)}]"
        case inspect.DictType(key_type=key, value_type=value):
            return f"dict[{_words(key, records)}, {_words(value, records)}]"
        case inspect.UnionType(types=types):
            return " | ".join(sorted(_words(one, records) for one in types))
        case inspect.Metadata(type=inner):
            return _words(inner, records)
    return type(kind).__name__.removesuffix("Type").lower()


if __name__ == "__main__":
    path = HERE / f"level{LEVEL}.json"
    if path.exists():
        raise SystemExit(f"{path} is there: what a level promised does not change")
    path.write_text(json.dumps(describe(), indent=1) + "\n", encoding="utf-8")
