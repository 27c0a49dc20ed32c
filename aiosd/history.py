"""History: what agents did and wrote. log_event, query_history and read_log.

Records are rows of the database, output is kept by each agent's shim; read_log shows both as one
stream in order of time. An agent's own events have kinds below `agent.event.`, so none can pretend
to be the kernel's. What agents asked and were answered is in interactions.py; who may see it is
decided here.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd.abi.process import Happening, LogEvent, LogRecord, QueryHistory, ReadLog
from aiosd.access import Access, Caller
from aiosd.db import Connection
from aiosd.interactions import KIND, REPLY, Interactions
from aiosd.keys import answering
from aiosd.process import Process
from aiosd.roster import Note, Roster
from aiosd.spawn import Spawner

if TYPE_CHECKING:
    from aiosd.session import Stream

OWN: Final = "agent.event."
DATA_MAX: Final = 64 << 10
"""Bytes that the data of one log_event may have, as JSON."""
BATCH: Final = 256
"""Records read from a source at once."""
CHUNK: Final = 256 << 10
"""Characters after which a chunk of read_log is sent."""

_json = msgspec.json.Encoder().encode


class History:
    """Serves what is kept of agents. `rouse(aid)` says that there is more of an agent's output."""

    def __init__(
        self, roster: Roster, spawner: Spawner, access: Access, interactions: Interactions
    ) -> None:
        self._roster = roster
        self._interactions = interactions
        self._spawner = spawner
        self._access = access
        self._readers: dict[int, set[asyncio.Event]] = {}

    def rouse(self, aid: int) -> None:
        """Let those who follow an agent's output look again."""
        for news in self._readers.get(aid, ()):
            news.set()

    async def sys_log_event(self, caller: Caller, args: LogEvent) -> None:
        """Record an event of the calling agent; EINVAL when its data is too large."""
        process = self._roster.own(caller)
        try:
            size = len(_json(args.data))
        except (TypeError, ValueError, RecursionError) as error:
            raise OSError(errno.EINVAL, f"data: can't be kept as JSON: {error}") from None
        if size > DATA_MAX:
            raise OSError(errno.EINVAL, f"data: {size} bytes as JSON, the limit is {DATA_MAX}")
        note = Note(OWN + args.kind, process.aid, args.data)
        await self._roster.save(notes=[note], more=answering(None))
        self.rouse(process.aid)

    sys_log_event.lasting = True  # type: ignore[attr-defined]

    async def sys_query_history(self, caller: Caller, args: QueryHistory) -> list[Happening]:
        """Return the newest records that match, oldest first."""
        if args.aid:
            aids: list[int] | None = [args.aid]
        elif self._access.superuser(caller):
            aids = None
        else:
            aids = [p.aid for p in self._roster if self._access.may_see(caller, p.aid)]
        if self._about_interactions(args):
            return await self._interactions.find(args, aids)
        await self._roster.db.flush()  # what watchers were told of is there
        return await self._roster.db.read(lambda db: _events(db, args, aids))

    def _about_interactions(self, args: QueryHistory) -> bool:
        """Whether requests and replies are asked for; raises OSError(EINVAL) when both are."""
        filters = ("text", "cid", "core", "finish", "request")
        given = [name for name in filters if getattr(args, name)]
        if given and args.kind not in ("", KIND):
            raise OSError(
                errno.EINVAL,
                f"query_history: field {given[0]!r} is of interactions; leave kind empty with it",
            )
        return bool(given) or args.kind == KIND

    async def sys_read_log(self, caller: Caller, args: ReadLog, stream: Stream) -> None:
        """Stream an agent's output and own events in order of time."""
        process = self._roster.get(args.aid)
        news = asyncio.Event()
        readers = self._readers.setdefault(process.aid, set())
        readers.add(news)
        try:
            pages = _Pages(self._roster, self._spawner, process)
            await _send(stream, _last(pages, args.tail) if args.tail else pages.rest())
            while args.follow:
                over = process.settled
                await _send(stream, pages.rest())
                if over:
                    break
                await news.wait()
                news.clear()
        finally:
            readers.discard(news)
            if not readers:
                self._readers.pop(process.aid, None)


class _Pages:
    """An agent's output and own events, merged by time, read page by page."""

    def __init__(self, roster: Roster, spawner: Spawner, process: Process) -> None:
        self._roster = roster
        self._spawner = spawner
        self._aid = process.aid
        self._offset = 0
        self._id = 0

    async def rest(self) -> AsyncIterator[list[LogRecord]]:
        """Yield what has come since the last time, in pages."""
        output = await self._output()
        events = await self._events()
        while output or events:
            page, output, events = _merge(output, events)
            yield page
            output = output or await self._output()
            events = events or await self._events()

    async def _output(self) -> list[LogRecord]:
        try:
            self._offset, records = await asyncio.to_thread(
                self._spawner.read_log, self._aid, self._offset, BATCH
            )
        except FileNotFoundError:
            return []  # it has no process of ours
        return [LogRecord(record.time, record.stream, record.text) for record in records]

    async def _events(self) -> list[LogRecord]:
        def read(db: Connection) -> list[tuple[Any, ...]]:
            return db.execute(
                "select id, t, kind, data from events where aid = ? and id > ? "
                "and kind >= ? and kind < ? order by id limit ?",
                (self._aid, self._id, OWN, OWN + "\U0010ffff", BATCH),
            ).fetchall()

        rows = await self._roster.db.read(read)
        if rows:
            self._id = rows[-1][0]
        return [
            LogRecord(t, "log", f"{kind.removeprefix(OWN)} {data}\n") for _, t, kind, data in rows
        ]


def _merge(
    one: list[LogRecord], other: list[LogRecord]
) -> tuple[list[LogRecord], list[LogRecord], list[LogRecord]]:
    """Return what is certainly next, in order, and what is left of both lists.

    When one list runs out there may be more of it: the rest of the other has to wait, unless the
    one was empty from the start.
    """
    if not one or not other:
        return one or other, [], []
    until = min(one[-1].t, other[-1].t)
    page = sorted(
        [record for record in (*one, *other) if record.t <= until], key=lambda record: record.t
    )
    return page, [r for r in one if r.t > until], [r for r in other if r.t > until]


async def _last(pages: _Pages, count: int) -> AsyncIterator[list[LogRecord]]:
    """Yield only the last so many records."""
    kept: deque[LogRecord] = deque(maxlen=count)
    async for page in pages.rest():
        kept.extend(page)
    yield list(kept)


async def _send(stream: Stream, pages: AsyncIterator[list[LogRecord]]) -> None:
    """Send pages in chunks of bounded size."""
    async for page in pages:
        chunk: list[LogRecord] = []
        size = 0
        for record in page:
            chunk.append(record)
            size += len(record.text)
            if size > CHUNK:
                await stream.send(chunk)
                chunk, size = [], 0
        if chunk:
            await stream.send(chunk)


def _events(db: Connection, args: QueryHistory, aids: list[int] | None) -> list[Happening]:
    where = ["t >= ?", "kind >= ?", "kind < ?"]
    values: list[object] = [args.since, args.kind, args.kind + "\U0010ffff"]
    for condition, value in (("t <= ?", args.until), ("id < ?", args.before)):
        if value:
            where.append(condition)
            values.append(value)
    if args.aid:
        where.append("aid = ?")
        values.append(args.aid)
    elif aids is not None:
        where.append("aid in (select value from json_each(?))")
        values.append(_json(aids).decode())
    query = (
        f"select id, t, aid, kind, data from events where {' and '.join(where)} "
        "order by id desc limit ?"
    )
    found: list[Happening] = []
    left = REPLY
    for row in db.execute(query, [*values, args.limit]):
        left -= len(row[-1])
        if found and left < 0:
            break
        found.append(_happening(row))
    return found[::-1]


def _happening(row: tuple[Any, ...]) -> Happening:
    id, t, aid, kind, data = row
    return Happening(id, t, aid, kind, msgspec.json.decode(data))
