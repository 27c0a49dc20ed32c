"""Tools that are models, scheduled like cores: one host each, whose queue is that of all agents.

    cores = ToolCores(settings, hidden, spaces)
    outcome = await cores.run(work)         # waits for its turn in the tool's queue
    rows = cores.rows()                     # for list_cores, kind "tool"
    await cores.close()

A tool whose declaration says `model` has no host for each agent. One host computes for all of them:
the most urgent calls first, as many at once as the declaration's `batch` says. It is loaded by the
first call, and given up by the rule that KV is kept by (toolcosts.py), when it is idle and when
another one needs its memory ([tools] model_memory).

What must hold: a call whose caller gives up ends at once; a host that dies, hangs or lies fails no
call but the one that made it do so (its batch is computed again one by one); a host sees of the
agents only what their calls bring, each call's files in a directory that is gone when it ends.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from typing import Any, Final

from aiosd import handover
from aiosd.abi import cores as abi
from aiosd.abi import toolwire as w
from aiosd.cores.eviction import victims
from aiosd.declaration import Declaration
from aiosd.modelhost import ModelHost
from aiosd.sched.weights import weight
from aiosd.settings import Tools
from aiosd.toolcosts import Cost
from aiosd.toolfiles import Workspaces
from aiosd.toolpool import launch, refused
from aiosd.toolqueue import Entry, Queue
from aiosd.toolrun import Outcome, Work

LOOK: Final = 8
"""How often, in the time that a host stays idle, it is looked whether it is still worth it."""
PATIENCE: Final = 4
"""Loads of its own after which one that waits for memory gets it from an equally urgent one."""


class Call(Entry):
    """A call of a model. folder: where its files are. done: what came of it."""

    def __init__(self, work: Work, folder: str, done: asyncio.Future[Outcome]) -> None:
        super().__init__(work.subject, work.nice, work.tool.limits.concurrent)
        self.work = work
        self.folder = folder
        self.done = done
        self.asked = asyncio.get_running_loop().time()
        self.begun = 0.0
        self.given: dict[str, Any] = {}

    def fail(self, error: OSError) -> None:
        """End it with an error, unless nobody waits any more."""
        if not self.done.done():
            self.done.set_exception(error)


class ToolCores:
    """All models of tools. hidden: paths that no host may see. spaces: where their folders are."""

    def __init__(
        self, settings: Callable[[], Tools], hidden: tuple[str, ...], spaces: Workspaces
    ) -> None:
        self.settings = settings
        self.hidden = hidden
        self.spaces = spaces
        self._cores: dict[str, ToolCore] = {}
        self._changed = asyncio.Event()  # a host is idle, or gone
        self._waiting: tuple[ToolCore, float] | None = None  # for memory, since when
        self._loading = asyncio.Lock()
        self._sweep: asyncio.TimerHandle | None = None

    async def run(self, work: Work) -> Outcome:
        """Carry a call out in its turn."""
        core = self._cores.get(work.tool.name)
        if core is None:
            core = self._cores[work.tool.name] = ToolCore(self, work.tool.name)
        return await core.run(work)

    def rows(self) -> list[abi.Core]:
        """Return what list_cores shows of the models that were called."""
        return [core.row() for _, core in sorted(self._cores.items())]

    def load_of(self, tool: str) -> tuple[int, int, int]:
        """Return how many calls of a tool run and wait, and how many hosts it has."""
        core = self._cores.get(tool)
        return (len(core.batch), len(core.queue), int(core.host is not None)) if core else (0, 0, 0)

    async def close(self) -> None:
        """End all hosts; calls have ended before."""
        if self._sweep is not None:
            self._sweep.cancel()
        for core in self._cores.values():
            await core.close()

    # What its cores ask.

    async def room(self, core: ToolCore) -> None:
        """Return once there is memory for a core's host, others having been given up for it.

        One that alone is larger than all may be is loaded when no other one is.
        """
        try:
            await self._make_room(core)
        finally:
            self._waiting = None

    def gives_way(self, core: ToolCore) -> bool:
        """Tell whether a busy core gives its host up to one that waits for memory.

        It does between two batches, to a more urgent one at once, to another one after a while.
        """
        if self._waiting is None or core.host is None:
            return False
        other, since = self._waiting
        waited = asyncio.get_running_loop().time() - since
        mine = core.queue.nice() if len(core.queue) else core.last_nice
        return other.last_nice < mine or waited > PATIENCE * other.cost.load

    def waits(self, core: ToolCore) -> bool:
        """Tell whether a core waits for memory that busy ones have."""
        return self._waiting is not None and self._waiting[0] is core

    async def _make_room(self, core: ToolCore) -> None:
        while True:
            others = [other for other in self._cores.values() if other is not core and other.held]
            free = self.settings().model_memory - sum(other.cost.size for other in others)
            if core.cost.size <= free or not others:
                return
            idle = {other.name: other for other in others if not other.busy}
            now = asyncio.get_running_loop().time()
            holdings = [o.cost.holding(o.name, now, weight(o.last_nice)) for o in idle.values()]
            chosen = victims(holdings, core.cost.size - free)
            if chosen is None and len(idle) == len(others):
                chosen = holdings
            if chosen is None:
                self._waiting = (core, self._waiting[1] if self._waiting else now)
                self._changed.clear()
                await self._changed.wait()
                continue
            await asyncio.wait([idle[holding.key].retire() for holding in chosen])

    def loading(self) -> asyncio.Lock:
        """Return what is held while a host is loaded: memory is counted one by one."""
        return self._loading

    def idle(self) -> None:
        """A core has nothing to do, or no host any more."""
        self._changed.set()
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(self.settings().idle / LOOK, self._drop_stale)

    def _drop_stale(self) -> None:
        self._sweep = None
        now, idle = asyncio.get_running_loop().time(), self.settings().idle
        for core in self._cores.values():
            if core.host is not None and not core.busy and core.cost.stale(now, idle):
                core.retire()
        if any(core.host is not None for core in self._cores.values()):
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(idle / LOOK, self._drop_stale)


class ToolCore:
    """One model: its queue, its host while it is loaded, and the task that gives it batches."""

    def __init__(self, cores: ToolCores, name: str) -> None:
        self.name = name
        self.queue: Queue[Call] = Queue()
        self.batch: list[Call] = []
        self.host: ModelHost | None = None
        self.held = False
        """It has a host, or is about to have one: its memory counts."""
        self.cost = Cost()
        self.last_nice = 0
        self._cores = cores
        self._tool: Declaration | None = None
        self._for = ""  # declaration and environment of the host
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._number = 0
        self._calls = self._loads = self._deaths = 0
        self._seconds = 0.0
        self._error = ""

    @property
    def busy(self) -> bool:
        """Whether it has calls."""
        return self._task is not None

    async def run(self, work: Work) -> Outcome:
        """Carry a call out in its turn."""
        settings, loop = self._cores.settings(), asyncio.get_running_loop()
        if len(self.queue) >= settings.max_queue:
            raise BlockingIOError(
                errno.EAGAIN,
                f"tool {self.name}: {len(self.queue)} calls wait already, the limit "
                "([tools] max_queue); ask again later",
            )
        self._number += 1
        root = self._cores.spaces.of(f"model:{self.name}")
        call = Call(work, os.path.join(root, str(self._number)), loop.create_future())
        self._tool = work.tool
        self.cost.called(loop.time())
        self.queue.add(call)
        self._start()
        return await self._end_of(call)

    def row(self) -> abi.Core:
        """Return it as list_cores shows it."""
        tool, host = self._tool, self.host
        return abi.Core(
            name=f"tool:{self.name}",
            driver="tool",
            model=tool.python if tool else "",
            state=self._state(),
            exact="off",
            setting=f"batch {tool.batch}" if tool else "",
            slots=tool.batch if tool else 0,
            running=len(self.batch),
            queued=len(self.queue),
            resident=int(host is not None),
            n_ctx=0,
            n_ctx_train=0,
            grid=0,
            threads=0,
            pid=host.pid if host else 0,
            restarts=self._deaths,
            rss=self.cost.size if host else 0,
            kv_bytes=0,
            bytes_per_token=0,
            tokens_in=0,
            tokens_out=0,
            tokens_per_s=0.0,
            switches=self._loads,
            kind="tool",
            error=self._error,
            device_s=self._seconds,
            step_s=self.cost.batch,
            capability="tool",
            requests=len(self.batch) + len(self.queue),
        )

    def _state(self) -> str:
        if self.host is not None:
            return "ready"
        return "loading" if self.held else "waiting" if self._cores.waits(self) else "dropped"

    def retire(self, grace: float = 0.0) -> asyncio.Task[None]:
        """Give the host up: the next call loads another one. Ends it in the background."""
        task = asyncio.get_running_loop().create_task(self._end(self.host, grace))
        self.host, self.held = None, False
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _end(self, host: ModelHost | None, grace: float) -> None:
        if host is not None:
            await host.end(grace)
        self._cores.idle()

    async def close(self) -> None:
        """End what it does, and its host."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.retire()
        await asyncio.wait(self._ending)

    # One call.

    async def _end_of(self, call: Call) -> Outcome:
        try:
            outcome = await call.done
        finally:
            self.queue.drop(call)
            call.done.cancel()
            if self.host is not None and self.batch and all(c.done.done() for c in self.batch):
                self.host.unwanted(self._cores.settings().kill_timeout)
        outcome.waited = call.begun - call.asked
        return outcome

    # Its batches, one after the other.

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
            self._task.add_done_callback(self._stopped)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._cores.idle()
        if len(self.queue) and not task.cancelled():
            self._start()

    async def _work(self) -> None:
        try:
            while len(self.queue):
                self.last_nice = self.queue.nice()
                assert self._tool is not None
                self.batch = self.queue.take(self._tool.batch)
                await self._carry_out(self.batch)
                self.batch = []
                if self._cores.gives_way(self):
                    await self.retire()
        finally:
            for call in self.batch:
                call.fail(OSError(errno.ECANCELED, f"tool {self.name}: the kernel is ending"))
            self.batch = []

    async def _carry_out(self, batch: list[Call]) -> None:
        """Compute a batch; each call of it is answered, or waits again to be alone."""
        try:
            lent = [call for call in batch if await self._lend(call)]
            if lent:
                await self._compute(lent)
        except OSError as error:
            self._error = str(error.strerror)
            for call in batch:
                call.fail(OSError(error.errno, error.strerror))
        finally:
            for call in batch:
                await asyncio.to_thread(shutil.rmtree, call.folder, True)

    async def _lend(self, call: Call) -> bool:
        """Copy a call's files to where the host sees them; a call that names none it has fails."""
        work = call.work
        try:
            call.given = await asyncio.to_thread(
                handover.lend, work.tool, work.arguments, work.workspace, call.folder
            )
        except OSError as error:
            call.fail(error)
        return not call.done.done()

    async def _compute(self, batch: list[Call]) -> None:
        loop = asyncio.get_running_loop()
        host = await self._loaded(batch[0].work)
        began = loop.time()
        for call in batch:
            call.begun = began
        seconds = batch[0].work.seconds * len(batch)
        warm = host.served > 0
        try:
            events = await host.compute(batch, seconds)
        except OSError as error:
            self._deaths += 1
            await self.retire(self._cores.settings().kill_timeout if host.late else 0.0)
            await self._blame(batch, error)
            return
        taken = loop.time() - began
        self._seconds += taken
        self._calls += len(batch)
        sizes = [event.metrics.get("memory", 0) for event in events if isinstance(event, w.Done)]
        self.cost.computed(taken, int(max(sizes, default=0)))
        printed = host.printed() if len(batch) == 1 else ("", "")
        for call, event in zip(batch, events, strict=True):
            await self._answer(call, event, warm, printed)

    async def _blame(self, batch: list[Call], error: OSError) -> None:
        """A host has failed: alone with a call it was that one, else each is tried by itself."""
        if len(batch) == 1:
            self._error = str(error.strerror)
            batch[0].fail(error)
            return
        for call in batch:
            await asyncio.to_thread(shutil.rmtree, call.folder, True)
            if not call.done.done():
                call.alone, call.begun = True, 0.0
                self.queue.add(call)

    async def _answer(
        self, call: Call, event: w.Done | w.Failed, warm: bool, printed: tuple[str, str]
    ) -> None:
        work = call.work
        try:
            names = await asyncio.to_thread(_gathered, call, event)
        except OSError as error:
            call.fail(error)
            return
        if isinstance(event, w.Failed):
            call.fail(refused(work.tool, event))
            return
        value = event.value
        if work.tool.kind in ("image", "file") and isinstance(value, dict) and "artefact" in value:
            value = {"artefact": os.path.basename(str(value["artefact"]))}
        if not call.done.done():
            call.done.set_result(Outcome(value, *printed, 0, names, event.metrics, warm))

    async def _loaded(self, work: Work) -> ModelHost:
        """Return the host, loaded if there is none or another declaration is in force."""
        wanted = f"{work.tool.digest} {work.environ!r}"
        if self.host is not None and (self.host.broken or self._for != wanted):
            await self.retire()
        if self.host is not None:
            return self.host
        loop = asyncio.get_running_loop()
        async with self._cores.loading():
            await self._cores.room(self)
            self.held = True
            began = loop.time()
            try:
                self.host = await self._launch(work)
            finally:
                self.held = self.host is not None
        self.cost.loaded(loop.time() - began)
        self._for, self._error = wanted, ""
        self._loads += 1
        return self.host

    async def _launch(self, work: Work) -> ModelHost:
        subject = f"model:{self.name}"
        own = Work(
            work.tool, {}, subject, self._cores.spaces.of(subject), work.environ, work.seconds,
            room=handover.MOST,
        )  # fmt: skip
        key = (subject, self.name, "")
        return await launch(ModelHost, key, own, self._cores.hidden)


def _gathered(call: Call, event: w.Done | w.Failed) -> list[str]:
    """Move what a call has left to its workspace, and delete its folder. Blocks."""
    work, names = call.work, event.artefacts if isinstance(event, w.Done) else []
    try:
        return handover.take_back(work.tool, call.folder, names, work.workspace, work.room)
    finally:
        shutil.rmtree(call.folder, True)
