"""The only way out of a box: a proxy for CONNECT and plain HTTP that knows the declared hosts.

It runs in the kernel. The socket that it listens on was made inside the box, so it belongs to the
box's own network namespace, and nothing but that box reaches it; its connections to hosts are the
kernel's. Names are resolved here, and a connection goes to the very address that was checked: a
name that resolves to another address the next time gains nothing.

What must hold: only declared hosts are reached (hosts.py); connections, bytes, and every wait are
bounded; a refusal says what was refused and what to declare. What it can't see: inside TLS a tool
may name another host of the same server.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from aiosd import hosts
from aiosd.hosts import Host

log = logging.getLogger(__name__)

HEAD_MAX: Final = 32 << 10
CHUNK: Final = 64 << 10
CONNECTIONS: Final = 32
"""Connections of one box at once."""
BYTES: Final = 1 << 30
"""Bytes that one box may move, both ways together."""
HEAD_S: Final = 15.0
CONNECT_S: Final = 15.0
IDLE_S: Final = 300.0
REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
STATUS: Final = {errno.EACCES: 403, errno.EINVAL: 400, errno.ETIMEDOUT: 504, errno.EAGAIN: 503}
DROPPED: Final = (b"connection:", b"keep-alive:", b"proxy-", b"host:", b"upgrade:", b"te:")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """The proxy of one box. declared: as the tool's declaration names its hosts."""

    def __init__(self, declared: Sequence[str], listening: socket.socket) -> None:
        self.refused = 0
        self._declared = [hosts.parse(text) for text in declared]
        self._left = BYTES
        self._clients: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        self._listening = listening
        self._accepting = asyncio.get_running_loop().create_task(self._accept())
        self._accepting.add_done_callback(lambda _: listening.close())

    def close(self) -> None:
        """Stop listening, and cut every connection."""
        self._accepting.cancel()
        for client in self._clients:
            client.cancel()

    # Inside.

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listening)
            except OSError as error:  # out of descriptors, or a client that has gone already
                log.warning("a tool's connection could not be accepted: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            if len(self._clients) >= CONNECTIONS:
                client.close()
                continue
            task = loop.create_task(self._serve(client))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, client: socket.socket) -> None:
        """Serve one connection to its end."""
        try:
            reader, writer = await asyncio.open_connection(sock=client, limit=HEAD_MAX)
        except OSError:
            client.close()
            return
        try:
            await self._answer((reader, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it has gone, or it never sent a head: nobody is left to be told
        finally:
            writer.transport.abort()

    async def _answer(self, client: Streams) -> None:
        reader, writer = client
        async with asyncio.timeout(HEAD_S):
            head = await reader.readuntil(b"\r\n\r\n")
        try:
            name, port, first = _request(head)
            server = await self._connect(name, port)
        except OSError as error:
            self.refused += 1
            writer.write(_refusal(error))
            await asyncio.wait_for(writer.drain(), HEAD_S)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), HEAD_S)
            return
        try:
            if first:
                server[1].write(first)
            else:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await self._exchange(client, server)
        finally:
            server[1].transport.abort()

    async def _connect(self, name: str, port: int) -> Streams:
        """Connect to a declared host. Raises OSError that the tool gets to read."""
        rules = [host for host in self._declared if host.covers(name, port)]
        if not rules:
            declared = ", ".join(f"{host.name}" for host in self._declared)
            raise OSError(
                errno.EACCES,
                f"{name}:{port} is not among the tool's declared hosts ({declared}):"
                " add it to needs.network",
            )
        try:
            async with asyncio.timeout(CONNECT_S):
                return await _reach(name, port, rules)
        except TimeoutError:
            text = f"{name}:{port} did not answer within {CONNECT_S:g} s"
            raise OSError(errno.ETIMEDOUT, text) from None

    async def _exchange(self, client: Streams, server: Streams) -> None:
        """Move bytes both ways until the server has ended, or nothing moves."""
        outward = asyncio.create_task(self._pump(client[0], server[1]))
        try:
            await self._pump(server[0], client[1])
            with contextlib.suppress(OSError, TimeoutError):
                client[1].close()
                await asyncio.wait_for(client[1].wait_closed(), HEAD_S)
        finally:
            outward.cancel()
            await asyncio.gather(outward, return_exceptions=True)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while self._left > 0:
            async with asyncio.timeout(IDLE_S):
                data = await source.read(CHUNK)
                self._left -= len(data)
                if not data:
                    break
                sink.write(data)
                await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


async def _reach(name: str, port: int, rules: list[Host]) -> Streams:
    """Resolve a name and connect to the first of its addresses that is allowed and answers."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(errno.EHOSTUNREACH, f"{name}: {error.strerror}") from None
    places = dict.fromkeys(hosts.address(str(line[4][0]).partition("%")[0]) for line in found)
    allowed = [a for a in places if a is not None and any(rule.reaches(a) for rule in rules)]
    if not allowed:
        raise OSError(
            errno.EACCES,
            f"{name} leads to an address of this machine or its network, where no tool goes"
            " unless its declaration names that address",
        )
    problem: OSError | None = None
    for place in allowed:
        try:
            return await asyncio.open_connection(str(place), port, limit=CHUNK)
        except OSError as error:
            problem = error
    assert problem is not None
    raise OSError(errno.EHOSTUNREACH, f"{name}:{port}: {problem.strerror or problem}")


def _request(head: bytes) -> tuple[str, int, bytes]:
    """Read a request's head: host, port, and what to send there (nothing for CONNECT)."""
    line, _, fields = head.partition(b"\r\n")
    try:
        method, target, version = line.decode("ascii").split(" ")
    except ValueError:
        raise OSError(errno.EINVAL, "the request line is not METHOD TARGET VERSION") from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise OSError(errno.EINVAL, f"version {version!r}: this proxy speaks HTTP/1.1")
    if method == "CONNECT":
        name, port = hosts.split(target, 443)
        return hosts.plain(name), port, b""
    try:
        url = urlsplit(target)
        authority = url.netloc.rpartition("@")[2]
    except ValueError:
        raise OSError(errno.EINVAL, f"{target!r} is no URL") from None
    if url.scheme != "http" or not authority:
        raise OSError(errno.EINVAL, "plain requests are for http:// URLs; for https use CONNECT")
    name, port = hosts.split(authority, 80)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    kept = [line for line in fields.split(b"\r\n") if line and not line.lower().startswith(DROPPED)]
    lines = [f"{method} {path} HTTP/1.1".encode(), f"Host: {authority}".encode(), *kept]
    return hosts.plain(name), port, b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _refusal(error: OSError) -> bytes:
    status = STATUS.get(error.errno or 0, 502)
    body = f"aiosd: {error.strerror}\n".encode(errors="replace")
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
