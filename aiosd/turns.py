"""Turns: which calls of tools may run now, and which wait. Pure: no clock, no task.

    claim = Claim("agent:5", tool, nice)
    turns.ask(claim)            # claim.running, or it waits
    ready = turns.give(claim)   # it has ended, or waits no more: these may run now

A call waits while as many as may run are running, over all or of its agent and tool, or while
another one holds the resource that it needs for itself alone. The most urgent goes first (nice),
among equals the one that came first; one that is held up does not hold up those behind it.
"""

from __future__ import annotations

import errno
from bisect import insort
from collections.abc import Callable
from itertools import count
from typing import TypeVar

K = TypeVar("K")


class Claim:
    """A call that wants to run. concurrent: of its subject and tool, 0: any. exclusive: or ""."""

    __slots__ = ("concurrent", "exclusive", "nice", "number", "running", "subject", "tool", "wake")

    def __init__(
        self, subject: str, tool: str, *, nice: int = 0, concurrent: int = 0, exclusive: str = ""
    ) -> None:
        self.subject = subject
        self.tool = tool
        self.nice = nice
        self.concurrent = concurrent
        self.exclusive = exclusive
        self.number = 0
        self.running = False
        self.wake: Callable[[], None] = lambda: None
        """Called when its turn has come."""

    def __lt__(self, other: Claim) -> bool:
        return (self.nice, self.number) < (other.nice, other.number)


class Turns:
    """All claims. running: that may run at a time. waiting: that may wait."""

    def __init__(self, running: int, waiting: int) -> None:
        self.most_running = running
        self.most_waiting = waiting
        self.running = 0
        self.of: dict[str, int] = {}
        """Calls that run, by tool."""
        self._each: dict[tuple[str, str], int] = {}
        self._held: set[str] = set()
        self._waiting: list[Claim] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def queued(self, tool: str) -> int:
        """Return how many calls of a tool wait."""
        return sum(claim.tool == tool for claim in self._waiting)

    def ask(self, claim: Claim) -> bool:
        """Let a claim run (True), or wait. Raises BlockingIOError when too many wait already."""
        claim.number = next(self._numbers)
        if self._free(claim):
            self._run(claim)
            return True
        if len(self._waiting) >= self.most_waiting:
            raise BlockingIOError(
                errno.EAGAIN,
                f"tool {claim.tool}: {len(self._waiting)} calls wait already, the limit "
                "([tools] max_queue); ask again later",
            )
        insort(self._waiting, claim)
        return False

    def give(self, claim: Claim) -> list[Claim]:
        """End a claim, wherever it is; return those whose turn has come with that."""
        if not claim.running:
            if claim in self._waiting:
                self._waiting.remove(claim)
            return []
        claim.running = False
        self.running -= 1
        _less(self.of, claim.tool)
        _less(self._each, (claim.subject, claim.tool))
        self._held.discard(claim.exclusive)
        return self.next()

    def next(self) -> list[Claim]:
        """Let those run whose turn has come; return them."""
        if not self._waiting or self.running >= self.most_running:
            return []
        ready = []
        for claim in list(self._waiting):
            if self._free(claim):
                self._waiting.remove(claim)
                self._run(claim)
                ready.append(claim)
        return ready

    def _free(self, claim: Claim) -> bool:
        if self.running >= self.most_running or claim.exclusive in self._held:
            return False
        if not claim.concurrent:
            return True
        return self._each.get((claim.subject, claim.tool), 0) < claim.concurrent

    def _run(self, claim: Claim) -> None:
        claim.running = True
        self.running += 1
        whose = (claim.subject, claim.tool)
        self.of[claim.tool] = self.of.get(claim.tool, 0) + 1
        self._each[whose] = self._each.get(whose, 0) + 1
        if claim.exclusive:
            self._held.add(claim.exclusive)


def _less(counter: dict[K, int], name: K) -> None:
    left = counter[name] - 1
    if left:
        counter[name] = left
    else:
        del counter[name]
