"""One connection's protocol, without any I/O: ids, frames, requests in flight, streams, errors.

A face makes a `Session` per connection, sends the bytes that `request` and `cancel` return, and
gives `feed` what arrives; `feed` returns the requests that something came for. When the connection
ends, `end` fails what is left. Nothing here blocks or locks: a face calls it under its own lock.

What must hold: an id is not used again while its request is in flight, and a request that the
program gave up (`abandon`) keeps its id until the kernel's last frame for it.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Final, get_origin

import msgspec

from aios import errors
from aiosd.abi import wire
from aiosd.abi.call import Call, Syscall
from aiosd.abi.system import Cancel
from aiosd.abi.table import BY_ARGS

Finish = Callable[[Any], Any]
"""Turns a decoded reply into what the program gets."""

decoders: Final[dict[Any, Callable[[Any], Any]]] = {}


def decoder(kind: Any) -> Callable[[Any], Any]:
    """Return the function that decodes a body of a type; the table's types are few, so kept."""
    decode = decoders.get(kind)
    if decode is None:
        decode = decoders[kind] = msgspec.msgpack.Decoder(kind).decode
    return decode


class InFlight:
    """A request in flight.

    done: its last frame has come, or the connection ended. chunks: what a stream brought and
    nobody took yet. waiter, line: the face's own, to wake whoever waits, and the connection that it
    is on. sent: whether it left.
    """

    __slots__ = ("abandoned", "args", "call", "chunks", "done", "error", "finish", "id", "line",
                 "reply", "sent", "waiter")  # fmt: skip

    def __init__(self, id: int, args: Call, finish: Finish | None = None) -> None:
        self.id = id
        self.args = args
        self.call: Syscall = BY_ARGS[type(args)]
        self.finish = finish
        self.chunks: deque[Any] = deque()
        self.done = False
        self.abandoned = False
        self.sent = False
        self.reply: Any = None
        self.error: OSError | None = None
        self.waiter: Any = None
        self.line: Any = None

    @property
    def ready(self) -> bool:
        """Whether there is something to take: a chunk, or the end."""
        return self.done or bool(self.chunks)

    def result(self) -> Any:
        """Return the reply; raise the error that came in its place."""
        if self.error is not None:
            raise self.error
        if self.finish is not None:
            finish, self.finish = self.finish, None
            self.reply = finish(self.reply)
        return self.reply

    def arrive(self, reply: wire.Reply) -> None:
        """Take in one frame of the kernel's; one that can't be read fails this request alone."""
        try:
            self._read(reply)
        except msgspec.MsgspecError as error:
            self.error = errors.unreadable(self.call, error)
        self.done = self.done or not reply.more

    def _read(self, reply: wire.Reply) -> None:
        if reply.more:
            chunk = decoder(self.call.chunk)(reply.body)
            if get_origin(self.call.chunk) is list:
                self.chunks.extend(chunk)
            else:
                self.chunks.append(chunk)
        elif reply.errno:
            self.error = errors.answer(reply.errno, decoder(str)(reply.body))
        elif self.call.reply is not None and self.error is None:
            self.reply = decoder(self.call.reply)(reply.body)


class Session:
    """The state of one connection. limit: bytes in a frame that the kernel takes, from hello."""

    def __init__(self) -> None:
        self.limit = wire.MAX_FRAME
        self.ended = False
        self._frames = wire.Frames()
        self._flight: dict[int, InFlight] = {}
        self._last = 0

    def settle(self, limit: int) -> None:
        """Take over the frame limit that the kernel's hello named; nothing else is in flight."""
        self.limit = limit
        if not self._frames.pending:
            self._frames = wire.Frames(max(limit, wire.MAX_FRAME))

    @property
    def flight(self) -> list[InFlight]:
        """The requests in flight."""
        return list(self._flight.values())

    def request(self, args: Call, finish: Finish | None = None) -> tuple[InFlight, bytes]:
        """Enter a call; return it and the frame to send.

        Raises ConnectionLost when the connection has ended, OSError (EMSGSIZE) when the request
        is larger than the kernel takes, TypeError when an argument can't be sent.
        """
        pending = InFlight(self._free_id(), args, finish)
        if self.ended:
            raise errors.lost(pending.call, args, sent=False)
        data = wire.request(pending.id, pending.call.number, args)
        if len(data) - wire.HEADER > self.limit:
            raise OSError(
                errno.EMSGSIZE,
                f"{pending.call.name}: a request of {len(data)} bytes, the kernel takes "
                f"{self.limit}; send less at a time",
            )
        self._flight[pending.id] = pending
        return pending, data

    def abandon(self, pending: InFlight) -> bytes:
        """Give up a request: return the frame that asks the kernel to cancel it, or nothing."""
        pending.abandoned = True
        pending.chunks.clear()
        if pending.done or self.ended:
            return b""
        return self.cancel(pending)

    def cancel(self, pending: InFlight) -> bytes:
        """Return the frame that asks the kernel to end a request; what it answers still comes."""
        if pending.done or self.ended:
            return b""
        wish, data = self.request(Cancel(id=pending.id))
        wish.abandoned = True
        return data

    def forget(self, pending: InFlight) -> None:
        """Take back a request that was entered and never sent."""
        self._flight.pop(pending.id, None)

    def feed(self, data: bytes) -> list[InFlight]:
        """Take in what arrived; return the requests that something came for.

        Raises wire.FrameError or msgspec.DecodeError when the peer does not speak the protocol;
        the connection must then be ended.
        """
        touched = []
        for payload in self._frames.feed(data):
            reply = wire.decode_reply(payload)
            pending = self._flight.get(reply.id)
            if pending is None:
                raise wire.FrameError(f"an answer to request {reply.id}, which was never made")
            if not pending.abandoned:
                pending.arrive(reply)
                touched.append(pending)
            if not reply.more:
                pending.done = True
                del self._flight[reply.id]
        return touched

    def end(self) -> list[InFlight]:
        """The connection is gone: fail and return what was in flight."""
        self.ended = True
        left = self.flight
        self._flight.clear()
        for pending in left:
            pending.error = errors.lost(pending.call, pending.args, pending.sent)
            pending.done = True
        return left

    def _free_id(self) -> int:
        """Return the next id; 2**31 of them before one could come again."""
        self._last = self._last % (2**31 - 1) + 1
        return self._free_id() if self._last in self._flight else self._last
