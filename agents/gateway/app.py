"""The gateway put together: every family of routes, behind the guard.

A family is a module with `routes(office)`, which returns Starlette routes; FAMILIES lists them. A
handler gets the caller's kernel connection by `office.caller(request.headers)`, and what it raises
(Refusal, or the kernel's OSError) becomes an answer. What has to run while the gateway serves is an
entry of `office.background`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from . import (
    cerebrum,
    chat,
    completions,
    embeddings,
    mcproutes,
    models,
    responses,
    scrape,
)
from .guard import Guard
from .office import Office
from .refusal import Refusal

FAMILIES: Final[tuple[Callable[[Office], list[BaseRoute]], ...]] = (
    models.routes,
    cerebrum.routes,
    mcproutes.routes,
    scrape.routes,
    chat.routes,
    completions.routes,
    embeddings.routes,
    responses.routes,
)


def make(office: Office) -> ASGIApp:
    """Return the whole application."""
    found: list[BaseRoute] = [Route("/health", health), Route("/", health)]
    for routes in FAMILIES:
        found += routes(office)

    @asynccontextmanager
    async def life(app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for begin in office.background:
                await stack.enter_async_context(begin())
            yield

    router = _Router(found, redirect_slashes=False, default=nowhere, lifespan=life)
    return Guard(router, office)


class _Router(Router):
    """Starlette's router; it raises its refusals where it finds an `app`, and they become ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Raises Refusal."""
        try:
            await super().__call__({**scope, "app": self}, receive, send)
        except HTTPException as error:
            allow = (error.headers or {}).get("Allow", "")
            sentence = f"{scope['method']} {scope['path'][:200]}: "
            sentence += f"the method here is {allow}" if allow else error.detail
            raise Refusal(error.status_code, sentence, allow=allow) from None


async def health(request: Request) -> Response:
    """Say that it serves; needs no key."""
    return PlainTextResponse("aios gateway\n")


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a path that nothing serves."""
    raise Refusal(404, f"{scope['method']} {scope['path'][:200]}: there is no such endpoint")
