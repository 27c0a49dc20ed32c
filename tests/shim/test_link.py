"""The shim's socket as a stranger meets it: garbage, long lines, other uids, a second kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.shim.kernel import DEADLINE, Kernel

KNOCK = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sys.exit(0 if sock.recv(100) == b"" else 1)
"""


class Peer:
    """A bare connection to the shim of agent 7."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def __aenter__(self) -> Peer:
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def line(self) -> dict[str, object]:
        """The next message, empty at the end."""
        raw = await asyncio.wait_for(self.reader.readline(), DEADLINE)
        return dict(json.loads(raw)) if raw else {}

    async def ends(self) -> None:
        """Read to the end of the connection."""
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(self.reader.read(), DEADLINE)


@pytest.fixture
def path(kernel: Kernel) -> Path:
    return kernel.dir / "7" / "shim.sock"


async def test_hello_and_ping(kernel: Kernel, path: Path) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    pid = await shim.ready()
    shim.detach()
    async with Peer(path) as peer:
        hello = await peer.line()
        assert hello["ev"] == "hello"
        assert (hello["shim_pid"], hello["pid"]) == (shim.shim_pid, pid)
        assert (await peer.line())["ev"] == "started"
        peer.writer.write(b'{"op":"ping"}\n{"op":')
        assert await peer.line() == {"ev": "pong"}
        peer.writer.write(b'"ping"}\n')
        assert await peer.line() == {"ev": "pong"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\n",
        b"[]\n",
        b"\xff\xfe\n",
        b"[" * 50000 + b"\n",
        b'{"op":"dance"}\n',
        b'{"op":"signal","sig":0,"tree":false}\n',
        b'{"op":"signal","sig":65,"tree":false}\n',
        b'{"op":"signal","sig":"9","tree":false}\n',
        b'{"op":"bye"}\n',
        b"x" * 200_000,
    ],
    ids=lambda garbage: garbage[:16].decode(errors="replace").strip(),
)
async def test_garbage_closes_the_connection(kernel: Kernel, path: Path, garbage: bytes) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    pid = await shim.ready()
    shim.detach()
    async with Peer(path) as peer:
        peer.writer.write(garbage)
        await peer.ends()
    back = await kernel.adopt()
    assert await back.ready() == pid


async def test_a_newer_connection_replaces_the_older(kernel: Kernel, path: Path) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    await shim.ready()
    shim.detach()
    async with Peer(path) as older:
        await older.line()
        async with Peer(path) as newer:
            await older.ends()
            assert (await newer.line())["ev"] == "hello"


async def test_a_kernel_that_does_not_read_is_dropped(kernel: Kernel, path: Path) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    await shim.ready()
    shim.detach()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.settimeout(DEADLINE)
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(_flood, sock)
    await (await kernel.adopt()).ready()


def _flood(sock: socket.socket) -> None:
    for _ in range(1000):
        sock.sendall(b'{"op":"ping"}\n' * 1000)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can switch to another uid")
async def test_another_uid_is_not_heard(kernel: Kernel, path: Path) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    await shim.ready()
    shim.detach()
    path.chmod(0o777)
    places = [place for place in path.parents if place.stat().st_mode & 0o005 != 0o005]
    modes = [(place, place.stat().st_mode) for place in places]
    try:
        for place in places:
            place.chmod(0o755)
        knock = await asyncio.create_subprocess_exec(sys.executable, "-c", KNOCK, str(path))
        assert await asyncio.wait_for(knock.wait(), DEADLINE) == 0
    finally:
        for place, mode in modes:
            place.chmod(mode & 0o7777)
    await (await kernel.adopt()).ready()
