"""A rate: how many per second, lately. Pure: whoever asks says what time it is."""

from __future__ import annotations

import math


class Rate:
    """Events per second, averaged over about `span` seconds with exponential forgetting."""

    def __init__(self, span: float) -> None:
        self._span = span
        self._level = 0.0
        self._at = 0.0

    def add(self, count: int, now: float) -> None:
        """Count events at a time (monotonic seconds)."""
        self._level = self.value(now) + count / self._span
        self._at = now

    def value(self, now: float) -> float:
        """The rate at a time."""
        return self._level * math.exp(-(now - self._at) / self._span)
