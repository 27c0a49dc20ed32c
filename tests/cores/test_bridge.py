"""The way to providers: a process that stands still, or can't be started."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable

import psutil
import pytest

from aiosd.cores import bridge as module
from aiosd.cores.bridge import Bridge, hangs
from aiosd.endpoints import protocol as p
from tests.cores.conftest import DEADLINE
from tests.frontier import Act, Frontier

CHAT = p.Chat([p.Message("user", "Hello")], 50)


def setup(frontier: Frontier) -> p.Setup:
    return p.Setup("openai", "m", frontier.url("x"), "", "openai", 30.0, 60.0, 60.0)


class Heard:
    """What was heard of one command."""

    def __init__(self) -> None:
        self.events: list[p.Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: p.Event) -> None:
        self.events.append(event)
        self._news.set()

    async def reach(self, count: int) -> None:
        """Return once so many events have come."""
        while len(self.events) < count:
            self._news.clear()
            async with asyncio.timeout(DEADLINE):
                await self._news.wait()

    async def end(self) -> p.Event:
        """Return the event that ends it."""
        while not self.events or isinstance(self.events[-1], p.Piece | p.Metered):
            await self.reach(len(self.events) + 1)
        return self.events[-1]


def chat(bridge: Bridge) -> Heard:
    heard = Heard()
    bridge.ask(lambda id: p.Ask(id, "c", CHAT, 64), heard)
    return heard


async def checked(bridge: Bridge, setup: p.Setup) -> p.Event:
    """Open a core and have its provider looked at; return what came of that."""
    opened, looked = Heard(), Heard()
    bridge.open("c", setup, opened)
    if isinstance(found := await opened.end(), p.Failed):
        return found
    bridge.ask(lambda id: p.Check(id, "c"), looked)
    return await looked.end()


def stand_still() -> None:
    """Keep the loop from anything for longer than the process may be silent."""
    time.sleep(0.6)


def run(test: Callable[[Bridge], Awaitable[None]]) -> None:
    async def main() -> None:
        bridge = Bridge(DEADLINE)
        try:
            await test(bridge)
        finally:
            await bridge.close()

    asyncio.run(main())


def test_a_process_that_can_not_be_started_or_stands_still_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    async def test(bridge: Bridge) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", none)
            failed = await checked(bridge, setup(frontier))
            assert isinstance(failed, p.Failed) and failed.kind == "unreachable"
            assert "no more processes" in failed.message and not bridge.pid
        assert isinstance(await checked(bridge, setup(frontier)), p.Checked)
        cut = chat(bridge)
        await cut.reach(2)  # so the other one is answered as the second act says
        mute = chat(bridge)
        await asyncio.to_thread(frontier.hung, "x", 2)
        pid = bridge.pid
        os.kill(pid, signal.SIGSTOP)
        bridge.silence = 0.1
        failures = [await cut.end(), await mute.end()]
        bridge.silence = DEADLINE
        for failed in failures:
            assert isinstance(failed, p.Failed) and failed.kind == "lost"
            assert "silent" in failed.message
        assert not psutil.pid_exists(pid) and bridge.restarts == 2
        again = chat(bridge)  # its client is made by the new process before that
        assert isinstance(await again.end(), p.Done)
        assert bridge.pid != pid

    monkeypatch.setattr(module, "LOOK", 0.05)
    with Frontier() as frontier:
        frontier.then("x", Act(after=2, then="hang"), Act(after=0, then="hang"))
        run(test)


def test_who_only_waits_for_the_machine_does_not_hang() -> None:
    assert [hangs(silent, 10.0, busy=False) for silent in (9.0, 11.0)] == [False, True]
    busy = [hangs(silent, 10.0, busy=True) for silent in (11.0, 59.0, 61.0)]
    assert busy == [False, False, True]


def test_a_kernel_that_stood_still_itself_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bridge: Bridge) -> None:
        assert isinstance(await checked(bridge, setup(frontier)), p.Checked)
        mute = chat(bridge)
        await asyncio.to_thread(frontier.hung, "x")
        pid = bridge.pid
        os.kill(pid, signal.SIGSTOP)
        bridge.silence = 0.5
        for _ in range(2):
            stand_still()
            await asyncio.sleep(0)
        bridge.silence = DEADLINE
        os.kill(pid, signal.SIGCONT)
        frontier.release("x")
        assert isinstance(await mute.end(), p.Done) and bridge.pid == pid

    monkeypatch.setattr(module, "LOOK", 0.05)
    monkeypatch.setattr(module, "LATE", 0.1)
    with Frontier() as frontier:
        frontier.then("x", Act(after=0, then="hang"))
        run(test)
