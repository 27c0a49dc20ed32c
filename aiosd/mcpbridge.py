"""The bridge to one MCP server: `python -m aiosd.mcpbridge --fd N`, started by the kernel.

N is the inherited end of a socketpair that speaks `aiosd.abi.toolwire`; the other side is the
server, over two pipes (whose descriptors the kernel passes on as well) or over streamable HTTP.
What the bridge needs to know comes as one line of JSON on stdin, since it may hold secrets.

The official `mcp` package is used here and nowhere else: what a server sends is decoded in this
process, which has limits of its own, dies with its kernel and is nobody's loss. What must hold:
each call is answered once, a cancelled one too; what the server says reaches the kernel bounded; a
server that does not answer is reported, not waited for.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx2
import mcp_types as types
import msgspec
from anyio.abc import TaskGroup
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.exceptions import MCPError

from aiosd.abi import toolwire as w
from aiosd.abi.wire import Frames
from aiosd.mcplog import Log
from aiosd.mcppipe import MAX_LINE, Pipes
from aiosd.mcpresult import ResultError, complaint, convert, keeper
from aiosd.mcptools import MAX_TOOLS, declarations

PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38
NICE: Final = 5
PROBE_S: Final = 10.0
"""Seconds that a server under suspicion has to answer anything."""
CHANGES_S: Final = 1.0
"""Seconds between two looks at a list that a server says has changed."""
MAX_PAGES: Final = 64
TAIL_S: Final = 0.5
"""Seconds to read a dead server's last words in."""

log = logging.getLogger("aiosd.mcpbridge")


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel tells the bridge. pipes: descriptors of the server's stdin, stdout, stderr.

    log: a file for what the server says beside the protocol. output: bytes of a result. memory:
    bytes of address space of the bridge itself.
    """

    name: str
    url: str = ""
    headers: dict[str, str] = {}
    pipes: tuple[int, int, int] | None = None
    log: str
    output: int
    memory: int


class Ended(Exception):
    """The server is of no use any more; the message says why."""


class Link:
    """The socket to the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lock = anyio.Lock()

    async def send(self, message: w.Message) -> None:
        """Send a message; one that is too long or nests too deep is replaced by its failure."""
        try:
            data = memoryview(w.pack(message))
        except (ValueError, TypeError, OverflowError) as error:
            if not isinstance(message, w.Done):
                raise
            data = memoryview(w.pack(w.Failed(message.ticket, "result", str(error))))
        async with self._lock:
            while data:
                try:
                    data = data[self._sock.send(data) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._sock)

    async def commands(self) -> AsyncIterator[w.Command]:
        """Give the kernel's commands until it has gone."""
        frames = Frames(w.MAX_MESSAGE)
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except BlockingIOError:
                await anyio.wait_readable(self._sock)
                continue
            if not data:
                return
            for payload in frames.feed(data):
                yield w.decode_command(payload)


class Bridge:
    """One server and the calls under way."""

    def __init__(self, setup: Setup, link: Link, notes: Log) -> None:
        self._setup = setup
        self._link = link
        self._notes = notes
        self._pipes: Pipes | None = None
        self._names: dict[str, str] = {}  # of a tool at its server, by its name here
        self._told: list[dict[str, Any]] = []
        self._changed = anyio.Event()
        self._calls: dict[int, anyio.CancelScope] = {}
        self._probing = False

    async def serve(self) -> None:
        """Carry out calls until the kernel says to leave. Raises Ended when the server has gone."""
        async with anyio.create_task_group() as group:
            if self._setup.pipes is not None:
                group.start_soon(self._hear, self._setup.pipes[2])
                stdin, stdout, _ = self._setup.pipes
                self._pipes = Pipes(stdin, stdout, self._notes.line)
                group.start_soon(self._watch_end, self._pipes)
            async with self._connected() as client:
                self._told = await self._list(client)
                await self._link.send(w.Ready(self._told))
                group.start_soon(self._watch_list, client)
                group.start_soon(self._listen, client)
                await self._obey(client, group)
            group.cancel_scope.cancel()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        setup = self._setup
        async with httpx2.AsyncClient(
            headers=setup.headers, timeout=httpx2.Timeout(30.0, read=None)
        ) as http:
            transport: Any = self._pipes or streamable_http_client(
                setup.url, http_client=http, max_sse_event_size=MAX_LINE
            )
            async with Client(
                transport,
                cache=None,
                message_handler=self._heard,
                logging_callback=self._said,
                client_info=types.Implementation(name="aios", version="1"),
            ) as client:
                yield client

    async def _obey(self, client: Client, group: TaskGroup) -> None:
        async for command in self._link.commands():
            if isinstance(command, w.Call):
                group.start_soon(self._carry_out, client, command, group)
            elif isinstance(command, w.Cancel):
                if scope := self._calls.get(command.ticket):
                    scope.cancel()
                    group.start_soon(self._probe, client)
            else:
                return

    # Calls.

    async def _carry_out(self, client: Client, command: w.Call, group: TaskGroup) -> None:
        with anyio.CancelScope() as scope:
            self._calls[command.ticket] = scope
            try:
                answer = await self._answer(client, command, group)
            finally:
                del self._calls[command.ticket]
        if scope.cancelled_caught:
            answer = w.Failed(command.ticket, "error", "the call was cancelled")
        await self._link.send(answer)

    async def _answer(self, client: Client, command: w.Call, group: TaskGroup) -> w.Done | w.Failed:
        ticket = command.ticket
        name = self._names.get(command.tool)
        if name is None:
            return w.Failed(ticket, "unavailable", "the server has no such tool any more")
        try:
            result = await client.call_tool(name, command.arguments)
        except MCPError as error:
            return await self._refused(client, ticket, error, group)
        except (RuntimeError, ValueError) as error:  # what the package finds wrong with a result
            return w.Failed(ticket, "result", _sentence(error))
        except httpx2.HTTPError as error:
            group.start_soon(self._probe, client)
            return w.Failed(ticket, "unavailable", _sentence(error))
        found = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return await anyio.to_thread.run_sync(self._converted, command, found)

    async def _refused(
        self, client: Client, ticket: int, error: MCPError, group: TaskGroup
    ) -> w.Failed:
        code = error.error.code
        if code == types.CONNECTION_CLOSED and self._pipes is not None:
            await anyio.sleep_forever()  # its end is noticed elsewhere, and told with its reason
        if code == types.INVALID_PARAMS:
            return w.Failed(ticket, "arguments", _sentence(error))
        if self._pipes is None:
            group.start_soon(self._probe, client)
        return w.Failed(ticket, "error", _sentence(error))

    def _converted(self, command: w.Call, result: dict[str, Any]) -> w.Done | w.Failed:
        ticket, setup = command.ticket, self._setup
        size = len(msgspec.json.encode(result))
        if size > setup.output:
            why = f"the result has {size} bytes, the limit is {setup.output} (output of its table)"
            return w.Failed(ticket, "result", why)
        if result.get("isError"):
            return w.Failed(ticket, "error", complaint(result))
        keep = keeper(command.workspace, setup.name) if command.workspace else None
        try:
            value, artefacts = convert(result, keep)
        except ResultError as error:
            return w.Failed(ticket, "result", str(error))
        except OSError as error:
            return w.Failed(ticket, "result", f"a file of the result can't be kept: {error}")
        return w.Done(ticket, value, artefacts)

    # The list of tools.

    async def _list(self, client: Client) -> list[dict[str, Any]]:
        if client.server_capabilities.tools is None:
            return []
        listed: list[dict[str, Any]] = []
        cursor: str | None = None
        unread = ""
        for _ in range(MAX_PAGES):
            try:
                page = await client.list_tools(cursor=cursor)
            except ValueError as error:  # one tool that is none spoils the page
                raise Ended(f"its list of tools is not one: {_sentence(error)}") from None
            listed += [_as_sent(tool) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
            if len(listed) > MAX_TOOLS:
                unread = f"the server lists more than {MAX_TOOLS} tools"
                break
        else:
            unread = f"the server's list has more than {MAX_PAGES} pages"
        entries = declarations(self._setup.name, listed, unread)
        self._names = {each["name"]: each.pop("tool") for each in entries if "tool" in each}
        return entries

    async def _watch_list(self, client: Client) -> None:
        while True:
            await self._changed.wait()
            await anyio.sleep(CHANGES_S)
            self._changed = anyio.Event()
            tools = await self._in_time(self._list(client))
            if tools != self._told:
                self._told = tools
                await self._link.send(w.Changed(tools))

    async def _listen(self, client: Client) -> None:
        """Hear of changes where the protocol's version has a subscription for that."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self._changed.set()
            except (ListenNotSupportedError, MCPError):
                return
            except SubscriptionLost:
                self._changed.set()  # something may have been missed
            await anyio.sleep(PROBE_S)

    async def _heard(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._changed.set()

    # The server's state.

    async def _probe(self, client: Client) -> None:
        """See whether the server answers anything. Raises Ended when it does not."""
        if self._probing:
            return
        self._probing = True
        try:
            await self._in_time(client.list_tools())
        finally:
            self._probing = False

    async def _in_time(self, answer: Awaitable[Any]) -> Any:
        try:
            with anyio.fail_after(PROBE_S):
                return await answer
        except TimeoutError:
            raise Ended(f"it answers nothing for {PROBE_S:g} s") from None
        except (MCPError, httpx2.HTTPError, RuntimeError, ValueError) as error:
            if self._pipes is not None and self._pipes.closed.is_set():
                await anyio.sleep_forever()  # _watch_end says why
            raise Ended(_sentence(error)) from None

    async def _watch_end(self, pipes: Pipes) -> None:
        await pipes.closed.wait()
        raise Ended(await self._last(pipes))

    async def _last(self, pipes: Pipes) -> str:
        """Return why the output ended, and in further lines what the server said last."""
        await anyio.sleep(TAIL_S)
        return f"{pipes.ended or 'it closed its output'}\n{self._notes.tail()}"

    async def why(self, error: Exception) -> str:
        """Return what to tell the kernel of an error that ended `serve`."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, Ended):
            return str(error)
        if self._pipes is not None and self._pipes.closed.is_set():
            return await self._last(self._pipes)
        log.error("the connection failed", exc_info=error)
        return _sentence(error)

    async def _hear(self, stderr: int) -> None:
        """Keep what the server says on stderr, no faster than a log needs to grow."""
        os.set_blocking(stderr, False)
        while True:
            try:
                data = os.read(stderr, 1 << 16)
            except BlockingIOError:
                await anyio.wait_readable(stderr)
                continue
            if not data:
                return
            self._notes.write(data)
            await anyio.sleep(0.05 if len(data) > 1 << 14 else 0)

    async def _said(self, params: types.LoggingMessageNotificationParams) -> None:
        self._notes.line(f"{params.level}: {str(params.data)[:2000]}")


def _as_sent(tool: types.Tool) -> dict[str, Any]:
    return tool.model_dump(by_alias=True, mode="json", exclude_none=True)


def _sentence(error: BaseException) -> str:
    """Return what went wrong, of a group of errors the first, on few lines."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error) or type(error).__name__
    return text if len(text) <= 2000 else f"{text[:2000]} ..."


def _confine(memory: int) -> None:
    """Die with the kernel, gain no rights, and be small."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


async def _run(setup: Setup, sock: socket.socket, notes: Log) -> int:
    link = Link(sock)
    bridge = Bridge(setup, link, notes)
    try:
        await bridge.serve()
    except Exception as error:  # noqa: BLE001  (told, and logged unless it is expected)
        with anyio.move_on_after(2.0):
            await link.send(w.Failed(0, "unavailable", await bridge.why(error)))
        return 1
    return 0


def main() -> int:
    """Run the bridge; returns its exit status."""
    parser = argparse.ArgumentParser(prog="aiosd.mcpbridge", description="AIOS bridge to MCP")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the kernel")
    options = parser.parse_args()
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)
    _confine(setup.memory)
    notes = Log(setup.log)
    logging.basicConfig(stream=notes, level=logging.WARNING, format="bridge: %(message)s")
    return anyio.run(_run, setup, socket.socket(fileno=options.fd), notes)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
