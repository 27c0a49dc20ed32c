"""Warm hosts: processes that carry out one agent's calls of one Python tool, one after the other.

    pool = Pool(settings, hidden)
    outcome = await pool.run(work)
    await pool.end("agent:5")           # that agent is no more
    await pool.close()

A host (`python -m aios.toolhost`) speaks aiosd.abi.toolwire over a socket that it inherits. It is
started by the first call, kept for [tools] idle after each, and never serves another agent or
tool. It is assumed to hang, lie or die at any moment: then it is ended, the call fails, and the
next call starts another one.

What must hold: a host that is taken carries out one call; each call ends within its time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Final, TypeVar, cast

from aiosd import toolproc
from aiosd.abi import toolwire as w
from aiosd.abi.wire import FrameError, Frames
from aiosd.declaration import Declaration
from aiosd.settings import Tools
from aiosd.toolrun import (
    INSIDE,
    LONGEST_CPU,
    Outcome,
    Work,
    failed,
    flooded,
    spec,
    too_slow,
    unlike,
)

START_S: Final = 60.0
"""Seconds that a host may take to import its module and say so."""
HOST: Final = "aios.toolhost"

H = TypeVar("H", bound="Host")
Key = tuple[str, str, str]
"""Whose, which tool, which declaration and environment."""


class Pool:
    """All warm hosts. hidden: paths that no tool may see."""

    def __init__(self, settings: Callable[[], Tools], hidden: tuple[str, ...]) -> None:
        self._settings = settings
        self._hidden = hidden
        self._idle: dict[Host, None] = {}  # the longest unused first
        self._by_key: dict[Key, list[Host]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def run(self, work: Work) -> Outcome:
        """Carry a call out in a host that is free, or in a new one."""
        key = (work.subject, work.tool.name, f"{work.tool.digest} {work.environ!r}")
        host, warm = self._take(key), True
        if host is None:
            host, warm = await launch(Host, key, work, self._hidden), False
        try:
            done = await host.call(work)
        except asyncio.CancelledError:
            self._drop(host, self._settings().kill_timeout)
            raise
        except OSError:
            if host.broken:
                await host.end(self._settings().kill_timeout if host.late else 0.0)
            else:
                self._keep(host)
            raise
        done.warm = warm
        self._keep(host)
        return done

    async def end(self, subject: str) -> None:
        """End the hosts of an agent."""
        mine = [host for host in self._idle if host.key[0] == subject]
        for host in mine:
            self._forget(host)
            self._drop(host, 0.0)

    async def close(self) -> None:
        """End all hosts."""
        if self._sweep is not None:
            self._sweep.cancel()
        for host in list(self._idle):
            self._forget(host)
            self._drop(host, 0.0)
        if self._ending:
            await asyncio.wait(self._ending)

    def count(self, tool: str) -> int:
        """Return how many hosts are kept for a tool."""
        return sum(host.key[1] == tool for host in self._idle)

    # Inside.

    def _take(self, key: Key) -> Host | None:
        hosts = self._by_key.get(key)
        while hosts:
            host = hosts[-1]
            self._forget(host)
            if not host.broken:
                return host
            self._drop(host, 0.0)
        return None

    def _keep(self, host: Host) -> None:
        """Keep a host for the next call, for as long and as many as the settings say."""
        settings = self._settings()
        if host.broken or not settings.max_warm:
            self._drop(host, 0.0)
            return
        loop = asyncio.get_running_loop()
        host.since = loop.time()
        self._idle[host] = None
        self._by_key.setdefault(host.key, []).append(host)
        while len(self._idle) > settings.max_warm:
            oldest = next(iter(self._idle))
            self._forget(oldest)
            self._drop(oldest, 0.0)
        if self._sweep is None:
            self._sweep = loop.call_later(settings.idle, self._end_idle)

    def _forget(self, host: Host) -> None:
        del self._idle[host]
        hosts = self._by_key[host.key]
        hosts.remove(host)
        if not hosts:
            del self._by_key[host.key]

    def _drop(self, host: Host, grace: float) -> None:
        task = asyncio.get_running_loop().create_task(host.end(grace))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _end_idle(self) -> None:
        """End hosts that were idle for long enough."""
        self._sweep = None
        loop, idle = asyncio.get_running_loop(), self._settings().idle
        for host in list(self._idle):
            if host.since + idle > loop.time():
                self._sweep = loop.call_at(host.since + idle, self._end_idle)
                return
            self._forget(host)
            self._drop(host, 0.0)


class Host(asyncio.Protocol):
    """One host process. broken: it takes no more calls. late: it was given up for its time."""

    def __init__(self, key: Key, tool: Declaration, process: toolproc.Process) -> None:
        self.key = key
        self.since = 0.0
        self.broken = False
        self.late = False
        self._tool = tool
        self._name = tool.name
        self._process = process
        self._frames = Frames(w.MAX_MESSAGE)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tickets = 0
        self._answer: asyncio.Future[w.Event] = self._loop.create_future()
        process.flood.add_done_callback(lambda flood: self._flood())

    async def ready(self, seconds: float) -> None:
        """Return when it takes calls."""
        event = await self._wait(seconds)
        if isinstance(event, w.Failed):
            self.broken = True
            raise refused(self._tool, event)
        if not isinstance(event, w.Ready):
            raise self._lied(f"said {type(event).__name__} before Ready")
        if len(event.tools) == 1:  # a manifest may have given it another name
            self._name = str(event.tools[0].get("name", self._name))
        self._answer = self._loop.create_future()

    async def call(self, work: Work) -> Outcome:
        """Carry out one call."""
        self._process.stdout.drop()  # what it said in between belongs to nobody
        self._process.stderr.drop()
        self._tickets += 1
        self._answer = self._loop.create_future()
        work.on_full = self.stop
        inside = INSIDE if work.tool.isolation == "full" else work.workspace
        command = w.Call(self._tickets, self._name, work.arguments, inside, work.seconds)
        try:
            packed = w.pack(command)
        except ValueError as error:
            raise OSError(errno.EINVAL, f"tool {work.tool.name}: {error}") from None
        assert self._transport is not None
        if self.broken:
            raise await self._died()
        self._transport.write(packed)
        event = await self._wait(work.seconds)
        stdout = self._process.stdout.take()
        stderr = self._process.stderr.take()
        if isinstance(event, w.Failed) and event.ticket == self._tickets:
            raise refused(self._tool, event)
        if not isinstance(event, w.Done) or event.ticket != self._tickets:
            raise self._lied("answered what it was not asked")
        return Outcome(
            event.value,
            stdout.decode(errors="replace") if stdout else "",
            stderr.decode(errors="replace") if stderr else "",
            0,
            event.artefacts,
            event.metrics,
        )

    def stop(self, error: OSError) -> None:
        """Let the call under way fail, and take no other."""
        self._fail(error)

    async def end(self, grace: float) -> None:
        """End the process and all that it started."""
        self.broken = True
        if self._transport is not None:
            self._transport.close()
        await self._process.end(grace)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to it."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take in an event that has arrived whole."""
        try:
            for payload in self._frames.feed(data):
                if len(payload) > self._tool.limits.output + 4096:
                    self._fail(flooded(self._tool))
                    return
                self._take(w.decode_event(payload))
        except (FrameError, ValueError) as error:
            self._fail(unlike(self._tool, f"came as no message of a tool host: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """It has closed its end: it is dead or dying."""
        self.broken = True
        if not self._answer.done():
            self._answer.set_exception(ChildProcessError(errno.ECHILD, "its host is gone"))
            self._answer.exception()  # nobody may be waiting

    # Inside.

    def _take(self, event: w.Event) -> None:
        if not self._answer.done():
            self._answer.set_result(event)
        else:
            self.broken = True  # it speaks without being asked

    async def _wait(self, seconds: float) -> w.Event:
        timer = self._loop.call_later(max(0.0, seconds), self._give_up, seconds)
        try:
            return await self._answer
        except ChildProcessError:
            raise await self._died() from None
        finally:
            timer.cancel()

    def _give_up(self, seconds: float) -> None:
        self.late = True
        self._fail(too_slow(self._tool, seconds))

    def _flood(self) -> None:
        self._fail(flooded(self._tool))

    def _fail(self, error: OSError) -> None:
        self.broken = True
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # nobody may be waiting

    def _lied(self, what: str) -> OSError:
        self.broken = True
        return OSError(errno.EPROTO, f"tool {self._tool.name}: its host {what}")

    async def _died(self) -> OSError:
        """Return the error of a host that is gone, with how it ended."""
        await asyncio.wait({self._process.exited}, timeout=1.0)
        told = self._process.stderr.take().decode(errors="replace")
        if not self._process.exited.done():
            return OSError(errno.EREMOTEIO, f"tool {self._tool.name}: its host hung up")
        return failed(self._tool, self._process.exited.result(), told)


async def launch(kind: type[H], key: Key, work: Work, hidden: tuple[str, ...]) -> H:
    """Start a host and return it when it takes calls. hidden: paths that it may not see."""
    ours, theirs = socket.socketpair()
    try:
        argv = (sys.executable, "-m", HOST, "--fd", str(toolproc.BOXED_FD), _module(work.tool))
        beside = _beside(work.tool)
        paths = beside if work.tool.isolation == "full" else (*beside, *_imports())
        environ = {"PYTHONPATH": os.pathsep.join(paths)}
        spec_ = spec(
            work, argv, hidden, environ=environ, python=beside, fd=theirs.fileno(),
            cpu_s=LONGEST_CPU,
        )  # fmt: skip
        process = await toolproc.start(spec_, stdin=False)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    host = kind(key, work.tool, process)
    work.on_full = host.stop
    try:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: host, sock=ours)
        await host.ready(START_S)
    except BaseException:
        await asyncio.shield(host.end(0.0))
        raise
    return host


_ERRNO: Final = {
    "error": errno.EREMOTEIO,
    "arguments": errno.EINVAL,
    "result": errno.EPROTO,
    "unavailable": errno.ENODEV,
}


def refused(tool: Declaration, event: w.Failed) -> OSError:
    """Return the error of a call that its host has refused."""
    return OSError(_ERRNO[event.kind], f"tool {tool.name}: {event.message}")


def _module(tool: Declaration) -> str:
    """Return what the host loads: the function alone."""
    return tool.python


def _beside(tool: Declaration) -> tuple[str, ...]:
    """Return the directory of a tool's manifest: its module may be there."""
    if not tool.source.startswith("manifest:"):
        return ()
    return (os.path.dirname(tool.source.removeprefix("manifest:")),)


def _imports() -> list[str]:
    """Return where the kernel itself imports from, and the SDK: for a host without a box."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(toolproc.__file__)))
    paths = [*sys.path, here, os.path.join(here, "sdk")]  # the last is that of a checkout
    return [path for path in paths if path and os.path.isdir(path)]
