"""The pipes to a sandboxed MCP server, as a transport of the `mcp` package: bounded in every way.

    async with Pipes(stdin, stdout, note) as (read_stream, write_stream): ...

The package's own stdio transport starts the server itself and reads lines of any length. Here the
kernel has started it, in its sandbox, and this end distrusts it: a line, the number of messages in
a while and what is no message at all have limits, and beyond them the connection ends with the
reason in `ended`. stdin and stdout: descriptors of pipes, which are closed at the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

MAX_LINE: Final = 8 << 20
"""Bytes of one message."""
MAX_GARBAGE: Final = 100
"""Lines that are no messages (a program may print a greeting) before the connection ends."""
MAX_MESSAGES: Final = 5_000
"""Messages without an answer among them, before the server counts as flooding."""
PIECE: Final = 1 << 16

Item = SessionMessage | Exception
Streams = tuple[MemoryObjectReceiveStream[Item], MemoryObjectSendStream[SessionMessage]]


class PipeError(Exception):
    """The server broke a limit."""


class Pipes(contextlib.AbstractAsyncContextManager[Streams]):
    """One connection. note: told, as a line, what the server sent that was no message."""

    def __init__(self, stdin: int, stdout: int, note: Callable[[str], None]) -> None:
        self.ended = ""
        self.closed = anyio.Event()  # the server's output has ended, or is read no longer
        self._stdin = stdin
        self._stdout = stdout
        self._note = note
        self._garbage = 0
        self._messages = 0
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Streams:
        """Begin to read and write."""
        for fd in (self._stdin, self._stdout):
            os.set_blocking(fd, False)
        into, out = anyio.create_memory_object_stream[Item](0)
        taken, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(group.cancel_scope.cancel)
        for stream in (into, out, taken, outgoing):
            self._stack.callback(stream.close)
        group.start_soon(self._read, into)
        group.start_soon(self._write, outgoing)
        return out, taken

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Read and write no longer."""
        return await self._stack.__aexit__(kind, error, traceback)

    async def _read(self, into: MemoryObjectSendStream[Item]) -> None:
        try:
            async with into:
                async for line in self._lines():
                    message = self._message(line)
                    if message is not None:
                        self._count(message)
                        await into.send(message)
        except PipeError as error:
            self.ended = str(error)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the session has ended
        finally:
            self.closed.set()
            os.close(self._stdout)

    async def _lines(self) -> AsyncIterator[bytes]:
        rest = bytearray()
        seen = 0  # bytes of `rest` that are known to hold no end of line
        while data := await self._piece():
            rest += data
            while (end := rest.find(b"\n", seen)) >= 0:
                line = bytes(rest[:end])
                del rest[: end + 1]
                seen = 0
                if line.strip():
                    yield line
            seen = len(rest)
            if seen > MAX_LINE:
                raise PipeError(f"it sent a message of more than {MAX_LINE} bytes")

    async def _piece(self) -> bytes:
        while True:
            try:
                return os.read(self._stdout, PIECE)
            except BlockingIOError:
                await anyio.wait_readable(self._stdout)
            except OSError:
                return b""

    def _count(self, message: SessionMessage) -> None:
        self._messages += 1
        if isinstance(message.message, types.JSONRPCResponse | types.JSONRPCError):
            self._messages = 0
        if self._messages > MAX_MESSAGES:
            raise PipeError(f"it sent more than {MAX_MESSAGES} messages without an answer")

    def _message(self, line: bytes) -> SessionMessage | None:
        try:
            return SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
        except (ValueError, RecursionError):
            self._garbage += 1
            if self._garbage > MAX_GARBAGE:
                raise PipeError(f"it sent {self._garbage} lines that are no messages") from None
            self._note(f"no message on stdout: {line[:200]!r}")
            return None

    async def _write(self, outgoing: MemoryObjectReceiveStream[SessionMessage]) -> None:
        try:
            async with outgoing:
                async for each in outgoing:
                    text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await self._send(memoryview(text.encode() + b"\n"))
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it reads no longer: what it writes ends as well, or the kernel ends it
        finally:
            os.close(self._stdin)

    async def _send(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await anyio.wait_writable(self._stdin)
