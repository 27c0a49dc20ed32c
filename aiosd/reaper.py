"""The reaper: how agents end, and how others learn of it.

`end` is the one way out of the process table, whatever ended the agent: its process's exit, a
signal, its own `exit`, the loss of its connection. In this order: it gets no service any more (its
requests are cancelled, its slots freed), its children go to init, its end is durable, its shim may
go, those who wait are told.

Who reaps: the parent, when that is an agent; its zombie stays until then (or until more than
history.keep_ended ended agents are kept). Others with rights are told the status and leave the
zombie in place. A child of a person or of init needs no reaping.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Coroutine

from aiosd.abi.process import Exit, ExitStatus, Wait
from aiosd.access import Caller
from aiosd.keys import answering
from aiosd.process import INIT, Ending, Process
from aiosd.roster import Note, Roster

log = logging.getLogger(__name__)

LONGEST = 31_536_000.0
"""Seconds that a wait lasts at most: a year."""

CLOSING = 2.0
"""Seconds that a kernel which ends gives to what has begun: a program may sit on a dead disk."""


class Reaper:
    """Ends agents and serves those who wait for it.

    keep: ended agents kept, at most. clear: deletes an agent's directories, in a thread.
    on_settled: who else is told of an end, once it is durable.
    """

    def __init__(self, roster: Roster, keep: Callable[[], int]) -> None:
        self._roster = roster
        self._keep = keep
        self._waiters: dict[int, dict[asyncio.Future[Process], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_settled: list[Callable[[int], None]] = []
        self.clear: Callable[[int], None] = lambda aid: None

    async def close(self) -> None:
        """Return once every end that has begun is durable, or can't be in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    # -- ending ---------------------------------------------------------------------------------

    def withdraw(self, process: Process) -> None:
        """Serve an agent no longer: cancel its requests, free what it holds. Once."""
        if not process.withdrawn:
            process.withdrawn = True
            process.stop_waiting()
            self._roster.listener.agent_ended(process.aid)

    def end_soon(self, process: Process, ending: Ending) -> None:
        """End an agent from where nothing can be awaited."""
        self.run(self.end(process, ending))

    def run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do something to its end, whoever waits for it; `close` does."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self, process: Process, ending: Ending, spare: Caller | None = None) -> None:
        """End an agent; nothing when it has ended already. `spare` keeps its connection."""
        if process.ending is not None:
            return
        self.withdraw(process)
        orphans = self._roster.end(process, ending)
        for caller in list(process.connections):
            if caller is not spare:
                caller.hang_up()
        note = Note("agent.exit", process.aid, _facts(process, ending), ending.ended)
        try:
            await self._roster.save(process, *orphans, notes=[note])
            self._dismiss(process)
        except OSError:
            log.exception("the end of agent %d could not be stored", process.aid)
        finally:
            process.settled = True
            self.wake(process)
        for tell in self.on_settled:
            tell(process.aid)
        self.run(self._prune())

    def _dismiss(self, process: Process) -> None:
        """Let the shim go: its report is stored."""
        shim, process.shim = process.shim, None
        if shim is not None and shim.record is not None:
            shim.bye()

    async def _prune(self) -> None:
        """Forget those that ended longest ago, with their output."""
        if surplus := self._roster.surplus(self._keep()):
            await self._roster.remove(*surplus)
            for process in surplus:
                self.wake(process)
                await asyncio.to_thread(self.clear, process.aid)

    async def sys_exit(self, caller: Caller, args: Exit) -> None:
        """End the calling agent; one that was spawned ends when its process does, by its status."""
        process = self._roster.own(caller)
        if process.has_process:
            await self._roster.save(notes=[Note("agent.note", process.aid, {"exit": args.code})])
        else:
            ending = Ending("exited", time.time(), code=args.code)
            await asyncio.shield(self.run(self.end(process, ending, spare=caller)))

    # -- waiting --------------------------------------------------------------------------------

    async def sys_wait(self, caller: Caller, args: Wait) -> ExitStatus | None:
        """Wait for an agent's end.

        timeout 0 answers None when there is none yet; a longer one ends with ETIMEDOUT. ECHILD
        when there is no child left to wait for, or its parent has reaped it before.
        """
        if args.timeout is not None and args.timeout < 0:
            raise OSError(errno.EINVAL, f"timeout: {args.timeout} is negative; none waits for ever")
        timeout = None if args.timeout is None else min(args.timeout, LONGEST)
        try:
            async with asyncio.timeout(timeout or None):
                process = await self._ended(caller, args.aid, hang=timeout != 0)
        except TimeoutError:
            whom = f"agent {args.aid}" if args.aid else "any child"
            raise TimeoutError(
                errno.ETIMEDOUT, f"wait: {whom} has not ended within {timeout} s; it runs on"
            ) from None
        if process is None:
            return None
        status = process.status()
        if args.reap and process.parent in (caller.aid, INIT) and not process.reaped:
            await self._reap(process, status)
        return status

    sys_wait.waits = True  # type: ignore[attr-defined]
    sys_wait.lasting = True  # type: ignore[attr-defined]

    async def _ended(self, caller: Caller, aid: int, hang: bool) -> Process | None:
        """Return an ended agent to tell of; without `hang`, None when there is none yet."""
        while True:
            process = self._pick_one(caller, aid) if aid else self._pick_any(caller)
            if process is not None or not hang:
                return process
            future: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
            waiters = self._waiters.setdefault(aid or ~caller.aid, {})  # in order of asking
            waiters[future] = None
            try:
                process = await future
            finally:
                del waiters[future]
                if not waiters and self._waiters.get(aid or ~caller.aid) is waiters:
                    del self._waiters[aid or ~caller.aid]
            if process.aid == aid and process.settled:
                return process  # though it may be pruned already

    def _pick_one(self, caller: Caller, aid: int) -> Process | None:
        process = self._roster.get(aid)
        if aid == caller.aid:
            raise ChildProcessError(errno.ECHILD, "wait: an agent can't wait for its own end")
        if process.reaped and caller.aid and process.parent == caller.aid:
            raise ChildProcessError(errno.ECHILD, f"wait: agent {aid} was waited for already")
        return process if process.settled else None

    def _pick_any(self, caller: Caller) -> Process | None:
        children = [
            child
            for child in self._roster.children(caller.aid)
            if not child.reaped and (caller.aid or child.uid == caller.uid)
        ]
        if not children:
            raise ChildProcessError(errno.ECHILD, f"wait: {caller} has no child left to wait for")
        settled = [child for child in children if child.settled and child.ending]
        return min(settled, key=lambda child: child.ending.ended, default=None)  # type: ignore[union-attr]

    async def _reap(self, process: Process, status: ExitStatus) -> None:
        process.reaped = True
        try:
            await self._roster.save(process, more=answering(status))
        except BaseException:
            process.reaped = False  # nobody was told: the zombie stays
            self._roster.save_soon(process)
            raise

    def wake(self, process: Process) -> None:
        """Let those who wait for a process, or for any child of its parent, look again."""
        for key in (process.aid, ~process.parent):
            for future in self._waiters.pop(key, ()):
                if not future.done():
                    future.set_result(process)


def _facts(process: Process, ending: Ending) -> dict[str, object]:
    return {
        "name": process.name,
        "parent": process.parent,
        "code": ending.code,
        "signal": ending.signal,
        "reason": ending.reason,
    }
