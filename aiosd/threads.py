"""Threads: where storage does what blocks, near (this machine's disks) and far (a server).

    threads = Threads("aiosd-blobs")
    await threads.near(deed, *arguments)
    await threads.far(seconds, deed, *arguments)    # ETIMEDOUT when none is free within seconds

What must hold: a server that hangs holds up nobody who does not need it, and whoever does need it
is told after a bounded time, however many wait before him.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

T = TypeVar("T")

NEAR: Final = 4
FAR: Final = 16


class Threads:
    """Two pools of threads. Owned by the event loop's thread; name: begins those of the threads."""

    def __init__(self, name: str) -> None:
        self._near = ThreadPoolExecutor(NEAR, name)
        self._far = ThreadPoolExecutor(FAR, f"{name}-far")
        self._free = asyncio.Semaphore(FAR)

    async def near(self, deed: Callable[..., T], *args: Any) -> T:
        """Call what waits for a local disk at most, and return what it returns."""
        return await asyncio.get_running_loop().run_in_executor(self._near, deed, *args)

    def soon(self, deed: Callable[[], None]) -> None:
        """Call such a thing without waiting for it."""
        asyncio.get_running_loop().run_in_executor(self._near, deed)

    async def far(self, seconds: float, deed: Callable[..., T], *args: Any) -> T:
        """Call what asks a server, within a time of its own; seconds: to wait for a thread.

        Raises TimeoutError(ETIMEDOUT) when none is free in time: nothing was asked then.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"storage: {FAR} requests to the server of a back end are under way, and none has "
                f"ended within {seconds:g} s ([storage] timeout); is the server well?",
            ) from None
        done = asyncio.get_running_loop().run_in_executor(self._far, deed, *args)
        # Whoever waits may stop waiting: the thread is free when the deed is done, not before.
        done.add_done_callback(self._end)
        return await asyncio.shield(done)

    def close(self) -> None:
        """Return when all that has begun is done. Blocks."""
        self._near.shutdown()
        self._far.shutdown()

    def _end(self, done: asyncio.Future[Any]) -> None:
        self._free.release()
        if not done.cancelled():
            done.exception()  # whoever waits has it; where nobody does any more, it is nobody's
