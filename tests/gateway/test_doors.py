"""Other doors of the gateway: MCP over HTTP, and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from prometheus_client.parser import text_string_to_metric_families

from aiosd.abi.process import RegisterAgent
from tests.daemon import PATIENCE
from tests.gateway.conftest import Host, Registered


def _served(host: Host, key: str, mode: str, do: Callable[[Client], Awaitable[None]]) -> None:
    """Have `do` done by the official client, with a key."""

    async def session() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        async with asyncio.timeout(PATIENCE), httpx2.AsyncClient(headers=headers) as http:
            server = streamable_http_client(f"http://127.0.0.1:{host.port}/mcp", http_client=http)
            async with Client(server, mode=mode) as client:
                await do(client)

    asyncio.run(session())


def test_mcp_serves_each_agent_what_is_its_own(host: Host, agent: Registered) -> None:
    async def write(client: Client) -> None:
        assert "sto_write" in {tool.name for tool in (await client.list_tools()).tools}
        done = await client.call_tool("sto_write", {"name": "diary", "base64": "AAEC"})
        assert not done.is_error
        [row] = (await client.list_resources()).resources
        assert row.name == "diary"

    async def look(client: Client) -> None:
        assert (await client.list_resources()).resources == []

    _served(host, agent.key, "legacy", write)
    with host.daemon.connect() as other:
        _served(host, other.call(RegisterAgent(name="other")).credential, "auto", look)


def test_mcp_refuses_strangers_and_what_it_does_not_serve(host: Host, agent: Registered) -> None:
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert host.ask("/mcp", "wrong", ask).status == 401
    assert host.ask("/mcp", "", ask).status == 401
    assert host.ask("/mcp", agent.key).status == 405
    assert host.ask("/mcp", agent.key, ask, Origin="https://evil.example").status == 403


def test_metrics_take_a_key_unless_they_are_open(host: Host, agent: Registered) -> None:
    assert host.ask("/metrics").status == 401
    assert host.ask("/metrics", "wrong").status == 401
    told = host.ask("/metrics", agent.key)
    assert told.status == 200 and told.headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(told.body.decode())}
    assert {"aios_calls", "aios_core_state", "aios_kv_bytes"} <= names
    host.reload('metrics = "open"')
    try:
        assert host.ask("/metrics").status == 200
        assert host.ask("/metrics", "wrong").status == 401
    finally:
        host.reload("")
