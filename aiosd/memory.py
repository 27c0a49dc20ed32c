"""Semantic memory: texts that an agent keeps, found again by their words or their meaning.

add_memory answers once the row is committed; what arrives meanwhile goes into the next commit.
The rows outlive their agent; only their owner, and who may use the pool they are in, sees them.

What must hold: an owner never holds more than its limits, whatever runs at the same time; a call
asked again with its key, even of the next kernel, is done once and gives the first answer.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from aiosd import metadata
from aiosd.abi import memory as abi
from aiosd.access import Caller
from aiosd.corpus import Corpus, Hit, Where
from aiosd.keys import answerer
from aiosd.killpoint import reach
from aiosd.owners import Owner, Owners
from aiosd.settings import Memory as Settings

if TYPE_CHECKING:
    from aiosd.db import Connection, Database
    from aiosd.embedder import Embedder

RECORD_COST: Final = 256
"""Bytes that a record counts beside its text and metadata: rows, index, vector's head."""
BATCH: Final = 512
"""Records in one transaction."""
ROWS: Final = 64
"""Records in one statement: it holds Python's lock only before and after."""

_COLUMNS: Final = "id, owner, text, metadata, created, size, key"
_INSERT: Final = f"insert into memories ({_COLUMNS}) values "
_ROW: Final = "(?, ?, ?, ?, ?, ?, ?)"
_SELECT: Final = "select id, text, metadata, created, owner, size from memories"
_OF_KEY: Final = f"{_SELECT} where owner = ? and key = ? and key != ''"


@dataclass(slots=True, eq=False)
class _Addition:
    """A record on its way to the disk. done: gets the row of the same key, where there was one."""

    owner: Owner
    row: tuple[Any, ...]
    done: asyncio.Future[tuple[Any, ...] | None]


class SemanticMemory:
    """The semantic memory of all owners. settings: gives the limits as they are now."""

    def __init__(
        self, db: Database, owners: Owners, embedder: Embedder, settings: Callable[[], Settings]
    ) -> None:
        self.corpus = Corpus("memories", db, embedder)
        self._db = db
        self._owners = owners
        self._settings = settings
        self._last = 0  # the highest id ever given
        self._waiting: list[_Addition] = []
        self._writing: asyncio.Task[None] | None = None

    async def boot(self) -> None:
        """Go on with the ids where the last kernel stopped."""
        sql = "select seq from sqlite_sequence where name = 'memories'"
        row = await self._db.read(lambda db: db.execute(sql).fetchone())
        self._last = int(row[0]) if row else 0

    async def close(self) -> None:
        """Finish what is being written."""
        if self._writing is not None:
            await self._writing
        await self.corpus.close()

    async def sys_add_memory(self, caller: Caller, args: abi.AddMemory) -> abi.Memory:
        """Remember a text; EDQUOT when the owner's limit is reached."""
        owner = await self._owners.find(caller, args.pool)
        if not args.text:
            raise OSError(errno.EINVAL, "add_memory: field 'text' is empty; there is nothing in it")
        packed = metadata.pack(args.metadata, "add_memory")
        size = _size(args.text, packed)
        key = f"{caller.subject} {args.key}" if args.key else ""
        try:
            self._take(owner, 1, size, "add_memory")
        except OSError:
            # Asked again, with what the first time has used up?
            if (known := await self._of_key(owner, key)) is None:
                raise
            return known
        self._last += 1
        row = (self._last, owner.id, args.text, packed, time.time(), size, key)
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Addition(owner, row, done))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())
        old = await done
        if old is not None:
            return _record(old)
        return abi.Memory(row[0], args.text, args.metadata, row[4])

    async def sys_get_memory(self, caller: Caller, args: abi.GetMemory) -> abi.Memory:
        """Return one record; ENOENT for one of another owner as for none."""
        return _record((await self._find(caller, args.id, "get_memory", write=False))[1])

    async def sys_update_memory(self, caller: Caller, args: abi.UpdateMemory) -> abi.Memory:
        """Replace the text, the metadata, or both."""
        call = "update_memory"
        owner, row = await self._find(caller, args.id, call, write=True)
        text = row[1] if args.text is None else args.text
        if not text:
            raise OSError(errno.EINVAL, f"{call}: field 'text' is empty; delete_memory forgets it")
        packed = row[2] if args.metadata is None else metadata.pack(args.metadata, call)
        size = _size(text, packed)
        more = size - row[5]
        self._take(owner, 0, max(0, more), call)
        sql = (
            "update memories set text = ?, metadata = ?, size = ?, rev = rev + (text != ?)"
            " where id = ? and size = ? returning id, text, metadata, created, owner, size"
        )
        values = (text, packed, size, text, args.id, row[5])
        answer = answerer()
        try:
            new = await self._db.write(
                lambda db: _change(db, sql, values, lambda new: answer(db, _record(new)))
            )
        except BaseException:
            owner.memory.give(0, max(0, more))
            raise
        if new is None:  # another call changed or deleted it meanwhile
            owner.memory.give(0, max(0, more))
            raise BlockingIOError(errno.EAGAIN, f"{call}: record {args.id} changed; ask again")
        owner.memory.give(0, max(0, -more))
        if args.text is not None:
            self.corpus.added(owner.id, [args.id])
        return _record(new)

    async def sys_delete_memory(self, caller: Caller, args: abi.DeleteMemory) -> None:
        """Forget a record."""
        owner, _ = await self._find(caller, args.id, "delete_memory", write=True)
        sql = "delete from memories where id = ? returning size"
        answer = answerer()
        row = await self._db.write(
            lambda db: _change(db, sql, (args.id,), lambda _: answer(db, None))
        )
        if row is None:
            raise _missing("delete_memory", args.id)
        owner.memory.give(1, row[0])
        self.corpus.removed(owner.id, [args.id])

    async def sys_search_memory(self, caller: Caller, args: abi.SearchMemory) -> list[abi.Memory]:
        """Return the records that fit a query best."""
        owner = await self._owners.find(caller, args.pool)
        return await self.search(owner, args)

    async def search(self, owner: Owner, args: abi.SearchMemory) -> list[abi.Memory]:
        """Return an owner's records that fit a query best, as search_memory does."""
        clause, values = metadata.match(args.metadata, "search_memory")
        if args.since:
            clause, values = clause + " and created >= ?", [*values, args.since]
        if args.until:
            clause, values = clause + " and created <= ?", [*values, args.until]
        where = Where(clause, tuple(values))
        hits = await self.corpus.search(
            owner.id, args.query, args.k, args.mode, where, "search_memory"
        )
        rows = await self._rows(owner, hits)
        return [_record(rows[id], score) for id, score in hits if id in rows]

    # Inside.

    async def _rows(self, owner: Owner, hits: list[Hit]) -> dict[int, tuple[Any, ...]]:
        marks = ", ".join("?" * len(hits))
        # The plus keeps SQLite from the owner's index: it would look through all its records.
        sql = f"{_SELECT} where +owner = ? and id in ({marks})"
        values = (owner.id, *(id for id, _ in hits))
        rows = await self._db.read(lambda db: db.execute(sql, values).fetchall())
        return {row[0]: row for row in rows}

    async def _find(
        self, caller: Caller, id: int, call: str, *, write: bool
    ) -> tuple[Owner, tuple[Any, ...]]:
        row = await self._db.read(
            lambda db: db.execute(f"{_SELECT} where id = ?", (id,)).fetchone()
        )
        owner = await self._owners.of(caller, row[4], call, write=write) if row else None
        if owner is None:
            raise _missing(call, id)
        return owner, row

    async def _of_key(self, owner: Owner, key: str) -> abi.Memory | None:
        """Return the record that was added with a key, if any."""
        row = await self._db.read(lambda db: db.execute(_OF_KEY, (owner.id, key)).fetchone())
        return _record(row) if row else None

    def _take(self, owner: Owner, count: int, size: int, call: str) -> None:
        limits = self._settings()
        most = owner.memory.most(limits.records, limits.bytes)
        owner.memory.take(count, size, *most, call)

    async def _write(self) -> None:
        """Write what is waiting, and what comes meanwhile, a batch in each transaction."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                try:
                    found = await self._insert(batch)
                except Exception as error:  # noqa: BLE001 (it goes to those who wait)
                    self._failed(batch, error)
                else:
                    self._written(batch, found)
        finally:
            self._writing = None

    async def _insert(self, batch: list[_Addition]) -> dict[int, tuple[Any, ...]]:
        try:
            return await self._db.write(lambda db: _insert(db, batch))
        except OSError as error:
            if error.errno != errno.EUCLEAN:
                raise
            await self.corpus.mend(error)  # it may be the index of words alone
            return await self._db.write(lambda db: _insert(db, batch))

    def _written(self, batch: list[_Addition], found: dict[int, tuple[Any, ...]]) -> None:
        reach("memory.answer")
        fresh: dict[int, list[int]] = {}
        for addition in batch:
            old = found.get(addition.row[0])
            if old is not None:
                addition.owner.memory.give(1, addition.row[5])
            else:
                fresh.setdefault(addition.owner.id, []).append(addition.row[0])
            if not addition.done.done():
                addition.done.set_result(old)
        for owner, ids in fresh.items():
            self.corpus.added(owner, ids)

    def _failed(self, batch: list[_Addition], error: Exception) -> None:
        for addition in batch:
            addition.owner.memory.give(1, addition.row[5])
            if not addition.done.done():
                addition.done.set_exception(error)


def _insert(db: Connection, batch: list[_Addition]) -> dict[int, tuple[Any, ...]]:
    """Insert the rows; return those that were there already under their key, by the new id."""
    found: dict[int, tuple[Any, ...]] = {}
    rows = []
    for addition in batch:
        row = addition.row
        if row[6]:  # the dispatcher lets no two of one key in at a time
            old = db.execute(_OF_KEY, (row[1], row[6])).fetchone()
            if old is not None:
                found[row[0]] = old
                continue
        rows.append(row)
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        sql = _INSERT + ", ".join([_ROW] * len(some))
        db.execute(sql, list(chain.from_iterable(some)))
    reach("memory.row")
    return found


def _change(
    db: Connection, sql: str, values: tuple[Any, ...], done: Callable[[Any], None]
) -> tuple[Any, ...] | None:
    """Change a row, and when it is there do the rest in the same transaction; return it."""
    row: tuple[Any, ...] | None = db.execute(sql, values).fetchone()
    if row is not None:
        done(row)
    return row


def _size(text: str, packed: str) -> int:
    return len(text.encode()) + len(packed) + RECORD_COST


def _record(row: tuple[Any, ...], score: float = 0.0) -> abi.Memory:
    return abi.Memory(row[0], row[1], metadata.unpack(row[2]), row[3], score)


def _missing(call: str, id: int) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"{call}: you have no record {id}; it may be deleted")
