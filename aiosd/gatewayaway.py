"""Who answers at the gateway's doors while it can't be started: 503, and when to come back.

    with Away(doors, "it ended with status 1", seconds): ...

Clients would wait in the backlog else, for as long as the pause before the next start lasts. A
request is not read here, but for its first bytes.

What must hold: what waits here is bounded, in number and in seconds, and goes by itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Sequence
from typing import Final, Self, cast

import msgspec

log = logging.getLogger(__name__)

MOST: Final = 64
"""Clients that are answered at a time."""
WAIT_S: Final = 5.0
"""Seconds that a client has to ask, and to read."""


class Away:
    """Accepts and refuses. doors: listening sockets. reason: why. seconds: until the next start."""

    def __init__(self, doors: Sequence[socket.socket], reason: str, seconds: float) -> None:
        self._doors = doors
        self._answer = _answer(reason, seconds)
        self._loop = asyncio.get_running_loop()
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        for door in self._doors:
            self._loop.add_reader(door.fileno(), self._accept, door)
        return self

    def __exit__(self, *_: object) -> None:
        for door in self._doors:
            self._loop.remove_reader(door.fileno())

    def _accept(self, door: socket.socket) -> None:
        try:
            peer, _ = door.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as error:  # no descriptor: it would stay at the door, and we with it
            self._loop.remove_reader(door.fileno())
            log.warning("the gateway: its clients wait: %s", error.strerror)
            return
        if len(self._clients) >= MOST:
            peer.close()
            return
        peer.setblocking(False)
        client = _Client(self._answer, self._clients)
        task = self._loop.create_task(self._connect(client, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: _Client, peer: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: client, peer)
        except OSError:
            peer.close()
            self._clients.discard(client)


class _Client(asyncio.Protocol):
    """One of them: it is answered when it has begun to ask, and then hung up on."""

    def __init__(self, answer: bytes, clients: set[_Client]) -> None:
        self._answer = answer
        self._clients = clients
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        clients.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for what it asks."""
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(WAIT_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer; what else it sends is dropped, or the answer would be lost with a reset."""
        assert self._transport is not None
        answer, self._answer = self._answer, b""
        if answer:
            self._transport.write(answer)
            self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._clients.discard(self)
        if self._timer is not None:
            self._timer.cancel()


def _answer(reason: str, seconds: float) -> bytes:
    sentence = f"the gateway can't serve: {reason}; `aiosctl gateway` shows when it does"
    error = {"message": sentence, "type": "server_error", "param": None, "code": "gateway_away"}
    body = msgspec.json.encode({"error": error})
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {math.ceil(seconds)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
