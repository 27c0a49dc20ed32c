"""Rounds of requests with tools, on record: what the next kernel need not do again.

    offered, before = await rounds.find(aid, key, print)    # what is known of this request
    await rounds.begin(aid, key, print, offered)            # nothing was
    await rounds.add(aid, key, number, reply, calls)        # a round has ended, with its calls
    write = rounds.ended(aid, key)                          # goes with the request's answer

Only requests with a key are on record: nobody can ask for another one again. What a request that
failed has done stays for whoever asks again, for as long as a kept answer would.

What must hold: what is found is of this very request, and its rounds are without a gap.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from aiosd.abi.inference import Generation, ToolCall
from aiosd.engine.calls import Offered
from aiosd.keys import KEEP_S

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiosd.db import Connection, Database
    from aiosd.journal import Write

_ALL: Final = (
    "select number, print, body from tool_rounds where aid = ? and key = ? order by number"
)
_PUT: Final = "insert or replace into tool_rounds values (?, ?, ?, ?, ?, ?)"
_DROP: Final = "delete from tool_rounds where aid = ? and key = ?"
_OLD: Final = "select aid, key from tool_rounds group by aid, key having max(t) < ?"
_ORPHANS: Final = (
    "delete from tool_rounds where aid not in (select aid from agents where ended = 0)"
)


class Round(msgspec.Struct, frozen=True, array_like=True):
    """A round that has ended with calls."""

    reply: Generation
    calls: list[ToolCall]


class Rounds:
    """The record. Owned by the event loop's thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def boot(self) -> None:
        """Forget what agents that have ended left."""
        await self._db.write(_bury)

    async def find(self, aid: int, key: str, print: bytes) -> tuple[list[Offered], list[Round]]:
        """Return the tools that a request was offered, and its rounds so far; none: it is new.

        print: what tells it from another one with the key. Raises OSError.
        """
        found = await self._db.read(lambda db: db.execute(_ALL, (aid, key)).fetchall())
        if not found or found[0][:2] != (0, print):
            return [], []
        offered, *rounds = (body for _, _, body in found)
        return (
            msgspec.msgpack.decode(offered, type=list[Offered]),
            [msgspec.msgpack.decode(body, type=Round) for body in rounds],
        )

    async def begin(
        self,
        aid: int,
        key: str,
        print: bytes,
        offered: list[Offered],
        alive: Collection[tuple[int, str]],
    ) -> None:
        """Enter a new request and what it is offered; durable when this returns.

        alive: agent and key of the requests under way, whose records are not too old. Raises
        OSError.
        """
        now, body = time.time(), msgspec.msgpack.encode(offered)

        def write(db: Connection) -> None:
            for other in db.execute(_OLD, (now - KEEP_S,)).fetchall():
                if tuple(other) not in alive:
                    db.execute(_DROP, other)
            db.execute(_DROP, (aid, key))
            db.execute(_PUT, (aid, key, 0, print, now, body))

        await self._db.write(write)

    async def add(
        self, aid: int, key: str, number: int, reply: Generation, calls: list[ToolCall]
    ) -> None:
        """Record a round; durable when this returns. Raises OSError."""
        body = msgspec.msgpack.encode(Round(reply, calls))
        row = (aid, key, number, b"", time.time(), body)

        def write(db: Connection) -> None:
            db.execute(_PUT, row)

        await self._db.write(write)

    def ended(self, aid: int, key: str) -> Write:
        """Return what takes a request off the record, to be written with its answer."""

        def write(db: Connection) -> None:
            db.execute(_DROP, (aid, key))

        return write

    def forget(self, aid: int) -> None:
        """An agent has ended for good: nobody will ask for its requests."""
        self._db.write_soon(lambda db: _forget(db, aid))


def _forget(db: Connection, aid: int) -> None:
    db.execute("delete from tool_rounds where aid = ?", (aid,))


def _bury(db: Connection) -> None:
    db.execute(_ORPHANS)
