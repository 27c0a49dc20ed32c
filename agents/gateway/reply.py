"""Answers: JSON by msgspec, and a stream of server-sent events; both without a layer too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .guard import respond
from .refusal import Refusal, told

DONE: Final = b"data: [DONE]\n\n"
QUIET_S: Final = 15.0
"""Seconds without a piece after which a comment is sent."""
_HEAD: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
]

T = TypeVar("T")


class Json(Response):
    """An answer in JSON: anything that msgspec encodes."""

    def __init__(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._body = body
        self._status = status
        self._head = headers
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await respond(send, self._status, self._body, self._head)


class Events(Response):
    """An answer that comes as server-sent events: each piece is sent as it is, framing included.

    The head goes out with the first piece, so that what fails before it is an answer of its own.
    What fails later is told as an event. A client that goes away ends the iterator.
    """

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._quiet = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all."""
        with suppress(ClientDisconnect):
            await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        keeping: asyncio.Task[None] | None = None
        try:
            async for piece in self._pieces:
                if keeping is None:
                    await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                    keeping = asyncio.ensure_future(self._keep(send))
                self._quiet = False
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (Refusal, OSError) as error:
            if keeping is None:
                raise
            piece = event(told(error)[2])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            if keeping is not None:
                keeping.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _keep(self, send: Send) -> None:
        """Send comments while there is nothing else: a client may give up on a silent stream.

        An agent that was suspended for long finds them when it goes on, and does not give up.
        """
        while True:
            self._quiet = True
            await asyncio.sleep(QUIET_S)
            if self._quiet:
                await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})


def event(body: Any, name: str = "") -> bytes:
    """Return a server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(body) + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what comes of `work`, or cancel it and raise ClientDisconnect when the client goes.

    The request's body must have been read.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect
    finally:
        for task in (doing, gone):
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read(request: Request, kind: type[T]) -> T:
    """Return a request's body as a struct. Raises Refusal that names the field."""
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).replace("`", "").partition(" - at $.")
        name = path or "the request's body"
        lacks = what.partition("missing required field ")[2]
        cure = f"send {lacks}" if lacks else "send that, or leave it out"
        sentence = f"{name}: {what[:1].lower()}{what[1:]}; {cure}"
        raise Refusal(400, sentence, param=path) from None
    except msgspec.DecodeError as error:
        raise Refusal(400, f"the request's body is no JSON: {error}") from None
