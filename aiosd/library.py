"""The library: passages of stored texts, for sto_search.

The newest version of an object whose type is text is cut into passages after its write is
acknowledged; a search first waits until its owner's are all there. What a crash interrupts is found
by the version that `indexed` lacks, and done again. Of what is encrypted at rest there are none: a
passage, an index of words, a vector would tell what the ciphertext hides.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aiosd import passages
from aiosd.abi import storage as abi
from aiosd.corpus import Corpus, Where
from aiosd.settings import Storage as Settings

if TYPE_CHECKING:
    from aiosd.db import Connection, Database
    from aiosd.embedder import Embedder

log = logging.getLogger(__name__)

AT_ONCE: Final = 16
"""Objects looked at in one go."""
ROWS: Final = 200
"""Passages written in one transaction: others' writes come between."""
LAST: Final = "\U0010ffff"

_BEHIND: Final = (
    "select o.id, o.name, o.version, case when b.seal = x'' then v.content_type else '' end"
    " from objects as o join versions as v on v.object = o.id and v.version = o.version"
    " join blobs as b on b.digest = v.digest where o.owner = ? and o.indexed != o.version limit ?"
)
_ADD: Final = "insert into passages (owner, object, start, text) values (?, ?, ?, ?) returning id"

Read = Callable[[int, str, int, int], Awaitable[bytes]]


class Library:
    """The passages of all owners. read: gives the first bytes of an object's version."""

    def __init__(self, db: Database, embedder: Embedder, settings: Callable[[], Settings]) -> None:
        self.corpus = Corpus("passages", db, embedder)
        self.read: Read = _nothing
        self._db = db
        self._settings = settings
        self._cutting: dict[int, asyncio.Task[None]] = {}
        self._clean: set[int] = set()  # owners with nothing to do
        self._news: set[int] = set()  # owners with something to do, perhaps

    def changed(self, owner: int) -> None:
        """An object of this owner has a new version."""
        self._clean.discard(owner)
        self._news.add(owner)
        self._cut_soon(owner)

    def removed(self, owner: int, ids: list[int]) -> None:
        """These passages are gone, with their object."""
        self.corpus.removed(owner, ids)

    async def close(self) -> None:
        """Let go of what is being done; the next kernel does it again."""
        tasks = list(self._cutting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.corpus.close()

    async def search(self, owner: int, args: abi.StoSearch) -> list[abi.Passage]:
        """Return the passages that fit a query best, as sto_search does."""
        while owner not in self._clean:
            await asyncio.shield(self._cut_soon(owner))
        where = Where()
        if args.prefix:
            clause = (
                " and t.object in (select id from objects"
                " where owner = ? and name >= ? and name < ?)"
            )
            where = Where(clause, (owner, args.prefix, args.prefix + LAST))
        hits = await self.corpus.search(owner, args.query, args.k, args.mode, where, "sto_search")
        marks = ", ".join("?" * len(hits))
        # The plus keeps SQLite from the owner's index: it would look through all passages.
        sql = (
            "select p.id, o.name, o.indexed, p.start, p.text from passages as p"
            f" join objects as o on o.id = p.object where +p.owner = ? and p.id in ({marks})"
        )
        values = (owner, *(id for id, _ in hits))
        rows = await self._db.read(lambda db: db.execute(sql, values).fetchall())
        found = {row[0]: row for row in rows}
        return [_passage(found[id], score) for id, score in hits if id in found]

    # Cutting.

    def _cut_soon(self, owner: int) -> asyncio.Task[None]:
        task = self._cutting.get(owner)
        if task is None:
            task = self._cutting[owner] = asyncio.get_running_loop().create_task(self._cut(owner))
            task.add_done_callback(lambda task: self._over(owner, task))
        return task

    def _over(self, owner: int, task: asyncio.Task[None]) -> None:
        self._cutting.pop(owner, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("passages of owner %d: %s", owner, error)

    async def _cut(self, owner: int) -> None:
        """Cut what has a new version, until there is nothing more."""
        while True:
            self._news.discard(owner)
            rows = await self._db.read(lambda db: db.execute(_BEHIND, (owner, AT_ONCE)).fetchall())
            for row in rows:
                await self._cut_one(owner, *row)
            if not rows and owner not in self._news:
                self._clean.add(owner)
                return

    async def _cut_one(self, owner: int, id: int, name: str, version: int, kind: str) -> None:
        """Cut a version into passages. kind: its type, "" of one whose text is not to be seen."""
        pieces: list[tuple[int, str]] = []
        if passages.readable(kind):
            try:
                data = await self.read(owner, name, version, self._settings().index_limit)
            except OSError as error:
                if error.errno != errno.EUCLEAN:
                    raise
                data = b""  # damaged: who reads it is told
            pieces = await asyncio.to_thread(passages.cut, data)
        gone = await self._db.write(lambda db: _clear(db, id))
        self.corpus.removed(owner, gone)
        for start in range(0, len(pieces), ROWS):
            some = [(owner, id, *piece) for piece in pieces[start : start + ROWS]]
            added = await self._db.write(lambda db, some=some: _add(db, id, some))  # type: ignore[misc]
            self.corpus.added(owner, added)
        sql = "update objects set indexed = ? where id = ?"
        await self._db.write(lambda db: db.execute(sql, (version, id)).rowcount)


def _passage(row: tuple[Any, ...], score: float) -> abi.Passage:
    _, name, version, start, text = row
    return abi.Passage(name, version, start, text, score)


def _clear(db: Connection, object: int) -> list[int]:
    gone = [row[0] for row in db.execute("select id from passages where object = ?", (object,))]
    db.execute("delete from passages where object = ?", (object,))
    return gone


def _add(db: Connection, object: int, rows: list[tuple[Any, ...]]) -> list[int]:
    """Write passages of an object that is still there."""
    if db.execute("select 1 from objects where id = ?", (object,)).fetchone() is None:
        return []
    return [db.execute(_ADD, row).fetchone()[0] for row in rows]


async def _nothing(owner: int, name: str, version: int, size: int) -> bytes:
    return b""
