"""One life of an MCP server: its process in the sandbox, its bridge, and the calls under way.

    life = Life(name, settings, places, secrets, on_tools)
    await life.start(); await life.ready            # OSError: it can't be started
    answer = await life.call(tool, arguments, workspace, seconds)
    reason = await life.ended                       # why it is over
    await life.close()

What must hold: whatever the server or the bridge does, `ended` is set when either has gone, every
call under way then fails with `Gone`, and after `close` no process and no descriptor is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from aiosd import toolproc
from aiosd.abi import toolwire as w
from aiosd.abi.wire import FrameError, Frames
from aiosd.box import ALL, Box
from aiosd.settings import McpServer

MEMORY: Final = 1 << 30
"""Bytes of address space of a bridge: what floods it ends it."""
LAST_WORDS_S: Final = 2.0
"""Seconds between the server's end and the bridge's, who reads what it said last."""
ANSWER_S: Final = 10.0
"""Seconds in which a bridge answers a call that was cancelled."""
LEAVE_S: Final = 3.0
"""Seconds that a server has to leave when it is told to."""
MAX_SETUP: Final = 48 << 10
"""Bytes of what a bridge is told: less than a pipe holds, so that the kernel never waits."""
MAX_UNREAD: Final = 32 << 20
"""Bytes that a bridge may be behind before it gets no more calls."""
PASSED: Final = (
    "PATH", "LANG", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
"""What a bridge finds in its environment of the kernel's."""
CLOSED: Final = "it closed its output"
"""What a bridge says that knows no better reason."""
BY_SIGNAL: Final = 128
UNLIMITED: Final = 1 << 30

_SECRET: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Gone(Exception):
    """The life has ended before the call did; the message says why."""


class Life(asyncio.Protocol):
    """A started server. workspace: its directory; log: the file of what it says.

    hidden: what its box never shows. last_words: what it said at its end, for the log.
    on_tools: told the server's list of tools, whenever there is a new one.
    """

    def __init__(
        self,
        name: str,
        settings: McpServer,
        workspace: str,
        log: str,
        secrets: Mapping[str, str],
        hidden: tuple[str, ...],
        on_tools: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._name = name
        self._settings = settings
        self._workspace = workspace
        self._log = log
        self._secrets = secrets
        self._hidden = hidden
        self._on_tools = on_tools
        self._loop = asyncio.get_running_loop()
        self._frames = Frames(w.MAX_MESSAGE)
        self._transport: asyncio.Transport | None = None
        self._boxed: toolproc.Boxed | None = None
        self._bridge: subprocess.Popen[bytes] | None = None
        self._calls: dict[int, asyncio.Future[w.Done | w.Failed]] = {}
        self._cancelled: dict[int, asyncio.TimerHandle] = {}
        self._tickets = 0
        self._leaving = False
        self.last_words = ""
        self._late: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()

    @property
    def pid(self) -> int:
        """The server's process, or the bridge's where the server is reached over HTTP."""
        process = self._boxed or self._bridge
        return process.pid if process is not None else 0

    @property
    def calls(self) -> int:
        """Calls under way."""
        return len(self._calls)

    async def start(self) -> None:
        """Start the server and its bridge. Raises OSError."""
        os.makedirs(self._workspace, mode=0o700, exist_ok=True)
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.callback(theirs.close)
            held = stack.enter_context(contextlib.ExitStack())
            held.callback(ours.close)
            pipes = self._start_server(stack) if self._settings.command else None
            self._start_bridge(theirs.fileno(), pipes)
            held.pop_all()
        ours.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=ours)
        if self._boxed is not None:
            await self._boxed.ready()

    async def call(
        self, tool: str, arguments: dict[str, Any], workspace: str, seconds: float
    ) -> w.Done | w.Failed:
        """Have a tool called. Raises Gone; cancelling cancels the call at the server too."""
        if self.ended.done():
            raise Gone(self.ended.result())
        self._tickets += 1
        ticket = self._tickets
        future: asyncio.Future[w.Done | w.Failed] = self._loop.create_future()
        self._calls[ticket] = future
        self._send(w.Call(ticket, tool, arguments, workspace, seconds))
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(ticket)
            raise
        finally:
            self._calls.pop(ticket, None)

    @property
    def behind(self) -> bool:
        """Whether the bridge reads more slowly than it is written to."""
        return self._transport is not None and (
            self._transport.get_write_buffer_size() > MAX_UNREAD
        )

    async def close(self) -> None:
        """Ask it to leave, then kill what is left."""
        self._leaving = True
        if not self.ended.done() and self._transport is not None:
            self._send(w.Quit())
            waited = {self.ended} | ({self._boxed.exited} if self._boxed else set())
            await asyncio.wait(waited, timeout=LEAVE_S, return_when="ALL_COMPLETED")
        self._end("it was stopped")
        if self._bridge is not None:
            await self._loop.run_in_executor(None, self._bridge.wait)
        if self._boxed is not None:
            await asyncio.wait({self._boxed.exited}, timeout=toolproc.REAP_S)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The bridge can be written to."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what the bridge says."""
        try:
            for payload in self._frames.feed(data):
                self._take(w.decode_event(payload))
        except (FrameError, ValueError) as error:
            self._end(f"its bridge said what is no message: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The bridge has gone, or is going."""
        self._end(self._how() or "its bridge was killed, or failed")

    # Inside.

    def _start_server(self, stack: contextlib.ExitStack) -> tuple[int, int, int]:
        """Start the command; return our ends of its stdin, stdout and stderr."""
        in_read, in_write = _pipe(stack)
        out_read, out_write = _pipe(stack)
        err_read, err_write = _pipe(stack)
        boxed = toolproc.place(self._spec(), in_read, out_write, err_write)
        self._boxed = boxed
        boxed.exited.add_done_callback(self._exited)
        return in_write, out_read, err_read

    def _spec(self) -> toolproc.Spec:
        settings = self._settings
        full = settings.isolation == "full"
        argv = tuple(settings.command)
        environ = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/workspace" if full else self._workspace,
            **settings.env,
            **self._secrets,
        }
        box = Box(
            argv=argv,
            env=environ,
            workspace=self._workspace,
            read=(*argv[:1], *settings.read) if os.path.isabs(argv[0]) else tuple(settings.read),
            write=tuple(settings.write),
            hidden=self._hidden,
            network=tuple(settings.network),
            memory=settings.memory,
            processes=settings.processes,
            cpu_s=UNLIMITED,
            file_bytes=settings.memory,
            layers=ALL if full else frozenset(),
        )
        return toolproc.Spec(tool=f"of MCP server {self._name}", box=box, limit=0)

    def _start_bridge(self, fd: int, pipes: tuple[int, int, int] | None) -> None:
        data = msgspec.json.encode(self._setup(pipes)) + b"\n"
        if len(data) > MAX_SETUP:
            raise OSError(errno.E2BIG, f"headers, secrets and url have over {MAX_SETUP} bytes")
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            self._bridge = subprocess.Popen(
                [sys.executable, "-P", "-m", "aiosd.mcpbridge", "--fd", str(fd)],
                stdin=read,
                stdout=subprocess.DEVNULL,
                pass_fds=(fd, *(pipes or ())),
                env={name: os.environ[name] for name in PASSED if name in os.environ},
            )
            os.write(write, data)
        finally:
            os.close(read)
            os.close(write)

    def _setup(self, pipes: tuple[int, int, int] | None) -> dict[str, Any]:
        settings = self._settings
        return {
            "name": self._name,
            "url": settings.url,
            "headers": {
                name: _SECRET.sub(lambda found: self._secrets.get(found[1], found[0]), value)
                for name, value in settings.headers.items()
            },
            "pipes": pipes,
            "log": self._log,
            "output": settings.output,
            "memory": MEMORY,
        }

    def _send(self, command: w.Command) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(w.pack(command))

    def _cancel(self, ticket: int) -> None:
        """Nobody waits for this call; a bridge that does not even say so hangs."""
        if not self.ended.done():
            self._send(w.Cancel(ticket))
            hung = f"its bridge did not answer for {ANSWER_S:g} s"
            self._cancelled[ticket] = self._loop.call_later(ANSWER_S, self._end, hung)

    def _take(self, event: w.Event) -> None:
        if isinstance(event, w.Ready):
            self._on_tools(event.tools)
            if not self.ready.done():
                self.ready.set_result(None)
        elif isinstance(event, w.Changed):
            self._on_tools(event.tools)
        elif event.ticket:
            self._settle(event)
        elif isinstance(event, w.Failed):
            reason, _, self.last_words = event.message.partition("\n")
            how = self._how()
            self._end(how if how and reason == CLOSED else reason)

    def _settle(self, event: w.Done | w.Failed) -> None:
        if late := self._cancelled.pop(event.ticket, None):
            late.cancel()
        future = self._calls.pop(event.ticket, None)
        if future is not None and not future.done():
            future.set_result(event)

    def _exited(self, exited: asyncio.Future[int]) -> None:
        """The server has ended; its bridge may still say what it said last.

        One that is not ready yet is about to, and has the start's time for that.
        """
        if not exited.cancelled() and not self._leaving and self.ready.done():
            self._late = self._loop.call_later(LAST_WORDS_S, self._end, self._how())

    def _how(self) -> str:
        """How the server ended, "" when it has not."""
        if self._boxed is None or not self._boxed.exited.done():
            return ""
        status = self._boxed.exited.result()
        if status > BY_SIGNAL:
            with contextlib.suppress(ValueError):
                return f"it was killed by {signal.Signals(status - BY_SIGNAL).name}"
        return f"it ended with status {status}"

    def _end(self, reason: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(reason)
        for timer in (self._late, *self._cancelled.values()):
            if timer is not None:
                timer.cancel()
        self._cancelled.clear()
        if self._boxed is not None:
            self._boxed.kill_tree()
        if self._bridge is not None and self._bridge.poll() is None:
            self._bridge.kill()
        if self._transport is not None:
            self._transport.close()
        if not self.ready.done():
            self.ready.set_exception(OSError(errno.ENODEV, reason))
            self.ready.exception()  # somebody may wait for it, or nobody
        for future in self._calls.values():
            if not future.done():
                future.set_exception(Gone(reason))
        self._calls.clear()


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Return the two ends of a pipe, which are closed with the stack: others have copies then."""
    read, write = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, read)
    stack.callback(os.close, write)
    return read, write
