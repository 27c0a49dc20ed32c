"""What the clients of providers send by: connections, whom they trust, and what is wrong with them.

client = transport.made(setup)
raise transport.lost(error.__cause__ or error)     # the Trouble that a broken connection is
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx2

from aiosd.endpoints.endpoint import Trouble, line
from aiosd.endpoints.protocol import Setup

EVENT: Final = 16 << 20
"""Bytes of one event of a stream."""
BODY: Final = 64 << 20
"""Bytes of a reply that is no stream: vectors of many texts, at most."""
NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


def timeouts(setup: Setup) -> httpx2.Timeout:
    """Return the timeouts of connecting; those of a reply are kept by who reads it."""
    return httpx2.Timeout(None, connect=setup.connect, pool=setup.connect)


def made(setup: Setup) -> httpx2.AsyncClient:
    """Return a client for a core. Raises OSError for a ca_file that is of no use.

    It makes as many connections as there are requests: how many those may be is the kernel's to
    say, and one that waited here for another would look like a provider that can't be reached.
    """
    return httpx2.AsyncClient(
        verify=_trusted(setup.ca_file) if setup.ca_file else True,
        timeout=timeouts(setup),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16),
        trust_env=True,
        headers={"accept-encoding": "identity"},
        event_hooks={"request": [_patient(setup)], "response": [_bound]},
    )


def lost(cause: BaseException) -> Trouble:
    """Return what it means that a connection was not made, or has ended."""
    for each in _causes(cause):
        if isinstance(each, ssl.SSLCertVerificationError):
            return Trouble(
                "unreachable",
                f"its certificate is not trusted: {each.verify_message}; name the file of the "
                "authority that signed it as ca_file in [cores.remote]",
            )
    if isinstance(cause, NOT_SENT):
        return Trouble("unreachable", f"it can't be reached: {line(cause)}")
    return Trouble("cut", f"the connection was lost: {line(cause)}")


class _Bounded(httpx2.AsyncByteStream):
    """A reply's bytes, as long as whoever puts them together need not keep too many."""

    def __init__(self, stream: httpx2.AsyncByteStream, *, events: bool) -> None:
        self._stream = stream
        self._events = events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kept, last = 0, b""
        async for part in self._stream:
            kept += len(part)
            if self._events:
                seen = last + part
                end = max(seen.rfind(b"\n\n"), seen.rfind(b"\r\n\r\n"))
                kept, last = len(seen) - end if end >= 0 else kept, seen[-3:]
            if kept > (EVENT if self._events else BODY):
                raise httpx2.RemoteProtocolError("it sends more than a reply can have")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _patient(setup: Setup) -> Callable[[httpx2.Request], Awaitable[None]]:
    """Return what gives a request our timeouts, whatever its client has made of them."""
    times = timeouts(setup).as_dict()

    async def hook(request: httpx2.Request) -> None:
        request.extensions = {**request.extensions, "timeout": times}

    return hook


async def _bound(response: httpx2.Response) -> None:
    """Have no more of a reply kept here than one can have, whatever its provider sends."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.RemoteProtocolError("it compresses a reply that was to be plain")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    events = response.headers.get("content-type", "").startswith("text/event-stream")
    response.stream = _Bounded(response.stream, events=events)


def _trusted(path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise OSError(error.errno, f"ca_file {path}: it has no certificates in PEM form") from None
    except OSError as error:
        raise OSError(error.errno, f"ca_file {path}: {error.strerror}") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what has led to it."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def named(errors: type[Exception], trouble: Callable[[Any], Trouble]) -> Iterator[None]:
    """Name what goes wrong while a reply is read: what a client raises, or makes of garbage.

    errors: what the client raises; trouble: says what such an error means.
    """
    try:
        yield
    except errors as error:
        raise trouble(error) from None
    except (httpx2.NetworkError, httpx2.TimeoutException) as error:
        raise lost(error) from None
    except (AttributeError, KeyError, TypeError, ValueError, httpx2.HTTPError) as error:
        raise Trouble("cut", f"it sent what is no reply: {line(error)}") from None


@contextmanager
def answering(errors: type[Exception], trouble: Callable[[Any], Trouble]) -> Iterator[None]:
    """Let a server that has no such list pass: it is there; see `named`."""
    try:
        yield
    except errors as error:
        found = trouble(error)
        if found.status not in (400, 404, 405, 501):
            raise found from None
    except ValueError as error:
        raise Trouble("broken", f"it sent what is no list: {line(error)}") from None
