"""What clients of a gateway are told that can't be started."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from pathlib import Path

import msgspec
import pytest

from aiosd import gatewayaway as away_module
from aiosd import gateways as module
from aiosd.config import Config
from aiosd.events import Events
from aiosd.gatewayaway import MOST, Away
from tests.daemon import PATIENCE

ASK = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"


async def ask(port: int) -> tuple[bytes, dict[str, str]]:
    """Ask, with a body that comes after the answer; return the head and the error."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(ASK)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"x" * 9)
    body = await reader.read()
    writer.close()
    told: dict[str, str] = json.loads(body)["error"]
    return head, told


def test_who_comes_is_told_why_and_when_to_come_back() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as door:
            door.setblocking(False)
            port = door.getsockname()[1]
            waiting = asyncio.create_task(ask(port))  # in the backlog before anybody answers
            with Away([door], "it ended with status 1", 3.2):
                for head, error in (await waiting, await ask(port)):
                    assert head.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 4\r\n" in head
                    assert "it ended with status 1" in error["message"]

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_no_more_than_so_many_wait_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away_module, "WAIT_S", PATIENCE)

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as door:
            door.setblocking(False)
            port = door.getsockname()[1]
            with Away([door], "it hung", 60.0):
                silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST + 1)]
                assert await silent[MOST][0].read() == b""
                silent[0][1].write(ASK)
                assert (await silent[0][0].read()).startswith(b"HTTP/1.1 503 ")
                for _, writer in silent:
                    writer.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


class NoDescriptor(socket.socket):
    """A door behind which there is no descriptor left. tries: at letting somebody in."""

    tries = 0
    tried: asyncio.Event

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        self.tried.set()
        raise OSError(errno.EMFILE, "Too many open files")


def test_who_can_not_be_let_in_is_not_asked_for_again_and_again() -> None:
    async def run() -> None:
        with NoDescriptor() as door, socket.socket() as client:
            door.tried = asyncio.Event()
            door.bind(("127.0.0.1", 0))
            door.listen()
            client.connect(door.getsockname())
            with Away([door], "it hung", 60.0):
                await door.tried.wait()
                for _ in range(50):
                    await asyncio.sleep(0)
                assert door.tries == 1

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_a_gateway_that_ends_at_its_start_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Config()
    kernel = msgspec.structs.replace(plain.kernel, state_dir=str(tmp_path))
    served = msgspec.structs.replace(
        plain.gateway, http="127.0.0.1:0", socket=str(tmp_path / "gateway.sock")
    )
    config = msgspec.structs.replace(plain, kernel=kernel, gateway=served)
    monkeypatch.setattr(module, "_module", lambda: "aiosd.no_such_program")
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 60.0)

    async def run() -> None:
        gateways = module.Gateways(lambda: config, Events())
        gateways.open()
        try:
            url = gateways.environment("key")["OPENAI_BASE_URL"]
            port = int(url.removesuffix("/v1").rpartition(":")[2])
            head, error = await ask(port)
            assert b" 503 " in head and "it ended with status 1" in error["message"]
        finally:
            await gateways.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
