"""What programs written for Cerebrum ask of memory and of storage.

A memory's number is a text there. A file's path is an object's name here: versions are kept of
each, directories need no making, and nothing leaves the machine: a file has no public link, but
is shared with the agents of a group.
"""

from __future__ import annotations

import errno
import json
import posixpath
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

import aios

from .abilities import read
from .cerebrumform import Done, Query, remembered, result
from .office import Office

ANALYZED: Final = 512
"""Tokens of what a model says of a text that is to be remembered."""
FOUND: Final = 5
NOTED: Final = ("keywords", "tags", "category", "context")
SHOWN: Final = 2000
"""Letters of a file that was found."""
SHARED: Final = 16 << 20
"""Bytes of the largest file that can be shared."""

ANALYSIS: Final = {
    "type": "object",
    "properties": {
        "keywords": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 5},
        "context": {"type": "string", "maxLength": 200},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 5},
    },
    "required": ["keywords", "context", "tags"],
    "additionalProperties": False,
}


async def memory(kernel: aios.AsyncKernel, office: Office, asked: Query) -> Done:
    """Answer a query of type memory. Raises OSError."""
    operation = str(asked.query_data.get("operation_type", ""))
    params = _params(asked.query_data)
    work = _MEMORY.get(operation)
    if work is None:
        known = ", ".join(_MEMORY)
        raise OSError(errno.EINVAL, f"memory: no operation {operation[:64]!r}; there are {known}")
    return Done(remembered(success=True, **await work(kernel, params)))


async def storage(kernel: aios.AsyncKernel, office: Office, asked: Query) -> Done:
    """Answer a query of type storage. Raises OSError."""
    operation = str(asked.query_data.get("operation_type", ""))
    message = await operate(kernel, operation, _params(asked.query_data))
    return Done(result("storage", message))


async def operate(kernel: aios.AsyncKernel, operation: str, params: Mapping[str, Any]) -> str:
    """Do something with stored objects; return what to say of it. Raises OSError."""
    work = _STORAGE.get(operation)
    if work is None:
        known = ", ".join(_STORAGE)
        raise OSError(errno.EINVAL, f"storage: no operation {operation[:64]!r}; there are {known}")
    return await work(kernel, params)


def _params(data: Mapping[str, Any]) -> dict[str, Any]:
    params = data.get("params") or {}
    if not isinstance(params, dict):
        raise OSError(errno.EINVAL, "params: it is no object")
    return params


# Memory.


async def _add(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> dict[str, Any]:
    made = await kernel.add_memory(_needed(params, "content"), metadata=_metadata(params))
    return {"memory_id": str(made.id)}


async def _add_analyzed(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> dict[str, Any]:
    """Have a model say what a text is about, and remember it with that."""
    content = _needed(params, "content")
    question = f"Give keywords, a one-line context and tags of this text:\n{content}"
    reply = await kernel.llm_generate(question, schema=ANALYSIS, max_tokens=ANALYZED)
    about = reply.parsed if isinstance(reply.parsed, dict) else {}
    made = await kernel.add_memory(content, metadata={**about, **_metadata(params)})
    return {"memory_id": str(made.id)}


async def _get(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> dict[str, Any]:
    found = await kernel.get_memory(_number(params))
    metadata = {**found.metadata, "timestamp": _stamp(found.created)}
    return {"memory_id": str(found.id), "content": found.text, "metadata": metadata}


async def _update(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> dict[str, Any]:
    number, text = _number(params), params.get("content")
    metadata = _metadata(params) or None
    if metadata is not None:
        metadata = {**(await kernel.get_memory(number)).metadata, **metadata}
    await kernel.update_memory(number, text=text, metadata=metadata)
    return {"memory_id": str(number)}


async def _remove(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> dict[str, Any]:
    number = _number(params)
    await kernel.delete_memory(number)
    return {"memory_id": str(number)}


async def _find(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> dict[str, Any]:
    found = await kernel.search_memory(_needed(params, "content"), k=_count(params, "k", FOUND))
    results = [
        {
            "keywords": [],
            "tags": [],
            **each.metadata,
            "memory_id": str(each.id),
            "content": each.text,
            "score": each.score,
            "timestamp": _stamp(each.created),
        }
        for each in found
    ]
    return {"search_results": results}


_Remember = Callable[[aios.AsyncKernel, Mapping[str, Any]], Awaitable[dict[str, Any]]]

_MEMORY: Final[dict[str, _Remember]] = {
    "add_memory": _add,
    "add_agentic_memory": _add_analyzed,
    "get_memory": _get,
    "update_memory": _update,
    "remove_memory": _remove,
    "retrieve_memory": _find,
    "retrieve_memory_raw": _find,
}


def _metadata(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said about a text, beside it or in its metadata."""
    given = params.get("metadata") or {}
    if not isinstance(given, dict):
        raise OSError(errno.EINVAL, "metadata: it is no object")
    beside = {name: params[name] for name in NOTED if params.get(name)}
    return {**beside, **given}


def _number(params: Mapping[str, Any]) -> int:
    text = str(params.get("memory_id", ""))
    if not text.isascii() or not text.isdecimal():
        raise OSError(errno.ENOENT, f"memory_id: there is no memory {text[:64]!r}")
    return int(text)


def _stamp(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y%m%d%H%M")


# Storage.


async def _mount(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    return "mounted: an agent's storage is there from its birth"


async def _create(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    name = _name(params)
    if any(row.name == name for row in await kernel.sto_list(prefix=name)):
        return f"there already: {name}"
    await kernel.sto_write(name, b"", content_type="text/plain; charset=utf-8")
    return f"created: {name}"


async def _create_dir(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    return f"created: {_name(params, 'dir_path')}"  # it is there with its first file


async def _write(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    name, content = _name(params), str(params.get("content") or "")
    kind = "text/plain; charset=utf-8"
    stored = await kernel.sto_write(name, content.encode(), content_type=kind)
    return f"written: {name}, version {stored.version}"


async def _delete(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    name = _name(params)
    await kernel.sto_delete(name)
    return f"deleted: {name}"


async def _retrieve(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    keywords = params.get("keywords") or []
    words = keywords if isinstance(keywords, list) else [keywords]
    query = " ".join([_needed(params, "query_text"), *map(str, words)])
    count = _count(params, "k" if params.get("k") else "n", 3)
    found = await kernel.sto_search(query, k=count)
    results = []
    for name in dict.fromkeys(passage.name for passage in found):
        data, stored = await read(kernel, name, size=4 * SHOWN)
        about = {
            "file_path": name,
            "file_name": posixpath.basename(name),
            "last_modified": datetime.fromtimestamp(stored.created, UTC).isoformat(),
        }
        shown = data.decode(errors="replace")[:SHOWN]
        results.append({"document_summary": shown, "metadata": about})
    return json.dumps(results, ensure_ascii=False) if results else "no documents were found"


async def _rollback(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    """Go back so many versions, or to the one whose time is nearest to the one given."""
    name = _name(params)
    versions = await kernel.sto_history(name, limit=10_000)
    if moment := params.get("time"):
        wanted = _moment(str(moment))
        old = min(versions, key=lambda version: abs(version.created - wanted))
    else:
        back = _count(params, "n", 1)
        if back >= len(versions):
            raise OSError(
                errno.ENOENT, f"{name} has {len(versions)} versions: it can't go back {back}"
            )
        old = versions[back]
    await kernel.sto_rollback(name, old.version)
    return f"rolled back: {name}, to version {old.version}"


async def _share(kernel: aios.AsyncKernel, params: Mapping[str, Any]) -> str:
    """Copy a file to the pool of a group: the one named, or the only one that the agent is in."""
    name = _name(params)
    pool = str(params.get("group") or "") or await _only_group(kernel, name)
    data, stored = await read(kernel, name, size=SHARED)
    if stored.size > SHARED:
        text = f"{name}: it has {stored.size} bytes, at most {SHARED} can be shared so"
        raise OSError(errno.EFBIG, text)
    kind = stored.content_type
    copy = await kernel.sto_write(name, data, content_type=kind, pool=pool)
    told = {
        "file_name": posixpath.basename(name),
        "file_path": name,
        "share_link": f"pool:{pool}/{name}",
        "expires_in": "never",
        "last_modified": datetime.fromtimestamp(copy.created, UTC).isoformat(),
    }
    return json.dumps(told, ensure_ascii=False)


async def _only_group(kernel: aios.AsyncKernel, name: str) -> str:
    grants = await kernel.list_grants()
    groups = {each.object[6:] for each in grants if each.capability == "member"}
    if len(groups) == 1:
        return groups.pop()
    known = f", such as {', '.join(sorted(groups))}" if groups else ""
    raise OSError(
        errno.ENOTSUP,
        f"{name}: nothing leaves this machine by a public link; a file is shared with the agents "
        f"of a group that this one is a member of: name it as `group`{known}",
    )


_Operate = Callable[[aios.AsyncKernel, Mapping[str, Any]], Awaitable[str]]

_STORAGE: Final[dict[str, _Operate]] = {
    "mount": _mount,
    "create_file": _create,
    "create_dir": _create_dir,
    "write": _write,
    "delete_file": _delete,
    "retrieve": _retrieve,
    "rollback": _rollback,
    "share": _share,
}

_PATH: Final = {"type": "string", "description": "path of the file"}


def _function(name: str, text: str, **fields: dict[str, Any]) -> aios.Function:
    schema = {
        "type": "object",
        "properties": fields,
        "required": [field for field in fields if field != "n"],
        "additionalProperties": False,
    }
    return aios.Function(name, text, schema)


FUNCTIONS: Final = [
    _function("create_file", "make an empty file", file_path=_PATH),
    _function("write", "write a text to a file", file_path=_PATH, content={"type": "string"}),
    _function("delete_file", "delete a file", file_path=_PATH),
    _function("retrieve", "find files by what is in them", query_text={"type": "string"}),
    _function("rollback", "bring an older version back", file_path=_PATH, n={"type": "integer"}),
]
"""What a model may do with stored objects in the name of a program."""


def _name(params: Mapping[str, Any], field: str = "file_path") -> str:
    """Return the object's name that a path is. Raises OSError."""
    given = params.get(field) or params.get(field.replace("_path", "_name"))
    name = posixpath.normpath("/" + str(given or "")).lstrip("/")
    if not name:
        raise OSError(errno.EINVAL, f"{field}: it is missing")
    return name


def _needed(params: Mapping[str, Any], field: str) -> str:
    value = params.get(field)
    if not isinstance(value, str) or not value:
        raise OSError(errno.EINVAL, f"{field}: it is missing, or no text")
    return value


def _count(params: Mapping[str, Any], field: str, usual: int) -> int:
    value = params.get(field, usual)
    try:
        return msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError:
        raise OSError(errno.EINVAL, f"{field}: {str(value)[:64]!r} is no number") from None


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise OSError(errno.EINVAL, f"time: {text[:64]!r} is no time as ISO 8601 has it") from None
