"""A worker: the process that owns a model, seen from the kernel.

Starts `python -m aiosd.engine`, sends it commands and passes on its events. Knows nothing of
sequences. The process is assumed to hang, lie or die at any moment: a frame that can't be decoded
or is too long, end of file, and silence while something is owed all end in `on_death`, once, with
the process killed and reaped, the reason, and whether somebody else killed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar, cast

import msgspec

from aiosd.abi.wire import FrameError, Frames, frame
from aiosd.child import EX_TEMPFAIL
from aiosd.engine import protocol

log = logging.getLogger(__name__)

STDERR_KEPT = 4096  # bytes of a worker's last words


class Worker(asyncio.Protocol):
    """One worker process. `on_event` gets each event, `on_death` the reason, once.

    `heard` is the loop time of the last sign of life. program, niceness, leave and _decode say what
    runs in the process and how it is spoken to: an engine, unless a subclass says otherwise.
    """

    program: ClassVar[str] = "aiosd.engine"
    niceness: ClassVar[str] = "AIOS_ENGINE_NICE"
    leave: ClassVar[msgspec.Struct] = protocol.Quit()

    def __init__(
        self, name: str, on_event: Callable[[Any], None], on_death: Callable[[str, bool], None]
    ) -> None:
        self.name = name
        self.pid = 0
        self.heard = 0.0
        self._on_event = on_event
        self._on_death = on_death
        self._frames = Frames(protocol.MAX_MESSAGE)
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: list[bytes] = []
        self._errors = bytearray()
        self._loop = asyncio.get_running_loop()

    async def start(self, nice: int) -> None:
        """Start the process and connect to it. Raises OSError when it can't be started."""
        ours, theirs = socket.socketpair()
        errors_read, errors_write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.program, "--fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stderr=errors_write,
                env={**os.environ, self.niceness: str(nice)},
            )
        except OSError:
            ours.close()
            os.close(errors_read)
            raise
        finally:
            theirs.close()
            os.close(errors_write)
        self.pid = self._process.pid
        self.heard = self._loop.time()
        os.set_blocking(errors_read, False)
        self._loop.add_reader(errors_read, self._read_errors, errors_read)
        ours.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=ours)

    def send(self, command: msgspec.Struct) -> None:
        """Queue a command; all commands of one turn of the loop go out in one write."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(frame(protocol.encode_command(command)))

    def kill(self, reason: str) -> None:
        """End the process now; on_death follows with this reason."""
        self._die(reason)

    async def stop(self, timeout: float) -> None:
        """Ask the process to leave, kill it after `timeout` seconds, and reap it."""
        self._on_death = _ignore
        if self._transport is not None and not self._transport.is_closing():
            self.send(self.leave)
            self._flush()
        process = self._process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            await self._loop.run_in_executor(None, process.wait, timeout)
        self._die("stopped")

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what was waiting for the connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Pass on the events that have arrived whole."""
        self.heard = self._loop.time()
        try:
            for payload in self._frames.feed(data):
                self._on_event(self._decode(payload))
        except (FrameError, msgspec.DecodeError) as error:
            self._die(f"sent what is no event: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has closed its end: it is dead or dying."""
        self._die("")

    # Inside.

    def _decode(self, payload: bytes | bytearray) -> Any:
        return protocol.decode_event(payload)

    def _flush(self) -> None:
        if self._transport is None or not self._pending:
            return
        data, self._pending = b"".join(self._pending), []
        if not self._transport.is_closing():
            self._transport.write(data)

    def _die(self, reason: str) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None and reason:
            process.kill()
        if self._transport is not None:
            self._transport.close()
        self._loop.run_in_executor(None, self._reap, process, reason)

    def _reap(self, process: subprocess.Popen[bytes], reason: str) -> None:
        """Wait for the process in a thread (it may take its time to free memory)."""
        try:
            status = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody asks any more
            self._loop.call_soon_threadsafe(self._report, status, reason)

    def _report(self, status: int, reason: str) -> None:
        killed = status in (-signal.SIGKILL, EX_TEMPFAIL) and not reason
        if not reason:
            reason = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            last = self._errors.decode(errors="replace").strip().rpartition("\n")[2]
            if last and status > 0:
                reason += f" ({last})"
        self._on_death(reason, killed)

    def _read_errors(self, fd: int) -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(fd)
            os.close(fd)
            return
        for line in data.decode(errors="replace").splitlines():
            log.warning("core %s: %s", self.name, line, extra={"core": self.name})
        self._errors += data
        del self._errors[:-STDERR_KEPT]


def _ignore(reason: str, killed: bool) -> None:
    """Take no notice: the kernel itself ends the worker."""
