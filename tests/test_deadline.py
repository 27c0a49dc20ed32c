"""Deadlines by a clock of the test's own: what counts, what does not, and that they end once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aiosd.deadline import Deadline, Limited


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time goes on only when it is told to."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    async def go(self, seconds: float) -> None:
        """Let time go by, and what is due then happen."""
        self.now += seconds
        for _ in range(5):
            await asyncio.sleep(0)


def by_clock(test: Callable[[Clock], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        clock = Clock()
        try:
            clock.run_until_complete(test(clock))
        finally:
            clock.close()

    return run


@by_clock
async def test_it_counts_only_while_it_is_started(clock: Clock) -> None:
    ends: list[float] = []
    deadline = Deadline(10.0, lambda: ends.append(clock.now))
    await clock.go(100)
    assert (deadline.left, deadline.moment, ends) == (10.0, None, [])
    deadline.start()
    await clock.go(4)
    assert deadline.left == 6.0 and deadline.moment is not None
    deadline.stop()
    await clock.go(100)
    assert (deadline.left, ends) == (6.0, [])
    deadline.start()
    deadline.left = 2.0  # some of it went by elsewhere
    await clock.go(1.5)
    assert not ends
    await clock.go(1)
    assert ends == [1206.5]
    deadline.start()
    await clock.go(100)
    assert len(ends) == 1


@by_clock
async def test_what_is_closed_or_has_no_end_never_ends(clock: Clock) -> None:
    ends: list[str] = []
    endless = Deadline(None, lambda: ends.append("endless"))
    closed = Deadline(1.0, lambda: ends.append("closed"))
    for deadline in (endless, closed):
        deadline.start()
    closed.close()
    closed.start()
    await clock.go(100)
    assert ends == [] and endless.left is None


@by_clock
async def test_work_in_parts_is_cut_when_its_seconds_are_over(clock: Clock) -> None:
    limited = Limited(10.0)
    limited.deadline.start()
    async with limited:
        await clock.go(4)
    limited.deadline.stop()
    async with limited:
        await clock.go(100)
    limited.deadline.start()
    waiting = asyncio.create_task(_wait(limited))
    await clock.go(5)
    assert not waiting.done()
    await clock.go(2)
    with pytest.raises(TimeoutError):
        await waiting
    with pytest.raises(TimeoutError):
        await _wait(limited)


async def _wait(limited: Limited) -> None:
    async with limited:
        await asyncio.get_running_loop().create_future()
