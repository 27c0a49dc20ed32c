"""What an MCP server answered a call, as the value of a ToolResult: pure but for `keep`.

    value, artefacts = convert(result, keep)

Structured content is the value as it is. Else texts are one text, and a result with anything beside
texts is a list of its blocks, each an object with a `type`:

    {"type": "text", "text": ...}
    {"type": "image" | "audio", "media_type": ..., "artefact": name}
    {"type": "resource", "uri": ..., "media_type": ..., "text" or "artefact": ...}
    {"type": "resource_link", "uri": ..., "name": ..., "media_type": ...}

Bytes become artefacts, files in the agent's workspace; without one they are base64 under `data`.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import os
import secrets
from collections.abc import Callable
from typing import Any, Final

Keep = Callable[[bytes, str], str]
"""Writes bytes of a media type to a new file, and returns its name."""

MAX_ERROR: Final = 16 << 10
"""Characters of what a failed tool says."""


class ResultError(Exception):
    """The server answered what can't be made a value."""


def convert(result: dict[str, Any], keep: Keep | None) -> tuple[Any, list[str]]:
    """Return the value and the artefacts of a result, as the protocol has it.

    Raises ResultError for content that is not what it says, OSError when a file can't be written.
    """
    artefacts: list[str] = []

    def store(data: bytes, media: str) -> dict[str, str]:
        if keep is None:
            return {"data": base64.b64encode(data).decode()}
        artefacts.append(keep(data, media))
        return {"artefact": artefacts[-1]}

    structured = "structuredContent" in result
    blocks = [
        _block(block, store)
        for block in result.get("content") or []
        if not structured or (keep is not None and block.get("type") != "text")
    ]
    if structured:
        return result["structuredContent"], artefacts
    if all(block["type"] == "text" for block in blocks):
        return "\n".join(block["text"] for block in blocks), artefacts
    return blocks, artefacts


def complaint(result: dict[str, Any]) -> str:
    """Return what a tool says that reports its failure."""
    texts = [block.get("text", "") for block in result.get("content") or []]
    said = "\n".join(text for text in texts if text) or "it failed without saying why"
    return said if len(said) <= MAX_ERROR else f"{said[:MAX_ERROR]} ..."


def keeper(workspace: str, prefix: str) -> Keep:
    """Return what writes new files, named PREFIX-RANDOM.SUFFIX, in a directory.

    The directory is the agent's, who may put links there: none is followed, no file written over.
    """

    def keep(data: bytes, media: str) -> str:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        directory = os.open(workspace, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            suffix = mimetypes.guess_extension(media.partition(";")[0].strip()) or ".bin"
            name = f"{prefix}-{secrets.token_hex(6)}{suffix}"
            with os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
                file.write(data)
            return name
        finally:
            os.close(directory)

    return keep


def _block(block: dict[str, Any], store: Callable[[bytes, str], dict[str, str]]) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": block["text"]}
    if kind in ("image", "audio"):
        media = block.get("mimeType") or "application/octet-stream"
        return {"type": kind, "media_type": media} | store(_decoded(block["data"]), media)
    if kind == "resource":
        return _resource(block["resource"], store)
    if kind == "resource_link":
        link = {"type": kind, "uri": block["uri"], "name": block.get("name", "")}
        return link | _media(block)
    raise ResultError(f"content of the unknown type {str(kind)[:80]!r}")


def _resource(
    resource: dict[str, Any], store: Callable[[bytes, str], dict[str, str]]
) -> dict[str, Any]:
    found = {"type": "resource", "uri": resource["uri"]} | _media(resource)
    if "blob" in resource:
        media = resource.get("mimeType") or "application/octet-stream"
        return found | store(_decoded(resource["blob"]), media)
    return found | {"text": resource.get("text", "")}


def _media(block: dict[str, Any]) -> dict[str, str]:
    return {"media_type": block["mimeType"]} if block.get("mimeType") else {}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ResultError("content that says it is base64 and is not") from None
