"""The queue of a tool that is a model: whose calls are in the next batch. Pure: no clock, no task.

    queue.add(Entry("agent:5", nice=lambda: 0))
    batch = queue.take(8)

The most urgent goes first, by the nice that its agent has now; among equals the one that came
first. No more than `concurrent` of one caller's are in a batch, and a call that is to be alone,
since a batch with it has killed the host, is in none with others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar


class Entry:
    """A call that waits. nice: of its caller, now. concurrent: of one caller in a batch, 0: any."""

    def __init__(self, subject: str, nice: Callable[[], int], concurrent: int = 0) -> None:
        self.subject = subject
        self.nice = nice
        self.concurrent = concurrent
        self.alone = False
        self.number = -1


E = TypeVar("E", bound=Entry)


class Queue(Generic[E]):
    """All calls of one tool that wait."""

    def __init__(self) -> None:
        self._waiting: list[E] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, entry: E) -> None:
        """Let an entry wait; one that waited before keeps its place."""
        if entry.number < 0:
            entry.number = next(self._numbers)
        self._waiting.append(entry)

    def drop(self, entry: E) -> None:
        """Let an entry wait no more, if it does."""
        if entry in self._waiting:
            self._waiting.remove(entry)

    def nice(self) -> int:
        """Return the nice of the most urgent entry, 0 without one."""
        return min((entry.nice() for entry in self._waiting), default=0)

    def take(self, most: int) -> list[E]:
        """Return the next batch, taken out of the queue; empty only where nothing waits."""
        order = sorted(self._waiting, key=lambda entry: (entry.nice(), entry.number))
        batch: list[E] = []
        taken: Counter[str] = Counter()
        for entry in order:
            if len(batch) == most or (entry.alone and batch):
                break
            if entry.concurrent and taken[entry.subject] >= entry.concurrent:
                continue
            batch.append(entry)
            taken[entry.subject] += 1
            if entry.alone:
                break
        self._waiting = [entry for entry in self._waiting if entry not in batch]
        return batch
