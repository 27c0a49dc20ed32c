"""Rates: how often something may be done. Token buckets; pure, the caller brings the clock.

    wait = rates.take(("agent:5", "search"), rate=2.0, burst=4, now=monotonic())

A bucket holds at most `burst` tokens and gains `rate` a second; each deed takes one.
What must hold: in any span of t seconds at most burst + rate * t deeds are let through, whoever
asks how often; a refused one takes nothing. Buckets that are full again are forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

MANY: Final = 4096
"""Buckets after which those that are full are looked for."""


class Rates:
    """All buckets, by name."""

    def __init__(self) -> None:
        self._buckets: dict[Hashable, _Bucket] = {}
        self._most = MANY

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: Hashable, rate: float, burst: int, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one.

        rate: tokens a second; burst: that a bucket holds, 0: as many as a second gives, 1 at least.
        """
        size = float(burst or max(1, math.floor(rate)))
        bucket = self._buckets.get(name)
        if bucket is None:
            self._prune(now)
            bucket = self._buckets[name] = _Bucket(size, now)
        bucket.fill(rate, size, now)
        if bucket.level < 1.0:
            return (1.0 - bucket.level) / rate
        bucket.level -= 1.0
        return 0.0

    def forget(self, subject: str) -> None:
        """Drop the buckets whose names begin with this subject."""
        for name in [
            name for name in self._buckets if isinstance(name, tuple) and name[0] == subject
        ]:
            del self._buckets[name]

    def _prune(self, now: float) -> None:
        if len(self._buckets) < self._most:
            return
        for name, bucket in list(self._buckets.items()):
            if bucket.full(now):
                del self._buckets[name]
        self._most = max(MANY, 2 * len(self._buckets))


class _Bucket:
    """level: tokens in it at the time `at`. rate and size: as they were last."""

    __slots__ = ("at", "level", "rate", "size")

    def __init__(self, size: float, at: float) -> None:
        self.level = self.size = size
        self.rate = 0.0
        self.at = at

    def fill(self, rate: float, size: float, now: float) -> None:
        """Add what has come in since; a clock that goes back adds nothing."""
        self.level = min(size, self.level + max(0.0, now - self.at) * rate)
        self.rate, self.size, self.at = rate, size, max(self.at, now)

    def full(self, now: float) -> bool:
        """Whether nobody could tell it from a new one."""
        return self.level + max(0.0, now - self.at) * self.rate >= self.size
