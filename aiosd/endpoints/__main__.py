"""The endpoints' process: `python -m aiosd.endpoints --fd N`, started by the kernel.

N is the inherited end of a socketpair that speaks `aiosd.endpoints.protocol`. One process has the
clients of all remote cores, so that their libraries are loaded once, and what they do when a
provider misbehaves is done outside the kernel. It dies with its kernel: by the socket's end, and by
PR_SET_PDEATHSIG; what was under way ends with it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, Final, cast

import msgspec

from aiosd.abi.wire import FrameError, Frames, frame
from aiosd.child import EX_PROTOCOL, begin
from aiosd.endpoints import apikey
from aiosd.endpoints import protocol as p
from aiosd.endpoints.endpoint import Count, Delta, Endpoint, Text, Trouble, line

DRIVERS: Final = {
    "openai": ("aiosd.endpoints.chatgpt", "ChatGPT"),
    "anthropic": ("aiosd.endpoints.claude", "Claude"),
    "gemini": ("aiosd.endpoints.gemini", "Gemini"),
}
CHARACTERS: Final = 64
"""A token has no more characters than that; a provider that sends more than was asked for lies."""


class Endpoints(asyncio.Protocol):
    """The clients, and the requests that they carry out, each in a task of its own."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.status = 0
        self._frames = Frames(p.MAX_MESSAGE)
        self._clients: dict[str, tuple[p.Setup, Endpoint]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._credit: dict[int, _Credit] = {}
        self._transport: asyncio.Transport

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where events go."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Carry out the commands that have arrived whole."""
        try:
            for payload in self._frames.feed(data):
                self._take(p.decode_command(payload))
        except (FrameError, msgspec.DecodeError):
            self.status = EX_PROTOCOL
            self.left.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The kernel has gone."""
        self.left.set()

    # Commands.

    def _take(self, command: p.Command) -> None:
        match command:
            case p.Open():
                self._send(self._open(command))
            case p.Shut():
                found = self._clients.pop(command.core, None)
                if found is not None:
                    self._shut(found[1])
            case p.Ask():
                self._credit[command.id] = _Credit(command.credit)
                self._begin(command.id, self._ask(command))
            case p.Credit():
                if command.id in self._credit:
                    self._credit[command.id].give(command.count)
            case p.Stop():
                if (task := self._tasks.pop(command.id, None)) is not None:
                    task.cancel()
            case p.Check():
                self._begin(command.id, self._check(command))
            case p.Embed():
                self._begin(command.id, self._embed(command))
            case p.Quit():
                self.left.set()

    def _begin(self, id: int, work: Coroutine[Any, Any, p.Event]) -> None:
        self._tasks[id] = asyncio.get_running_loop().create_task(self._carry_out(id, work))

    async def _carry_out(self, id: int, work: Coroutine[Any, Any, p.Event]) -> None:
        """Say how something has ended, whatever happens in it."""
        try:
            event = await work
        except Trouble as error:
            event = p.Failed(id, error.kind, error.message, error.status, error.wait)
        except OSError as error:
            event = p.Failed(id, "refused", error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 (a client's own: the kernel is told)
            event = p.Failed(id, "cut", f"{type(error).__name__}: {line(error)}")
        finally:
            self._credit.pop(id, None)
            mine = self._tasks.pop(id, None)
        if mine is not None:  # else it was stopped
            self._send(event)

    def _send(self, event: p.Event) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame(p.encode(event)))

    def _open(self, command: p.Open) -> p.Event:
        """Make a client, at once: what is asked of it may be right behind."""
        module, name = DRIVERS[command.setup.driver]
        try:
            key = apikey.find(command.setup.api_key)
            made = getattr(importlib.import_module(module), name)(command.setup, key)
        except ModuleNotFoundError as error:
            cure = f"it needs the package {error.name}: pip install 'aios[remote]'"
            return p.Failed(command.id, "refused", cure)
        except Exception as error:  # noqa: BLE001 (a client's own: the kernel is told)
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {line(error)}"
            return p.Failed(command.id, "refused", why)
        if (before := self._clients.get(command.core)) is not None:
            self._shut(before[1])
        self._clients[command.core] = command.setup, made
        return p.Opened(command.id)

    def _shut(self, client: Endpoint) -> None:
        task = asyncio.get_running_loop().create_task(_close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _client(self, core: str) -> tuple[p.Setup, Endpoint]:
        found = self._clients.get(core)
        if found is None:
            raise Trouble("unreachable", "its client is not open")
        return found

    async def _check(self, command: p.Check) -> p.Event:
        if not command.core:
            return p.Checked(command.id)  # the kernel asks whether this process is well
        setup, client = self._client(command.core)
        try:
            async with asyncio.timeout(setup.connect + setup.between):
                await client.check()
        except TimeoutError:
            raise Trouble("cut", f"no answer in {setup.connect + setup.between:g} s") from None
        return p.Checked(command.id)

    async def _embed(self, command: p.Embed) -> p.Event:
        setup, client = self._client(command.core)
        try:
            async with asyncio.timeout(setup.first):
                vectors, tokens = await client.embed(command.texts)
        except TimeoutError:
            raise Trouble("cut", f"no vectors in {setup.first:g} s") from None
        return p.Vectors(command.id, vectors, tokens)

    async def _ask(self, command: p.Ask) -> p.Event:
        setup, client = self._client(command.core)
        credit = self._credit[command.id]
        room = command.chat.max_tokens * CHARACTERS
        calls = 0
        async with aclosing(cast("Any", client.chat(command.chat))) as stream:
            async for delta in _timely(stream, setup):
                if isinstance(delta, Text):
                    room -= len(delta.text)
                    if room < 0:
                        raise Trouble("cut", "it sent far more text than was asked for")
                    await credit.take()
                    self._send(p.Piece(command.id, delta.text, delta.logprob))
                elif isinstance(delta, Count):
                    self._send(p.Metered(command.id, delta.prompt, delta.cached, delta.output))
                else:
                    calls = sum(len(call.arguments) for call in delta.calls)
                    if calls > room:
                        raise Trouble("cut", "it sent far more arguments than was asked for")
                    return p.Done(command.id, delta.finish, list(delta.calls))
        raise Trouble("cut", "it closed the connection in mid-stream")


class _Credit:
    """How many pieces may go out; the kernel gives more as they are taken from it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._more = asyncio.Event()

    def give(self, count: int) -> None:
        self._count += count
        self._more.set()

    async def take(self) -> None:
        while self._count <= 0:
            self._more.clear()
            await self._more.wait()
        self._count -= 1


async def _timely(stream: AsyncIterator[Delta], setup: p.Setup) -> AsyncIterator[Delta]:
    """Pass on what comes, as long as it comes in time."""
    limit, what = setup.first, "no token"
    while True:
        try:
            async with asyncio.timeout(limit):
                delta = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Trouble("cut", f"{what} in {limit:g} s") from None
        limit, what = setup.between, "nothing more"
        yield delta


async def _close(client: Endpoint) -> None:
    try:
        async with asyncio.timeout(2):
            await client.close()
    except Exception as error:  # noqa: BLE001 (it is not needed any more)
        _note(f"a client did not close: {line(error)}")


def _note(text: str) -> None:
    os.write(2, f"{text}\n".encode())


async def _serve(link: socket.socket) -> int:
    link.setblocking(False)
    endpoints = Endpoints()
    await asyncio.get_running_loop().create_unix_connection(lambda: endpoints, sock=link)
    await endpoints.left.wait()
    return endpoints.status


def main() -> None:
    """Serve until the kernel leaves."""
    link = begin("aiosd.endpoints", "AIOS clients of providers", "AIOS_ENDPOINTS_NICE")
    os._exit(asyncio.run(_serve(link)))  # nothing of what is under way is waited for


if __name__ == "__main__":
    main()
