"""Memory and storage as tools for clients of the Model Context Protocol.

ABILITIES has them by the names of the system calls. What an ability is given is what a client sent,
so it checks the names of arguments; their values are the kernel's to check.
"""

from __future__ import annotations

import base64
import binascii
import errno
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

import aios

PART: Final = 256 << 10
"""Bytes of an object that are read at once, unless told otherwise."""
MOST: Final = 1 << 20
"""Bytes of an object that can be read at once."""

Arguments = Mapping[str, Any]
Run = Callable[[aios.AsyncKernel, Arguments], Awaitable[Any]]


class Ability(NamedTuple):
    """One tool. fields: JSON Schemas by argument. reads: it changes nothing."""

    text: str
    fields: dict[str, dict[str, Any]]
    required: tuple[str, ...]
    run: Run
    reads: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        return {
            "type": "object",
            "properties": self.fields,
            "required": list(self.required),
            "additionalProperties": False,
        }


async def use(name: str, kernel: aios.AsyncKernel, arguments: Arguments) -> Any:
    """Return what an ability answers, as JSON has it. Raises OSError; KeyError for no such name."""
    ability = ABILITIES[name]
    if unknown := sorted(arguments.keys() - ability.fields.keys()):
        known = ", ".join(ability.fields)
        raise OSError(errno.EINVAL, f"{name}: no argument {unknown[0]!r}; there are {known}")
    if missing := [field for field in ability.required if field not in arguments]:
        raise OSError(errno.EINVAL, f"{name}: argument {missing[0]!r} is missing")
    return msgspec.to_builtins(await ability.run(kernel, arguments), enc_hook=str)


def _call(name: str) -> Run:
    """Return what makes a system call with the arguments as they are."""

    async def run(kernel: aios.AsyncKernel, arguments: Arguments) -> Any:
        answer = await getattr(kernel, name)(**arguments)
        return {"done": True} if answer is None else answer

    return run


def _many(name: str, field: str) -> Run:
    """Return what makes a system call that answers with a list, and gives it a name."""

    async def run(kernel: aios.AsyncKernel, arguments: Arguments) -> Any:
        return {field: await getattr(kernel, name)(**arguments)}

    return run


async def _write(kernel: aios.AsyncKernel, arguments: Arguments) -> Any:
    given = dict(arguments)
    text, coded = given.pop("text", None), given.pop("base64", None)
    if (text is None) == (coded is None):
        raise OSError(errno.EINVAL, "sto_write: give either text or base64")
    kind = "application/octet-stream" if text is None else "text/plain; charset=utf-8"
    data = _decoded(coded) if text is None else str(text).encode()
    return await kernel.sto_write(given.pop("name"), data, **{"content_type": kind, **given})


def _decoded(coded: object) -> bytes:
    try:
        return base64.b64decode(str(coded), validate=True)
    except (binascii.Error, ValueError) as error:
        raise OSError(errno.EINVAL, f"sto_write: base64: {error}") from None


async def _read(kernel: aios.AsyncKernel, arguments: Arguments) -> Any:
    given = dict(arguments)
    size = given.pop("size", PART)
    if not isinstance(size, int) or not 1 <= size <= MOST:
        raise OSError(errno.EINVAL, f"sto_read: size: 1 to {MOST} bytes; read on with offset")
    data, stored = await read(kernel, given.pop("name"), size=size, **given)
    end = given.get("offset", 0) + len(data)
    facts = {"version": stored.version, "size": stored.size, "more": end < stored.size}
    try:
        return {"text": data.decode(), **facts}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode(), **facts}


async def read(
    kernel: aios.AsyncKernel, name: str, **options: Any
) -> tuple[bytes, aios.StoredObject]:
    """Return bytes of an object, and what it is. Raises OSError."""
    async with kernel.sto_read(name, **options) as stream:
        data = b"".join([part async for part in stream])
        return data, stream.reply


_NAME: Final = {"type": "string", "description": "name of the object", "minLength": 1}
_POOL: Final = {"type": "string", "description": "a group's shared pool; none: the caller's own"}
_TEXT: Final = {"type": "string", "description": "the text"}
_ID: Final = {"type": "integer", "description": "number of the memory", "minimum": 0}
_FACTS: Final = {"type": "object", "description": "facts about it, by name"}
_K: Final = {"type": "integer", "minimum": 1, "maximum": 10_000, "description": "at most so many"}
_QUERY: Final = {"type": "string", "description": "what is looked for", "minLength": 1}
_PREFIX: Final = {"type": "string", "description": "only names that begin so"}
_VERSION: Final = {"type": "integer", "minimum": 0, "description": "0: the newest"}
_MODE: Final = {"enum": ["hybrid", "vector", "keyword"], "description": "by meaning, words or both"}

ABILITIES: Final[dict[str, Ability]] = {
    "add_memory": Ability(
        "Remember a text, durably.",
        {"text": _TEXT, "metadata": _FACTS, "pool": _POOL},
        ("text",),
        _call("add_memory"),
    ),
    "search_memory": Ability(
        "Find remembered texts by meaning, by words, or both.",
        {"query": _QUERY, "k": _K, "mode": _MODE, "metadata": _FACTS, "pool": _POOL},
        ("query",),
        _many("search_memory", "memories"),
        reads=True,
    ),
    "get_memory": Ability(
        "Return one remembered text.", {"id": _ID}, ("id",), _call("get_memory"), reads=True
    ),
    "update_memory": Ability(
        "Replace a remembered text, or the facts about it.",
        {"id": _ID, "text": _TEXT, "metadata": _FACTS},
        ("id",),
        _call("update_memory"),
    ),
    "delete_memory": Ability(
        "Forget a remembered text.", {"id": _ID}, ("id",), _call("delete_memory")
    ),
    "sto_write": Ability(
        "Store a new version of an object: a text, or bytes as base64.",
        {
            "name": _NAME, "text": _TEXT, "base64": {"type": "string"},
            "content_type": {"type": "string"}, "metadata": _FACTS, "pool": _POOL,
        },
        ("name",),
        _write,
    ),
    "sto_read": Ability(
        "Read a stored object: a text, or bytes as base64 where it is none.",
        {
            "name": _NAME, "version": _VERSION, "pool": _POOL,
            "offset": {"type": "integer", "minimum": 0, "description": "from this byte on"},
            "size": {"type": "integer", "minimum": 1, "maximum": MOST, "description": "bytes"},
        },
        ("name",),
        _read,
        reads=True,
    ),
    "sto_list": Ability(
        "List stored objects.",
        {"prefix": _PREFIX, "limit": _K, "pool": _POOL},
        (),
        _many("sto_list", "objects"),
        reads=True,
    ),
    "sto_search": Ability(
        "Find passages in stored texts by meaning, by words, or both.",
        {"query": _QUERY, "k": _K, "mode": _MODE, "prefix": _PREFIX, "pool": _POOL},
        ("query",),
        _many("sto_search", "passages"),
        reads=True,
    ),
    "sto_history": Ability(
        "List the versions of an object, newest first.",
        {"name": _NAME, "limit": _K, "pool": _POOL},
        ("name",),
        _many("sto_history", "versions"),
        reads=True,
    ),
    "sto_rollback": Ability(
        "Make an older version of an object its newest again.",
        {"name": _NAME, "version": _VERSION, "pool": _POOL},
        ("name", "version"),
        _call("sto_rollback"),
    ),
    "sto_delete": Ability(
        "Delete an object and all its versions.",
        {"name": _NAME, "pool": _POOL},
        ("name",),
        _call("sto_delete"),
    ),
}  # fmt: skip
