"""The tools that an MCP server claims to have, made into declarations: pure, and distrustful.

    entries = declarations("files", tools)    # each a declaration, or {"name", "refused": why}

What must hold: whatever a server lists, what comes out is bounded in number and size and has names
that fit the table of system calls; what is left out is named with the reason, never dropped. Two
tools of one name are both refused, since nobody can say which of them is meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from aiosd.abi.wire import depth_of

MAX_TOOLS: Final = 256
"""Tools of one server."""
MAX_REFUSED: Final = 64
"""Refusals that are told one by one."""
MAX_DESCRIPTION: Final = 8 << 10
"""Characters of a tool's description."""
MAX_SCHEMA: Final = 64 << 10
"""Bytes of a schema."""
MAX_DEPTH: Final = 20
"""Nesting of a schema: it is carried inside other structures, all of which 32 levels must hold."""
MAX_TOTAL: Final = 4 << 20
"""Bytes of all declarations of a server."""
SHOWN: Final = 80
"""Characters of a hostile name that a message shows."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_MAX_NAME: Final = 64


def declarations(
    server: str, tools: Iterable[dict[str, Any]], unread: str = ""
) -> list[dict[str, Any]]:
    """Return what the kernel is told of a server's tools: declarations, then refusals.

    tools: as the protocol has them (name, description, inputSchema, outputSchema, annotations).
    unread: why there are more that were not even read, "" when there are none.
    """
    listed = list(tools)
    names = Counter(tool_name(server, tool) for tool in listed)
    accepted: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    size = 0
    for tool in listed:
        why = _refusal(server, tool, names) or _no_room(len(accepted), size)
        if why:
            refused.append(_refused(tool.get("name"), why))
            continue
        entry = _declaration(server, tool)
        accepted.append(entry)
        size += len(msgspec.msgpack.encode(entry))
    if unread:
        refused.append(_refused("...", unread))
    return accepted + _shortened(refused)


def tool_name(server: str, tool: dict[str, Any]) -> str:
    """Return the name that a tool has in this system, whether or not it is a valid one.

    A slash, which names of the protocol may have, becomes a dot.
    """
    return f"{server}:{str(tool.get('name', '')).replace('/', '.')}"


def _declaration(server: str, tool: dict[str, Any]) -> dict[str, Any]:
    hints = tool.get("annotations") or {}
    return {
        "name": tool_name(server, tool),
        "description": tool.get("description") or tool.get("title") or hints.get("title") or "",
        "input": tool["inputSchema"],
        "output": tool.get("outputSchema") or {},
        "idempotent": bool(hints.get("readOnlyHint") or hints.get("idempotentHint")),
        "server": server,
        "tool": tool["name"],
    }


def _refusal(server: str, tool: dict[str, Any], names: Counter[str]) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "its name must have letters, digits and . _ : - / only"
    whole = tool_name(server, tool)
    if len(whole) > _MAX_NAME:
        return f"its name has {len(whole)} characters with the server's, the limit is {_MAX_NAME}"
    if names[whole] > 1:
        return f"{names[whole]} tools have this name"
    return _text_refusal(tool) or _schemas_refusal(tool)


def _text_refusal(tool: dict[str, Any]) -> str:
    text = tool.get("description") or ""
    if not isinstance(text, str):
        return "its description is no text"
    if len(text) > MAX_DESCRIPTION:
        return f"its description has {len(text)} characters, the limit is {MAX_DESCRIPTION}"
    return ""


def _schemas_refusal(tool: dict[str, Any]) -> str:
    for field, needed in (("inputSchema", True), ("outputSchema", False)):
        schema = tool.get(field)
        if schema is None and not needed:
            continue
        if not isinstance(schema, dict):
            return f"its {field} is no object"
        try:
            encoded = msgspec.msgpack.encode(schema)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            return f"its {field} can't be passed on: {error}"
        if len(encoded) > MAX_SCHEMA:
            return f"its {field} has {len(encoded)} bytes, the limit is {MAX_SCHEMA}"
        depth = depth_of(encoded)
        if not 0 <= depth <= MAX_DEPTH:
            return f"its {field} nests deeper than {MAX_DEPTH} levels"
    if tool["inputSchema"].get("type") != "object":
        return "its inputSchema is not of type object"
    return ""


def _no_room(count: int, size: int) -> str:
    if count >= MAX_TOOLS:
        return f"the server has more than {MAX_TOOLS} tools"
    if size >= MAX_TOTAL:
        return f"the declarations of the server have more than {MAX_TOTAL} bytes"
    return ""


def _refused(name: object, why: str) -> dict[str, Any]:
    text = name if isinstance(name, str) else type(name).__name__
    shown = text.encode("ascii", "backslashreplace").decode()
    shown = "".join(each if each.isprintable() else "?" for each in shown)
    if len(shown) > SHOWN:
        shown = f"{shown[:SHOWN]}..."
    return {"name": shown, "refused": why}


def _shortened(refused: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(refused) <= MAX_REFUSED:
        return refused
    rest = len(refused) - MAX_REFUSED
    return [*refused[:MAX_REFUSED], _refused("...", f"and {rest} more were refused")]
