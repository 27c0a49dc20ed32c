"""The server and the dispatcher in this process, on a loop of their own, with handlers of a test.

with Door(path, Handlers()) as door:
    client = door.connect()
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from aiosd import claim
from aiosd.access import Access, Caller
from aiosd.events import Events
from aiosd.server import Server
from aiosd.syscall import Dispatcher
from aiosd.system import About, System
from tests.daemon import PATIENCE, Client

T = TypeVar("T")

# libuv opens a pipe with its first loop and keeps it for the life of the process. Done while tests
# are collected, so that the suite's descriptor check has it from the beginning.
uvloop.new_event_loop().close()


class Door:
    """A served socket. attach: an aid by credential. The rest goes to Dispatcher and Server."""

    def __init__(
        self,
        directory: Path,
        *managers: object,
        access: Access | None = None,
        max_inflight: int = 256,
        max_connections: int = 1024,
        max_frame: int = 1 << 20,
        oldest: int = 1,
    ) -> None:
        self.path = str(directory / "door.sock")
        self.agents = {"secret": 7, "other": 8}
        self.events = Events()
        access = access or Access(owner=0)
        self.dispatcher = Dispatcher(
            access,
            self._attach,
            version="0",
            boot_id="b",
            max_inflight=max_inflight,
            max_frame=max_frame,
            oldest=oldest,
        )
        about = About("b", self.path, "", "")
        self.dispatcher.bind(System(about, self.dispatcher, self.events, access, dict), *managers)
        self._limits = {"max_connections": max_connections, "max_frame": max_frame}
        self._clients: list[Client] = []

    async def _attach(self, caller: Caller, credential: str) -> str:
        await asyncio.sleep(0)
        if credential not in self.agents:
            raise PermissionError(13, "hello: no such credential")
        caller.aid = self.agents[credential]
        return credential

    def connect(self, *, hello: bool = True, credential: str = "") -> Client:
        client = Client(self.path, hello=hello, credential=credential)
        self._clients.append(client)
        return client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def do(self, deed: Callable[[], T]) -> T:
        """Call a function on the server's loop and return its result."""

        async def act() -> T:
            return deed()

        return self.run(act())

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when a condition holds on the server's loop, looking at each of its turns."""

        async def watch() -> None:
            async with asyncio.timeout(PATIENCE):
                while not condition():  # noqa: ASYNC110 - any condition, so no event
                    await asyncio.sleep(0)

        self.run(watch())

    def __enter__(self) -> Door:
        started = threading.Event()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            self._end = asyncio.Event()
            self.server = Server(self.dispatcher, **self._limits)
            door = claim.Door(self.path)
            await self.server.listen(door.socket)
            started.set()
            await self._end.wait()
            await self.dispatcher.drain(0)
            await self.server.close()
            door.remove()

        def live() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())

        self._thread = threading.Thread(target=live)
        self._thread.start()
        assert started.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
