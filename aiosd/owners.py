"""Owners: whose a record of semantic memory or a stored object is, and how much they hold.

    owner = await owners.find(caller, args.pool)
    owner.memory.take(records=1, bytes=size, limits)    # EDQUOT when it is too much
    owner.memory.give(records=1, bytes=size)            # when it is gone, or could not be written

An agent owns what it stores, a person (a connection that is no agent) what he stores, by uid; a
pool belongs to a group, and access decides who may read and write it. What an agent stored
outlives it, and nobody inherits it: not a later agent of the same name.

What must hold: the counts are those of the database plus what is being written just now, so no
interleaving exceeds a limit. They are read once, before the first write of this kernel.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiosd.access import Access, Caller

if TYPE_CHECKING:
    from aiosd.db import Connection, Database

_INSERT: Final = "insert or ignore into owners (kind, name, uid) values (?, ?, ?)"
_SELECT: Final = "select id, reserved, uid from owners where kind = ? and name = ?"
_MEMORY: Final = "select count(*), coalesce(sum(size), 0) from memories where owner = ?"
_STORED: Final = (
    "select count(distinct objects.id), coalesce(sum(size), 0) from objects"
    " join versions on object = objects.id where owner = ?"
)


@dataclass(slots=True)
class Holding:
    """What an owner holds of one kind: how many, and bytes. name: for messages.

    fault: why that is not known, where the database is damaged: nothing more is taken in then.
    """

    name: str
    setting: str
    count: int = 0
    bytes: int = 0
    fault: OSError | None = None

    def take(self, count: int, bytes: int, max_count: int, max_bytes: int, call: str) -> None:
        """Count something new in; raises OSError(EDQUOT) that names the limit."""
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
        self.count += count
        self.bytes += bytes

    def give(self, count: int, bytes: int) -> None:
        """Count something out."""
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
    reserved: int = 0
    uid: int = -1
    memory: Holding = field(default_factory=lambda: Holding("records", "[memory]"))
    stored: Holding = field(default_factory=lambda: Holding("objects", "[storage]"))

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
                return self._known.get(name) or await self._find(name, caller.uid)
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

    async def _find(self, name: tuple[str, str], uid: int) -> Owner:
        def enter(db: Connection) -> tuple[int, int, int]:
            db.execute(_INSERT, (*name, -1 if name[0] == "pool" else uid))
            id, reserved, whose = db.execute(_SELECT, name).fetchone()
            return int(id), int(reserved), int(whose)

        id, reserved, whose = await self._db.write(enter)
        owner = Owner(id, *name, reserved=reserved, uid=whose)
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
