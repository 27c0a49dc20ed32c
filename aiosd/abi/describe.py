"""The table of system calls in words: what the generators and the shell's completion read.

`arguments(call)` gives one `Argument` per field of a call, `fields(record)` one `Field` per field
of a reply, `spell(type)` writes a type as Python source, `records(type)` finds the records in it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec
from msgspec import Meta

from aiosd.abi.call import Record, Syscall


class Argument(msgspec.Struct, frozen=True):
    """One argument of a call: its type, default (msgspec.NODEFAULT: required) and description."""

    name: str
    type: Any
    default: Any
    text: str
    limits: str

    @property
    def required(self) -> bool:
        """Whether a caller must give it."""
        return self.default is msgspec.NODEFAULT


class Field(msgspec.Struct, frozen=True):
    """One field of a record."""

    name: str
    type: Any


def arguments(call: Syscall) -> list[Argument]:
    """Return a call's arguments in the order of its struct."""
    bare = typing.get_type_hints(call.args)
    annotated = typing.get_type_hints(call.args, include_extras=True)
    found = []
    for field in msgspec.structs.fields(call.args):
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        metas = list(_metas(annotated[field.name]))
        text = next((meta.description for meta in metas if meta.description), "")
        limits = _limits(metas, bare[field.name])
        found.append(Argument(field.name, bare[field.name], default, text, limits))
    return found


def fields(record: type[msgspec.Struct]) -> list[Field]:
    """Return a record's fields."""
    hints = typing.get_type_hints(record)
    return [Field(field.name, hints[field.name]) for field in msgspec.structs.fields(record)]


def spell(kind: Any) -> str:
    """Write a type as Python source, with the bare names of our records."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is None or kind is type(None):
        return "None"
    if kind is Any:
        return "Any"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(spell(each) for each in inner)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(spell(each) for each in inner)}]"
    return str(kind.__name__)


def records(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Yield the structs named in a type, and those that their fields name, each once."""
    seen: set[type] = set()
    waiting = [kind]
    while waiting:
        each = waiting.pop(0)
        waiting[:0] = get_args(each)
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each not in seen:
            seen.add(each)
            yield each
            waiting += [field.type for field in fields(each)]


def element(chunk: Any) -> Any:
    """Return what a stream gives one at a time: list[X] chunks are handed out as X."""
    return get_args(chunk)[0] if get_origin(chunk) is list else chunk


def outcome(call: Syscall) -> Any:
    """Return the type of what a call answers with in the end."""
    return call.reply


def _metas(kind: Any) -> Iterator[Meta]:
    """Yield the annotations of the value itself, not those of what it contains."""
    origin = get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for each in get_args(kind):
            yield from _metas(each)
    elif origin is typing.Annotated:
        yield from (each for each in reversed(kind.__metadata__) if isinstance(each, Meta))
        yield from _metas(kind.__origin__)


def _limits(metas: list[Meta], kind: Any) -> str:
    """Say in words which values are allowed."""
    words: list[str] = []
    unit = _unit(kind)
    for meta in metas:
        if meta.ge is not None and meta.le is not None:
            words.append(f"{meta.ge} to {meta.le}")
        elif meta.ge is not None:
            words.append(f"at least {meta.ge}")
        elif meta.le is not None:
            words.append(f"at most {meta.le}")
        if meta.gt is not None:
            words.append(f"above {meta.gt}")
        if meta.min_length:
            words.append(
                "not empty" if meta.min_length == 1 else f"at least {meta.min_length} {unit}"
            )
        if meta.max_length is not None:
            words.append(f"at most {meta.max_length} {unit}")
    return ", ".join(dict.fromkeys(words))


def _unit(kind: Any) -> str:
    """Return what a length of this type counts."""
    kinds = set(get_args(kind)) if get_origin(kind) in (typing.Union, types.UnionType) else {kind}
    if str in kinds:
        return "characters"
    return "bytes" if bytes in kinds else "items"


def is_record(kind: Any) -> bool:
    """Whether a type is one of the table's records."""
    return isinstance(kind, type) and issubclass(kind, Record)
