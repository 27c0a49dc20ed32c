"""What a loaded model of a tool is worth: the rule that KV is kept by, for hosts. Pure.

A host costs memory while it is loaded, and its load again when it is wanted without it. Both are
measured; what is kept and what goes is decided by `cores/eviction.py`, as for KV: the time that it
saves, by how soon, for each byte.
"""

from __future__ import annotations

from typing import Final

from aiosd.cores.costs import SHARE
from aiosd.cores.eviction import Holding, wanted_in

SIZE: Final = 128 << 20
"""Bytes of a host that has not told yet."""
TYPICAL: Final = Holding("", 256 << 20, 1.0, 1.0)
"""What is kept for the time that [tools] idle says: one that takes a second to load."""


class Cost:
    """What was seen of one tool's host. size: bytes. batch: seconds of one. last: its last call."""

    def __init__(self) -> None:
        self.size = SIZE
        self.batch = 0.0
        self.last = 0.0
        self._gap = 0.0
        self._ready = 1.0
        self._first = 0.0
        self._fresh = False

    @property
    def load(self) -> float:
        """Seconds to have it back: until it is ready, and what its first batch took longer."""
        return self._ready + max(0.0, self._first - self.batch)

    def called(self, now: float) -> None:
        """A call has come."""
        if self.last:
            self._gap = _mean(self._gap, now - self.last)
        self.last = now

    def loaded(self, seconds: float) -> None:
        """A host has come up."""
        self._ready, self._fresh = seconds, True

    def computed(self, seconds: float, size: int) -> None:
        """A batch took so long, and the host is so large now."""
        self.size = size or self.size
        if self._fresh:  # many load their model with the first call
            self._first, self._fresh = seconds, False
        else:
            self.batch = _mean(self.batch, seconds)

    def holding(self, name: str, now: float, weight: float) -> Holding:
        """Return it as what may be given up."""
        soon = wanted_in(False, False, now - self.last, self._gap)
        return Holding(name, self.size, self.load, soon, weight)

    def stale(self, now: float, idle: float) -> bool:
        """Tell whether it is worth less than a typical host that was not called for `idle` s."""
        floor = TYPICAL.worth * TYPICAL.soon / max(idle, 1e-3)
        return self.holding("", now, 1.0).worth < floor and now - self.last >= idle / 8


def _mean(old: float, new: float) -> float:
    return old + (new - old) * SHARE if old else new
