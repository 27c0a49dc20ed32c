"""Quiet: rounds of a measurement in which others leave the machine's processors alone.

    rounds = Rounds[float](5)
    for _ in rounds:
        rounds.add(measure())
    rounds.quietest()

Others are all processes but this one and its descendants, and, on a virtual machine, its host.
llama.cpp's threads wait for each other hundreds of times in a step: beside one other busy process a
server may take ten times as long, and a ratio then says more about luck than about either side. So
each round waits for quiet, a round that was disturbed is taken again while there are fewer than
RETRIES times as many, and in the end the quietest count.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

import psutil

QUIET = 0.08  # of all processors: what others may use in a measurement that counts
PATIENCE_S = 20.0  # for others to be done, before a round
GLANCE_S = 0.5
RETRIES = 3

T = TypeVar("T")


class Rounds(Generic[T]):
    """`wanted` rounds; what is added belongs to the round that began last."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._taken: list[tuple[float, T]] = []
        self._watch = Quiet()

    def __iter__(self) -> Iterator[int]:
        for number in range(RETRIES * self.wanted):
            if sum(loud <= QUIET for loud, _ in self._taken) >= self.wanted:
                return
            await_quiet()
            self._watch = Quiet()
            yield number

    def add(self, value: T) -> None:
        """End a round with what was measured in it."""
        self._taken.append((self._watch.share(), value))

    def quietest(self) -> list[T]:
        """Return the values of the rounds that count."""
        return [value for _, value in self._counting()]

    @property
    def noise(self) -> float:
        """The largest share of the processors that others had in a round that counts, in %."""
        return max(100 * loud for loud, _ in self._counting())

    def _counting(self) -> list[tuple[float, T]]:
        return sorted(self._taken, key=lambda one: one[0])[: self.wanted]


class Quiet:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._all, self._ours = _busy(), _own()

    def share(self) -> float:
        """Return the part of all processors' time that others have used since."""
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        others = (_busy() - self._all) - (_own() - self._ours)
        return max(0.0, others / seconds)


def await_quiet() -> None:
    """Return when others leave the processors alone, or after PATIENCE_S seconds."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        watch = Quiet()
        time.sleep(GLANCE_S)
        if watch.share() <= QUIET:
            return


def _busy() -> float:
    """Return the seconds that all processors have been at work, or were taken by the host."""
    times = psutil.cpu_times()
    return sum(times[:3]) + times.irq + times.softirq + times.steal


def _own() -> float:
    """Return the CPU seconds of this process and its descendants, those that ended included."""
    mine = psutil.Process()
    total = 0.0
    for process in [mine, *mine.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total
