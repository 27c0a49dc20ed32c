"""A tool's process: started in its box, heard, and ended.

    process = await start(spec)          # spec says what to run, and in which box
    process.stdout.take(); process.stderr.take()
    status = await process.exited
    await process.end(grace)             # TERM, then KILL to the whole tree

What must hold: what a process writes is read as it comes and kept up to a limit, so that neither
it nor the kernel waits for the other; `flood` tells when there is more. After `end` nothing of
the process is left, and no descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import termios
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from aiosd.box import Box

BOXED_FD: Final = 3
"""The number of the descriptor that a tool inherits."""
CHUNK: Final = 1 << 16
REAP_S: Final = 10.0
"""Seconds after SIGKILL within which a process is gone."""


class Boxed(Protocol):
    """A process that was started, as the sandbox gives it."""

    pid: int
    exited: asyncio.Future[int]

    async def ready(self) -> None:
        """Return when the program runs; raises OSError when it can't be run so."""

    def terminate(self) -> None:
        """Ask all of it to end."""

    def kill_tree(self) -> None:
        """Kill all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is to be run. limit: bytes of stdout, and of stderr, that are kept.

    fd: a descriptor that it inherits as BOXED_FD, -1 for none.
    """

    tool: str
    box: Box
    limit: int
    fd: int = -1


class Pipe:
    """What comes out of one pipe. Belongs to the event loop's thread."""

    def __init__(self, fd: int, limit: int, on_flood: Callable[[], None]) -> None:
        self.flooded = False
        self._fd = fd
        self._limit = limit
        self._on_flood = on_flood
        self._kept = bytearray()
        self._more = array("i", [0])
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def take(self) -> bytes:
        """Return what has come since the last time, all that is in the pipe included."""
        if self._fd >= 0:
            fcntl.ioctl(self._fd, termios.FIONREAD, self._more)
            if self._more[0]:  # seldom: to read, and to hear that nothing is there, takes longer
                self._read()
        if not self._kept:
            return b""
        kept, self._kept = bytes(self._kept), bytearray()
        self.flooded = False
        return kept

    def drop(self) -> None:
        """Forget what has been read."""
        if self._kept:
            self._kept = bytearray()
            self.flooded = False

    def close(self) -> None:
        """Read no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        while self._fd >= 0:
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            room = self._limit - len(self._kept)
            self._kept += data[:room]
            if len(data) > room:
                if not self.flooded:
                    self.flooded = True
                    self._on_flood()
                return


class Process:
    """A running tool. exited: its status, 128+n when signal n ended it. flood: it wrote more."""

    def __init__(self, boxed: Boxed, stdout: int, stderr: int, stdin: int, limit: int) -> None:
        self._boxed = boxed
        self.exited = boxed.exited
        self.pid = boxed.pid
        self.stdout = Pipe(stdout, limit, self._flooded)
        self.stderr = Pipe(stderr, limit, self._flooded)
        self._stdin = stdin
        self._left = memoryview(b"")
        self._loop = asyncio.get_running_loop()
        self.flood: asyncio.Future[None] = self._loop.create_future()

    def feed(self, data: bytes) -> None:
        """Write its standard input as fast as it reads, then close it."""
        self._left = memoryview(data)
        os.set_blocking(self._stdin, False)
        self._loop.add_writer(self._stdin, self._write)
        self._write()

    async def end(self, grace: float = 0.0) -> None:
        """End it, with all that it started: TERM, after `grace` seconds KILL. Closes everything."""
        try:
            if grace and not self.exited.done():
                self._boxed.terminate()
                await asyncio.wait({self.exited}, timeout=grace)
        finally:
            self._boxed.kill_tree()
            await asyncio.wait({self.exited}, timeout=REAP_S)
            self.close()

    def close(self) -> None:
        """Close the kernel's ends."""
        self._close_stdin()
        self.stdout.close()
        self.stderr.close()

    def _flooded(self) -> None:
        if not self.flood.done():
            self.flood.set_result(None)

    def _write(self) -> None:
        while self._left:
            try:
                self._left = self._left[os.write(self._stdin, self._left) :]
            except BlockingIOError:
                return
            except OSError:  # it doesn't want to know
                break
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1


async def start(spec: Spec, *, stdin: bool) -> Process:
    """Start a program; from the main thread, as PR_SET_PDEATHSIG wants it.

    stdin: whether it is fed; else it finds the end at once. Raises OSError that names the tool.
    """
    if spec.box is not None:
        from aiosd import sandbox  # loaded with the first tool that needs it

        await sandbox.known()
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        out_read, out_write = _pipe(ours, theirs)
        err_read, err_write = _pipe(ours, theirs)
        if stdin:
            in_read, in_write = _pipe(theirs, ours)
        else:
            in_read, in_write = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
            theirs.callback(os.close, in_read)
        try:
            boxed = place(spec, in_read, out_write, err_write)
        except OSError as error:
            raise _named(spec, error) from None
        ours.pop_all()
        process = Process(boxed, out_read, err_read, in_write, spec.limit)
    try:
        await boxed.ready()
    except OSError as error:
        told = process.stderr.take().decode(errors="replace").strip()[-200:]
        await process.end()
        raise _named(spec, error, told) from None
    except BaseException:
        await asyncio.shield(process.end())
        raise
    return process


def _named(spec: Spec, error: OSError, told: str = "") -> OSError:
    """Return an error of the system as one of the tool. told: on its standard error."""
    reason = f"{error.strerror or error}{told and f'; {told}'}"
    name = f": {error.filename}" if error.filename else ""
    return OSError(error.errno or errno.EIO, f"tool {spec.tool}: can't be run: {reason}{name}")


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    """Return the two ends of a pipe; each stack closes its own."""
    read, write = os.pipe2(os.O_CLOEXEC)
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    return read, write


def place(spec: Spec, stdin: int, stdout: int, stderr: int) -> Boxed:
    """Start a program with these descriptors, in its box. Raises OSError."""
    from aiosd import sandbox  # loaded with the first tool that needs it

    fds = {BOXED_FD: spec.fd} if spec.fd >= 0 else {}
    return sandbox.start(spec.box, fds=fds, stdin=stdin, stdout=stdout, stderr=stderr)
