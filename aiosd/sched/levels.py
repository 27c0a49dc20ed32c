"""Preemptive levels with a round robin inside each: what fifo, rr and priority have in common.

Subclasses say which level a task is in and how many tokens a quantum has. The rules:

- a ready task of a strictly better level takes the slot of a running one of the worst level: one
  that has used up its quantum first, else the latest started;
- a task that has used up its quantum gives way to a ready one of its own level, the longest
  running first, and goes to the tail; if nobody waits, it begins a new quantum;
- a task stopped for another reason goes to the head of its level with the rest of its quantum;
- when the core has lost slots, the same choice says who leaves;
- slots are kept for a task at the head that needs several as `policy` says; those they are lent to
  go back to their level right behind it;
- a task that others wait for is in the best of their levels, if that is better than its own.

Every operation is O(1) in the number of tasks; `plan` is O(slots) when a quantum has ended or
slots are kept for somebody.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import islice

from .buckets import Buckets
from .policy import LOOK, Plan, Policy, Task
from .waiters import Waiters

DEFAULT_QUANTUM = 64  # tokens

_STAMPS = 1 << 48  # more starts than a core will ever see: rank = level, then order of start


@dataclass(slots=True)
class _Entry:
    task: Task
    level: int
    used: int = 0  # tokens of the present quantum
    stamp: int = 0  # order of the latest start


class Levels(Policy):
    """A policy made of levels (0 runs first)."""

    def __init__(self, levels: int, quantum: int | None) -> None:
        if quantum is not None and quantum < 1:
            raise OSError(errno.EINVAL, f"quantum {quantum}: a quantum is 1 token or more")
        self._quantum = quantum
        self._entries: dict[int, _Entry] = {}
        self._waiters = Waiters()
        self._ready = Buckets(levels)
        self._running = Buckets(levels)
        self._expired: set[int] = set()  # running tasks at the end of their quantum
        self._lent: dict[int, None] = {}  # running tasks in slots that are kept for `_kept`
        self._kept = -1  # the task at the head, when the slots are too few for it
        self._taken = 0  # slots
        self._stamp = 0

    @abstractmethod
    def level(self, task: Task) -> int:
        """The level a task belongs to."""

    @property
    def quantum(self) -> int | None:
        """Tokens in a quantum; None when tasks run to completion."""
        return self._quantum

    def limit(self, level: int) -> int | None:
        """Tokens in a quantum of this level; None when tasks run to completion."""
        return self._quantum

    @property
    def waiting(self) -> Iterable[Task]:
        """The requests that wait for others."""
        return self._waiters

    @property
    def running(self) -> Set[int]:
        """A live view of the ids on the core."""
        return self._running.ids

    def __len__(self) -> int:
        return len(self._ready)

    def __contains__(self, id: object) -> bool:
        return id in self._entries

    def task(self, id: int) -> Task:
        """The task, with its present nice."""
        return self._entries[id].task

    def standing(self, id: int) -> tuple[int, float]:
        """The level that a task is in."""
        return self._entries[id].level, 0.0

    def used(self, id: int) -> int:
        """Tokens of the present quantum that are spent."""
        return self._entries[id].used

    def order(self) -> Iterator[int]:
        """The ready ids: level by level, each in its order."""
        return iter(self._ready)

    def rank(self, id: int) -> int:
        """Level first, then order of start."""
        entry = self._entries[id]
        stamp = entry.stamp if id in self._running.ids else self._stamp + 1
        return entry.level * _STAMPS + stamp

    def add(self, task: Task) -> None:
        """Queue a task at the tail of its level."""
        entry = self._enter(task)
        self._ready.push(entry.level, task.id)

    def adopt(self, task: Task) -> None:
        """Take a running task as one that has just started."""
        self._enter(task)
        self._run(task.id)

    def remove(self, id: int) -> Task:
        """Forget a task."""
        entry = self._entries[id]
        self._ready.discard(id)
        self._halt(id)
        del self._entries[id]
        return entry.task

    def wait(self, task: Task) -> None:
        """Lend a task's level to what it waits for."""
        if task.id in self._entries:
            raise ValueError(f"task {task.id} is here: it can't wait")
        self._waiters.add(task)
        self._relevel(self._waiters.before(task))

    def unwait(self, id: int) -> Task:
        """Take back what a task has lent."""
        before = self._waiters.before(task := self._waiters.remove(id))
        self._relevel(before)
        return task

    def renice(self, id: int, nice: int) -> None:
        """Move a task to its new level, where it counts as the one that came last."""
        if id in self._waiters:
            self.wait(replace(self.unwait(id), nice=nice))
            return
        entry = self._entries[id]
        entry.task = replace(entry.task, nice=nice)
        self._place(entry)

    def charge(self, id: int, prefill: int, decode: int) -> None:
        """Spend the quantum of a running task; what a stopped one still reports is not counted."""
        entry = self._entries[id]
        if id not in self._running.ids:
            return
        entry.used += prefill + decode
        limit = self.limit(entry.level)
        if limit is not None and entry.used >= limit:
            self._expired.add(id)

    def plan(self, slots: int) -> Plan:
        """Fill the slots, preempt for better levels, and rotate at the ends of quanta."""
        if slots < 0:
            raise ValueError(f"a core has 0 slots or more, not {slots}")
        stopped: dict[int, None] = {}
        started: list[int] = []
        if self._kept not in self._ready.ids:
            self._lent.clear()
        while self._taken > slots:
            stopped[self._stop(next(self._yielding(-1)))] = None
        while (head := self._head(stopped)) is not None:
            victims = self._victims(head, slots - self._taken)
            if victims is None:
                break
            for victim in victims:
                stopped[self._stop(victim)] = None
            started.append(self._start(head))
        started += self._lend(slots, stopped)
        self._renew()
        return Plan(tuple(stopped), tuple(started))

    def _enter(self, task: Task) -> _Entry:
        if task.id in self._entries:
            raise ValueError(f"task {task.id} is already here")
        if task.id in self._waiters:
            raise ValueError(f"task {task.id} still waits for others")
        entry = self._entries[task.id] = _Entry(task, self._due(task))
        return entry

    def _due(self, task: Task) -> int:
        """The level of a task with what it inherits."""
        return min(map(self.level, [task, *self._waiters.behind(task.id)]))

    def _relevel(self, ids: Iterable[int]) -> None:
        for id in ids:
            if id in self._entries:
                self._place(self._entries[id])

    def _place(self, entry: _Entry) -> None:
        """Move a task to the level that it belongs to now, as the last there."""
        level = self._due(entry.task)
        if level == entry.level:
            return
        entry.level = level
        id = entry.task.id
        queue = self._running if id in self._running.ids else self._ready
        queue.discard(id)
        queue.push(level, id)

    def _look(self) -> None:
        """Make sure that the head of the ready ones is the one to run next."""

    def _head(self, stopped: dict[int, None]) -> int | None:
        """The ready task that is next, if there is one that may start with this plan."""
        self._look()
        if not len(self._ready) or (id := self._ready.first()) in stopped:
            return None
        return id

    def _start(self, id: int) -> int:
        self._ready.discard(id)
        self._run(id)
        return id

    def _run(self, id: int) -> None:
        entry = self._entries[id]
        self._stamp += 1
        entry.stamp = self._stamp
        self._running.push(entry.level, id)
        self._taken += entry.task.width

    def _halt(self, id: int) -> None:
        """Take a task off its slots, if it runs."""
        if id in self._running.ids:
            self._running.discard(id)
            self._taken -= self._entries[id].task.width
            self._expired.discard(id)
            self._lent.pop(id, None)

    def _stop(self, id: int) -> int:
        entry = self._entries[id]
        expired, lent = id in self._expired, id in self._lent
        self._halt(id)
        if expired:
            entry.used = 0
            self._ready.push(entry.level, id)
            return id
        self._ready.push_front(entry.level, id)
        if lent and self._kept in self._ready.ids:
            kept = self._entries[self._kept]
            if kept.level == entry.level:
                self._ready.discard(kept.task.id)
                self._ready.push_front(kept.level, kept.task.id)
        return id

    def _yielding(self, level: int) -> Iterator[int]:
        """Those running who must give way to a task of a level, in that order."""
        worst = self._running.highest()
        for worse in range(-1 if worst is None else worst, level, -1):
            queue = self._running.at(worse)
            if self._expired:
                yield from [id for id in queue if id in self._expired]
            yield from (id for id in reversed(queue) if id not in self._expired)
        if level >= 0 and (self._expired or self._lent):
            queue = self._running.at(level)
            yield from (id for id in queue if id in self._expired or id in self._lent)

    def _victims(self, head: int, free: int) -> list[int] | None:
        """Those who give way so that a ready task can start now; None if it can't."""
        entry, victims = self._entries[head], list[int]()
        if free >= entry.task.width:
            return victims
        for id in self._yielding(entry.level):
            victims.append(id)
            free += self._entries[id].task.width
            if free >= entry.task.width:
                return victims
        return None

    def _lend(self, slots: int, stopped: dict[int, None]) -> dict[int, None]:
        """Note for whom slots are kept, and start those meanwhile who fit into them."""
        lent: dict[int, None] = {}
        self._kept = -1
        if len(self._ready) and self._entries[self._ready.first()].task.width > 1:
            self._kept = self._ready.first()
        if self._taken >= slots or not len(self._ready):
            return lent
        if self._quantum is None and self._width(self._ready.first()) <= slots:
            return lent
        for id in list(islice(self._ready, LOOK)):
            if id not in stopped and self._width(id) <= slots - self._taken:
                lent[self._start(id)] = None
        self._lent |= lent
        return lent

    def _width(self, id: int) -> int:
        return self._entries[id].task.width

    def _renew(self) -> None:
        """Begin new quanta, but not for those who are to give way to the one that is waited for."""
        level = self._entries[self._kept].level if self._kept >= 0 else -1
        for id in list(self._expired):
            if self._entries[id].level != level:
                self._entries[id].used = 0
                self._expired.discard(id)
