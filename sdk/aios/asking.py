"""What calls take and give in more than one form: chats as dicts, schemas as Pydantic models,
records of the history as interactions.

Pydantic is not imported: whatever has `model_json_schema` and `model_validate` is such a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from aios.session import Finish
from aiosd.abi.inference import Function, Generation, Turn
from aiosd.abi.process import Happening, Interaction

T = TypeVar("T")


def listed(values: Iterable[T], name: str) -> list[T]:
    """Return a list; a text where a list of texts belongs is a TypeError, not its letters."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name}: a list is needed, not {type(values).__name__}")
    return list(values)


def turns(messages: Sequence[Turn | Mapping[str, Any]]) -> list[Turn]:
    """Return the turns of a chat; each a `Turn` or a mapping with role and content.

    Raises TypeError or ValueError that names the message.
    """
    return _converted(messages, "messages", Turn)


def declared(functions: Sequence[Function | Mapping[str, Any]]) -> list[Function]:
    """Return functions; each a `Function` or a mapping with name, description and parameters.

    Raises TypeError or ValueError that names the function.
    """
    return _converted(functions, "functions", Function)


def _converted(values: Iterable[T | Mapping[str, Any]], name: str, kind: type[T]) -> list[T]:
    found = []
    for place, value in enumerate(listed(values, name)):
        try:
            found.append(value if isinstance(value, kind) else msgspec.convert(value, kind))
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}[{place}]: {error}") from error
    return found


def json_schema(schema: Mapping[str, Any] | type[Any] | None) -> dict[str, Any] | None:
    """Return the JSON Schema of a mapping or a Pydantic model."""
    if schema is None:
        return None
    if isinstance(schema, Mapping):
        return dict(schema)
    describe = getattr(schema, "model_json_schema", None)
    if describe is None:
        raise TypeError("schema: a JSON Schema as a dict, or a Pydantic model class, is needed")
    return dict(describe())


def validated(schema: Mapping[str, Any] | type[Any] | None) -> Finish | None:
    """Return what turns the `parsed` of a reply into the model that was asked for."""
    validate = None if isinstance(schema, Mapping) else getattr(schema, "model_validate", None)
    if validate is None:
        return None

    def finish(reply: Generation) -> Generation:
        if reply.parsed is None:  # cut off by max_tokens, a deadline or a cancel
            return reply
        return msgspec.structs.replace(reply, parsed=validate(reply.parsed))

    return finish


def interactions(rows: list[Happening]) -> list[Interaction]:
    """Return the requests and replies that records of that kind stand for."""
    return [
        msgspec.convert({"id": row.id, "t": row.t, "aid": row.aid, **row.data}, Interaction)
        for row in rows
    ]
