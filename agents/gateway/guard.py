"""What stands before all routes: who may knock, how large a request may be, how errors are told.

A request is served only where its Host names this machine (a page that has its own name point here
can't ask), and its Origin, where a browser sends one, too. Bodies are bounded, whether their length
is told or not, and must have come in time.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .office import Office
from .refusal import Refusal, told

LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1", "aios"})


class Guard:
    """An ASGI application around the others."""

    def __init__(self, app: ASGIApp, office: Office) -> None:
        self._app = app
        self._office = office
        self._hosts = LOCAL | {host.lower() for host in office.setup.hosts}
        self._origins = frozenset(office.setup.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or say why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._office.busy += 1
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._bounded(receive), sending)
        except (Refusal, OSError) as error:
            if began:
                raise
            await refuse(error, send)
        except ClientDisconnect:
            pass  # nobody is there to be told
        finally:
            self._office.busy -= 1

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        if host not in self._hosts and _name(f"//{host}") not in self._hosts:
            sentence = f"the name {host[:200]!r} is not served here; [gateway] hosts says what is"
            raise Refusal(421, sentence)
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._origins and _name(origin) not in LOCAL:
            sentence = f"pages of {origin[:200]!r} may not ask; [gateway] origins says which may"
            raise Refusal(403, sentence)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._office.setup.max_body:
            raise _too_large(self._office.setup.max_body)

    def _bounded(self, receive: Receive) -> Receive:
        """Return what receives a body of no more than max_body bytes within request_timeout."""
        setup = self._office.setup
        until = asyncio.get_running_loop().time() + setup.request_timeout
        size, whole = 0, False

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                sentence = f"the request had not come after {setup.request_timeout:g} s"
                raise Refusal(408, sentence) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > setup.max_body:
                raise _too_large(setup.max_body)
            return message

        return bounded


async def refuse(error: Refusal | OSError, send: Send) -> None:
    """Answer with an error."""
    status, headers, body = told(error)
    await respond(send, status, body, headers)


async def respond(
    send: Send, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
    """Answer with JSON."""
    data = msgspec.json.encode(body)
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    head += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": data})


def _name(url: str) -> str:
    """Return the host that a URL names, "" where there is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the request's body is larger than {limit} bytes ([gateway] max_body)")
