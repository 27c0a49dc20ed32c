"""The kernel's tools, memory and storage as the official client of the protocol sees them.

`aiosctl mcp` runs as any client's configuration would start it. What a client does here it does as
the person who started it, so that what it stores is there the next time.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent

from aiosd.abi.process import ListAgents
from aiosd.abi.storage import StoList
from tests.aiosh.conftest import door, surroundings
from tests.conftest import World
from tests.daemon import PATIENCE, Daemon

TOOL = """
name = "greet"
description = "Greets somebody."
command = ["/bin/sh", "-c", '''read a; echo '{"said": "hello"}'; echo aside >&2''']
isolation = "none"
idempotent = true
input = {type = "object", properties = {who = {type = "string"}}, required = ["who"]}
output = {type = "object", properties = {said = {type = "string"}}, required = ["said"]}
"""


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[Daemon]:
    places = [world.make(must_end_empty=empty) for empty in (False, True, True)]
    tools = world.make(must_end_empty=False)
    (tools / "greet.toml").write_text(TOOL)
    config = f'[tools]\npath = ["{tools}"]\npackages = []\n[memory]\nembedder = "fake"\n'
    with Daemon(*places, config=config) as daemon:
        yield daemon


Do = Callable[[Client], Awaitable[None]]


def _served(daemon: Daemon, do: Do, *words: str) -> None:
    """Have `do` done by a client that starts `aiosctl mcp`."""
    command = door("ctl", "mcp", *words)
    environ = {**surroundings(), "AIOS_SOCKET": daemon.socket}
    server = StdioServerParameters(command=command[0], args=command[1:], env=environ)

    async def session() -> None:
        async with asyncio.timeout(PATIENCE), Client(server) as client:
            await do(client)

    asyncio.run(session())


def _value(result: CallToolResult) -> Any:
    assert not result.is_error, result.content
    return result.structured_content


def _complaint(result: CallToolResult) -> str:
    assert result.is_error and isinstance(result.content[0], TextContent)
    return result.content[0].text


def test_tools_memory_and_storage_are_offered(daemon: Daemon) -> None:
    async def do(client: Client) -> None:
        await _tools(client)
        await _memory(client)
        await _storage(client)

    _served(daemon, do)
    with daemon.connect() as person:  # it was done as the person, and stays
        assert {row.name for row in person.call(StoList())} == {"notes/day 1", "blob"}


async def _tools(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {"greet", "add_memory", "search_memory", "sto_write", "sto_read"} <= tools.keys()
    assert tools["greet"].input_schema["required"] == ["who"]
    assert tools["greet"].annotations is not None
    assert tools["greet"].annotations.idempotent_hint is True

    greeted = await client.call_tool("greet", {"who": "you"})
    assert _value(greeted) == {"said": "hello"}
    assert json.loads(greeted.content[0].text) == {"said": "hello"}  # type: ignore[union-attr]
    assert "aside" in greeted.content[1].text  # type: ignore[union-attr]
    assert "who" in _complaint(await client.call_tool("greet", {}))
    assert _complaint(await client.call_tool("nothing", {})).startswith("ENOENT")


async def _memory(client: Client) -> None:
    made = _value(await client.call_tool("add_memory", {"text": "The cat sleeps."}))
    found = _value(await client.call_tool("search_memory", {"query": "cat", "k": 3}))
    assert [row["id"] for row in found["memories"]] == [made["id"]]
    assert "no argument 'tex'" in _complaint(await client.call_tool("add_memory", {"tex": ""}))
    assert "'text' is missing" in _complaint(await client.call_tool("add_memory", {}))
    gone = _value(await client.call_tool("delete_memory", {"id": made["id"]}))
    assert gone == {"done": True}
    lost = await client.call_tool("get_memory", {"id": made["id"]})
    assert _complaint(lost).startswith("ENOENT")


async def _storage(client: Client) -> None:
    blob = bytes(range(255, -1, -1)) * 1200
    for text in ("one", "two"):
        await client.call_tool("sto_write", {"name": "notes/day 1", "text": text})
    coded = base64.b64encode(blob).decode()
    _value(await client.call_tool("sto_write", {"name": "blob", "base64": coded}))
    both = await client.call_tool("sto_write", {"name": "x", "text": "", "base64": ""})
    assert "either text or base64" in _complaint(both)
    junk = await client.call_tool("sto_write", {"name": "x", "base64": "!"})
    assert _complaint(junk).startswith("EINVAL")

    kept = {row.name: str(row.uri) for row in (await client.list_resources()).resources}
    assert kept == {"notes/day 1": "aios://storage/notes/day%201", "blob": "aios://storage/blob"}
    [note] = (await client.read_resource(kept["notes/day 1"])).contents
    assert note.text == "two"  # type: ignore[union-attr]
    [data] = (await client.read_resource(kept["blob"])).contents
    assert base64.b64decode(data.blob) == blob  # type: ignore[union-attr]
    with pytest.raises(MCPError):
        await client.read_resource("aios://storage/nothing")

    first = _value(await client.call_tool("sto_read", {"name": "notes/day 1", "version": 1}))
    assert first["text"] == "one" and first["more"] is False
    part = _value(await client.call_tool("sto_read", {"name": "blob", "size": 100}))
    assert base64.b64decode(part["base64"]) == blob[:100] and part["more"] is True
    assert part["size"] == len(blob)
    much = await client.call_tool("sto_read", {"name": "blob", "size": 1 << 30})
    assert "read on with offset" in _complaint(much)


def test_a_client_may_be_an_agent(daemon: Daemon) -> None:
    async def do(client: Client) -> None:
        with daemon.connect() as person:
            assert [row.name for row in person.call(ListAgents())].count("guest") == 1
        await client.call_tool("sto_write", {"name": "mine", "text": "an agent's"})
        [row] = (await client.list_resources()).resources
        assert row.name == "mine"  # its own, and nothing of the person's

    _served(daemon, do, "--name", "guest")
