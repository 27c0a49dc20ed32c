"""The journal: contexts, open requests and kept answers, as the next kernel will find them.

    journal.begin(request, context)         # a request was taken on
    journal.touch(source)                   # it has moved on: written behind, many at a time
    done = journal.end(rid, context, ...)   # its end, what it cost and its answer, all or nothing
    found = await journal.load()            # at boot

What must hold: a context is never written without the request at work on it, so that the two fit;
the database has one writer that keeps the order, and what is handed over to it is as of that very
moment, so what is found after a kill is the state of one moment, an older one at worst. On an exact
core that is as good as the newest: what is missing is computed again bit for bit. What is written
behind is bounded: FLUSH_S apart, PACE bytes a second, one write under way. Nothing here waits for
the disk on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from aiosd.engine import runs as record
from aiosd.engine.protocol import Run
from aiosd.killpoint import reach

if TYPE_CHECKING:
    from aiosd.db import Connection, Database

log = logging.getLogger(__name__)

FLUSH_S: Final = 0.25
"""Seconds between two writes of what has moved on."""

PACE: Final = 4 << 20
"""Bytes a second that are written behind, at most."""

Write = Callable[["Connection"], None]
T = TypeVar("T")


@dataclass(slots=True)
class ContextRow:
    """A context as it is at one moment; lists and meta are copies that nobody changes.

    bulk: bytes, about, of what is large beside tokens, in meta or in a request's progress.
    """

    cid: int
    aid: int
    uid: int
    core: str
    fingerprint: str
    tokens: list[int]
    runs: list[Run]
    kv: int
    meta: dict[str, Any]
    created: float
    used: float
    bulk: int = 0


@dataclass(slots=True)
class RequestRow:
    """A request that was taken on. args: its call, encoded. progress: how far it had come."""

    rid: int
    aid: int
    cid: int
    key: str
    args: bytes
    submitted: float
    progress: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class AnswerRow:
    """A kept answer. owner: as in keys. expires: Unix time."""

    owner: tuple[bool, int]
    call: str
    key: str
    print: bytes
    answer: bytes
    expires: float


@dataclass(slots=True)
class Found:
    """What the last kernel left."""

    contexts: list[ContextRow]
    requests: list[RequestRow]
    answers: list[AnswerRow]


@dataclass(slots=True)
class Stale:
    """What of it is to be deleted, by number."""

    contexts: list[int]
    requests: list[int]


class Source(Protocol):
    """A request at work on a context."""

    rid: int

    @property
    def cid(self) -> int:
        """The context's id."""

    def page(self) -> tuple[ContextRow, dict[str, Any]]:
        """Return its context and its progress as they are at this moment."""


class Journal:
    """Writes all of it. Owned by the event loop's thread."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._dirty: dict[int, Source] = {}
        self._at_work: dict[int, Source] = {}  # those that have moved on since they were taken on
        self._doomed: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing = False
        self._failed = False  # the last write behind did; said once

    # Requests.

    def begin(self, request: RequestRow, context: ContextRow, *more: Write) -> asyncio.Future[None]:
        """Enter a request with its context; the future is done when they are on disk.

        more: what else belongs to its beginning. Raises BlockingIOError when the disk is too far
        behind.
        """

        def write(db: Connection) -> None:
            _put_context(db, context)
            db.execute(_OPEN, _request_values(request))
            for part in more:
                part(db)
            reach("journal.begin")

        return self._db.submit(write)

    def touch(self, source: Source) -> None:
        """A request has moved on; where it is now is written soon."""
        if source.rid in self._dirty:
            return
        self._dirty[source.rid] = self._at_work[source.rid] = source
        if self._timer is None and not self._writing:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def end(self, rid: int, context: ContextRow | None, *more: Write) -> asyncio.Future[None]:
        """Take a request off, with all that its end means, in one transaction.

        context: as it is left behind, None when it is gone. Raises BlockingIOError.
        """
        self.leave(rid)

        def write(db: Connection) -> None:
            db.execute("delete from open_requests where rid = ?", (rid,))
            if context is not None:
                _put_context(db, context)
            for part in more:
                part(db)
            reach("journal.end")

        return self._db.submit(write)

    def leave(self, rid: int) -> None:
        """Write no more of a request: it is over, or the next kernel goes on with it."""
        self._dirty.pop(rid, None)
        self._at_work.pop(rid, None)

    # Contexts.

    async def save(self, contexts: Iterable[ContextRow]) -> None:
        """Make contexts durable as they are. Raises OSError when the disk fails."""
        at_work = {source.cid: source for source in self._at_work.values()}
        pages: list[tuple[int, ContextRow, dict[str, Any]]] = []
        for row in contexts:
            source = at_work.get(row.cid)
            pages.append((0, row, {}) if source is None else (source.rid, *source.page()))

        def write(db: Connection) -> None:
            _put_pages(db, pages)
            reach("journal.save")

        if pages:
            await self._db.submit(write)

    def forget(self, cid: int) -> None:
        """Delete a context, with all others that go in this turn of the loop."""
        if not self._doomed:
            asyncio.get_running_loop().call_soon(self._bury)
        self._doomed.append(cid)

    async def settled(self) -> None:
        """Return when all that was handed over before is durable. Raises OSError."""
        self._bury()
        await self._db.flush()

    def _bury(self) -> None:
        doomed, self._doomed = self._doomed, []
        if not doomed:
            return

        def write(db: Connection) -> None:
            for cid in doomed:
                db.execute("delete from contexts where cid = ?", (cid,))
            reach("journal.forget")

        try:
            self._db.write_soon(write)
        except OSError as error:  # the next boot finds them and asks whose they are
            log.warning("contexts %s are still on disk: %s", doomed, error)

    # Answers.

    async def answer(self, row: AnswerRow) -> None:
        """Make a kept answer durable. Raises OSError when the disk fails."""
        await self._db.write(keeping(row))

    def discard(self, names: list[tuple[tuple[bool, int], str, str]]) -> None:
        """Delete kept answers: of each the owner, the call and the key."""
        try:
            self._db.write_soon(dropping(names))
        except OSError as error:  # the next boot deletes what has expired
            log.warning("%d answers are still on disk: %s", len(names), error)

    # Writing behind.

    def flush(self) -> asyncio.Future[None] | None:
        """Write now what has moved on; the future is done when it is on disk. None: nothing to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sources, self._dirty = list(self._dirty.values()), {}
        records = [(source.rid, *source.page()) for source in sources]
        if not records:
            return None
        size = sum(4 * len(context.tokens) + context.bulk + 256 for _, context, _ in records)

        def write(db: Connection) -> None:
            _put_pages(db, records)
            reach("journal.flush")

        try:
            future = self._db.submit(write)
        except OSError as error:
            self._behind(error)
            return None
        self._writing = True
        due = asyncio.get_running_loop().time() + max(FLUSH_S, size / PACE)
        future.add_done_callback(lambda done: self._flushed(done, due))
        return future

    def _flushed(self, future: asyncio.Future[None], due: float) -> None:
        """The write behind is down; the next one comes when its bytes are paid for."""
        self._writing = False
        self._behind(None if future.cancelled() else future.exception())
        if self._dirty and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due, self.flush)

    def _behind(self, error: BaseException | None) -> None:
        if error is not None and not self._failed:
            log.warning("tokens are not written behind, a restart computes them anew: %s", error)
        self._failed = error is not None

    # Boot.

    async def load(self) -> Found:
        """Return what the last kernel left; what can't be read of it is left out, and said."""
        now = time.time()

        def read(db: Connection) -> tuple[list[Any], list[Any], list[Any]]:
            return (
                db.execute(f"select {_CONTEXT} from contexts order by cid").fetchall(),
                db.execute(f"select {_REQUEST} from open_requests order by rid").fetchall(),
                db.execute(
                    f"select {_ANSWER} from answers where expires > ? order by expires", (now,)
                ).fetchall(),
            )

        contexts, requests, answers = await self._db.read(read)
        return Found(
            _readable(_context, contexts),
            _readable(_request, requests),
            _readable(_answer, answers),
        )

    async def drop(self, stale: Stale) -> None:
        """Delete what nobody will ask for, expired answers among it."""
        now = time.time()

        def write(db: Connection) -> None:
            for cid in stale.contexts:
                db.execute("delete from contexts where cid = ?", (cid,))
            for rid in stale.requests:
                db.execute("delete from open_requests where rid = ?", (rid,))
            db.execute("delete from answers where expires <= ?", (now,))

        await self._db.write(write)


def together(*parts: Write) -> Write:
    """Make several writes one."""

    def write(db: Connection) -> None:
        for part in parts:
            part(db)

    return write if len(parts) > 1 else parts[0]


# Kept answers.


def keeping(row: AnswerRow) -> Write:
    """Return what writes a kept answer, to be part of the transaction that it answers for."""

    def write(db: Connection) -> None:
        agent, owner = row.owner
        values = (int(agent), owner, row.call, row.key, row.print, row.answer, row.expires)
        db.execute(_KEEP, values)
        reach("journal.answer")

    return write


def dropping(rows: Iterable[tuple[tuple[bool, int], str, str]]) -> Write:
    """Return what deletes kept answers: of each the owner, the call and the key."""
    names = [(int(agent), owner, call, key) for (agent, owner), call, key in rows]

    def write(db: Connection) -> None:
        db.conn.executemany(_DROP, names)

    return write


# Rows.

_CONTEXT: Final = "cid, aid, uid, core, fingerprint, tokens, runs, kv, meta, created, used"
_PUT: Final = (
    f"insert into contexts ({_CONTEXT}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (cid) "
    "do update set core = excluded.core, fingerprint = excluded.fingerprint, "
    "tokens = excluded.tokens, runs = excluded.runs, kv = excluded.kv, meta = excluded.meta, "
    "used = excluded.used"
)
_REQUEST: Final = "rid, aid, cid, key, args, submitted, progress"
_OPEN: Final = f"insert into open_requests ({_REQUEST}) values (?, ?, ?, ?, ?, ?, ?)"
_PROGRESS: Final = "update open_requests set progress = ? where rid = ?"
_ANSWER: Final = "agent, owner, call, key, print, answer, expires"
_KEEP: Final = f"insert or replace into answers ({_ANSWER}) values (?, ?, ?, ?, ?, ?, ?)"
_DROP: Final = "delete from answers where agent = ? and owner = ? and call = ? and key = ?"

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_runs: Final = msgspec.msgpack.Decoder(list[Run]).decode


def _put_context(db: Connection, row: ContextRow) -> None:
    values = (
        row.cid, row.aid, row.uid, row.core, row.fingerprint, array("I", row.tokens).tobytes(),
        _encode(row.runs), row.kv, msgspec.json.encode(row.meta).decode(), row.created, row.used,
    )  # fmt: skip
    db.execute(_PUT, values)


def _put_pages(db: Connection, pages: list[tuple[int, ContextRow, dict[str, Any]]]) -> None:
    """Write contexts, each with how far the request on it has come; rid 0: there is none."""
    for rid, context, progress in pages:
        _put_context(db, context)
        if rid:
            db.execute(_PROGRESS, (_encode(progress), rid))


def _request_values(row: RequestRow) -> tuple[Any, ...]:
    progress = _encode(row.progress)
    return row.rid, row.aid, row.cid, row.key, row.args, row.submitted, progress


def _context(row: tuple[Any, ...]) -> ContextRow:
    cid, aid, uid, core, fingerprint, tokens, runs, kv, meta, created, used = row
    ids = array("I")
    ids.frombytes(tokens)
    found = ContextRow(
        cid, aid, uid, core, fingerprint, ids.tolist(), _decode_runs(runs), kv,
        msgspec.json.decode(meta), created, used,
    )  # fmt: skip
    if not 0 <= kv <= len(found.tokens) or not record.covers(found.runs, kv):
        raise ValueError(f"context {cid}: {kv} of {len(ids)} tokens computed, runs {found.runs}")
    return found


def _request(row: tuple[Any, ...]) -> RequestRow:
    *plain, progress = row
    rid, aid, cid, key, args, submitted = plain
    return RequestRow(rid, aid, cid, key, args, submitted, msgspec.msgpack.decode(progress))


def _answer(row: tuple[Any, ...]) -> AnswerRow:
    agent, owner, *rest = row
    return AnswerRow((bool(agent), owner), *rest)


def _readable(read: Callable[[tuple[Any, ...]], T], rows: list[Any]) -> list[T]:
    found = []
    for row in rows:
        try:
            found.append(read(row))
        except (msgspec.MsgspecError, ValueError) as error:
            log.error("%s %s can't be read and is dropped: %s", read.__name__, row[0], error)
    return found
