"""Two hundred clients at once, every other one with a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from aiosd.abi.process import RegisterAgent
from tests.daemon import PATIENCE
from tests.gateway.conftest import Host

CLIENTS = 200
KINDS = 8
"""Different prompts among them."""


async def ask(port: int, key: str, number: int) -> str:
    """Ask one question on a connection of its own; return the answer's text."""
    streamed = bool(number % 2)
    body = {
        "messages": [{"role": "user", "content": f"Question {number % KINDS}"}],
        "max_tokens": 8,
        "stream": streamed,
    }
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + data)
        told = await reader.read()
    finally:
        writer.close()
    before, _, answer = told.partition(b"\r\n\r\n")
    assert b" 200 " in before.splitlines()[0], told
    if not streamed:
        return str(json.loads(answer)["choices"][0]["message"]["content"])
    events = [line[6:] for line in answer.split(b"\r\n") if line.startswith(b"data: {")]
    lines = [line for event in events for line in event.split(b"\n\ndata: ")]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines if line.startswith(b"{")]
    return "".join(delta.get("content", "") for delta in deltas)


async def wave(port: int, keys: list[str]) -> list[str]:
    """Have them all ask at once; those of one kind are of one agent."""
    asked = (ask(port, keys[number % KINDS], number) for number in range(CLIENTS))
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(*asked)


@pytest.fixture
def keys(host: Host) -> Iterator[list[str]]:
    """Give the keys of some agents."""
    with ExitStack() as stack:
        clients = [stack.enter_context(host.daemon.connect()) for _ in range(KINDS)]
        yield [client.call(RegisterAgent(name="crowd")).credential for client in clients]


def test_each_of_200_gets_its_answer_and_memory_stays(host: Host, keys: list[str]) -> None:
    port = host.port
    alone = [asyncio.run(ask(port, keys[number], number)) for number in range(KINDS)]
    process = psutil.Process(host.gateway.pid)
    sizes = []
    for _ in range(2):
        answers = asyncio.run(wave(port, keys))
        assert answers == [alone[number % KINDS] for number in range(CLIENTS)]
        sizes.append(process.memory_info().rss)
    assert sizes[1] - sizes[0] < 32 << 20
