"""A process table with a real database, and a fake in place of shims and of the core.

    world = World(state_dir)
    await world.boot()
    started = await world.call(world.person(), Spawn(["/bin/true"]))
    world.shim(started.aid).exit(code=0)
    await world.end()

Calls go through `Access.permit` and the manager that has the handler, as in the dispatcher.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import time
from pathlib import Path
from typing import Any, cast

from aiosd.abi.call import Call
from aiosd.abi.table import BY_ARGS
from aiosd.access import Access, Caller
from aiosd.agentlog import LogRecord
from aiosd.config import load
from aiosd.db import Database
from aiosd.events import Events, Subscription
from aiosd.proc import ProcessTable
from aiosd.process import ASLEEP, Activity
from aiosd.schema import MIGRATIONS
from aiosd.spawn import ExitRecord, Spawner, Spec, Watcher

OWNER = os.geteuid()
STRANGER = OWNER + 1000
DEADLINE = 60.0  # seconds that a test waits for something that takes milliseconds


class FakeShim:
    """What the kernel sees of a shim; a test plays the agent below it."""

    def __init__(self, aid: int, watcher: Watcher, spec: Spec | None) -> None:
        self.aid = aid
        self.watcher = watcher
        self.spec = spec
        self.pid = 10_000 + aid
        self.started = time.time()
        self.record: ExitRecord | None = None
        self.signals: list[int] = []
        self.killed = False
        self.byes = 0
        self.detached = False
        self.failure: OSError | None = None
        self.may_run = asyncio.Event()
        self.may_run.set()
        self.gone = asyncio.Event()

    async def ready(self) -> int:
        await self.may_run.wait()
        if self.failure is not None:
            self._end(self._make(errno=self.failure.errno, reason="exec_failed"))
            raise self.failure
        return self.pid

    async def closed(self) -> None:
        await self.gone.wait()

    def signal(self, number: int, tree: bool = False) -> None:
        self.signals.append(int(number))

    def kill_tree(self) -> None:
        self.killed = True
        self.exit(signal=9, reason="killed")

    def bye(self) -> None:
        assert self.record is not None
        self.byes += 1
        self.gone.set()

    def detach(self) -> None:
        self.detached = True
        self.gone.set()

    def exit(
        self, code: int | None = None, signal: int | None = None, reason: str = "exited"
    ) -> None:
        """The agent and all that it started have ended."""
        self._end(self._make(code=code, signal=signal, reason=reason))

    def vanish(self) -> None:
        """The shim was killed, and the agent with it."""
        self.gone.set()
        self.watcher.on_lost(cast(Any, self))

    def _make(self, **facts: Any) -> ExitRecord:
        usual: dict[str, Any] = {
            "code": None, "signal": None, "errno": None, "message": None, "reason": "exited",
        }  # fmt: skip
        return ExitRecord(
            aid=str(self.aid),
            pid=self.pid,
            started=self.started,
            ended=time.time(),
            cpu_s=0.5,
            max_rss=1 << 20,
            log_size=0,
            **(usual | facts),
        )

    def _end(self, record: ExitRecord) -> None:
        self.record = record
        if record.errno is None:
            self.watcher.on_exit(cast(Any, self), record)
        else:
            self.watcher.on_exec_failed(cast(Any, self), record)


class FakeSpawner:
    """Makes fake shims; `prepare` is done to each before its program is said to run."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.shims: dict[int, FakeShim] = {}
        self.adoptable: dict[int, FakeShim | ExitRecord | None] = {}
        self.removed: list[int] = []
        self.logs: dict[int, list[LogRecord]] = {}
        self.prepare: Any = lambda shim: None

    def aids(self) -> list[int]:
        return sorted(self.adoptable)

    async def start(self, aid: int, spec: Spec) -> FakeShim:
        shim = self.shims[aid] = FakeShim(aid, self.watcher, spec)
        self.prepare(shim)
        return shim

    async def adopt(self, aid: int) -> FakeShim | ExitRecord | None:
        found = self.adoptable.get(aid)
        if isinstance(found, FakeShim):
            found.watcher = self.watcher
            self.shims[aid] = found
        return found

    def remove(self, aid: int) -> None:
        self.removed.append(aid)

    def read_log(self, aid: int, offset: int, limit: int) -> tuple[int, list[LogRecord]]:
        if aid not in self.logs:
            raise FileNotFoundError(errno.ENOENT, "no output is kept of this agent")
        records = self.logs[aid][offset : offset + limit]
        return offset + len(records), records


class Recorder:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.activities: dict[int, Activity] = {}
        self.fork_error: OSError | None = None

    def agent_stopped(self, aid: int) -> None:
        self.heard.append(("stopped", aid))

    def agent_continued(self, aid: int) -> None:
        self.heard.append(("continued", aid))

    def agent_reniced(self, aid: int, nice: int) -> None:
        self.heard.append(("reniced", aid, nice))

    def agent_interrupted(self, aid: int) -> None:
        self.heard.append(("interrupted", aid))

    def agent_ended(self, aid: int) -> None:
        self.heard.append(("ended", aid))

    def activity(self, aid: int) -> Activity:
        return self.activities.get(aid, ASLEEP)

    async def fork_contexts(self, parent_aid: int, child_aid: int) -> None:
        self.heard.append(("forked", parent_aid, child_aid))
        if self.fork_error is not None:
            raise self.fork_error


class Reader:
    """A stream that keeps what is sent to it."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.news = asyncio.Event()
        self.on_cancel: Any = None

    async def send(self, chunk: Any) -> None:
        self.chunks.append(chunk)
        self.news.set()

    def texts(self) -> list[str]:
        return [record.text for chunk in self.chunks for record in chunk]


class World:
    """One kernel's process table. A second World on the same directory is the next kernel."""

    def __init__(self, state_dir: Path, **settings: Any) -> None:
        self.state_dir = state_dir
        usual = {"kernel.state_dir": str(state_dir), "kernel.runtime_dir": str(state_dir)}
        self.config = load(None, {"HOME": str(state_dir)}, usual | settings)
        self.db = Database.open(state_dir / "aios.db", MIGRATIONS)
        self.events = Events()
        self.access = Access(OWNER)
        self.listener = Recorder()
        self.spawners: list[FakeSpawner] = []
        self.table = ProcessTable(
            self.config, self.db, self.events, self.access, self._make_spawner
        )
        self.table.listener = self.listener
        self.spawner = self.spawners[0]

    def _make_spawner(self, watcher: Watcher) -> Spawner:
        self.spawners.append(FakeSpawner(watcher))
        return cast(Spawner, self.spawners[0])

    async def boot(self) -> World:
        await self.table.boot()
        return self

    async def end(self) -> None:
        """As the kernel does when it is told to end."""
        await self.table.close()
        await self.db.close()

    async def die(self) -> None:
        """As after SIGKILL: only what is in the database stays."""
        await self.db.close()

    def person(self, uid: int = OWNER) -> Caller:
        return Caller(uid, os.getegid(), os.getpid())

    async def call(self, caller: Caller, args: Call, stream: Reader | None = None) -> Any:
        """Make a call as the dispatcher would, but for keys and statistics."""
        call = BY_ARGS[type(args)]
        self.access.permit(caller, call, args)
        name = f"sys_{call.name}"
        handler = next(
            getattr(manager, name) for manager in self.table.managers if hasattr(manager, name)
        )
        third = [stream] if len(inspect.signature(handler).parameters) == 3 else []
        result = handler(caller, args, *third)
        return await result if inspect.isawaitable(result) else result

    def shim(self, aid: int) -> FakeShim:
        return self.spawner.shims[aid]

    def watch(self, *kinds: str, aid: int = 0) -> Subscription:
        return self.events.subscribe(kinds, aid, lambda _: True)

    def close(self, caller: Caller) -> None:
        """The caller's connection ends."""
        for callback in caller.on_close:
            callback()
        caller.on_close.clear()
