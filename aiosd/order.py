"""The order among requests: `after` in llm_generate, requests that wait until others have ended.

    await order.turn(generation)    # returns when those that it names have ended

It asks for order and not for success: however those end (done, failed, cancelled), it runs then.
Until then its agent sleeps on `after:REQUEST`, and under policies that know importance (priority,
mlfq, fair) what it waits for counts for as much as it does, so that work of little importance
doesn't hold up work of much.

What must hold: a request waits for earlier ones only, so nobody waits in a circle; every wait ends
when the last of those has ended, or with its own request. A kernel that takes up requests of an
earlier one asks again: what has ended meanwhile is in the table of requests.
"""

from __future__ import annotations

import asyncio
import errno
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from aiosd.access import Access, Caller
from aiosd.cores.core import Core
from aiosd.cores.dispatcher import Cores
from aiosd.generation import Generation
from aiosd.sched import Task

if TYPE_CHECKING:
    from aiosd.db import Connection, Database
    from aiosd.events import Events

REMEMBERED: Final = 65_536
"""Ended requests known by heart: more than can be on their way to the disk."""


@dataclass(slots=True, eq=False)
class _Wait:
    """pending: the requests that have not ended. lenders: cores that know of it."""

    pending: dict[int, None]
    over: asyncio.Future[None]
    task: Task
    lenders: list[Core]


class Order:
    """Which requests are open, which have ended, and who waits for whom."""

    def __init__(self, cores: Cores, db: Database, events: Events, access: Access) -> None:
        self._cores = cores
        self._db = db
        self._events = events
        self._access = access
        self._open: dict[int, Generation] = {}
        self._past: OrderedDict[int, int] = OrderedDict()  # ended request: its agent
        self._waits: dict[int, _Wait] = {}  # by the request that waits
        self._behind: dict[int, list[_Wait]] = {}  # by the request that is waited for

    def opened(self, generation: Generation) -> None:
        """A request was taken on."""
        self._open[generation.rid] = generation

    def ended(self, generation: Generation) -> None:
        """A request has ended; those who waited for it alone go on."""
        del self._open[generation.rid]
        self._past[generation.rid] = generation.aid
        if len(self._past) > REMEMBERED:
            self._past.popitem(last=False)
        for wait in self._behind.pop(generation.rid, ()):
            wait.pending.pop(generation.rid, None)
            if not wait.pending and not wait.over.done():
                wait.over.set_result(None)

    @property
    def flight(self) -> Collection[Generation]:
        """The requests that are open, the oldest first."""
        return self._open.values()

    def channel(self, rid: int) -> str:
        """The wait channel of a request that waits here, else ""."""
        wait = self._waits.get(rid)
        return f"after:{next(iter(wait.pending))}" if wait is not None and wait.pending else ""

    def reniced(self, generation: Generation, nice: int) -> None:
        """A request that may be waiting lends another importance from now on."""
        wait = self._waits.get(generation.rid)
        if wait is not None:
            self._take_back(wait)
            wait.task = replace(wait.task, nice=nice)
            self._lend(wait)

    async def turn(self, generation: Generation, nice: int) -> None:
        """Return when the requests in a generation's `after` have ended.

        nice: its agent's. Raises OSError(ENOENT) for a request that doesn't exist, came later, or
        is not the agent's to see.
        """
        if not generation.args.after:
            return
        pending = await self._pending(generation)
        if not pending:
            return
        sequence = generation.context.sequence
        waits_for = tuple(self._open[rid].context.cid for rid in pending)
        task = Task(sequence.cid, sequence.aid, nice, sequence.uid, 0, waits_for=waits_for)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wait = _Wait(dict.fromkeys(pending), over, task, [])
        self._events.emit("sched.wait", generation.aid, request=generation.rid, after=pending)
        await self._stand(generation.rid, wait)
        self._events.emit("sched.ready", generation.aid, request=generation.rid)

    async def _stand(self, rid: int, wait: _Wait) -> None:
        self._waits[rid] = wait
        for other in wait.pending:
            self._behind.setdefault(other, []).append(wait)
        self._lend(wait)
        try:
            await wait.over
        finally:
            self._take_back(wait)
            del self._waits[rid]
            for other in wait.pending:
                self._behind[other].remove(wait)

    def _lend(self, wait: _Wait) -> None:
        """Let all cores know: what is waited for, or what that waits for, may be on any."""
        wait.lenders = list(self._cores)
        for core in wait.lenders:
            core.queue.wait(wait.task)

    def _take_back(self, wait: _Wait) -> None:
        for core in wait.lenders:
            core.queue.unwait(wait.task.id)
        wait.lenders = []

    async def _pending(self, generation: Generation) -> list[int]:
        """Return the requests in `after` that have not ended."""
        wanted = list(dict.fromkeys(generation.args.after))
        known = {rid: self._open[rid].aid for rid in wanted if rid in self._open}
        known |= {rid: self._past[rid] for rid in wanted if rid in self._past}
        if missing := [rid for rid in wanted if rid not in known]:
            known |= await self._db.read(lambda db: _owners(db, missing))
        for rid in wanted:
            owner = known.get(rid)
            earlier = owner is not None and rid < generation.rid
            if not earlier or not self._visible(generation.aid, owner):
                raise FileNotFoundError(
                    errno.ENOENT,
                    f"llm_generate: after: no earlier request {rid} of this agent or one below it; "
                    "a reply, and each chunk of a stream, says its request's id",
                )
        return [rid for rid in wanted if rid in self._open]

    def _visible(self, aid: int, owner: int | None) -> bool:
        if owner is None or owner == aid:
            return owner is not None
        return self._access.may_see(Caller(-1, -1, 0, aid), owner)


def _owners(db: Connection, rids: Iterable[int]) -> dict[int, int]:
    """Return the agents of requests on record."""
    marks = ",".join(str(int(rid)) for rid in rids)
    rows = db.query(f"select id, aid from requests where id in ({marks})")
    return {row["id"]: row["aid"] for row in rows}
