"""Interactions: what agents asked and were answered, kept for those who may look at the agent.

    part = interactions.part(generation)          # written in the transaction of the request's end
    found = await interactions.find(wanted, aids)
    await interactions.close()

What must hold: a request that was answered is there exactly once, whatever kills the kernel (its
number is unique, its row part of its end); nothing that redaction takes out is ever written here;
what is kept is bounded in number, bytes, age and the length of each text; the event loop does no
work on texts, and none is done per token.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiosd import calling
from aiosd.abi.process import Happening, QueryHistory
from aiosd.killpoint import reach
from aiosd.redaction import Redaction
from aiosd.settings import History as Settings
from aiosd.words import every

if TYPE_CHECKING:
    from aiosd.db import Connection, Database
    from aiosd.generation import Generation
    from aiosd.journal import Write

log = logging.getLogger(__name__)

KIND: Final = "interaction"
REPLY: Final = 2 << 20
"""Bytes of texts that one answer holds, but for a single record that has more."""
ROW: Final = 256
"""Bytes of a record beside its texts, about."""
PRUNED: Final = 8
"""Old records that go with the end of a request, at most."""
AT_ONCE: Final = 256
"""Old records that go in one transaction of their own."""
LOOK: Final = 600.0
"""Seconds between two looks for records that are too old."""
NAMED: Final = 64
"""Agents that are named to the index of words; more are sorted out behind it."""


@dataclass(frozen=True)
class _Asked:
    """What is kept of a request. turns: role and characters of each; none of a prompt."""

    text: str
    turns: list[tuple[str, int]]


class Interactions:
    """The table of them. settings: gives [history] as it is now."""

    def __init__(self, db: Database, settings: Callable[[], Settings]) -> None:
        self._db = db
        self._settings = settings
        self._redacting: tuple[list[str], Redaction] = ([], Redaction([]))
        self._looking: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def boot(self) -> None:
        """Begin to look for what is too old."""
        self._looking = asyncio.get_running_loop().create_task(self._look_after())

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def reload(self) -> None:
        """The settings have changed."""
        self._wake.set()

    # Writing.

    def part(self, generation: Generation) -> list[Write]:
        """Return what writes a request's record, to be part of its end; nothing to write, nothing.

        Of the kernel's own requests there is none.
        """
        settings = self._settings()
        if settings.interactions == "none" or generation.context.window.internal:
            return []
        record, redaction = generation.record(), self._redaction(settings.redact)

        def write(db: Connection) -> None:
            asked, reply = _asked(generation), generation.written
            digests = {}
            if settings.interactions == "digests":
                digests = {"asked_digest": _digest(asked.text), "reply_digest": _digest(reply)}
                asked, reply = _Asked("", []), ""
            else:
                asked = _redacted(asked, redaction, settings.text_limit)
                reply = redaction.kept(reply, settings.text_limit)

            def put() -> int:
                _put(db, record, asked, reply, digests)
                return _prune(db, settings, PRUNED)

            _sound(db, put)
            reach("interactions.row")

        return [write]

    def _redaction(self, patterns: list[str]) -> Redaction:
        if self._redacting[0] != patterns:
            self._redacting = (patterns, Redaction(patterns))
        return self._redacting[1]

    # Reading.

    async def find(self, wanted: QueryHistory, aids: Collection[int] | None) -> list[Happening]:
        """Return the newest that match, oldest first. aids: of whom; None: of all."""
        if aids is not None and not aids:
            return []
        since = max(wanted.since, _oldest(self._settings()))
        await self._db.flush()

        def read(db: Connection) -> list[Happening]:
            return _find(db, wanted, since, aids)

        try:
            return await self._db.read(read)
        except OSError as error:
            if not wanted.text or error.errno != errno.EUCLEAN:
                raise
            await self._db.write(_mend)  # it may be the index of words alone
            return await self._db.read(read)

    # Looking after it.

    async def _look_after(self) -> None:
        """Let go of what is beyond the limits, at boot, after changes and every LOOK seconds."""
        while True:
            self._wake.clear()
            try:
                while await self._db.write(self._prune_some):
                    pass
            except OSError as error:
                log.warning("old interactions can't be deleted: %s", error)
            try:
                async with asyncio.timeout(LOOK):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _prune_some(self, db: Connection) -> int:
        settings = self._settings()
        return _sound(db, lambda: _prune(db, settings, AT_ONCE))


# In the writer's thread.


def _asked(generation: Generation) -> _Asked:
    args = generation.args
    if not args.messages:
        return _Asked(args.prompt, [])
    turns = [(turn.role, turn.content) for turn in calling.plain(args.messages, False)]
    return _joined(turns)


def _joined(turns: list[tuple[str, str]]) -> _Asked:
    text = "\n".join(content for _, content in turns)
    return _Asked(text, [(role, len(content)) for role, content in turns])


def _apart(text: str, turns: list[tuple[str, int]]) -> list[dict[str, str]]:
    """Return the turns that were joined."""
    found, at = [], 0
    for role, length in turns:
        found.append({"role": role, "content": text[at : at + length]})
        at += length + 1
    return found


def _redacted(asked: _Asked, redaction: Redaction, most: int) -> _Asked:
    """Return what is kept of a request; of a chat the newest turns that fit, and how many not."""
    if not asked.turns:
        return _Asked(redaction.kept(asked.text, most), [])
    turns = _apart(asked.text, asked.turns)
    kept: list[tuple[str, str]] = []
    while turns and most > 0:
        turn = turns.pop()
        content = redaction.kept(turn["content"], most)
        kept.append((turn["role"], content))
        most -= len(content.encode()) + len(turn["role"])
    if turns:
        kept.append(("cut", f"[cut: {len(turns)} earlier turns are not kept]"))
    return _joined(kept[::-1])


def _put(
    db: Connection, record: dict[str, Any], asked: _Asked, reply: str, digests: dict[str, str]
) -> None:
    size = len(asked.text.encode()) + len(reply.encode())
    values = {**record, "size": size, "digests": json.dumps(digests)}
    id = db.execute(_INSERT, values).fetchone()[0]
    turns = json.dumps(asked.turns)
    db.execute(_INSERT_TEXTS, (id, record["aid"], asked.text, turns, reply))


def _prune(db: Connection, settings: Settings, most: int) -> int:
    """Delete the oldest records beyond the limits, at most so many; return how many."""
    count, size = db.execute("select count, bytes from interactions_held").fetchone()
    rows = db.execute("select id, t, size from interactions order by id limit ?", (most,))
    none, oldest = settings.interactions == "none", _oldest(settings)
    gone = []
    for id, t, bytes in rows.fetchall():
        over = count > settings.keep_interactions or size > settings.keep_bytes
        if not (none or over or t < oldest):
            break
        gone.append((id,))
        count, size = count - 1, size - bytes
    db.conn.executemany("delete from interactions where id = ?", gone)
    return len(gone)


def _sound(db: Connection, deed: Callable[[], int]) -> int:
    """Do something; when the index of words is damaged, make it anew and do it again.

    What goes with it, a request's end, is worth more than an index.
    """
    try:
        with db.atomic():
            return deed()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        log.warning("the index interaction_words is made anew: %s", error)
        _mend(db)
        return deed()


def _mend(db: Connection) -> int:
    rebuild = "insert into interaction_words (interaction_words) values ('rebuild')"
    return db.execute(rebuild).rowcount


# In the reader's.


def _find(
    db: Connection, wanted: QueryHistory, since: float, aids: Collection[int] | None
) -> list[Happening]:
    where, values = _where(wanted, since, aids)
    table = "interactions as i join interaction_texts as x on x.id = i.id"
    if wanted.text:
        words = _expression(wanted.text, aids)
        if not words:
            return []
        table = f"interaction_words join {table} and i.id = interaction_words.rowid"
        where, values = ["interaction_words match ?", *where], [words, *values]
    order = "interaction_words.rowid" if wanted.text else "i.id"
    sql = (
        f"select {_COLUMNS} from {table} where {' and '.join(where)} order by {order} desc limit ?"
    )
    found: list[Happening] = []
    left = REPLY
    for row in db.execute(sql, [*values, wanted.limit]):
        left -= row[-1] + ROW
        if found and left < 0:
            break
        found.append(_happening(row))
    return found[::-1]


def _where(
    wanted: QueryHistory, since: float, aids: Collection[int] | None
) -> tuple[list[str], list[object]]:
    """Return conditions and their values."""
    where: list[str] = ["i.t >= ?"]
    values: list[object] = [since]
    asked: list[tuple[str, object]] = [
        ("i.t <= ?", wanted.until),
        ("i.id < ?", wanted.before),
        ("i.cid = ?", wanted.cid),
        ("i.core = ?", wanted.core),
        ("i.finish = ?", wanted.finish),
        ("i.rid = ?", wanted.request),
    ]
    for condition, value in asked:
        if value:
            where.append(condition)
            values.append(value)
    if aids is not None and len(aids) == 1:
        where.append("i.aid = ?")
        values.extend(aids)
    elif aids is not None:
        where.append("i.aid in (select value from json_each(?))")
        values.append(json.dumps(list(aids)))
    return where, values


def _expression(text: str, aids: Collection[int] | None) -> str:
    """Return what finds texts with all of the words; "" when there is no word."""
    words = every(text)
    if not words:
        return ""
    found = f"{{asked reply}} : ({words})"
    if aids is None or len(aids) > NAMED:
        return found
    whose = " OR ".join(f'"{aid}"' for aid in aids)
    return f"aid : ({whose}) AND {found}"


def _oldest(settings: Settings) -> float:
    return time.time() - settings.keep_for


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _happening(row: tuple[Any, ...]) -> Happening:
    id, t, aid, digests, asked, turns, reply, *facts, _ = row
    data = dict(zip(_FACTS, facts, strict=True))
    apart = _apart(asked, json.loads(turns))
    data |= {"messages": apart} if apart else {"prompt": asked}
    return Happening(id, t, aid, KIND, data | {"reply": reply} | json.loads(digests))


_FACTS: Final = {
    "request": "i.rid",
    "context": "i.cid",
    "core": "i.core",
    "submitted": "i.submitted",
    "finish_reason": "i.finish",
    "reason": "i.reason",
    "prompt_tokens": "i.prompt_tokens",
    "completion_tokens": "i.completion_tokens",
}
_COLUMNS: Final = (
    f"i.id, i.t, i.aid, i.digests, x.asked, x.turns, x.reply, {', '.join(_FACTS.values())}, i.size"
)
_INSERT: Final = (
    "insert into interactions (rid, aid, cid, core, submitted, t, finish, reason, prompt_tokens,"
    " completion_tokens, size, digests) values (:id, :aid, :cid, :core, :t_submit, :t_end, :finish,"
    " :error, :prompt_tokens, :completion_tokens, :size, :digests) returning id"
)
_INSERT_TEXTS: Final = "insert into interaction_texts values (?, ?, ?, ?, ?)"
