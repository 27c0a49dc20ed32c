"""The process table: the managers of agents put together, and the calls about single rows.

    table = ProcessTable(config, db, events, access, partial(Spawner, agents_dir))
    table.listener = generations
    await table.boot()                 # finds again what an earlier kernel left running
    dispatcher.bind(*table.managers)
    await table.close()                # agents live on

Where to look: process.py is a row, roster.py all of them; births.py and identity.py make agents of
programs and connections, signals.py and reaper.py end them, history.py remembers them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

from aiosd.abi.process import (
    Agent,
    GetPriority,
    GetStatus,
    ListAgents,
    Priority,
    SetPriority,
    Status,
    UpdateAgentConfig,
)
from aiosd.access import Access, Caller
from aiosd.births import Births
from aiosd.db import Database
from aiosd.events import Events
from aiosd.history import History
from aiosd.identity import Identities
from aiosd.interactions import Interactions
from aiosd.journal import Write
from aiosd.process import ENDED, Activity, Ending, Listener, Process
from aiosd.reaper import Reaper
from aiosd.roster import Note, Roster
from aiosd.settings import Config
from aiosd.signals import Signals
from aiosd.spawn import ExitRecord, Shim, Spawner, Watcher

__all__ = ["Activity", "Listener", "Process", "ProcessTable"]

log = logging.getLogger(__name__)

ADOPTED_AT_ONCE: Final = 64


class ProcessTable:
    """All agents. Implements access.Kinship and spawn.Watcher.

    spawner: makes the Spawner that reports to this table. channels: each says what an agent that
    generates nothing waits for beside its program, "" where it knows of nothing. managers: the
    objects whose sys_ methods serve the calls of the process group. interactions: what agents asked
    and were answered.
    """

    def __init__(
        self,
        config: Config,
        db: Database,
        events: Events,
        access: Access,
        spawner: Callable[[Watcher], Spawner],
    ) -> None:
        self.config = config
        self.channels: list[Callable[[int], str]] = []
        self._access = access
        self._spawner = spawner(self)
        self._roster = Roster(db, events, access, config.history.keep_events)
        self._reaper = Reaper(self._roster, lambda: self.config.history.keep_ended)
        self._identities = Identities(self._roster, self._reaper)
        self._births = Births(
            lambda: self.config, self._roster, self._reaper, self._identities, self._spawner, access
        )
        self._signals = Signals(self._roster, self._reaper, access)
        self.interactions = Interactions(db, lambda: self.config.history)
        self._history = History(self._roster, self._spawner, access, self.interactions)
        self._reaper.clear = self._births.clear
        self._reaper.on_settled.append(self._history.rouse)
        self.managers = (
            self, self._births, self._identities, self._reaper, self._signals, self._history,
        )  # fmt: skip
        access.kin = self

    # -- for the rest of the kernel -------------------------------------------------------------

    @property
    def listener(self) -> Listener:
        """Who serves the agents' requests."""
        return self._roster.listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._roster.listener = listener

    def on_settled(self, tell: Callable[[int], None]) -> None:
        """Have `tell(aid)` called once an agent's end is durable."""
        self._reaper.on_settled.append(tell)

    def on_forked(self, tell: Callable[[int, int], None]) -> None:
        """Have `tell(parent, child)` called in a fork; OSError when the child can't be."""
        self._births.on_forked.append(tell)

    def on_birth(self, may: Callable[[int, int], None]) -> None:
        """Have `may(parent, uid)` asked before each birth; OSError when it may not be."""
        self._births.bear = may

    def on_spawn(self, gateway: Callable[[str], dict[str, str]]) -> None:
        """Have `gateway(key)` asked what a program finds of it in its environment; {}: nothing."""
        self._births.gateway = gateway

    def children(self, subject: str, covers: Callable[[str, int], bool]) -> int:
        """Return how many agents live that count for a subject: of an agent, those below it.

        covers: says whether an agent counts for it, itself included.
        """
        living = [process.aid for process in self._roster if process.ending is None]
        return sum(subject != f"agent:{aid}" and covers(subject, aid) for aid in living)

    def reload(self, config: Config) -> None:
        """Take on a configuration that was read again."""
        self.config = config
        self._roster.keep_events = config.history.keep_events
        self.interactions.reload()

    def get(self, aid: int) -> Process:
        """Return an agent that may ask for service; ESRCH when there is none, or it has ended."""
        process = self._roster.get_alive(aid)
        if not process.alive:
            raise ProcessLookupError(errno.ESRCH, f"agent {aid} was killed")
        return process

    def uid_of(self, aid: int) -> int:
        """Return the uid that owns an agent, ended ones included; ESRCH when there is none."""
        return self._roster.uid_of(aid)

    def lineage(self, aid: int) -> tuple[int, ...]:
        """Return all forebears of an agent at its birth, oldest first; ESRCH when there is none."""
        return self._roster.lineage(aid)

    async def attach(self, caller: Caller, credential: str) -> tuple[Process, str]:
        """Make the caller the agent that a credential proves; see Identities.attach."""
        return await self._identities.attach(caller, credential)

    def note(self, kind: str, aid: int = 0, data: dict[str, Any] | None = None) -> None:
        """Enter a record in the history and tell the watchers; not waited for."""
        self._roster.note(kind, aid, data)

    def account(
        self,
        aid: int,
        *,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cached: int = 0,
        waiting_s: float = 0.0,
        turnaround_s: float = 0.0,
        dollars: float = 0.0,
        note: Note,
    ) -> Write:
        """Add one request's use to an agent's totals; nothing when it is no longer kept.

        note: its record in the history. Returns what makes both durable, to be written with the
        request's end.
        """
        process = self._roster.find(aid)
        if process is None:
            return self._roster.part(notes=[note])
        used = process.used
        used.requests += 1
        used.tokens_in += tokens_in
        used.tokens_out += tokens_out
        used.cached_tokens += cached
        used.waiting_s += waiting_s
        used.turnaround_s += turnaround_s
        used.dollars += dollars
        return self._roster.part(process, notes=[note])

    def counts(self) -> dict[str, int]:
        """Return how many agents are in each state."""
        found: dict[str, int] = {}
        for process in self._roster:
            if not process.unborn:
                state = process.state(self._activity(process))
                found[state] = found.get(state, 0) + 1
        return found

    # -- boot and close -------------------------------------------------------------------------

    async def boot(self) -> None:
        """Read the table and find again every agent that lived when the last kernel ended."""
        await self._roster.load()
        self.interactions.boot()
        places = self._spawner.aids()
        self._roster.reserve(max(places, default=0))
        await asyncio.to_thread(self._clear, [aid for aid in places if aid not in self._roster])
        gate = asyncio.Semaphore(ADOPTED_AT_ONCE)

        async def find(process: Process) -> None:
            async with gate:
                await self._find(process)

        living = [process for process in self._roster if process.ending is None]
        await asyncio.gather(*map(find, living))

    async def close(self) -> None:
        """Finish what has begun and let go of the agents; those with a process live on."""
        await self.interactions.close()
        await self._births.close()
        await self._reaper.close()
        for process in self._roster:
            process.stop_waiting()
            if process.shim is not None:
                process.shim.detach()
                await process.shim.closed()

    async def _find(self, process: Process) -> None:
        """Find an agent's process again, or how it ended; one without waits for its program."""
        if not process.has_process:
            self._identities.expect(process, self.config.agents.orphan_timeout, "lost")
            return
        found = await self._spawner.adopt(process.aid)
        if isinstance(found, ExitRecord):
            await self._reaper.end(process, _ending(found))
        elif found is None:
            await self._reaper.end(process, Ending("lost", time.time()))
        elif process.ending is None:
            await self._adopt(process, found)

    async def _adopt(self, process: Process, shim: Shim) -> None:
        """Go on with an agent that lives. The signal repeats one that may not have been sent."""
        process.shim = shim
        if shim.record is None:
            self._signals.repeat(process)
            note = Note("agent.adopted", process.aid, {"pid": process.pid})
            await self._roster.save(notes=[note])

    def _clear(self, aids: list[int]) -> None:
        for aid in aids:
            log.warning("agent %d has a directory and no row: deleting what is left of it", aid)
            self._births.clear(aid)

    # -- spawn.Watcher --------------------------------------------------------------------------

    def on_started(self, shim: Shim, pid: int) -> None:
        """Take up the pid of a program whose start an earlier kernel did not live to see."""
        process = self._roster.find(shim.aid)
        if process is not None and not process.unborn and not process.pid:
            process.pid = pid
            process.started = shim.started or time.time()
            try:
                self._roster.save_soon(process)
            except OSError as error:  # its next row that is written has the pid too
                log.warning("the start of agent %d is not on record: %s", process.aid, error)

    def on_exec_failed(self, shim: Shim, record: ExitRecord) -> None:
        """The program could not be run: its birth fails, or failed under an earlier kernel."""
        process = self._roster.find(shim.aid)
        if process is None or process.withdrawn:
            shim.bye()
        elif not process.unborn:
            self._ended(process, shim, _ending(record))

    def on_log(self, shim: Shim, size: int) -> None:
        """There is output."""
        self._history.rouse(shim.aid)

    def on_exit(self, shim: Shim, record: ExitRecord) -> None:
        """The agent and its whole tree have ended."""
        self._over(shim, _ending(record))

    def on_lost(self, shim: Shim) -> None:
        """The shim was killed, and the tree with it."""
        self._over(shim, Ending("lost", time.time()))

    def _over(self, shim: Shim, ending: Ending) -> None:
        process = self._roster.find(shim.aid)
        if process is None or (process.unborn and process.withdrawn):  # its birth is being undone
            if shim.record is not None:
                shim.bye()
        elif process.unborn:
            process.early = ending
        else:
            self._ended(process, shim, ending)

    def _ended(self, process: Process, shim: Shim, ending: Ending) -> None:
        process.shim = shim
        self._reaper.end_soon(process, ending)

    # -- the calls ------------------------------------------------------------------------------

    def sys_list_agents(self, caller: Caller, args: ListAgents) -> list[Agent]:
        """List the agents that the caller may see: those alive or zombie, or all that are kept.

        By aid; the newest when there are more than `limit`.
        """
        found = [
            process
            for process in self._roster
            if (args.all or not process.dead)
            and not process.unborn
            and args.aid in (0, process.aid)
            and self._access.may_see(caller, process.aid)
        ]
        found.sort(key=lambda process: process.aid)
        return [
            process.row(self._activity(process), self._access.groups(process.aid))
            for process in found[-args.limit :]
        ]

    def sys_get_status(self, caller: Caller, args: GetStatus) -> Status:
        """Say in which state an agent is."""
        self._access.over(caller, args.aid, "get_status")
        process = self._roster.get(args.aid)
        row = process.row(self._activity(process))
        return Status(row.aid, row.state, row.note, row.waiting)

    def sys_get_priority(self, caller: Caller, args: GetPriority) -> Priority:
        """Return an agent's nice value."""
        self._access.over(caller, args.aid, "get_priority")
        return Priority(args.aid, self._roster.get(args.aid).nice)

    async def sys_set_priority(self, caller: Caller, args: SetPriority) -> Priority:
        """Set an agent's nice value; EACCES for a lower one without the right to it."""
        process = self._roster.get_alive(args.aid)
        if args.nice < process.nice and not self._access.superuser(caller):
            raise PermissionError(
                errno.EACCES,
                f"nice: {args.nice} is below {process.nice}; "
                "only the daemon's owner or root, in person, goes lower",
            )
        process.nice = args.nice
        self.listener.agent_reniced(process.aid, args.nice)
        await self._roster.save(
            process, notes=[Note("agent.nice", process.aid, {"nice": args.nice})]
        )
        return Priority(process.aid, args.nice)

    async def sys_update_agent_config(self, caller: Caller, args: UpdateAgentConfig) -> None:
        """Change an agent's name or the max_tokens that its requests start with."""
        process = self._roster.get_alive(args.aid)
        process.name = args.name or process.name
        process.max_tokens = args.max_tokens or process.max_tokens
        facts = {"name": process.name, "max_tokens": process.max_tokens}
        await self._roster.save(process, notes=[Note("agent.note", process.aid, facts)])

    def _activity(self, process: Process) -> Activity:
        if process.ending is not None:
            return ENDED
        activity = self.listener.activity(process.aid)
        if activity.waiting == "program":
            for channel in self.channels:
                if waiting := channel(process.aid):
                    return dataclasses.replace(activity, waiting=waiting)
        return activity


def _ending(record: ExitRecord) -> Ending:
    reason = record.reason
    if record.errno is not None:
        reason = f"exec_failed: {os.strerror(record.errno)}"
    return Ending(reason, record.ended or time.time(), record.code, record.signal, record.cpu_s)
