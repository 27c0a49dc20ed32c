"""The Model Context Protocol over streamable HTTP: `POST /mcp`, as the agent whose key it is.

Nothing is kept between two requests: there are no sessions, and so no streams beside the answers.
The package `mcp` is imported by the first request, not by the gateway's start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

import aios

from .office import Office
from .refusal import Refusal

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from .mcpserver import Asked


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""
    door = Door(office)
    office.background.append(door.life)
    return [Route("/mcp", door)]


class Door:
    """An ASGI application: the server and what serves it, from the first request on."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[StreamableHTTPSessionManager]
        self._end = asyncio.Event()

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """End with the gateway what a request began."""
        yield
        self._end.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["method"] != "POST":
            sentence = "only POST is served at /mcp: there are no sessions, nor streams"
            raise Refusal(405, sentence, allow="POST")
        async with self._office.caller(Request(scope).headers):  # whose key it is, before all else
            manager = await self._manager()
            await manager.handle_request(scope, receive, send)

    async def _manager(self) -> StreamableHTTPSessionManager:
        if self._task is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._serve())
        return await asyncio.shield(self._ready)

    async def _serve(self) -> None:
        """Hold what serves the requests; in a task of its own, as the package wants it."""
        try:
            manager = await asyncio.to_thread(self._make)
        except ImportError as error:
            sentence = f"{error}: install it with `pip install 'aios[mcp]'`"
            self._ready.set_exception(Refusal(501, sentence))
            return
        async with manager.run():
            self._ready.set_result(manager)
            await self._end.wait()

    def _make(self) -> StreamableHTTPSessionManager:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        from .mcpserver import make

        server = make(self._connected)
        return StreamableHTTPSessionManager(
            server,
            stateless=True,
            json_response=True,
            max_request_body_size=self._office.setup.max_body,
        )

    @asynccontextmanager
    async def _connected(self, asked: Asked) -> AsyncIterator[aios.AsyncKernel]:
        request: Any = asked.request
        async with self._office.caller(request.headers) as kernel:
            yield kernel
