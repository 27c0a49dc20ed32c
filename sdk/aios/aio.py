"""The asynchronous face: `connect_async()` gives an `AsyncKernel`; its methods are awaited.

The protocol and the order of things are those of `session.py` and `link.py`; here they are carried
out on an event loop. Cancelling a task that waits for a call cancels the call in the kernel.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack, cast

import msgspec

from aios import errors
from aios.asking import interactions
from aios.calls import AsyncCalls
from aios.link import Begin, Exchange, Link, Open, Pause, Plan, Step, exit_code
from aios.loop import LoopOptions, LoopResult, agent_loop
from aios.place import inherited, socket_path
from aios.session import Finish, InFlight, Session
from aios.spending import named, tightest
from aios.streams import AsyncStream
from aiosd.abi import wire
from aiosd.abi.accounts import Quota, UsageRow
from aiosd.abi.call import Call
from aiosd.abi.process import Interaction
from aiosd.abi.system import Welcome

ENOUGH: Final = 64
"""Chunks that a stream may have waiting before we stop reading for it."""

T = TypeVar("T")


class AsyncLine(asyncio.Protocol):
    """One connection on the event loop.

    What arrives is read while somebody waits for it: with nobody waiting and a stream well filled,
    reading stops and the kernel pauses the stream.
    """

    def __init__(self, path: str) -> None:
        self.session = Session()
        self._path = path
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._waiting = 0

    @property
    def up(self) -> bool:
        """Whether the connection still stands, as far as is known."""
        return not self.session.ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio's callback)."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is in flight (asyncio's callback)."""
        self._end()

    def pause_writing(self) -> None:
        """Let senders wait (asyncio's callback)."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Let senders go on (asyncio's callback)."""
        self._room.set()

    def data_received(self, data: bytes) -> None:
        """Take in what arrived and wake who waits for it (asyncio's callback)."""
        try:
            touched = self.session.feed(data)
        except (wire.FrameError, msgspec.MsgspecError):
            self._end(errors.foreign(self._path))
            return
        _wake(touched)
        if not self._waiting and any(len(pending.chunks) > ENOUGH for pending in touched):
            self._read(False)

    def close(self) -> None:
        """Close the connection; requests in flight fail as lost."""
        self._end()

    async def start(self, args: Call, finish: Finish | None = None) -> InFlight:
        """Send a request, waiting while the kernel is slow to take it."""
        pending, data = self.session.request(args, finish)
        pending.line = self
        try:
            self._waiting += 1
            self._read(True)
            await self._room.wait()
        except asyncio.CancelledError:
            self.session.forget(pending)
            raise
        finally:
            self._waiting -= 1
        pending.sent = not pending.done
        self._write(data)
        return pending

    async def exchange(self, args: Call, finish: Finish | None = None) -> Any:
        """Make a call and return its reply; cancelling the wait cancels the call."""
        pending = await self.start(args, finish)
        try:
            await self.wait(pending)
        except BaseException:
            self.abandon(pending)
            raise
        return pending.result()

    async def wait(self, pending: InFlight) -> None:
        """Return when something has come for a request."""
        self._waiting += 1
        try:
            while not pending.ready:
                self._read(True)
                pending.waiter = asyncio.get_running_loop().create_future()
                await pending.waiter
        finally:
            pending.waiter = None
            self._waiting -= 1

    def cancel(self, pending: InFlight) -> None:
        """Ask the kernel to end a request."""
        self._write(self.session.cancel(pending))

    def abandon(self, pending: InFlight) -> None:
        """Ask the kernel to end a request, and forget it."""
        self._write(self.session.abandon(pending))
        self._read(True)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and data and self.up:
            self._transport.write(data)

    def _read(self, wanted: bool) -> None:
        """Read on or stop reading (both may be asked for twice)."""
        if self._transport is None or self._transport.is_closing():
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _end(self, cause: OSError | None = None) -> None:
        left = self.session.end()
        for pending in left:
            pending.error = cause or pending.error
        if self._transport is not None:
            self._transport.abort()
        self._room.set()
        _wake(left)


def _wake(touched: list[InFlight]) -> None:
    for pending in touched:
        if pending.waiter is not None and not pending.waiter.done():
            pending.waiter.set_result(None)


class _Streaming:
    """Makes a stream's request when it is first used, over whatever connection there is."""

    def __init__(self, kernel: AsyncKernel, args: Call, finish: Finish | None) -> None:
        self._kernel = kernel
        self._args = args
        self._finish = finish
        self.moved()

    async def start(self) -> InFlight:
        plan = self._kernel._link.begin(self._args, self._finish, self._tries)
        return await self._kernel._run(plan)

    async def resume(self, pending: InFlight, seen: int, error: OSError) -> InFlight:
        plan = self._kernel._link.resume(pending, seen, error, self._tries)
        return await self._kernel._run(plan)

    async def wait(self, pending: InFlight) -> None:
        await _line(pending).wait(pending)

    def cancel(self, pending: InFlight) -> None:
        _line(pending).cancel(pending)

    def abandon(self, pending: InFlight) -> None:
        _line(pending).abandon(pending)

    def moved(self) -> None:
        self._tries = self._kernel._link.tries()


def _line(pending: InFlight) -> AsyncLine:
    """Return the connection that a request is on."""
    line: AsyncLine = pending.line
    return line


class AsyncKernel(AsyncCalls):
    """A connection to aiosd on an event loop: every system call is a coroutine method.

    Made by `connect_async()`; connected by `async with` or `await`. Belongs to one event loop.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._line: AsyncLine | None = None
        self._greeted: AsyncLine | None = None
        self._attaching = asyncio.Lock()

    @property
    def aid(self) -> int:
        """The agent that this connection is; 0 for a person."""
        return self._link.aid

    @property
    def welcome(self) -> Welcome:
        """What the kernel said on hello: its version, level, pid and boot id."""
        if self._link.welcome is None:
            raise RuntimeError("not connected yet: use `async with`, or await the connection")
        return self._link.welcome

    @property
    def closed(self) -> bool:
        """Whether the connection was closed, or its agent has exited."""
        return self._link.over

    async def close(self) -> None:
        """Close the connection. A registered agent goes on to exist; `exit` ends it."""
        self._link.over = True
        if self._line is not None:
            self._line.close()

    async def history(
        self,
        *,
        aid: int = 0,
        text: str = "",
        since: float = 0.0,
        until: float = 0.0,
        cid: int = 0,
        core: str = "",
        finish: str = "",
        request: int = 0,
        before: int = 0,
        limit: int = 200,
    ) -> list[Interaction]:
        """Return what agents asked and were answered: the newest that match, oldest first.

        This is `query_history` of kind interaction, as typed rows; its arguments say what is
        found. An answer has at most 2 MiB of texts: `before=rows[0].id` gives those before.
        """
        rows = await self.query_history(
            aid=aid, kind="interaction", text=text, since=since, until=until, cid=cid, core=core,
            finish=finish, request=request, before=before, limit=limit,
        )  # fmt: skip
        return interactions(rows)

    async def run_agent_loop(self, task: str, **options: Unpack[LoopOptions]) -> LoopResult:
        """Work on a task in steps: the model calls tools, is shown what came of it, and goes on.

        `aios.loop` says which options there are, and what the result holds. Raises OSError.
        """
        return await self._run(agent_loop(self._link, task, options))

    async def quota(self, subject: str = "") -> dict[str, Quota]:
        """Return, by resource, the hard limit that leaves the caller (or a subject) least.

        An empty dict: nothing is limited. `get_quota` has all limits, soft ones too.
        """
        return tightest(await self.get_quota(subject=subject))

    async def usage(
        self, subject: str = "", *, by: str = "core", since: float = 0.0
    ) -> dict[str, UsageRow]:
        """Return what the caller (or a subject) has used, by core, tool or day (UTC)."""
        return named(await self.get_usage(subject=subject, since=since, by=by, limit=10_000), by)

    def __await__(self) -> Generator[Any, None, Self]:
        yield from self._attached().__await__()
        return self

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        link = self._link
        try:
            if link.registered and not link.over and link.own_process:
                link.reconnect = 0.0  # leaving: nobody waits for a kernel to come back
                with suppress(OSError):
                    await self.exit(exit_code(error))
        finally:
            await self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"agent {self.aid}" if self.aid else "no agent"
        return f"<aios.AsyncKernel {self._link.path} ({state})>"

    async def _call(self, args: Call, finish: Finish | None = None) -> Any:
        return await self._run(self._link.call(args, finish))

    def _stream(self, args: Call, finish: Finish | None = None) -> AsyncStream[Any, Any]:
        return AsyncStream(_Streaming(self, args, finish))

    async def _run(self, plan: Plan[T]) -> T:
        """Carry out a plan's steps."""
        try:
            step = next(plan)
            while True:
                try:
                    outcome = await self._do(step)
                except OSError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Exchange):
            line = self._line if step.raw else await self._attached()
            assert line is not None
            return await line.exchange(step.args, step.finish)
        if isinstance(step, Begin):
            return await (await self._attached()).start(step.args, step.finish)
        if isinstance(step, Open):
            await self._open(step.path)
        elif isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        return None

    async def _open(self, path: str) -> None:
        if self._line is not None:
            self._line.close()
        try:
            loop = asyncio.get_running_loop()
            _, self._line = await loop.create_unix_connection(lambda: AsyncLine(path), path)
        except OSError as error:
            raise errors.not_running(path, error) from error

    async def _attached(self) -> AsyncLine:
        """Return a connection that stands; connect anew unless another task has done so."""
        self._link.check()
        if self._greeted is not None and self._greeted.up:
            return self._greeted
        async with self._attaching:
            if self._greeted is None or not self._greeted.up:
                try:
                    await self._run(self._link.attach())
                except BaseException:
                    if self._line is not None:
                        self._line.close()
                    raise
                assert self._line is not None
                self._line.session.settle(self.welcome.max_frame)
                self._greeted = self._line
            return self._greeted


def connect_async(
    socket: str | os.PathLike[str] | None = None,
    name: str | None = None,
    credential: str | None = None,
    *,
    reconnect: float = 60.0,
) -> AsyncKernel:
    """Return a connection to aiosd for asyncio: use it with `async with`, or await it.

    The arguments and errors are those of `aios.connect`; errors come when it is entered.
    """
    return AsyncKernel(Link(socket_path(socket), name, credential, reconnect, inherited))
