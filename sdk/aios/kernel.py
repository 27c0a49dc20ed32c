"""The blocking face: `connect()` gives a `Kernel`, whose methods are the system calls.

Many threads may call at once over the one connection. Whoever waits for an answer reads the socket
for everybody: there is no thread of ours, and a program that waits for nothing reads nothing (so a
stream nobody takes from makes the kernel pause, and no buffer grows).

Ctrl-C during a call cancels it in the kernel. A connection belongs to the process that made it.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import msgspec

from aios import errors
from aios.asking import interactions
from aios.calls import SyncCalls
from aios.link import Begin, Exchange, Link, Open, Pause, Plan, Step, exit_code
from aios.loop import LoopOptions, LoopResult, agent_loop
from aios.place import inherited, socket_path
from aios.session import Finish, InFlight, Session
from aios.spending import named, tightest
from aios.streams import Stream
from aiosd.abi import wire
from aiosd.abi.accounts import Quota, UsageRow
from aiosd.abi.call import Call
from aiosd.abi.process import Interaction
from aiosd.abi.system import Welcome

READ: Final = 256 * 1024
"""Bytes read at once."""

GLANCE_MS: Final = 50
"""How long a full socket is waited for before looking again who reads."""

WHOLE: Final = 16 * 1024
"""Bytes that a Unix socket takes at once or not at all."""

T = TypeVar("T")


class Line:
    """One connection: a socket and its session. One of the waiting threads reads for all.

    `_lock` protects the session and `_reader`, the thread that reads (0: none); `_sending` keeps
    frames whole.
    """

    def __init__(self, path: str) -> None:
        self.session = Session()
        self._path = path
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._reader = 0
        self._dirty = False
        self._dropped: deque[InFlight] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise errors.not_running(path, error) from error
        self._socket.setblocking(False)

    @property
    def up(self) -> bool:
        """Whether the connection still stands, as far as is known."""
        return not self.session.ended

    def close(self) -> None:
        """Close the connection; requests in flight fail as lost.

        In a fork only the descriptor is closed: the connection is the parent's, and a lock may be
        held by a thread that is not there.
        """
        if os.getpid() != self._pid:
            self._socket.close()
            return
        with self._lock:
            self._end()

    def start(self, args: Call, finish: Finish | None = None) -> InFlight:
        """Send a request."""
        pending, data = self._enter(args, finish)
        try:
            self._send(data)
        except BaseException:
            self.abandon(pending)
            raise
        return pending

    def exchange(self, args: Call, finish: Finish | None = None) -> Any:
        """Make a call and return its reply; whatever interrupts the wait cancels the call."""
        pending, data = self._enter(args, finish)
        try:
            self._send(data)
            self.wait(pending)
        except BaseException:
            self.abandon(pending)
            raise
        return pending.result()

    def _enter(self, args: Call, finish: Finish | None) -> tuple[InFlight, bytes]:
        if self._dropped:
            self._drop()
        with self._lock:
            pending, data = self.session.request(args, finish)
        pending.line = self
        pending.sent = True  # from here on the kernel may have seen it
        return pending, data

    def wait(self, pending: InFlight) -> None:
        """Return when something has come for a request; read the socket if nobody else does."""
        self._stand_down()  # where an interrupt kept us from it the last time
        try:
            while not pending.ready:
                with self._lock:
                    if pending.ready:
                        return
                    if self._reader:
                        self._follow(pending)
                        continue
                    self._reader = threading.get_ident()
                while not pending.ready:
                    self._wait_readable()
                    self._read()
        finally:
            self._stand_down()

    def cancel(self, pending: InFlight) -> None:
        """Ask the kernel to end a request."""
        with self._lock:
            data = self.session.cancel(pending)
        self._send(data)

    def abandon(self, pending: InFlight) -> None:
        """Ask the kernel to end a request, and forget it.

        May be called by the garbage collector in the midst of anything, so it never waits: when
        the connection is busy, the next request takes this one along.
        """
        if os.getpid() != self._pid:
            return
        self._dropped.append(pending)
        self._drop()

    def _drop(self) -> None:
        while self._dropped and self._sending.acquire(blocking=False):
            try:
                if not self._lock.acquire(blocking=False):
                    return
                try:
                    data = self.session.abandon(self._dropped.popleft())
                except (IndexError, OSError):
                    return
                finally:
                    self._lock.release()
                self._push(data)
            finally:
                self._sending.release()

    def _follow(self, pending: InFlight) -> None:
        """Wait, holding `_lock`, until the reading thread has something for us or stops reading."""
        pending.waiter = threading.Condition(self._lock)
        try:
            pending.waiter.wait()
        finally:
            pending.waiter = None

    def _stand_down(self) -> None:
        """Stop reading, if it is us who read, and let another waiting thread go on."""
        if self._reader != threading.get_ident():
            return
        with self._lock:
            self._reader = 0
            if self._dirty:
                self._end()
            self._hand_over()

    def _wait_readable(self) -> None:
        poll = select.poll()
        with suppress(ValueError):  # closed by another thread just now: reading will tell
            poll.register(self._socket, select.POLLIN)
            poll.poll()

    def _read(self) -> None:
        """Take in what the socket has.

        An interrupt in here could lose bytes that were read and not yet taken in: then the stream
        of frames is broken, which `_dirty` tells, and the connection is given up.
        """
        self._dirty = True
        try:
            data = self._socket.recv(READ)
        except BlockingIOError:
            self._dirty = False
            return
        except OSError:
            data = b""
        with self._lock:
            if not data:
                self._end()
                return
            try:
                touched = self.session.feed(data)
            except (wire.FrameError, msgspec.MsgspecError):
                self._end(errors.foreign(self._path))
                return
            self._dirty = False
            _wake(touched)

    def _end(self, cause: OSError | None = None) -> None:
        """Give the connection up, holding `_lock`. cause: what to tell instead of a loss."""
        left = self.session.end()
        for pending in left:
            pending.error = cause or pending.error
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits to read
        self._socket.close()
        self._dirty = False
        _wake(left)

    def _hand_over(self) -> None:
        """Let another waiting thread read, holding `_lock`."""
        for pending in self.session.flight:
            if pending.waiter is not None:
                pending.waiter.notify()
                return

    def _send(self, data: bytes) -> None:
        with self._sending:
            self._push(data)

    def _push(self, data: bytes) -> None:
        """Send all of it, holding `_sending`. A broken connection shows in what is waited for."""
        rest = memoryview(data)
        try:
            while rest and not self.session.ended:
                try:
                    rest = rest[self._socket.send(rest, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    self._make_room()
        except OSError:
            with self._lock:
                self._end()
        except BaseException:
            # Part of a frame may be out, and nothing can follow that. A small one goes whole.
            if rest and (len(rest) < len(data) or len(data) > WHOLE):
                with self._lock:
                    self._end()
            raise

    def _make_room(self) -> None:
        """Wait until the socket takes more; read meanwhile, as the kernel may wait for that."""
        with self._lock:
            leader = not self._reader
            if leader:
                self._reader = threading.get_ident()
        poll = select.poll()
        try:
            with suppress(ValueError):  # closed by another thread just now: sending will tell
                poll.register(self._socket, select.POLLOUT | (select.POLLIN if leader else 0))
            ready = poll.poll(None if leader else GLANCE_MS)
            if leader and any(event & ~select.POLLOUT for _, event in ready):
                self._read()
        finally:
            if leader:
                self._stand_down()


def _line(pending: InFlight) -> Line:
    """Return the connection that a request is on."""
    line: Line = pending.line
    return line


def _wake(touched: list[InFlight]) -> None:
    """Wake the threads that wait for these, holding their connection's lock."""
    for pending in touched:
        if pending.waiter is not None:
            pending.waiter.notify()


class _Streaming:
    """One stream's way over whatever connection there is. A request goes with its line."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.moved()

    def begin(self, args: Call, finish: Finish | None) -> InFlight:
        return self._kernel._run(self._kernel._link.begin(args, finish, self._tries))

    def resume(self, pending: InFlight, seen: int, error: OSError) -> InFlight:
        plan = self._kernel._link.resume(pending, seen, error, self._tries)
        return self._kernel._run(plan)

    def wait(self, pending: InFlight) -> None:
        _line(pending).wait(pending)

    def cancel(self, pending: InFlight) -> None:
        _line(pending).cancel(pending)

    def abandon(self, pending: InFlight) -> None:
        _line(pending).abandon(pending)

    def moved(self) -> None:
        self._tries = self._kernel._link.tries()


class Kernel(SyncCalls):
    """A connection to aiosd: every system call is a method of the same name.

    Made by `connect()`. Safe to use from many threads; not across fork. As a context manager it
    closes itself, and an agent that it registered exits: 0, or 1 when an exception leaves.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._line: Line | None = None
        self._greeted: Line | None = None
        self._attaching = threading.Lock()
        self._attached()

    @property
    def aid(self) -> int:
        """The agent that this connection is; 0 for a person."""
        return self._link.aid

    @property
    def welcome(self) -> Welcome:
        """What the kernel said on hello: its version, level, pid and boot id."""
        assert self._link.welcome is not None
        return self._link.welcome

    @property
    def closed(self) -> bool:
        """Whether the connection was closed, or its agent has exited."""
        return self._link.over

    def close(self) -> None:
        """Close the connection. A registered agent goes on to exist; `exit` ends it."""
        self._link.over = True
        if self._line is not None:
            self._line.close()

    def history(
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
        rows = self.query_history(
            aid=aid, kind="interaction", text=text, since=since, until=until, cid=cid, core=core,
            finish=finish, request=request, before=before, limit=limit,
        )  # fmt: skip
        return interactions(rows)

    def run_agent_loop(self, task: str, **options: Unpack[LoopOptions]) -> LoopResult:
        """Work on a task in steps: the model calls tools, is shown what came of it, and goes on.

        `aios.loop` says which options there are, and what the result holds. Raises OSError.
        """
        return self._run(agent_loop(self._link, task, options))

    def quota(self, subject: str = "") -> dict[str, Quota]:
        """Return, by resource, the hard limit that leaves the caller (or a subject) least.

        An empty dict: nothing is limited. `get_quota` has all limits, soft ones too.
        """
        return tightest(self.get_quota(subject=subject))

    def usage(
        self, subject: str = "", *, by: str = "core", since: float = 0.0
    ) -> dict[str, UsageRow]:
        """Return what the caller (or a subject) has used, by core, tool or day (UTC)."""
        return named(self.get_usage(subject=subject, since=since, by=by, limit=10_000), by)

    def __enter__(self) -> Self:
        return self

    def __exit__(
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
                    self.exit(exit_code(error))
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"agent {self.aid}" if self.aid else "no agent"
        return f"<aios.Kernel {self._link.path} ({state})>"

    def _call(self, args: Call, finish: Finish | None = None) -> Any:
        return self._run(self._link.call(args, finish))

    def _stream(self, args: Call, finish: Finish | None = None) -> Stream[Any, Any]:
        source = _Streaming(self)
        return Stream(source, source.begin(args, finish))

    def _run(self, plan: Plan[T]) -> T:
        """Carry out a plan's steps."""
        try:
            step = next(plan)
            while True:
                try:
                    outcome = self._do(step)
                except OSError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(outcome)
        except StopIteration as end:
            value: T = end.value
            return value

    def _do(self, step: Step) -> Any:
        if isinstance(step, Exchange):
            line = self._line if step.raw else self._attached()
            assert line is not None
            return line.exchange(step.args, step.finish)
        if isinstance(step, Begin):
            return self._attached().start(step.args, step.finish)
        if isinstance(step, Open):
            if self._line is not None:
                self._line.close()
            self._line = Line(step.path)
        elif isinstance(step, Pause):
            time.sleep(step.seconds)
        return None

    def _attached(self) -> Line:
        """Return a connection that stands; connect anew unless another thread has done so."""
        self._link.check()
        line = self._greeted
        if line is not None and line.up:
            return line
        with self._attaching:
            if self._greeted is None or not self._greeted.up:
                try:
                    self._run(self._link.attach())
                except BaseException:
                    if self._line is not None:
                        self._line.close()
                    raise
                assert self._line is not None
                self._line.session.settle(self.welcome.max_frame)
                self._greeted = self._line
            return self._greeted


def connect(
    socket: str | os.PathLike[str] | None = None,
    name: str | None = None,
    credential: str | None = None,
    *,
    reconnect: float = 60.0,
) -> Kernel:
    """Connect to aiosd and return its system calls as an object.

    socket: path of the kernel's socket; by default AIOS_SOCKET's, else the usual place.
    name: become an agent of this name. A process that aiosd started is one already and keeps the
    name that it was started with. Without either the connection is a person's.
    credential: speak for the agent that it belongs to (from `fork` or an earlier connection).
    reconnect: seconds to go on trying when the connection is lost later on; calls in flight are
    asked again and generations go on where they were, as far as that does nothing twice.

    Raises ConnectionRefusedError when aiosd is not running, PermissionError when it is another
    user's or the credential is not valid, VersionError when the two don't fit together.
    """
    return Kernel(Link(socket_path(socket), name, credential, reconnect, inherited))
