"""Series: numbers that are never given twice, also when a kernel was killed and another follows.

    series = Series(db, "request")
    await series.boot()
    rid = series.take()
    await series.close()              # the next kernel goes on without a gap

What must hold: a number is given only when it lies below a mark that is on disk, and a kernel that
boots begins at that mark. The mark moves on a block at a time, long before it is reached: `take`
never waits for the disk.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiosd.db import Connection, Database

log = logging.getLogger(__name__)

BLOCK: Final = 10_000
"""Numbers that a killed kernel leaves unused at most; half of it, what may be given while the mark
is being written, is more than the requests that may be in flight by default."""

_READ: Final = "select value from meta where key = ?"
_WRITE: Final = (
    "insert into meta (key, value) values (?, ?) "
    "on conflict (key) do update set value = excluded.value"
)


class Series:
    """One series of numbers, from 1. Owned by the event loop's thread."""

    def __init__(self, db: Database, name: str) -> None:
        self._db = db
        self._name = name
        self._key = f"next.{name}"
        self._next = 1
        self._mark = 1  # as on disk
        self._moving: asyncio.Task[None] | None = None

    async def boot(self) -> None:
        """Begin where the last kernel stopped, or where its mark is."""
        row = await self._db.read(lambda db: db.execute(_READ, (self._key,)).fetchone())
        self._next = int(row[0]) if row else 1
        await self._move(self._next + BLOCK)

    async def close(self) -> None:
        """Leave no gap to the next kernel; nothing is given any more."""
        if self._moving is not None:
            await self._moving
        self._mark = self._next
        try:
            await self._move(self._next)
        except OSError as error:
            log.warning("the next kernel leaves a gap in the %s numbers: %s", self._name, error)

    def check(self) -> None:
        """Return when a number can be given now; EAGAIN when the disk is too far behind."""
        if self._mark - self._next < BLOCK // 2 and self._moving is None:
            self._moving = asyncio.get_running_loop().create_task(self._move_on())
        if self._next >= self._mark:
            raise BlockingIOError(
                errno.EAGAIN,
                f"no {self._name} numbers are left until the disk has caught up; try again",
            )

    def take(self) -> int:
        """Return the next number; EAGAIN as `check`."""
        self.check()
        self._next += 1
        return self._next - 1

    async def _move_on(self) -> None:
        try:
            await self._move(self._next + BLOCK)
        except Exception:
            log.exception("the mark of %s numbers could not be moved", self._name)
        finally:
            self._moving = None

    async def _move(self, mark: int) -> None:
        def write(db: Connection) -> None:
            db.execute(_WRITE, (self._key, str(mark)))

        await self._db.write(write)
        self._mark = mark
