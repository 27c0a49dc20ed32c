"""One life of the gateway: its process, what it is told at its start, and the signs that it lives.

    life = Life(module, sockets, setup, niceness, on_ready)
    reason = await life.ended                     # (why, whether that was no failure)
    life.leave(); await life.close()

The process gets the listening sockets by inheritance and speaks with the kernel over one end of a
socketpair: a line of JSON tells it its settings, and it answers with a line when it serves and with
one every few seconds while it lives. It is assumed to hang, lie or die at any moment.

What must hold: `ended` is set when it has gone or is of no use any more; after `close` no process
and no descriptor is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec

from aiosd.environment import sdk_places

START_S: Final = 60.0
"""Seconds that it may take to serve."""
SILENT_S: Final = 60.0
"""Seconds without a sign of life after which it counts as hung; it gives one every few."""
LEAVE_S: Final = 5.0
"""Seconds that it has for what is under way, when it is told to leave."""
PASSED: Final = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH")
"""What it finds in its environment of the kernel's."""
ROOM: Final = 1 << 20
"""Bytes of its settings that the socket takes at once."""


class End(NamedTuple):
    """Why a life is over. left: it went by itself, with nothing under way."""

    reason: str
    left: bool


class Life(asyncio.Protocol):
    """A started process. on_ready: called once it serves.

    module: to be run. sockets: on which it serves. setup: its settings. nice: below the kernel.
    """

    def __init__(
        self,
        module: str,
        sockets: Sequence[socket.socket],
        setup: Mapping[str, Any],
        nice: int,
        on_ready: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._ready = False
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[End] = self._loop.create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _start(module, theirs.fileno(), sockets, nice)
            except OSError:
                ours.close()
                raise
        self.pid = self._process.pid
        self._deadline = self._loop.call_later(START_S, self._late)
        self._connecting = self._loop.create_task(self._connect(ours, setup))

    def leave(self) -> None:
        """Tell it to end what is under way and go; one that does not is killed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"leave\n")
        self._deadline.cancel()
        self._deadline = self._loop.call_later(2 * LEAVE_S, self._late)

    async def close(self) -> None:
        """Kill it where it still is, and reap it."""
        self._deadline.cancel()
        await asyncio.wait({self._connecting})
        self._end("stopped", left=True)
        if self._transport is not None:
            self._transport.abort()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._loop.run_in_executor(None, self._process.wait)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """A sign of life: all that it ever says is that."""
        if not self._ready:
            self._ready = True
            self._on_ready()
        self._deadline.cancel()
        self._deadline = self._loop.call_later(SILENT_S, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone, or is about to."""
        self._loop.run_in_executor(None, self._process.wait, LEAVE_S).add_done_callback(self._gone)

    # Inside.

    async def _connect(self, ours: socket.socket, setup: Mapping[str, Any]) -> None:
        ours.setblocking(False)
        with contextlib.suppress(OSError):
            await self._loop.create_unix_connection(lambda: self, sock=ours)
            assert self._transport is not None
            self._transport.write(msgspec.json.encode(setup) + b"\n")

    def _late(self) -> None:
        self._end("it hung" if self._ready else f"it did not serve within {START_S:g} s")

    def _gone(self, status: asyncio.Future[int]) -> None:
        if status.cancelled() or status.exception() is not None:
            self._end("it closed its connection and stayed")
            return
        code = status.result()
        if code >= 0:
            self._end(f"it ended with status {code}", left=code == 0)
        else:
            self._end(f"it was killed by {signal.Signals(-code).name}")

    def _end(self, reason: str, left: bool = False) -> None:
        if not self.ended.done():
            self.ended.set_result(End(reason, left))


def _start(
    module: str, link: int, sockets: Sequence[socket.socket], nice: int
) -> subprocess.Popen[bytes]:
    """Start the process. Raises OSError."""
    listening = [each.fileno() for each in sockets]
    numbers = ",".join(map(str, listening))
    command = ["-P", "-m", module, "--fd", str(link), "--listen", numbers, "--nice", str(nice)]
    environ = {name: os.environ[name] for name in PASSED if name in os.environ}
    places = [*filter(None, [environ.get("PYTHONPATH", "")]), *sdk_places()]
    if places:
        environ["PYTHONPATH"] = os.pathsep.join(places)
    return subprocess.Popen(
        [sys.executable, *command],
        pass_fds=(link, *listening),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environ,
    )
