"""The limit of a workspace while calls are under way: a call that goes beyond it is ended.

    watch = Watch(limit)
    room, most = await watch.room("agent:5", folder)
    with watch.over(work): ...              # what carries it out has set work.on_full, or not
    watch.written("agent:5")

One file is stopped by the limit on its size (box.py); many of them are seen here: while calls last,
their workspaces are measured every LOOK_S seconds, or as much less often as they take longer, so
that measuring never takes more than a twentieth of a processor. A workspace that is full already
may be tidied: a call is ended only when it holds more than it did at the call's beginning.

What must hold: calls that are over sooner cost nothing here; nothing blocks the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aiosd.toolfiles import MOST_SEEN, Held, held

if TYPE_CHECKING:
    from aiosd.toolrun import Work

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
SHARE: Final = 20
"""Looking takes one part in so many of the time."""
MOST: Final = 20_000
"""Files and directories of one workspace."""


class Watch:
    """All workspaces. limit: bytes that one may hold, now."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._held: dict[str, Held] = {}  # by subject, where nothing was written since
        self._calls: dict[Work, float] = {}  # since when
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    async def room(self, subject: str, folder: str) -> tuple[int, Held]:
        """Return the bytes that a workspace still takes, and the most that it may hold.

        Raises OSError(EDQUOT) where there is too much to be measured.
        """
        known = self._held.get(subject)
        if known is None:
            known = self._held[subject] = await held(folder)
        if known.files >= MOST_SEEN:
            del self._held[subject]
            raise OSError(
                errno.EDQUOT,
                f"the workspace {folder} holds more than {MOST_SEEN} files: remove some of them",
            )
        limit = self._limit()
        room = max(0, limit - known.bytes) if known.files < MOST else 0
        return room, Held(max(limit, known.bytes), max(MOST, known.files))

    def written(self, subject: str) -> None:
        """A workspace has changed: it is measured before its next call."""
        self._held.pop(subject, None)

    @contextmanager
    def over(self, work: Work) -> Iterator[None]:
        """Watch while a call is carried out."""
        loop = asyncio.get_running_loop()
        self._calls[work] = loop.time()
        if self._timer is None and self._looking is None:
            self._timer = loop.call_later(LOOK_S, self._look)
        try:
            yield
        finally:
            del self._calls[work]

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    # Inside.

    def _look(self) -> None:
        self._timer = None
        if not self._calls:
            return
        loop = asyncio.get_running_loop()
        before = loop.time() - LOOK_S / 2
        long = [work for work, began in self._calls.items() if work.on_full and began < before]
        self._looking = loop.create_task(self._measure(long))
        self._looking.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("workspaces can't be measured", exc_info=error)

    async def _measure(self, works: list[Work]) -> None:
        """Measure their workspaces one after the other, and end those that are beyond theirs."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = {folder: await held(folder) for folder in {work.workspace for work in works}}
        taken = loop.time() - began
        for work in works:
            if work in self._calls and found[work.workspace].beyond(work.most) and work.on_full:
                work.on_full(_full(work))
        self._timer = loop.call_later(max(LOOK_S, SHARE * taken), self._look)


def _full(work: Work) -> OSError:
    return OSError(
        errno.EDQUOT,
        f"tool {work.tool.name}: its agent's workspace holds more than {work.most.bytes} bytes "
        f"([tools] workspace_limit) or {work.most.files} files; it was ended",
    )
