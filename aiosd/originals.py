"""Originals: turns that have been compressed, as they were, by context and number.

A context whose oldest turns were summarized holds the summary; what it had read and said is kept
here, until the context goes, and get_context shows it. Of one context at most `keep` tokens; the
oldest go.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiosd.db import Connection, Database


@dataclass(slots=True, frozen=True)
class Original:
    """Part of a turn, or all of it. at: its first token's position in the context's life."""

    at: int
    number: int
    role: str
    tokens: list[int]
    text: str


class Originals:
    """The table of them. keep: tokens of one context, at most."""

    def __init__(self, db: Database, keep: int) -> None:
        self.keep = keep
        self._db = db

    async def save(self, cid: int, parts: list[Original]) -> None:
        """Keep parts of a context's turns; durable when it returns. Raises OSError."""
        keep = self.keep

        def write(db: Connection) -> None:
            for part in parts:
                db.execute(_PUT, (cid, part.at, part.number, part.role, part.text, _blob(part)))
            db.execute(_TRIM, (cid, cid, keep))

        await self._db.write(write)

    async def read(self, cid: int, first: int, last: int) -> list[Original]:
        """Return what is kept of a context's turns first to last, in order."""

        def read(db: Connection) -> list[Any]:
            return db.execute(_GET, (cid, first, last)).fetchall()

        rows = await self._db.read(read)
        return [
            Original(at, number, role, _tokens(blob), text) for at, number, role, text, blob in rows
        ]

    async def copy(self, cid: int, child: int) -> None:
        """Give a copy of a context what is kept of it."""
        await self._db.write(lambda db: db.execute(_COPY, (child, cid)))


_PUT = (
    "insert or replace into originals (cid, at, number, role, text, tokens) "
    "values (?, ?, ?, ?, ?, ?)"
)
_GET = (
    "select at, number, role, text, tokens from originals "
    "where cid = ? and number between ? and ? order by at"
)
_COPY = (
    "insert or replace into originals (cid, at, number, role, text, tokens) "
    "select ?, at, number, role, text, tokens from originals where cid = ?"
)
_TRIM = (
    "delete from originals where cid = ? and at in (select at from (select at, sum(length(tokens))"
    " over (order by at desc) as newer from originals where cid = ?) where newer > 4 * ?)"
)


def _blob(part: Original) -> bytes:
    return array("I", part.tokens).tobytes()


def _tokens(blob: bytes) -> list[int]:
    found = array("I")
    found.frombytes(blob)
    return found.tolist()
