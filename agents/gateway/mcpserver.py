"""A server of the Model Context Protocol: the kernel's tools, memory and storage for its clients.

    server = make(connected)        # connected(context): gives whose connection a request goes by

It holds nothing and may do nothing itself: what a client asks is asked of the kernel as whoever the
client speaks for. Tools that the kernel knows are offered as they are declared, memory and storage
as the tools of `abilities.py`, and stored objects as resources besides, aios://storage/NAME.
"""

from __future__ import annotations

import base64
import errno
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import quote, unquote

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError

import aios

from .abilities import ABILITIES, MOST, read, use

log = logging.getLogger(__name__)

SCHEME: Final = "aios://storage/"
LISTED: Final = 1000
"""Objects that are listed as resources; the tool sto_list gives more."""
SAID: Final = 16 << 10
"""Characters of what a tool printed that its caller is shown."""
INTRODUCTION: Final = (
    "Tools that run in a sandbox, a durable memory for texts (add_memory, search_memory, ...) and "
    "a versioned store of objects (sto_write, sto_read, ...; also as resources)."
)

Asked = ServerRequestContext[Any, Any]
Connected = Callable[[Asked], AbstractAsyncContextManager[aios.AsyncKernel]]


def make(connected: Connected) -> Server[Any]:
    """Return the server. connected: raises OSError where there is no connection to be had."""
    face = _Face(connected)
    return Server(
        "aios",
        version="0.1.0",
        instructions=INTRODUCTION,
        on_list_tools=face.list_tools,
        on_call_tool=face.call_tool,
        on_list_resources=face.list_resources,
        on_list_resource_templates=face.list_templates,
        on_read_resource=face.read_resource,
    )


class _Face:
    """What the server answers."""

    def __init__(self, connected: Connected) -> None:
        self._connected = connected

    async def list_tools(
        self, asked: Asked, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        """List the kernel's tools, and those for memory and storage."""
        async with self._connected(asked) as kernel:
            try:
                tools = await kernel.list_tools()
            except OSError as error:
                raise _broken(error) from None
        own = [
            types.Tool(
                name=name,
                description=ability.text,
                input_schema=ability.schema,
                annotations=types.ToolAnnotations(
                    read_only_hint=ability.reads, open_world_hint=False
                ),
            )
            for name, ability in ABILITIES.items()
        ]
        return types.ListToolsResult(
            tools=[*map(_offered, (tool for tool in tools if tool.name not in ABILITIES)), *own]
        )

    async def call_tool(
        self, asked: Asked, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """Carry out a tool; what goes wrong in it is the result, for the model to read."""
        arguments = params.arguments or {}
        async with self._connected(asked) as kernel:
            try:
                if params.name in ABILITIES:
                    return _result(await use(params.name, kernel, arguments))
                return _told(await kernel.execute_tool(params.name, arguments=arguments))
            except OSError as error:
                return types.CallToolResult(content=[_text(_sentence(error))], is_error=True)

    async def list_resources(
        self, asked: Asked, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """List stored objects."""
        async with self._connected(asked) as kernel:
            try:
                objects = await kernel.sto_list(limit=LISTED)
            except OSError as error:
                raise _broken(error) from None
        return types.ListResourcesResult(
            resources=[
                types.Resource(
                    uri=SCHEME + quote(each.name, safe="/"),
                    name=each.name,
                    mime_type=each.content_type,
                    size=each.size,
                )
                for each in objects
            ]
        )

    async def list_templates(
        self, asked: Asked, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """Say how stored objects are named."""
        template = types.ResourceTemplate(
            uri_template=SCHEME + "{name}", name="storage", description="a stored object"
        )
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def read_resource(
        self, asked: Asked, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        """Return a stored object, whole."""
        uri = str(params.uri)
        if not uri.startswith(SCHEME):
            raise MCPError(types.INVALID_PARAMS, f"{uri[:200]}: resources are {SCHEME}NAME")
        name = unquote(uri.removeprefix(SCHEME))
        async with self._connected(asked) as kernel:
            try:
                data, stored = await read(kernel, name, size=MOST + 1)
            except OSError as error:
                raise _broken(error) from None
        if len(data) > MOST:
            sentence = f"{name}: {stored.size} bytes, {MOST} at most as a resource; use sto_read"
            raise MCPError(types.INVALID_PARAMS, sentence)
        return types.ReadResourceResult(contents=[_contents(uri, data, stored.content_type)])


def _offered(tool: aios.Tool) -> types.Tool:
    """Return a tool of the kernel's as clients know tools."""
    isolated = not any(need.startswith("network:") for need in tool.needs)
    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema={"type": "object", **tool.input},
        output_schema=tool.output if _is_object(tool.output) else None,
        annotations=types.ToolAnnotations(
            idempotent_hint=tool.idempotent, open_world_hint=not isolated
        ),
    )


def _is_object(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "object"


def _told(result: aios.ToolResult) -> types.CallToolResult:
    """Return what came of a call of a tool, with what else it left and printed."""
    more = []
    if result.artefacts:
        more.append(f"files in {result.workspace}: {', '.join(result.artefacts)}")
    if printed := (result.stdout + result.stderr).strip():
        more.append(f"printed: {printed[:SAID]}")
    return _result(result.value, *more)


def _result(value: Any, *more: str) -> types.CallToolResult:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return types.CallToolResult(
        content=[_text(text) for text in (shown, *more)],
        structured_content=value if isinstance(value, dict) else None,
    )


def _contents(
    uri: str, data: bytes, kind: str
) -> types.TextResourceContents | types.BlobResourceContents:
    try:
        return types.TextResourceContents(uri=uri, text=data.decode(), mime_type=kind)
    except UnicodeDecodeError:
        coded = base64.b64encode(data).decode()
        return types.BlobResourceContents(uri=uri, blob=coded, mime_type=kind)


def _text(text: str) -> types.TextContent:
    return types.TextContent(text=text)


def _broken(error: OSError) -> MCPError:
    """Return an error of the kernel's as the protocol has it."""
    code = types.INVALID_PARAMS if error.errno == errno.ENOENT else types.INTERNAL_ERROR
    return MCPError(code, _sentence(error))


def _sentence(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    return f"{name}: {error.strerror or error}"
