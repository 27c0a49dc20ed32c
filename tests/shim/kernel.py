"""What the tests of the shim use: a kernel that records what it hears, and waits with deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiosd.agentlog import LogRecord
from aiosd.proctree import processes
from aiosd.spawn import ExitRecord, Shim, Spawner, Spec

DEADLINE = 60.0  # seconds for one wait


class Kernel:
    """A spawner and all that its watcher heard."""

    def __init__(self, directory: Path) -> None:
        self.events: list[tuple[str, int, Any]] = []
        self.shims: list[Shim] = []
        self.dir = directory
        self.spawner = Spawner(directory, self)
        self._heard = asyncio.Event()

    # the watcher

    def on_started(self, shim: Shim, pid: int) -> None:
        self._note("started", shim, pid)

    def on_exec_failed(self, shim: Shim, record: ExitRecord) -> None:
        self._note("exec_failed", shim, record)

    def on_log(self, shim: Shim, size: int) -> None:
        self._note("log", shim, size)

    def on_exit(self, shim: Shim, record: ExitRecord) -> None:
        self._note("exit", shim, record)

    def on_lost(self, shim: Shim) -> None:
        self._note("lost", shim, None)

    def _note(self, name: str, shim: Shim, payload: Any) -> None:
        self.events.append((name, shim.aid, payload))
        self._heard.set()

    # what tests say

    async def start(self, *argv: str, aid: int = 7, **fields: Any) -> Shim:
        """Start an agent; its environment is PATH alone unless given."""
        fields.setdefault("env", {"PATH": os.environ["PATH"]})
        fields.setdefault("cwd", "/")
        fields.setdefault("kill_timeout", 5.0)
        shim = await self.spawner.start(aid, Spec(argv=argv, **fields))
        self.shims.append(shim)
        return shim

    async def adopt(self, aid: int = 7) -> Shim:
        """Find a shim again that is known to live."""
        shim = await self.spawner.adopt(aid)
        assert isinstance(shim, Shim)
        self.shims.append(shim)
        return shim

    async def python(self, code: str, *args: str, **fields: Any) -> Shim:
        """Start a Python agent."""
        return await self.start(sys.executable, "-I", "-S", "-u", "-c", code, *args, **fields)

    async def heard(self, name: str, aid: int = 7) -> Any:
        """Wait for the first event of this name and give its payload."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for event, of, payload in self.events:
                    if (event, of) == (name, aid):
                        return payload
                self._heard.clear()
                await self._heard.wait()

    async def exit(self, aid: int = 7) -> ExitRecord:
        record = await self.heard("exit", aid)
        assert isinstance(record, ExitRecord)
        return record

    async def text(self, wanted: str, aid: int = 7) -> str:
        """Wait until the agent's output holds `wanted` and give all of it."""
        async with asyncio.timeout(DEADLINE):
            while wanted not in (text := "".join(r.text for r in self.output(aid))):
                self._heard.clear()
                await self._heard.wait()
            return text

    async def end(self) -> None:
        """End what the test left, as the last thing on its loop."""
        for shim in self.shims:
            shim.kill_tree()  # at once: a test's tree may be deaf to SIGTERM
            if alive(shim.shim_pid):
                os.kill(shim.shim_pid, signal.SIGTERM)
            await gone(shim.shim_pid)
            with contextlib.suppress(ChildProcessError):  # left to the next kernel by this one
                os.waitpid(shim.shim_pid, os.WNOHANG)  # noqa: ASYNC222 - never blocks
            shim.detach()
            await shim.closed()

    def output(self, aid: int = 7) -> list[LogRecord]:
        """All the output that is kept."""
        offset = 0
        all_records: list[LogRecord] = []
        while True:
            offset, records = self.spawner.read_log(aid, offset, 1000)
            if not records:
                return all_records
            all_records += records


async def until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again, with a deadline: for states that nobody reports."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - /proc sends no events
            await asyncio.sleep(0.005)
    assert condition(), what


async def gone(pid: int) -> None:
    """Wait until this process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(handle, ended.set)
        await asyncio.wait_for(ended.wait(), DEADLINE)
        asyncio.get_running_loop().remove_reader(handle)
    finally:
        os.close(handle)


def alive(pid: int) -> bool:
    """Whether this process runs: a zombie does not."""
    stat = processes().get(pid)
    return stat is not None and stat.state not in "ZX"
