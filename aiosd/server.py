"""The socket: accepts connections, cuts frames, writes replies. No stream objects on the way.

    server = Server(dispatcher, max_connections=1024, max_frame=8 << 20)
    await server.listen(sock); ...; server.stop(); await dispatcher.drain(5); server.close()

What must hold: a connection's memory is bounded, whatever its peer does. A frame's length is
checked before anything is kept for it; while the peer does not read its replies, or a hello is at
work, nothing more is read from it; who does not say hello in time, or leaves a frame unfinished,
is disconnected. No peer holds up the others for longer than TURN_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from time import monotonic
from typing import Final, cast

from aiosd.abi import wire
from aiosd.access import Caller
from aiosd.session import last
from aiosd.syscall import Dispatcher

log = logging.getLogger(__name__)

HELLO_S: Final = 10.0
"""Seconds from connecting to a hello that was accepted."""

FRAME_S: Final = 30.0
"""Seconds from a frame's first byte to its last, and from closing to being closed."""

GOODBYE_S: Final = 0.5
"""Seconds that peers have to read their last replies when the daemon ends."""

SWEEP_S: Final = 1.0
"""Seconds between two looks for peers whose time is over."""

TURN_S: Final = 0.005
"""Seconds that one connection's requests may take before the others get their turn."""

HELLO_FRAME: Final = 4096
"""Bytes that a frame may have before hello."""

FLUSH: Final = 1 << 16
"""Bytes of collected replies that are written at once."""

CLOSED: Final = "the connection is closed"

_CREDENTIALS: Final = struct.Struct("3i")


class Connection(asyncio.Protocol):
    """One connection: bytes in, replies out. Implements session.Port."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._handle = server.dispatcher.handle
        self._frames = wire.Frames(HELLO_FRAME)
        self._clogged = False  # the peer does not read what we write
        self._stopped = False  # we don't read what the peer writes
        self._yielded = False  # the rest is handled in a later turn
        self._closing = False
        self._drain: asyncio.Event | None = None
        self._unsent: list[bytes] = []  # frames of this turn of the loop, sent at its end
        self._unsent_size = 0
        self.deadline = monotonic() + HELLO_S  # 0: none

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who the peer is and begin its session."""
        self.transport = cast(asyncio.Transport, transport)
        caller = peer(transport.get_extra_info("socket"))
        caller.hang_up = lambda: self.refuse(errno.ESRCH, "this connection's agent has ended")
        self.session = self._server.dispatcher.open_session(caller, self)
        self._server.admit(self)

    def data_received(self, data: bytes) -> None:
        """Handle every request that is complete now; answer with one write."""
        if self._closing:
            return
        self._frames.add(data)
        if self._yielded:
            return
        self._turn()

    def pause_writing(self) -> None:
        """The peer is behind: stop reading its requests until it has caught up."""
        self._clogged = True
        self._stop_reading()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._clogged = False
        if self._drain is not None:
            self._drain.set()
            self._drain = None
        self._server.loop.call_soon(self.proceed)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session."""
        self._closing = True
        self._clogged = False
        self._server.forget(self)
        self._server.dispatcher.close_session(self.session)
        if self._drain is not None:
            self._drain.set()
            self._drain = None

    # What the dispatcher calls: session.Port.

    def write(self, frame: bytes) -> None:
        """Send a frame, with the others that are written in this turn of the loop."""
        if self._closing or self.transport.is_closing():
            return
        if not self._unsent:
            if not self.session.flights:  # there are no others to come
                self.transport.write(frame)
                return
            self._server.loop.call_soon(self.flush)
        self._unsent.append(frame)
        self._unsent_size += len(frame)
        if self._unsent_size > FLUSH:  # at once, so that it is known when the peer is behind
            self.flush()

    def flush(self) -> None:
        """Send what was written."""
        if not self._unsent:  # the usual case, on every request's way
            return
        unsent, self._unsent, self._unsent_size = self._unsent, [], 0
        if not self.transport.is_closing():  # the peer may have gone in this turn
            self.transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def writable(self) -> bool:
        """Whether the peer keeps up."""
        return not self._clogged

    async def drained(self) -> None:
        """Return when the peer keeps up again or is gone."""
        while self._clogged:
            if self._drain is None:
                self._drain = asyncio.Event()
            await self._drain.wait()

    def proceed(self) -> None:
        """Go on with what was received, then with receiving."""
        self._yielded = False
        if not self._closing:
            if self.session.greeted:
                self._frames.limit = self._server.max_frame
            self._turn()

    # The turn of this connection.

    def _turn(self) -> None:
        frames, session, handle = self._frames, self.session, self._handle
        replies: list[bytes] = []
        size, until = 0, 0.0
        progress = False
        try:
            while not (self._clogged or session.held):
                payload = frames.take()
                if payload is None:
                    break
                progress = True
                reply = handle(session, payload)
                if reply is not None:
                    replies.append(reply)
                    size += len(reply)
                    if size > FLUSH:
                        self.flush()
                        self.transport.write(b"".join(replies))
                        replies, size = [], 0
                if not frames.pending:  # the usual case, kept short: one request at a time
                    break
                if not until:
                    until = monotonic() + TURN_S
                elif monotonic() > until:
                    self._yield()
                    break
        except wire.FrameError as error:
            replies.append(last(0, errno.EPROTO, f"{error}; {CLOSED}"))
            self._close(b"".join(replies))
            return
        if replies:
            self.flush()
            self.transport.write(replies[0] if len(replies) == 1 else b"".join(replies))
        self._settle(progress)

    def _yield(self) -> None:
        self._yielded = True
        self._server.loop.call_soon(self.proceed)

    def _settle(self, progress: bool) -> None:
        """Decide whether to read on, and by when the frame that is begun must be complete."""
        if self._clogged or self._yielded or self.session.held:
            self._stop_reading()
            return
        if self._stopped:
            self._stopped = False
            progress = True
            self.transport.resume_reading()
        if self.session.greeted:
            if not self._frames.pending:
                self.deadline = 0.0
            elif progress or not self.deadline:
                self.deadline = monotonic() + FRAME_S

    def _stop_reading(self) -> None:
        if not (self._stopped or self._closing):
            self._stopped = True
            self.transport.pause_reading()

    def _close(self, last: bytes) -> None:
        """Say a last word and hang up; a peer that won't listen is cut off by the sweep."""
        self.flush()
        self._closing = True
        self.deadline = monotonic() + FRAME_S
        self.transport.write(last)
        self.transport.close()

    def overdue(self, now: float) -> bool:
        """Whether the peer has had its time. Time in which we did not read doesn't count."""
        excused = self._stopped and self.session.greeted and not self._closing
        return 0.0 < self.deadline < now and not excused

    def hang_up(self) -> None:
        """Say why and close; cut off a peer that was told and did not take it."""
        if self._closing:
            self.transport.abort()
        elif self.session.greeted:
            self.refuse(errno.ETIMEDOUT, f"a frame was not complete within {FRAME_S:g} s; {CLOSED}")
        else:
            self.refuse(errno.ETIMEDOUT, f"no hello within {HELLO_S:g} s; {CLOSED}")

    def refuse(self, number: int, sentence: str) -> None:
        """Hang up on a peer that can't be served, and say why."""
        if not self._closing:
            self._close(last(0, number, sentence))


class Server:
    """All connections of the daemon.

    max_connections: when so many are open, the oldest that has not said hello makes room, else the
    newcomer is refused. max_frame: bytes of a request.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        max_connections: int = 1024,
        max_frame: int = wire.MAX_FRAME,
    ) -> None:
        self.dispatcher = dispatcher
        self.max_connections = max_connections
        self.max_frame = max_frame
        self.loop = asyncio.get_running_loop()
        self._connections: dict[Connection, None] = {}  # oldest first
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket, from now on."""
        self._listener = await self.loop.create_unix_server(
            lambda: Connection(self), sock=sock, backlog=socket.SOMAXCONN
        )
        self._sweep()

    def stop(self) -> None:
        """Accept no more connections; those open go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Hang up on everybody; replies already written still reach who reads them."""
        self.stop()
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.flush()
            connection.transport.close()
        if self._connections:
            self._empty = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), GOODBYE_S)
        for connection in list(self._connections):
            connection.transport.abort()

    def admit(self, connection: Connection) -> None:
        """Take a new connection in, or refuse it when there are too many."""
        self._connections[connection] = None
        if len(self._connections) <= self.max_connections:
            return
        stranger = next(other for other in self._connections if not other.session.greeted)
        full = f"{self.max_connections} connections are open, the limit (kernel.max_connections)"
        stranger.refuse(errno.EAGAIN, f"{full}; try again later")
        self.forget(stranger)

    def forget(self, connection: Connection) -> None:
        """Take a connection off the list."""
        self._connections.pop(connection, None)
        if self._empty is not None and not self._connections:
            self._empty.set()

    def _sweep(self) -> None:
        """Every SWEEP_S seconds: hang up on those whose time is over."""
        now = monotonic()
        for connection in list(self._connections):
            if connection.overdue(now):
                connection.hang_up()
        self._timer = self.loop.call_later(SWEEP_S, self._sweep)


def peer(sock: socket.socket) -> Caller:
    """Return who is at the other end of a Unix socket, as the system knows it."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    return Caller(uid, gid, pid)
