"""Quotas: what is asked before anything limited is given, and what is charged afterwards.

    quotas.admit(aid, "llm_generate")                  # may it have one more request? else EDQUOT
    write = quotas.open(rid, aid)                      # it has one; to go with the journal's begin
    durable = quotas.reserve(rid, amounts, call)       # at worst so much; to be waited for
    write = quotas.settle(rid, spent, use)             # to go with the journal's end
    durable = quotas.take(aid, uid, "tool_calls", call)  # one is used up, without a reservation
    quotas.hold(subjects, amounts, call)               # what is held until it is let go of

The rules are in limits.py, the rows in accounts.py, who may set a limit in budgets.py. The check is
in memory; where limits bind, a reservation is on disk before its request is on a core, those of
LINGER together.

What must hold: what is on disk as used and reserved, and what an unsettled request may have used,
never exceeds a hard limit; a kernel that finds reservations of an earlier one settles each, by what
the journal says or, where that says nothing, at worst.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from aiosd import accounts
from aiosd.accounts import DAY, Use
from aiosd.killpoint import reach
from aiosd.limits import RESOURCES, Book, Exceeded, Limit, Reservation, check, refusal, value

if TYPE_CHECKING:
    from aiosd.access import Access
    from aiosd.db import Database
    from aiosd.events import Events
    from aiosd.journal import Write

LINGER: Final = 0.005
"""Seconds that a reservation waits for others, to be committed with them."""

CACHED: Final = 65_536
"""Agents whose limits are known by heart."""

ONE_MORE: Final = {"requests": 1, "concurrent": 1}
"""What a request takes whatever it asks for."""

SCARCE: Final = {"requests": 1, "concurrent": 1, "tokens": 1}
"""What must be left for one to be taken on."""

FLEETING: Final = frozenset({"children", "kv_bytes", "working_bytes"})
"""What is counted anew each time, where there is a limit."""

Binding = Mapping[str, tuple[Limit, ...]]
Count = Callable[[str], int]
"""Says how much a subject holds of something."""


async def _nothing_to_prepare(subject: str) -> None:
    """All can be counted at once."""


class Quotas:
    """All limits in force. clock: Unix time. keep: seconds for which what was used is kept.

    counts: says of what is held, by resource, how much a subject holds. prepare: makes sure that
    this can be said of a subject; asked before a limit on it counts.
    """

    def __init__(
        self,
        db: Database,
        access: Access,
        events: Events,
        keep: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.book = Book()
        self.keep = keep
        self.clock = clock
        self.counts: dict[str, Count] = {}
        self.prepare: Callable[[str], Awaitable[None]] = _nothing_to_prepare
        self._db = db
        self._access = access
        self._events = events
        self._epoch = -1
        self._subjects: dict[int, tuple[str, ...]] = {}
        self._bindings: dict[tuple[str, ...], Binding] = {}
        self._of_agents: dict[int, Binding] = {}  # what of these binds an agent's requests
        self._unsettled: set[int] = set()  # of an earlier kernel
        self._waiting: dict[int, None] = {}  # reservations on their way to the disk
        self._batch: asyncio.Future[None] | None = None
        self._day = 0

    # Boot.

    async def boot(self) -> None:
        """Read limits and what the last kernel had reserved; before requests are taken up."""
        limits, reservations = await self._db.read(accounts.load)
        for reservation in reservations:
            self.book.open[reservation.rid] = reservation
        self._unsettled = set(self.book.open)
        gone = [limit.name for limit in limits if self._gone(limit.subject)]
        for limit in limits:
            if limit.name not in gone:
                await self.enter(limit)
        if gone:
            self._db.write_soon(accounts.dropping(gone))

    def resume(self, rid: int, aid: int) -> None:
        """A request of an earlier kernel is there again: it keeps its reservation."""
        self._unsettled.discard(rid)
        if rid not in self.book.open:
            self.book.open[rid] = Reservation(rid, aid, self.subjects(aid))

    async def resolve(self) -> None:
        """Settle the reservations of requests that nobody took up, at worst."""
        for rid in sorted(self._unsettled):
            self._db.write_soon(self.settle(rid, self.book.open[rid].amounts, None))
        self._unsettled.clear()

    def _gone(self, subject: str) -> bool:
        kind, _, name = subject.partition(":")
        return kind == "agent" and not self._access.known(int(name))

    # Limits.

    @property
    def active(self) -> bool:
        """Whether there is any limit."""
        return bool(len(self.book))

    async def enter(self, limit: Limit) -> None:
        """Let a limit bind from now on."""
        if not RESOURCES[limit.resource].flows:
            limit.used = None
            await self.prepare(limit.subject)
        self.put(limit)

    def put(self, limit: Limit) -> None:
        """Let a limit bind; what is held has been prepared."""
        self.book.put(limit)
        self._changed()

    def drop(self, limit: Limit) -> None:
        """Let a limit bind no more."""
        self.book.drop(limit.name)
        self._changed()

    def prune(self) -> list[Limit]:
        """Drop limits of agents of which nothing is kept any more; return them."""
        gone = [limit for limit in self.book if self._gone(limit.subject)]
        for limit in gone:
            self.drop(limit)
        return gone

    def subjects(self, aid: int) -> tuple[str, ...]:
        """Return whom an agent's use is charged to: itself, its forebears, its uid, its groups."""
        self._look()
        found = self._subjects.get(aid)
        if found is None:
            if len(self._subjects) >= CACHED:
                self._subjects.clear()
            found = self._subjects[aid] = self._charged(aid)
        return found

    def covers(self, subject: str, aid: int) -> bool:
        """Whether what an agent holds counts for a subject."""
        return self._access.known(aid) and subject in self.subjects(aid)

    def binding(self, subjects: tuple[str, ...]) -> Binding:
        """Return the limits that bind who is charged to these, by resource."""
        found = self._bindings.get(subjects)
        if found is None:
            if len(self._bindings) >= CACHED:
                self._bindings.clear()
            found = self._bindings[subjects] = self.book.binding(subjects)
        return found

    def held(self, limit: Limit) -> int:
        """Return how much is used, or held, of what a limit counts."""
        self._count(limit)
        limit.roll(self.clock())
        return limit.used or 0

    def _changed(self) -> None:
        """Forget which limits bind whom."""
        self._bindings.clear()
        self._of_agents.clear()

    def _look(self) -> None:
        """Forget who is in which group when that may have changed."""
        self._access.expire()
        if self._epoch != self._access.epoch:
            self._epoch = self._access.epoch
            self._subjects.clear()
            self._of_agents.clear()

    def _charged(self, aid: int) -> tuple[str, ...]:
        kin = self._access.kin
        assert kin is not None
        line = (aid, *reversed(kin.lineage(aid)))
        groups = sorted(self._access.groups(aid))
        agents = (f"agent:{each}" for each in line)
        return (*agents, f"uid:{kin.uid_of(aid)}", *(f"group:{name}" for name in groups))

    def _count(self, limit: Limit) -> None:
        """Know how much is held."""
        if RESOURCES[limit.resource].flows or limit.resource not in self.counts:
            return
        self._look()
        stale = limit.used is None or limit.epoch != self._epoch
        if stale or limit.resource in FLEETING:
            limit.used, limit.epoch = self.counts[limit.resource](limit.subject), self._epoch

    # Requests.

    def admit(self, aid: int, call: str) -> None:
        """Return when an agent may have one more request; raise OSError(EDQUOT) if not."""
        if not len(self.book):
            return
        self._look()
        binding = self._of_agents.get(aid)
        if binding is None:
            whole = self.binding(self.subjects(aid))
            binding = {name: limits for name, limits in whole.items() if name in SCARCE}
            if len(self._of_agents) >= CACHED:
                self._of_agents.clear()
            self._of_agents[aid] = binding
        if binding:
            self._check(binding, SCARCE, call, aid)

    def open(self, rid: int, aid: int, *, internal: bool = False) -> list[Write]:
        """Take a request in; returns what is to be written with the journal's begin.

        internal: the kernel's own for an agent, which counts in tokens alone.
        """
        reservation = Reservation(rid, aid, self.subjects(aid))
        self.book.reserve(reservation, {} if internal else ONE_MORE, self.clock())
        return [accounts.reserving([reservation])] if self.binding(reservation.subjects) else []

    def reserve(
        self, rid: int, amounts: Mapping[str, int], call: str
    ) -> asyncio.Future[None] | None:
        """Reserve what a request takes at worst; the future is done when that is on disk.

        None: no limit binds. Raises OSError(EDQUOT) with nothing reserved.
        """
        reservation = self.book.open[rid]
        binding = self.binding(reservation.subjects)
        for limit in binding.get("kv_bytes", ()):
            self._count(limit)
        try:
            over = self.book.reserve(reservation, amounts, self.clock())
        except Exceeded as error:
            raise self._refused(error, call, reservation.aid) from None
        self._tell(over)
        return self._soon(rid) if binding else None

    def lacking(self, rid: int, resource: str, amount: int) -> int:
        """Return by how much the hard limits on what is held are short for a request."""
        reservation = self.book.open[rid]
        more = amount - reservation.amounts.get(resource, 0)
        limits = self.binding(reservation.subjects).get(resource, ())
        for limit in limits:
            self._count(limit)
        return max((more - limit.left for limit in limits if limit.hard), default=0)

    def settle(self, rid: int, spent: Mapping[str, int], use: Use | None) -> Write:
        """End a request's reservation; returns what is to be written with the journal's end."""
        now = self.clock()
        charges = self.book.settle(rid, spent, now)
        self._waiting.pop(rid, None)
        self._tell([limit for limit, _ in charges if not limit.hard and limit.left < 0])
        self._sweep(now)
        return accounts.settling(rid, charges, use, now)

    def take(self, aid: int, uid: int, resource: str, call: str) -> Awaitable[None] | None:
        """Use one of what flows, before it is known what comes of it; wait for what is returned.

        aid: whose it is, 0: the person's of the uid. None: no limit binds, which costs next to
        nothing to find out. Raises OSError(EDQUOT) with nothing used.
        """
        if not len(self.book):
            return None
        subjects = self.subjects(aid) if aid else (f"uid:{uid}",)
        limits = self.binding(subjects).get(resource)
        if not limits:
            return None
        self._check({resource: limits}, {resource: 1}, call, aid)
        for limit in limits:
            limit.used = (limit.used or 0) + 1
        return self._charge(limits)

    async def _charge(self, limits: tuple[Limit, ...]) -> None:
        """Have one more used of each limit on disk; where that fails, nothing was used."""
        try:
            await self._db.write(accounts.charging([(limit, 1) for limit in limits]))
        except OSError:
            for limit in limits:
                limit.used = max(0, (limit.used or 0) - 1)
            raise

    def _sweep(self, now: float) -> None:
        """Once a day, forget what was used long ago."""
        if int(now // DAY) != self._day:
            self._day = int(now // DAY)
            before = now - self.keep
            self._db.write_soon(lambda db: accounts.forget(db, before))

    # What is held.

    def hold(self, subjects: tuple[str, ...], amounts: Mapping[str, int], call: str) -> None:
        """Count something in for whoever is charged to these subjects, or (below 0) out.

        call: who wants it; "": it is so already. Raises OSError(EDQUOT), with nothing counted.
        """
        if not len(self.book):
            return
        binding = self.binding(subjects)
        wanted = {resource: amounts[resource] for resource in amounts if resource in binding}
        if not wanted:
            return
        for resource, amount in wanted.items():
            for limit in binding[resource]:
                if amount > 0:
                    self._count(limit)
        if call:
            self._check(binding, wanted, call, 0)
        for resource, amount in wanted.items():
            for limit in binding[resource]:
                if limit.used is not None and limit.epoch == self._epoch:
                    limit.used += amount

    def may_hold(self, aid: int, amounts: Mapping[str, int], call: str) -> None:
        """Return when an agent may have so much more of what is counted anew."""
        if len(self.book):
            self._may_hold(self.subjects(aid), amounts, call, aid)

    def bear(self, parent: int, uid: int) -> None:
        """Return when an agent, or a person (0), may have one more child."""
        if len(self.book):
            subjects = self.subjects(parent) if parent else (f"uid:{uid}",)
            self._may_hold(subjects, {"children": 1}, "spawn", parent)

    def _may_hold(
        self, subjects: tuple[str, ...], amounts: Mapping[str, int], call: str, aid: int
    ) -> None:
        binding = self.binding(subjects)
        for resource in amounts:
            for limit in binding.get(resource, ()):
                self._count(limit)
        self._check(binding, amounts, call, aid)

    def room(self, aid: int, resource: str) -> int | None:
        """Return how much more of what is counted anew an agent may hold; None: any amount."""
        limits = self.binding(self.subjects(aid)).get(resource, ()) if len(self.book) else ()
        for limit in limits:
            self._count(limit)
        return min((max(0, limit.left) for limit in limits if limit.hard), default=None)

    def lifted(self, subject: str, resource: str) -> bool:
        """Whether root set a limit of a subject's own: the configuration's default is no more."""
        return self.book.get((subject, resource, "root")) is not None

    # Inside.

    def _check(self, binding: Binding, more: Mapping[str, int], call: str, aid: int) -> None:
        try:
            over = check(binding, more, self.clock())
            if over:
                self._tell(over)
        except Exceeded as error:
            raise self._refused(error, call, aid) from None

    def _refused(self, error: Exceeded, call: str, aid: int) -> OSError:
        limit = error.limit
        facts = {"call": call, "subject": limit.subject, "resource": limit.resource}
        self._events.emit("quota.refused", aid, **facts)
        return refusal(error, call, self.clock())

    def _tell(self, over: Iterable[Limit]) -> None:
        """Tell of soft limits that are exceeded, once in a period."""
        for limit in over:
            if not limit.told:
                limit.told = True
                kind, _, name = limit.subject.partition(":")
                self._events.emit(
                    "quota.over",
                    int(name) if kind == "agent" else 0,
                    subject=limit.subject,
                    resource=limit.resource,
                    limit=value(limit.resource, limit.amount),
                )

    # Commits.

    def _soon(self, rid: int) -> asyncio.Future[None]:
        """Have a reservation written, with all that come within LINGER."""
        loop = asyncio.get_running_loop()
        self._waiting[rid] = None
        if self._batch is None:
            self._batch = loop.create_future()
            self._batch.add_done_callback(_heed)
            loop.call_later(LINGER, self._write)
        return self._batch

    def _write(self) -> None:
        batch, self._batch = self._batch, None
        assert batch is not None
        rows = [self.book.open[rid] for rid in self._waiting]
        self._waiting.clear()
        try:
            written = self._db.submit(accounts.reserving(rows))
        except OSError as error:
            batch.set_exception(error)
        else:
            written.add_done_callback(lambda done: _pass_on(done, batch))


def _pass_on(done: asyncio.Future[None], batch: asyncio.Future[None]) -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        batch.set_exception(error)
        return
    reach("quota.reserved")
    batch.set_result(None)


def _heed(batch: asyncio.Future[None]) -> None:
    """Whoever waits has the error; where nobody does any more, it is nobody's."""
    if not batch.cancelled():
        batch.exception()
