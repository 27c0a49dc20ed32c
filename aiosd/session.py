"""One connection as the dispatcher sees it: its session, its requests in flight, its streams.

The server gives each session a Port to write to. All of it belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Protocol

import msgspec

from aiosd.abi import wire
from aiosd.abi.call import Call
from aiosd.access import Caller
from aiosd.entry import Entry
from aiosd.keys import Kept

encode = msgspec.msgpack.Encoder().encode


class Port(Protocol):
    """The server's side of a session."""

    def write(self, frame: bytes) -> None:
        """Send a frame; never blocks."""

    def writable(self) -> bool:
        """Whether the peer keeps up with what is sent."""

    async def drained(self) -> None:
        """Return when the peer keeps up again or the connection is gone."""

    def proceed(self) -> None:
        """Go on with requests after `Session.held` was cleared."""


class Session:
    """What the dispatcher knows of one connection. Owned by the event loop's thread.

    restricted: the next request takes the slow path (before hello, and while draining).
    held: no request may be handled now (hello is at work). flights: requests not yet answered, by
    the client's id.
    """

    __slots__ = ("caller", "flights", "greeted", "held", "open", "port", "restricted")

    def __init__(self, caller: Caller, port: Port) -> None:
        self.caller = caller
        self.port = port
        self.flights: dict[int, Flight] = {}
        self.greeted = False
        self.restricted = True
        self.held = False
        self.open = True


class Stream:
    """A handler's way to send chunks.

    `on_cancel`, when set, is called with the reason instead of cancelling the handler's task; the
    handler then returns the answer it has.
    """

    __slots__ = ("_id", "_limit", "_name", "_session", "on_cancel")

    def __init__(self, session: Session, id: int, name: str, limit: int) -> None:
        self._session = session
        self._id = id
        self._name = name
        self._limit = limit
        self.on_cancel: Callable[[str], None] | None = None

    async def send(self, chunk: object) -> None:
        """Send one chunk; waits while the reader is slow.

        Raises BrokenPipeError when the reader is gone, OSError (EMSGSIZE) for a chunk too large.
        """
        port = self._session.port
        if not port.writable():
            await port.drained()
        if not self._session.open:
            raise BrokenPipeError(errno.EPIPE, f"{self._name}: the reader is gone")
        port.write(answer(self._id, True, chunk, self._limit))


class Flight:
    """One request in flight: its task, and who wants the answer (several only under one key).

    reason and errno: what to answer once the task was cancelled. waits: a drain ends it at once.
    """

    __slots__ = (
        "args", "askers", "begun", "caller", "entry", "errno", "kept", "reason", "stream", "task",
        "waits",
    )  # fmt: skip

    def __init__(self, entry: Entry, session: Session, id: int, args: Call) -> None:
        self.entry = entry
        self.args = args
        self.caller = session.caller
        self.waits = entry.waits
        self.askers = [(session, id)]
        self.kept: Kept | None = None
        self.task: asyncio.Task[None] | None = None
        self.stream: Stream | None = None
        self.begun = False
        self.reason = ""
        self.errno = errno.ECANCELED

    def cancel(self, reason: str) -> None:
        """End the request early: the handler says how, else its task is cancelled."""
        if self.stream is not None and self.stream.on_cancel is not None:
            self.stream.on_cancel(reason)
        else:
            self.abort(reason, errno.ECANCELED)

    def abort(self, reason: str, number: int) -> None:
        """Cancel the handler's task; the request answers errno `number` and the reason.

        A task cancelled before its first step would never run, and so never answer: one that has
        not begun finds the reason when it does.
        """
        if self.reason:
            return
        self.reason = reason
        self.errno = number
        if self.begun and self.task is not None:
            self.task.cancel()


def answer(id: int, more: bool, body: object, limit: int) -> bytes:
    """Return a reply frame; raises OSError (EMSGSIZE) for one longer than `limit` bytes."""
    payload = encode((id, 0, more, body))
    size = len(payload)
    if size > limit:
        check_size(size, limit)
    return size.to_bytes(4, "little") + payload


def check_size(size: int, limit: int) -> None:
    """Raise OSError (EMSGSIZE) when a reply of `size` bytes is longer than `limit`."""
    if size > limit:
        raise OSError(
            errno.EMSGSIZE,
            f"the answer has {size} bytes, a frame holds {limit}; ask for less",
        )


def last(id: int, number: int, body: str | msgspec.Raw) -> bytes:
    """Return a request's last frame: errno `number` and its sentence, or an encoded answer."""
    if isinstance(body, str):
        body = msgspec.Raw(sentence(body))
    return wire.frame(encode((id, number, False, body)))


def sentence(text: str) -> bytes:
    """Encode a sentence, whatever bytes of file names got into it."""
    return encode(text.encode(errors="backslashreplace").decode())
