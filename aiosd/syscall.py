"""The dispatcher: from a frame to the handler of its call, and the answer back.

The server hands each frame to `Dispatcher.handle`. A handler that is a plain function answers at
once and `handle` returns the reply frame; any other runs as a task whose reply goes through the
session's port. The way of every request, without exceptions: decode, permitted?, handler, count.

Handlers are methods `sys_NAME(self, caller, args)` of the objects given to `bind`. A third
parameter is filled by its name: `stream` (a Stream, for calls that send chunks or end early with a
partial answer) or `session`. Attributes on the method that count here:
    keeps_keys  it keeps the answers of keyed calls itself
    waits       it only waits for others: a drain ends it at once instead of waiting for it
    lasting     what it does outlives the kernel, and so do the answers of its keyed calls

What must hold: one request never takes down its connection or the daemon; every request is
answered once; a handler runs only after `Access.permit` returned.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import Any, Final

import msgspec

from aiosd import refusal
from aiosd.abi import LEVEL, wire
from aiosd.abi.call import Call, Syscall
from aiosd.abi.system import CallStatistics, Cancel, Hello, Welcome
from aiosd.abi.table import BY_NAME, TABLE
from aiosd.access import Access, Caller
from aiosd.entry import Entry
from aiosd.journal import AnswerRow
from aiosd.keys import Kept, Keys, asking
from aiosd.session import (
    Flight,
    Port,
    Session,
    Stream,
    answer,
    check_size,
    encode,
    last,
    sentence,
)

__all__ = ["Attach", "Dispatcher", "Session", "Stream"]

log = logging.getLogger(__name__)

OLDEST: Final = 1
"""The oldest ABI level that this kernel still answers."""

GOING_DOWN: Final = "the kernel is going down; agents live on, ask again when it is back"

Attach = Callable[[Caller, str], Awaitable[str]]
"""Makes the caller the agent that a credential proves; returns the one to re-attach with."""

Remember = Callable[[AnswerRow], Awaitable[None]]


async def _forgetful(row: AnswerRow) -> None:
    """Keep an answer in memory alone."""


Approval = Callable[[Caller, Syscall, Call], Awaitable[None]]
"""Returns once somebody has approved a call; raises PermissionError."""


async def _nobody_to_ask(caller: Caller, call: Syscall, args: Call) -> None:
    raise PermissionError(errno.EPERM, f"{call.name} needs approval, and nobody can be asked")


class Dispatcher:
    """Handles the requests of all sessions.

    access decides. attach serves the credential in a hello. version and boot_id go into its answer.
    keys: where the answers of keyed calls are kept; `remember` makes one durable. max_inflight
    bounds one session's unanswered requests, max_frame the bytes of a reply.
    """

    def __init__(
        self,
        access: Access,
        attach: Attach,
        keys: Keys | None = None,
        *,
        version: str,
        boot_id: str,
        max_inflight: int = 256,
        max_frame: int = wire.MAX_FRAME,
        oldest: int = OLDEST,
    ) -> None:
        self.access = access
        self.attach = attach
        self.version = version
        self.boot_id = boot_id
        self.max_inflight = max_inflight
        self.max_frame = max_frame
        self.oldest = oldest
        self.approval: Approval = _nobody_to_ask
        self.draining = False
        self.sessions: set[Session] = set()
        self.keys = keys if keys is not None else Keys()
        self.remember: Remember = _forgetful
        self._flights: set[Flight] = set()
        self._idle: asyncio.Event | None = None
        self._entries = {number: Entry(call) for number, call in TABLE.items()}
        self.bind(self)

    # The table.

    def bind(self, *managers: object) -> None:
        """Bind every method `sys_NAME` of the managers to the call NAME.

        Raises ValueError for a name that is not in the table or has a handler already.
        """
        for manager in managers:
            for name in dir(type(manager)):
                if name.startswith("sys_"):
                    call = BY_NAME.get(name[4:])
                    if call is None:
                        raise ValueError(f"{type(manager).__name__}.{name}: no such system call")
                    self._entries[call.number].bind(getattr(manager, name))

    def missing(self) -> list[str]:
        """Return the names of the calls that have no handler."""
        return [entry.call.name for entry in self._entries.values() if entry.handler is None]

    def statistics(self) -> list[CallStatistics]:
        """Return the numbers of every call that was made."""
        return [entry.statistics() for entry in self._entries.values() if entry.calls]

    def failures(self) -> dict[tuple[str, int], int]:
        """Return how often each call failed with each errno."""
        return {
            (entry.call.name, code): times
            for entry in self._entries.values()
            for code, times in entry.failures.items()
        }

    # Sessions.

    def open_session(self, caller: Caller, port: Port) -> Session:
        """Begin a session: one connection, no agent yet, only hello allowed."""
        session = Session(caller, port)
        self.sessions.add(session)
        return session

    def close_session(self, session: Session) -> None:
        """End a session whose connection is lost: its requests are cancelled.

        Keyed requests of agents go on, and their answers are kept for whoever asks again.
        """
        session.open = False
        self.sessions.discard(session)
        for id, flight in list(session.flights.items()):
            flight.askers.remove((session, id))
            if not flight.askers and not (flight.kept is not None and session.caller.aid):
                flight.cancel("connection lost")
        session.flights.clear()
        for callback in session.caller.on_close:
            try:
                callback()
            except Exception:
                log.exception("closing the session of %s", session.caller)
        session.caller.on_close.clear()

    def forget_agent(self, aid: int) -> None:
        """Drop the kept answers of an agent that has ended; end what it asked and nobody awaits."""
        for flight in list(self._flights):
            if flight.kept is not None and flight.kept.owner == (True, aid) and not flight.askers:
                flight.cancel("its agent has ended")
        self.keys.forget((True, aid))

    # One request.

    def handle(self, session: Session, payload: bytes | bytearray) -> bytes | None:
        """Handle one frame's value: return the reply frame, or None when it comes later.

        Raises wire.FrameError when the value has no readable header.
        """
        try:
            request = wire.decode_request(payload)
        except refusal.DAMAGED as error:
            return self._damaged(payload, error)
        id = request.id
        entry = self._entries.get(request.number)
        if session.restricted or entry is None or entry.fast is None or id in session.flights:
            return self._handle_slowly(session, id, request.number, entry, request.body)
        began = perf_counter()
        failure = 0
        args = None
        try:
            try:
                args = entry.decode(request.body)
            except refusal.DAMAGED as error:
                raise refusal.of_arguments(entry.call, error) from None
            if entry.floats:
                refusal.check_finite(entry.call, entry.floats, args)
            if entry.needs and self.access.permit(session.caller, entry.call, args):
                return self._handle_slowly(session, id, request.number, entry, request.body)
            reply = answer(id, False, entry.fast(session.caller, args), self.max_frame)
        except Exception as error:  # noqa: BLE001 - becomes the answer
            failure, text = self._translate(session.caller, entry.call, args, error)
            reply = last(id, failure, text)
        entry.count(perf_counter() - began, failure)
        return reply

    def _damaged(self, payload: bytes | bytearray, error: Exception) -> bytes:
        id, number = wire.salvage(payload)
        name = TABLE[number].name if number in TABLE else f"call {number}"
        return last(id, errno.EINVAL, f"{name}: damaged msgpack: {error}")

    def _handle_slowly(
        self, session: Session, id: int, number: int, entry: Entry | None, body: msgspec.Raw
    ) -> bytes | None:
        """Handle a request with everything that the short way leaves out."""
        if entry is None:
            known = f"this kernel knows {len(TABLE)} calls of ABI level {LEVEL}"
            return last(id, errno.ENOSYS, f"no system call has the number {number}; {known}")
        began = perf_counter()
        failure = 0
        args = None
        try:
            self._admit(session, id, entry)
            args = self._arguments(entry, body)
            asks = entry.needs and self.access.permit(session.caller, entry.call, args)
            key = args.key if entry.keyed else ""  # type: ignore[attr-defined]
            kept = self._kept(session, entry, args, key) if key else None
            if kept is not None and kept.answer is not None:
                reply = last(id, 0, msgspec.Raw(kept.answer))
            elif kept is not None and kept.work is not None:
                self._join(session, id, kept.work)
                return None
            elif entry.asynchronous or asks:
                self._start(session, id, entry, args, kept, began, asks)
                return None
            else:
                reply = self._answer_now(session, id, entry, args, kept)
        except Exception as error:  # noqa: BLE001 - becomes the answer
            failure, text = self._translate(session.caller, entry.call, args, error)
            reply = last(id, failure, text)
        entry.count(perf_counter() - began, failure)
        return reply

    def _translate(
        self, caller: Caller, call: Syscall, args: Call | None, error: Exception
    ) -> tuple[int, str]:
        """Return the errno and sentence of an error; what was refused goes on record."""
        number, text = refusal.translate(call, error)
        self.access.refused(caller, call, args, number, text)
        return number, text

    def _admit(self, session: Session, id: int, entry: Entry) -> None:
        """Refuse what must not even be decoded."""
        name = entry.call.name
        if self.draining and name != "cancel":
            raise OSError(errno.ESHUTDOWN, f"{name}: {GOING_DOWN}")
        if not session.greeted and name != "hello":
            raise OSError(errno.EPROTO, f"{name}: the first call on a connection is hello")
        if entry.handler is None:
            raise OSError(errno.ENOSYS, f"{name} has no handler in this kernel")
        if id in session.flights:
            raise OSError(
                errno.EINVAL, f"{name}: id {id} is in use by a request in flight; use another"
            )
        if entry.asynchronous and len(session.flights) >= self.max_inflight:
            raise BlockingIOError(
                errno.EAGAIN,
                f"{name}: {self.max_inflight} requests of this connection are in flight, "
                "the limit (kernel.max_inflight); read some answers first",
            )

    def _arguments(self, entry: Entry, body: msgspec.Raw) -> Call:
        """Return the decoded arguments; raise OSError."""
        if entry.free and (wrong := wire.nesting(memoryview(body))):
            raise OSError(errno.EINVAL, f"{entry.call.name}: the body {wrong}; send less, flatter")
        try:
            args: Call = entry.decode(body)
        except refusal.DAMAGED as error:
            raise refusal.of_arguments(entry.call, error) from None
        if entry.floats:
            refusal.check_finite(entry.call, entry.floats, args)
        return args

    def _kept(self, session: Session, entry: Entry, args: Call, key: str) -> Kept:
        caller = session.caller
        owner = (True, caller.aid) if caller.aid else (False, caller.uid)
        return self.keys.take(owner, entry.call.name, key, encode(args))

    def _answer_now(
        self, session: Session, id: int, entry: Entry, args: Call, kept: Kept | None
    ) -> bytes:
        assert entry.handler is not None
        extra = (session,) if entry.third else ()
        try:
            body = encode(entry.handler(session.caller, args, *extra))
            reply = answer(id, False, msgspec.Raw(body), self.max_frame)
        except BaseException:
            if kept is not None:
                self.keys.drop(kept)
            raise
        if kept is not None:
            self.keys.keep(kept, body)
        return reply

    # Requests in flight.

    def _start(
        self,
        session: Session,
        id: int,
        entry: Entry,
        args: Call,
        kept: Kept | None,
        began: float,
        asks: bool,
    ) -> None:
        """Let a handler go to work as a task; with `asks` once somebody has approved."""
        flight = Flight(entry, session, id, args)
        extra: tuple[object, ...] = ()
        if entry.third == "stream":
            flight.stream = Stream(session, id, entry.call.name, self.max_frame)
            extra = (flight.stream,)
        elif entry.third:
            extra = (session,)
        if kept is not None:
            flight.kept = kept
            kept.work = flight
        session.flights[id] = flight
        session.held = entry.alone
        self._flights.add(flight)
        assert entry.handler is not None
        if asks:
            work = self._approved(flight, session.caller, args, extra)
        else:
            work = entry.handler(session.caller, args, *extra)
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight, work, began))

    async def _approved(
        self, flight: Flight, caller: Caller, args: Call, extra: tuple[object, ...]
    ) -> object:
        """Run a handler once its call was approved, if the call is still permitted then."""
        entry = flight.entry
        flight.waits = True
        await self.approval(caller, entry.call, args)
        flight.waits = entry.waits
        self.access.permit(caller, entry.call, args)
        assert entry.handler is not None
        result = entry.handler(caller, args, *extra)
        return await result if inspect.isawaitable(result) else result

    def _join(self, session: Session, id: int, flight: Flight) -> None:
        """Make a request wait for the answer of the first one with its key."""
        if flight.reason:
            name = flight.entry.call.name
            text = f"{name}: the first request with this key is being cancelled; ask again"
            raise BlockingIOError(errno.EAGAIN, text)
        flight.askers.append((session, id))
        session.flights[id] = flight

    async def _fly(self, flight: Flight, work: Coroutine[Any, Any, object], began: float) -> None:
        """Run a handler to its end and answer everybody who asked."""
        call = flight.entry.call
        number, body = 0, b""
        flight.begun = True
        try:
            if flight.reason:
                work.close()
                raise asyncio.CancelledError
            asking.set(flight.kept)
            body = encode(await work)
            check_size(len(body) + 16, self.max_frame)
            if flight.entry.lasting and flight.kept is not None and not flight.kept.stored:
                await self._remember(flight.kept, body)
        except asyncio.CancelledError:
            if not flight.reason:
                self._land(flight, errno.EIO, sentence(f"{call.name}: cut short"))
                raise
            number, body = flight.errno, sentence(f"{call.name}: {flight.reason}")
        except Exception as error:  # noqa: BLE001 - becomes the answer
            number, text = self._translate(flight.caller, call, flight.args, error)
            body = sentence(text)
        flight.entry.count(perf_counter() - began, number)
        self._land(flight, number, body)

    async def _remember(self, kept: Kept, body: bytes) -> None:
        """Make an answer durable; where the disk fails it is kept in memory alone."""
        try:
            await self.remember(kept.row(body))
        except OSError as error:
            log.warning("the answer of a keyed %s is not on disk: %s", kept.name[1], error)

    def _land(self, flight: Flight, number: int, body: bytes) -> None:
        """Take a flight off the books and send its answer."""
        self._flights.discard(flight)
        if flight.kept is not None:
            if number:
                self.keys.drop(flight.kept)
            else:
                self.keys.keep(flight.kept, body)
        for session, id in flight.askers:
            session.flights.pop(id, None)
            session.port.write(last(id, number, msgspec.Raw(body)))
            if flight.entry.alone:
                session.held = False
                session.port.proceed()
        if self._idle is not None and not self._flights:
            self._idle.set()

    # Calls about the connection itself.

    async def sys_hello(self, caller: Caller, args: Hello, session: Session) -> Welcome:
        """Open the session: levels must fit, and a credential makes it an agent's."""
        if session.greeted:
            raise OSError(errno.EINVAL, "hello: said already; once per connection")
        if args.level > LEVEL or args.level < self.oldest:
            raise OSError(errno.EPROTO, refusal.misfit(args.level, self.oldest))
        credential = ""
        if args.credential:
            credential = await self.attach(caller, args.credential)
        session.greeted = True
        session.restricted = self.draining
        return Welcome(
            level=LEVEL,
            version=self.version,
            pid=os.getpid(),
            uid=caller.uid,
            boot_id=self.boot_id,
            max_frame=self.max_frame,
            aid=caller.aid,
            credential=credential,
        )

    def sys_cancel(self, caller: Caller, args: Cancel, session: Session) -> None:
        """Cancel one of the session's requests in flight."""
        flight = session.flights.get(args.id)
        if flight is None:
            raise ProcessLookupError(
                errno.ESRCH, f"cancel: no request {args.id} is in flight here; it may have ended"
            )
        if len(flight.askers) == 1:
            flight.cancel("cancelled")
            return
        flight.askers.remove((session, args.id))
        del session.flights[args.id]
        gone = sentence(f"{flight.entry.call.name}: cancelled")
        session.port.write(last(args.id, errno.ECANCELED, msgspec.Raw(gone)))

    # The end.

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, let those in flight end within `seconds`, then cancel the rest.

        Requests that only wait for something to happen end at once.
        """
        self.draining = True
        for session in self.sessions:
            session.restricted = True
        for flight in list(self._flights):
            if flight.waits:
                flight.abort(GOING_DOWN, errno.ESHUTDOWN)
        await self._quiet(seconds)
        for flight in list(self._flights):
            flight.abort(GOING_DOWN, errno.ESHUTDOWN)
        await self._quiet(1.0)

    async def _quiet(self, seconds: float) -> None:
        """Return when nothing is in flight, or after `seconds`."""
        if not self._flights:
            return
        self._idle = asyncio.Event()
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            names = sorted({flight.entry.call.name for flight in self._flights})
            log.warning("still in flight after %.3g s: %s", seconds, ", ".join(names))
        finally:
            self._idle = None
