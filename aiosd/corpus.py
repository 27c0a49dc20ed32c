"""A corpus: the texts of one table, found by words, by meaning, or by both; each owner's apart.

    corpus = Corpus("memories", db, embedder)
    hits = await corpus.search(owner.id, args.query, args.k, args.mode, Where(...), "search_memory")
    corpus.added(owner.id, ids); corpus.removed(owner.id, ids)

Words are SQLite's (FTS5 and its BM25), vectors the embedder's; both at once are put together by
reciprocal rank fusion. A text's vector is made after its row is acknowledged; a search by meaning
first waits until its owner's are all there. Vectors are kept in SQLite beside the rows, so an index
that is lost is filled again without the model.

What must hold: a search looks at rows of its owner alone; what stands in a query is data, whatever
its syntax. Scores of words are made from ranks: BM25's own would tell how common a word is among
the texts of others.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiosd.embedder import Embedder
from aiosd.vectors import protocol as p
from aiosd.words import some

if TYPE_CHECKING:
    from aiosd.db import Connection, Database

log = logging.getLogger(__name__)

MODES: Final = ("vector", "keyword", "hybrid")
DEEPEST: Final = 4
"""Times k that either ranking goes down, where two are fused."""
LEAST: Final = 50
"""Rows that either ranking goes down at least."""
RANK: Final = 60
"""The constant of reciprocal rank fusion: 1 / (RANK + rank)."""
AT_ONCE: Final = 64
"""Texts embedded by one command."""
PUT: Final = 1000
"""Vectors put into an index by one command."""

TRIES: Final = 3
"""Embedder processes that one search may outlive."""
MAX_PENDING: Final = 4096
"""Rows remembered as without a vector; beyond, the owner's are all looked through."""

Hit = tuple[int, float]
Row = tuple[int, int, str]
Made = tuple[int, int, int, str, bytes]


@dataclass(frozen=True)
class Where:
    """A further condition on rows: SQL that begins with `and`, on the table as `t`; its values."""

    clause: str = ""
    values: tuple[object, ...] = ()


@dataclass(eq=False)
class _Shelf:
    """One owner's vectors. life: of the embedder process that has them in memory, 0: none.

    pending: rows that came since and whose vector is not in the index yet; a row that changes
    meanwhile gets another number. number: the last one. missed: rows came that are not remembered,
    so all have to be looked through once more.
    """

    owner: int
    life: int = 0
    pending: dict[int, int] = field(default_factory=dict)
    number: int = 0
    missed: bool = False
    filling: asyncio.Task[None] | None = None

    def miss(self) -> None:
        """Remember of its rows only that there are some."""
        self.life, self.missed = 0, True
        self.pending.clear()


class Corpus:
    """The texts of one table (with its _words and _vectors). Owned by the event loop's thread."""

    def __init__(self, table: str, db: Database, embedder: Embedder) -> None:
        self._table = table
        self._db = db
        self._embedder = embedder
        self._shelves: dict[int, _Shelf] = {}

    def added(self, owner: int, ids: list[int]) -> None:
        """Rows of this owner were added or changed, and are committed."""
        shelf = self._shelf(owner)
        shelf.number += 1
        shelf.pending.update(dict.fromkeys(ids, shelf.number))
        if len(shelf.pending) > MAX_PENDING:
            shelf.miss()
        try:
            self._embedder.check()
        except OSError:  # they are found missing once there is one
            shelf.miss()
            return
        self._fill_soon(shelf)

    def removed(self, owner: int, ids: list[int]) -> None:
        """Rows of this owner are gone."""
        self._embedder.tell(p.Remove(self._space(owner), array("q", ids).tobytes()))

    async def close(self) -> None:
        """Let go of what is being done; the next kernel goes on with it."""
        tasks = [shelf.filling for shelf in self._shelves.values() if shelf.filling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def search(
        self, owner: int, query: str, k: int, mode: str, where: Where, call: str
    ) -> list[Hit]:
        """Return the best k rows of an owner, the best first, each with its score.

        The score is the cosine similarity for vector, else the sum of 1 / (60 + rank). Raises
        OSError: EINVAL for an unknown mode, ENODEV and ETIMEDOUT of the embedder.
        """
        if mode not in MODES:
            raise OSError(
                errno.EINVAL, f"{call}: field 'mode': {mode[:32]!r}; one of {', '.join(MODES)}"
            )
        try:
            if mode == "vector":
                return await self.nearest(owner, query, k, where)
            if mode == "keyword":
                return fuse([await self.matching(owner, query, k, where)], k)
            depth = min(max(DEEPEST * k, LEAST), 10_000)
            near = await self.nearest(owner, query, depth, where)
            return fuse([await self.matching(owner, query, depth, where), [n[0] for n in near]], k)
        except OSError as error:
            raise OSError(error.errno, f"{call}: {error.strerror or error}") from None

    async def matching(self, owner: int, query: str, k: int, where: Where) -> list[int]:
        """Return the rows that have some of the query's words, the best by BM25 first."""
        words = some(query)
        if not words:
            return []
        table = self._table
        sql = (
            f"select t.id from {table}_words join {table} as t on t.id = {table}_words.rowid"
            f" where {table}_words match ? and t.owner = ?{where.clause}"
            f" order by bm25({table}_words, 0.0, 1.0), t.id limit ?"
        )
        values = (f'owner : "{owner}" AND text : ({words})', owner, *where.values, k)
        try:
            rows = await self._db.read(lambda db: db.execute(sql, values).fetchall())
        except OSError as error:
            if error.errno != errno.EUCLEAN:
                raise
            await self.mend(error)
            rows = await self._db.read(lambda db: db.execute(sql, values).fetchall())
        return [row[0] for row in rows]

    async def mend(self, damage: OSError) -> None:
        """Make the index of words anew from the rows; raises OSError when those are damaged too."""
        name = f"{self._table}_words"
        log.warning("the index %s is made anew: %s", name, damage.strerror)
        sql = f"insert into {name} ({name}) values ('rebuild')"
        await self._db.write(lambda db: db.execute(sql).rowcount)

    async def nearest(self, owner: int, query: str, k: int, where: Where) -> list[Hit]:
        """Return the rows nearest in meaning, with their cosine similarity."""
        self._embedder.check()
        until = asyncio.get_running_loop().time() + self._embedder.timeout
        allowed = await self._allowed(owner, where) if where.clause else None
        shelf = self._shelf(owner)
        for _ in range(TRIES):
            await self._filled(shelf, until)
            try:
                found = await self._embedder.ask(
                    lambda ticket: p.Search(ticket, self._space(owner), query, k, allowed),
                    p.Found,
                    shelf.life,
                    until,
                )
                return list(zip(array("q", found.ids), array("f", found.scores), strict=True))
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                shelf.life = 0
        raise OSError(errno.EAGAIN, "the embedder keeps ending; search with mode='keyword'")

    # Vectors.

    def _space(self, owner: int) -> str:
        return f"{self._table}-{owner}"

    def _shelf(self, owner: int) -> _Shelf:
        shelf = self._shelves.get(owner)
        if shelf is None:
            shelf = self._shelves[owner] = _Shelf(owner)
        return shelf

    async def _allowed(self, owner: int, where: Where) -> bytes:
        sql = f"select t.id from {self._table} as t where t.owner = ?{where.clause}"

        def read(db: Connection) -> bytes:
            return array("q", [r[0] for r in db.execute(sql, (owner, *where.values))]).tobytes()

        return await self._db.read(read)

    async def _filled(self, shelf: _Shelf, until: float) -> None:
        """Return when the vectors of what is there now are in the index; ETIMEDOUT by then."""
        awaited = list(shelf.pending)
        if shelf.life == self._embedder.life and not awaited:
            return
        try:
            async with asyncio.timeout_at(until):
                while shelf.life != self._embedder.life or not shelf.pending.keys().isdisjoint(
                    awaited
                ):
                    await asyncio.shield(self._fill_soon(shelf))
        except TimeoutError:
            raise OSError(
                errno.ETIMEDOUT,
                f"its vectors were not all made within {self._embedder.timeout:g} s ([memory] "
                "embed_timeout); ask again, or search with mode='keyword'",
            ) from None

    def _fill_soon(self, shelf: _Shelf) -> asyncio.Task[None]:
        if shelf.filling is None:
            shelf.filling = asyncio.get_running_loop().create_task(self._fill(shelf))
            shelf.filling.add_done_callback(lambda task: self._over(shelf, task))
        return shelf.filling

    def _over(self, shelf: _Shelf, task: asyncio.Task[None]) -> None:
        shelf.filling = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, OSError):
            log.error("vectors of %s", self._space(shelf.owner), exc_info=error)

    async def _fill(self, shelf: _Shelf) -> None:
        """Make the vectors that are missing, and bring the index up to date."""
        for last in (False, True):
            try:
                await self._embedder.ready()
                while shelf.pending or shelf.life != self._embedder.life:
                    await self._fill_once(shelf, self._embedder.life)
                return
            except OSError as error:
                shelf.life = 0
                if error.errno != errno.ESTALE:
                    raise
                if last:
                    raise OSError(errno.EAGAIN, "the embedder has ended; ask again") from None

    async def _fill_once(self, shelf: _Shelf, life: int) -> None:
        if shelf.life == life:
            numbers = dict(list(shelf.pending.items())[:AT_ONCE])
            ids = list(numbers)
            rows = await self._db.read(lambda db: self._texts(db, shelf.owner, ids))
            await self._put(shelf.owner, life, await self._embed(shelf.owner, rows))
            for id, number in numbers.items():
                if shelf.pending.get(id) == number:
                    del shelf.pending[id]
            return
        shelf.pending.clear()  # until `life` is that of the process, all are waited for
        shelf.missed = False
        await self._embed_lacking(shelf.owner)
        await self._open(shelf.owner, life)
        if not shelf.missed:
            shelf.life = life

    async def _embed_lacking(self, owner: int) -> None:
        """Make the vectors that an owner's rows lack."""
        ids = await self._db.read(lambda db: self._lacking(db, owner))
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE].tolist()
            rows = await self._db.read(lambda db, some=some: self._texts(db, owner, some))  # type: ignore[misc]
            await self._embed(owner, rows)

    def _texts(self, db: Connection, owner: int, ids: list[int]) -> list[Row]:
        marks = ", ".join("?" * len(ids))
        # The plus keeps SQLite from the owner's index: it would look through all its rows.
        sql = f"select id, rev, text from {self._table} where +owner = ? and id in ({marks})"
        return db.execute(sql, (owner, *ids)).fetchall()

    def _lacking(self, db: Connection, owner: int) -> array[int]:
        """Return an owner's rows that have no vector, or a wrong one."""
        table = self._table
        sql = (
            f"select t.id from {table} as t left join {table}_vectors as v"
            " on v.id = t.id and v.rev = t.rev and v.model = ? and length(v.vector) = ?"
            " where t.owner = ? and v.id is null order by t.id"
        )
        values = (self._embedder.model, self._embedder.dim * 4, owner)
        return array("q", [row[0] for row in db.execute(sql, values)])

    async def _embed(self, owner: int, rows: list[Row]) -> list[Made]:
        """Make the vectors of some rows, and keep them."""
        if not rows:
            return []
        data, _ = await self._embedder.embed([row[2] for row in rows])
        width, model = len(data) // len(rows), self._embedder.model
        made = [
            (row[0], owner, row[1], model, data[i * width : (i + 1) * width])
            for i, row in enumerate(rows)
        ]
        await self._db.write(lambda db: self._keep(db, made))
        return made

    def _keep(self, db: Connection, made: list[Made]) -> None:
        """Write vectors of rows that are still there."""
        db.conn.executemany(
            f"insert or replace into {self._table}_vectors (id, owner, rev, model, vector)"
            f" select ?1, ?2, ?3, ?4, ?5 where exists (select 1 from {self._table} where id = ?1)",
            made,
        )

    async def _open(self, owner: int, life: int) -> None:
        """Open the owner's space in this embedder process and put what it lacks."""
        sql = (
            f"select id, rev from {self._table}_vectors where owner = ? and model = ?"
            " and length(vector) = ? order by id"
        )
        values = (owner, self._embedder.model, self._embedder.dim * 4)

        def read(db: Connection) -> tuple[bytes, bytes]:
            rows = db.execute(sql, values).fetchall()
            ids, revs = [row[0] for row in rows], [row[1] for row in rows]
            return array("q", ids).tobytes(), array("i", revs).tobytes()

        ids, revs = await self._db.read(read)
        opened = await self._embedder.ask(
            lambda ticket: p.Open(ticket, self._space(owner), ids, revs), p.Opened, life
        )
        missing = array("q", opened.missing).tolist()
        for start in range(0, len(missing), PUT):
            some = missing[start : start + PUT]
            made = await self._db.read(lambda db, some=some: self._made(db, some))  # type: ignore[misc]
            await self._put(owner, life, made)

    def _made(self, db: Connection, ids: list[int]) -> list[Made]:
        marks = ", ".join("?" * len(ids))
        sql = (
            f"select id, owner, rev, model, vector from {self._table}_vectors where id in ({marks})"
        )
        return db.execute(sql, ids).fetchall()

    async def _put(self, owner: int, life: int, made: list[Made]) -> None:
        ids = array("q", [row[0] for row in made]).tobytes()
        revs = array("i", [row[2] for row in made]).tobytes()
        vectors = b"".join(row[4] for row in made)
        if made:
            await self._embedder.ask(
                lambda ticket: p.Put(ticket, self._space(owner), ids, revs, vectors), p.Done, life
            )


def fuse(rankings: list[list[int]], k: int) -> list[Hit]:
    """Return the best k of several rankings by the sum of their reciprocal ranks."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + 1.0 / (RANK + rank)
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))[:k]
