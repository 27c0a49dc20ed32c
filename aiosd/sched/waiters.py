"""Who waits for whom: requests that can't run yet, and what they lend to those they wait for.

A request that names others in `waits_for` is not runnable until they are done. Until then those
others, and whatever they wait for in turn, count for as much as it does: else a request of
little weight could hold up one of great weight for as long as third ones like.

What must hold: there is no circle. Costs are those of the chain, whatever else waits.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from .policy import Task


class Waiters:
    """Tasks that wait for others, by id; those others need not be known anywhere yet."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._waiting_for: dict[int, dict[int, None]] = {}  # id: those who wait for it

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def __contains__(self, id: object) -> bool:
        return id in self._tasks

    def add(self, task: Task) -> None:
        """Take note of a task that waits. ValueError if it is noted already.

        Raises OSError(EDEADLK) where it would wait for itself, at whatever remove.
        """
        if task.id in self._tasks:
            raise ValueError(f"task {task.id} waits already")
        if task.id in task.waits_for or set(task.waits_for) & {t.id for t in self.behind(task.id)}:
            reason = f"request {task.id} would wait for itself: what it waits for waits for it"
            raise OSError(errno.EDEADLK, reason)
        self._tasks[task.id] = task
        for on in task.waits_for:
            self._waiting_for.setdefault(on, {})[task.id] = None

    def remove(self, id: int) -> Task:
        """Forget a task that waits no more. KeyError if it is not noted."""
        task = self._tasks.pop(id)
        for on in set(task.waits_for):
            same = self._waiting_for[on]
            del same[id]
            if not same:
                del self._waiting_for[on]
        return task

    def behind(self, id: int) -> list[Task]:
        """Those who wait for a task, directly or at some remove."""
        found: dict[int, Task] = {}
        ahead = [id]
        while ahead:
            for waiter in self._waiting_for.get(ahead.pop(), ()):
                if waiter not in found:
                    found[waiter] = self._tasks[waiter]
                    ahead.append(waiter)
        return list(found.values())

    def before(self, task: Task) -> set[int]:
        """What a waiting task waits for, directly or at some remove."""
        found: set[int] = set()
        ahead = list(task.waits_for)
        while ahead:
            id = ahead.pop()
            if id not in found:
                found.add(id)
                if id in self._tasks:
                    ahead.extend(self._tasks[id].waits_for)
        return found
