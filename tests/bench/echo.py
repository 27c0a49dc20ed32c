"""The least that a server can do: an echo on the kernel's event loop, in a process of its own.

python -m tests.bench.echo SOCKET

with Echo() as echo: connect to echo.path
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import cast

import uvloop

from tests.daemon import PATIENCE, ROOT


class Echo:
    """The process, serving within the `with` block."""

    def __enter__(self) -> Echo:
        self._base = tempfile.mkdtemp(prefix="aios-bench-", dir="/tmp")
        self.path = f"{self._base}/echo.sock"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.echo", self.path], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != b".":
            raise RuntimeError("the echo server did not start")
        return self

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def connect(self) -> socket.socket:
        """Return a new connection."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        sock.connect(self.path)
        return sock

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self._base, ignore_errors=True)


class _Protocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def _serve(path: str) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(_Protocol, path)
    sys.stdout.write(".")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1]))
