"""Uploads: writes of several parts that are not complete yet.

    upload = uploads.take(place, offset)                # the one under way, or a fresh one
    async with upload.lock: draft = await uploads.draft(upload); ...
    uploads.rest(upload)                                # more parts are to come
    uploads.forget(upload)                              # it is complete
    await uploads.drop(upload)                          # it is given up

What must hold: their number is bounded, per caller too; one that pauses for too long is given up;
none outlives its kernel.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiosd.blobs import Draft
from aiosd.sealing import Seal, SealedDraft

log = logging.getLogger(__name__)

MAX_UPLOADS: Final = 128
MAX_OF_ONE: Final = 16

Place = tuple[int, str, str, str]
"""Owner, caller, name of the object, and of the upload (""; of a single part)."""


@dataclass(eq=False)
class Upload:
    """One write under way. bytes: that its owner was charged; counted: for the object as well.

    back: gives both back, once something was charged.

    closed: its draft is finished, no part can be added. seal: what encrypts it, if it is. used:
    time.monotonic() of the last part.
    """

    place: Place
    draft: Draft | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    counted: bool = False
    bytes: int = 0
    back: Callable[[], None] | None = None
    closed: bool = False
    seal: Seal | None = None
    dropped: bool = False
    used: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.draft.size if self.draft is not None else 0

    def has(self, offset: int, size: int) -> bool:
        """Whether a part was written already; raises OSError(EINVAL) when it does not fit on."""
        if self.dropped or self.closed:
            raise OSError(
                errno.EAGAIN, "sto_write: this upload has just ended; begin again at offset 0"
            )
        if offset == self.size:
            return False
        if offset + size <= self.size:
            return True
        raise OSError(
            errno.EINVAL,
            f"sto_write: offset {offset}, but {self.size} bytes are there; go on with those",
        )


class Uploads:
    """All writes under way. begin: makes a draft. run: calls what blocks in a thread."""

    def __init__(self, begin: Callable[[], Draft], run: Callable[..., Awaitable[Any]]) -> None:
        self._begin = begin
        self._run = run
        self._open: dict[Place, Upload] = {}
        self._single: set[Upload] = set()

    def __len__(self) -> int:
        return len(self._open) + len(self._single)

    def take(self, place: Place, offset: int) -> Upload:
        """Return the upload of that place, or begin one; raises OSError(EINVAL, EAGAIN)."""
        upload = self._open.get(place) if place[3] else None
        if upload is not None:
            upload.used = time.monotonic()
            return upload
        if offset:
            raise OSError(
                errno.EINVAL,
                f"sto_write: no upload {place[3]!r} of {place[2]!r} is under way (it may have "
                "paused for too long, or aiosd was restarted); begin again at offset 0",
            )
        under_way = [*self._open.values(), *self._single]
        mine = sum(other.place[1] == place[1] for other in under_way)
        if mine >= MAX_OF_ONE or len(self) >= MAX_UPLOADS:
            raise BlockingIOError(
                errno.EAGAIN,
                f"sto_write: {mine} writes of yours and {len(self)} in all are under way, the "
                f"limits are {MAX_OF_ONE} and {MAX_UPLOADS}; finish some first",
            )
        upload = Upload(place)
        if place[3]:
            self._open[place] = upload
        else:
            self._single.add(upload)
        return upload

    async def draft(self, upload: Upload) -> Draft:
        """Return where an upload's bytes go. Under its lock."""
        if upload.draft is None:
            plain = await self._run(self._begin)
            upload.draft = SealedDraft(plain, upload.seal) if upload.seal else plain
        return upload.draft

    def rest(self, upload: Upload) -> None:
        """A part is written, or was refused, and others may come."""
        upload.used = time.monotonic()

    def forget(self, upload: Upload) -> None:
        """It is complete."""
        upload.dropped = True
        self._single.discard(upload)
        if self._open.get(upload.place) is upload:
            del self._open[upload.place]

    async def drop(self, upload: Upload) -> None:
        """Give it up, with what it holds. Idempotent."""
        if upload.dropped:
            return
        self.forget(upload)
        if upload.back is not None:
            upload.back()
        if upload.draft is None:
            return
        try:
            await self._run(upload.draft.discard)
        except OSError as error:
            log.warning("what is left of an unfinished write goes at the next start: %s", error)

    async def expire(self, seconds: float) -> None:
        """Give up those that have paused for too long."""
        before = time.monotonic() - seconds
        for upload in [u for u in self._open.values() if u.used < before and not u.lock.locked()]:
            await self.drop(upload)

    async def drop_all(self) -> None:
        """Give up all."""
        for upload in [*self._open.values(), *self._single]:
            async with upload.lock:
                await self.drop(upload)
