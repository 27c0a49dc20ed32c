"""Deadlines that count only while their agent is not suspended.

    deadline = Deadline(seconds, lambda: cancel("deadline"))
    deadline.start(); deadline.stop(); deadline.start()
    deadline.close()

    limited = Limited(seconds); limited.deadline.start()
    async with limited: ...             # TimeoutError when it is over

Owned by the event loop's thread. What must hold: `expired` is called once at most, from the loop,
when the seconds during which it was started add up to what it was given; never once it is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType


class Deadline:
    """Seconds that something has; None: as many as it takes."""

    def __init__(self, seconds: float | None, expired: Callable[[], object]) -> None:
        self._left = seconds
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._closed = False

    @property
    def left(self) -> float | None:
        """Seconds that are left at this moment."""
        if self._timer is None:
            return self._left
        return max(0.0, self._due - asyncio.get_running_loop().time())

    @left.setter
    def left(self, seconds: float | None) -> None:
        """Say anew how many are left; it counts on if it did."""
        counting = self._timer is not None
        self.stop()
        self._left = seconds
        if counting:
            self.start()

    @property
    def moment(self) -> float | None:
        """The Unix time at which it is over; None while it does not count."""
        left = self.left
        return None if self._timer is None or left is None else time.time() + left

    def start(self) -> None:
        """Count, if there is anything to count."""
        if self._left is None or self._timer is not None or self._closed:
            return
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._left
        self._timer = loop.call_later(self._left, self._end)

    def stop(self) -> None:
        """Count no further until it is started again."""
        if self._timer is not None:
            self._left = self.left
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Never expire: what had this deadline is over."""
        self.stop()
        self._closed = True

    def _end(self) -> None:
        self._timer, self._left = None, 0.0
        self._closed = True
        self._expired()


class Limited:
    """What is carried out within a deadline, in one part or several: `async with` each of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = Deadline(seconds, self._over)
        self._scope: asyncio.Timeout | None = None
        self._late = False

    async def __aenter__(self) -> None:
        self._scope = await asyncio.timeout(0.0 if self._late else None).__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        scope, self._scope = self._scope, None
        if scope is not None:
            await scope.__aexit__(kind, error, trace)

    def _over(self) -> None:
        self._late = True
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())
