"""Owners: whose a record of semantic memory or a stored object is, and how much they hold.

    owner = await owners.find(caller, args.pool)
    owner.memory.take(records=1, bytes=size, limits)    # EDQUOT when it is too much
    owner.memory.give(records=1, bytes=size)            # when it is gone, or could not be written

An agent owns what it stores, a person (a connection that is no agent) what he stores, by uid; a
pool belongs to a group, and access decides who may read and write it. What an agent stored
outlives it, and nobody inherits it: not a later agent of the same name.

What must hold: the counts are those of the database plus what is being written just now, so no
interleaving exceeds a limit. They are read once, before the first write of this kernel, or when
somebody sets a quota that they count for.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from aiosd.access import Access, Caller
from aiosd.accounts import line_of

if TYPE_CHECKING:
    from aiosd.db import Connection, Database

_INSERT: Final = "insert or ignore into owners (kind, name, uid, line) values (?, ?, ?, ?)"
_SELECT: Final = "select id, reserved, uid, line from owners where kind = ? and name = ?"
_MEMORY: Final = "select count(*), coalesce(sum(size), 0) from memories where owner = ?"
_STORED: Final = (
    "select count(distinct objects.id), coalesce(sum(size), 0) from objects"
    " join versions on object = objects.id where owner = ?"
)

ANY: Final = 1 << 62
"""More than anybody can hold."""


class Keeper(Protocol):
    """Who is asked about quotas (quota.Quotas)."""

    @property
    def active(self) -> bool:
        """Whether there is any."""

    def hold(self, subjects: tuple[str, ...], amounts: Mapping[str, int], call: str) -> None:
        """Count something in or, below 0, out; OSError(EDQUOT) when it is too much.

        call: who wants it; "": it is so already, and is only counted.
        """

    def lifted(self, subject: str, resource: str) -> bool:
        """Whether a quota takes the place of the configuration's limit."""

    def subjects(self, aid: int) -> tuple[str, ...]:
        """Return whom what an agent holds is charged to."""


class Unlimited:
    """The keeper until there is one."""

    active = False

    def hold(self, subjects: tuple[str, ...], amounts: Mapping[str, int], call: str) -> None:
        """There are no quotas."""

    def lifted(self, subject: str, resource: str) -> bool:
        """There are no quotas."""
        return False

    def subjects(self, aid: int) -> tuple[str, ...]:
        """Nobody is charged."""
        return ()


@dataclass(slots=True)
class Party:
    """An owner as quotas know it. name: its own subject; line: of an agent, with its forebears."""

    keeper: Keeper
    name: str
    aid: int = 0
    uid: int = -1
    line: str = ""

    def subjects(self) -> tuple[str, ...]:
        """Return whom what it holds is charged to. Of an agent long gone, what its line says."""
        if not self.aid:
            return (self.name,)
        try:
            return self.keeper.subjects(self.aid)
        except ProcessLookupError:
            agents = tuple(f"agent:{aid}" for aid in self.line.strip("/").split("/"))
            return (*reversed(agents), f"uid:{self.uid}")


@dataclass(slots=True)
class Holding:
    """What an owner holds of one kind: how many, and bytes. name: for messages.

    fault: why that is not known, where the database is damaged: nothing more is taken in then.
    """

    name: str
    setting: str
    party: Party
    counts: tuple[str, str]  # the resources that number and bytes are, to quotas
    count: int = 0
    bytes: int = 0
    fault: OSError | None = None

    def take(self, count: int, bytes: int, max_count: int, max_bytes: int, call: str) -> None:
        """Count something new in; raises OSError(EDQUOT) that names the limit."""
        self._check(count, bytes, max_count, max_bytes, call)
        self._tell(count, bytes, call)
        self.count += count
        self.bytes += bytes

    def most(self, count: int, bytes: int) -> tuple[int, int]:
        """Return what it may hold where the configuration says so much: root may have lifted it."""
        keeper, name = self.party.keeper, self.party.name
        if not keeper.active:
            return count, bytes
        lifted = keeper.lifted
        return (
            ANY if lifted(name, self.counts[0]) else count,
            ANY if lifted(name, self.counts[1]) else bytes,
        )

    def _tell(self, count: int, bytes: int, call: str) -> None:
        if not self.party.keeper.active:
            return
        amounts = dict(zip(self.counts, (count, bytes), strict=True))
        self.party.keeper.hold(self.party.subjects(), amounts, call)

    def _check(self, count: int, bytes: int, max_count: int, max_bytes: int, call: str) -> None:
        if self.fault is not None:
            raise OSError(self.fault.errno, f"{call}: {self.fault.strerror}")
        if count > 0 and self.count + count > max_count:
            raise OSError(
                errno.EDQUOT,
                f"{call}: you hold {self.count} {self.name}, the limit is {max_count} "
                f"({self.setting}); delete some first",
            )
        if bytes > 0 and self.bytes + bytes > max_bytes:
            raise OSError(
                errno.EDQUOT,
                f"{call}: {bytes} bytes more than the {self.bytes} that your {self.name} have "
                f"exceed the limit of {max_bytes} ({self.setting}); delete some first",
            )

    def give(self, count: int, bytes: int) -> None:
        """Count something out; never refused, whatever it turns out to be."""
        self._tell(-count, -bytes, "")
        self.count -= count
        self.bytes -= bytes


@dataclass(slots=True, eq=False)
class Owner:
    """Who owns records. kind: agent, uid or pool; name: its aid, uid or name. reserved: bytes.

    uid: of the agent or person, -1 of a pool.
    """

    id: int
    kind: str
    name: str
    party: Party
    reserved: int = 0
    uid: int = -1
    memory: Holding = field(init=False)
    stored: Holding = field(init=False)

    def __post_init__(self) -> None:
        memory, stored = ("memory_records", "memory_bytes"), ("storage_objects", "storage_bytes")
        self.memory = Holding("records", "[memory]", self.party, memory)
        self.stored = Holding("objects", "[storage]", self.party, stored)

    @property
    def subject(self) -> str:
        """The owner as grants name it."""
        return f"{'group' if self.kind == 'pool' else self.kind}:{self.name}"


@dataclass(slots=True, eq=False)
class _Finding:
    """An owner that is being looked up. count: who waits for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0


class Owners:
    """All owners that this kernel has met. Owned by the event loop's thread."""

    def __init__(self, db: Database, access: Access) -> None:
        self._db = db
        self._access = access
        self.keeper: Keeper = Unlimited()  # given by the kernel before the first owner is met
        self._known: dict[tuple[str, str], Owner] = {}
        self._finding: dict[tuple[str, str], _Finding] = {}

    async def find(self, caller: Caller, pool: str = "") -> Owner:
        """Return the caller himself as an owner, or a pool: one that access has let him use."""
        if pool:
            name = ("pool", pool)
        elif caller.aid:
            name = ("agent", str(caller.aid))
        else:
            name = ("uid", str(caller.uid))
        return await self._meet(name, caller.uid)

    async def _meet(self, name: tuple[str, str], uid: int) -> Owner:
        finding = self._finding.get(name)
        if finding is None:
            owner = self._known.get(name)
            if owner is not None:
                return owner
            finding = self._finding[name] = _Finding()
        # Who asks later waits behind those who wait already: requests keep their order.
        finding.count += 1
        try:
            async with finding.lock:
                return self._known.get(name) or await self._find(name, uid)
        finally:
            finding.count -= 1
            if not finding.count:
                del self._finding[name]

    async def of(self, caller: Caller, id: int, call: str, *, write: bool) -> Owner | None:
        """Return the owner of that number when the caller may use what it holds, else None."""
        own = await self.find(caller)
        if own.id == id:
            return own
        row = await self._db.read(
            lambda db: db.execute("select kind, name from owners where id = ?", (id,)).fetchone()
        )
        if row is None or row[0] != "pool":
            return None
        try:
            self._access.pool(caller, row[1], write, call)
        except PermissionError:
            return None
        return await self.find(caller, row[1])

    # What quotas ask.

    async def prepare(self, subject: str) -> None:
        """Know all that may count for a subject: of a group all agents, for its members change."""
        kind, _, name = subject.partition(":")
        where, value = {
            "agent": ("kind = 'agent' and line like ?", f"%/{name}/%"),
            "uid": ("kind in ('agent', 'uid') and uid = ?", name),
            "group": ("kind = 'agent' or (kind = 'pool' and name = ?)", name),
        }[kind]
        sql = f"select kind, name, uid from owners where {where}"
        rows = await self._db.read(lambda db: db.execute(sql, (value,)).fetchall())
        await asyncio.gather(*(self._meet((kind, name), uid) for kind, name, uid in rows))

    def held(self, subject: str, resource: str) -> int:
        """Return how much a subject holds; `prepare` has returned for it."""
        total = 0
        for owner in self._known.values():
            if subject in owner.party.subjects():
                for holding in (owner.memory, owner.stored):
                    numbers = zip(holding.counts, (holding.count, holding.bytes), strict=True)
                    total += dict(numbers).get(resource, 0)
        return total

    async def _find(self, name: tuple[str, str], uid: int) -> Owner:
        line = self._line(int(name[1])) if name[0] == "agent" else ""

        def enter(db: Connection) -> tuple[int, int, int, str]:
            db.execute(_INSERT, (*name, -1 if name[0] == "pool" else uid, line))
            id, reserved, owner_uid, known = db.execute(_SELECT, name).fetchone()
            return int(id), int(reserved), int(owner_uid), known

        id, reserved, owner_uid, known = await self._db.write(enter)
        owner = Owner(id, *name, self._party(name, owner_uid, known), reserved, owner_uid)
        await self._count(owner.memory, _MEMORY, id)
        await self._count(owner.stored, _STORED, id)
        self._known[name] = owner
        return owner

    async def _count(self, holding: Holding, query: str, id: int) -> None:
        """Count what an owner holds; what can't be counted keeps nobody from what is sound."""
        try:
            count, size = await self._db.read(lambda db: db.execute(query, (id,)).fetchone())
        except OSError as error:
            if error.errno != errno.EUCLEAN:
                raise
            holding.fault = error
        else:
            holding.count, holding.bytes = int(count), int(size)

    def _line(self, aid: int) -> str:
        kin = self._access.kin
        assert kin is not None
        try:
            return line_of((*kin.lineage(aid), aid))
        except ProcessLookupError:  # an agent of long ago: the database knows its line
            return line_of((aid,))

    def _party(self, name: tuple[str, str], uid: int, line: str) -> Party:
        kind, word = name
        if kind == "agent":
            return Party(self.keeper, f"agent:{word}", int(word), uid, line)
        return Party(self.keeper, f"uid:{word}" if kind == "uid" else f"group:{word}")
