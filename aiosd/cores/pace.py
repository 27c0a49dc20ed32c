"""Pace: how often requests may go to a provider. Pure: no clock.

A rate in requests a minute is spread evenly, with a tenth of a minute's worth at once. A provider
that wants to be left alone for some seconds is.
"""

from __future__ import annotations

BURST = 10


class Pace:
    """One core's. rate: requests a minute, 0: any number. Times are monotonic seconds."""

    def __init__(self, rate: float) -> None:
        self._gap = 60.0 / rate if rate else 0.0
        self._ahead = self._gap * max(1.0, rate / BURST) if rate else 0.0
        self._next = 0.0  # when the one after the last would be due, evenly spread
        self.paused = 0.0

    def due(self, now: float) -> float:
        """Return when the next request may go: now or later."""
        return max(now, self.paused, self._next + self._gap - self._ahead)

    def took(self, now: float) -> None:
        """A request goes."""
        self._next = max(self._next, now) + self._gap

    def pause(self, until: float) -> None:
        """Let none go before this time."""
        self.paused = max(self.paused, until)
