"""A circuit breaker: when a provider is left alone, and when it is tried again. Pure: no clock.

    breaker.failed(now); breaker.succeeded()
    breaker.state          # closed, open, half
    breaker.until          # of an open one: when it may be probed
    breaker.probe()        # it is time: one request may go through
    breaker.open(now, 60)  # the provider has said for how long, at least

Closed, it counts failures in a row; with the last one that it bears it opens. Open, nothing goes
through until its time is over; then it is half open, and one request, or a check that costs
nothing, shows whether it closes or opens again for twice as long.
"""

from __future__ import annotations

from typing import Final, Literal

FAILURES: Final = 5
"""In a row, after which it opens."""
FIRST: Final = 2.0
"""Seconds that it stays open the first time."""
LONGEST: Final = 120.0
"""Seconds that it stays open at most."""


class Breaker:
    """One core's. Times are monotonic seconds. failures: in a row; first, longest: see above."""

    def __init__(
        self, failures: int = FAILURES, first: float = FIRST, longest: float = LONGEST
    ) -> None:
        self.state: Literal["closed", "open", "half"] = "closed"
        self.until = 0.0
        self.opened = 0
        self._bears = failures
        self._first = first
        self._longest = longest
        self._failures = 0
        self._span = first

    def succeeded(self) -> None:
        """Something went well: it closes."""
        self.state, self._failures, self._span = "closed", 0, self._first

    def failed(self, now: float) -> bool:
        """Something went wrong that is the provider's doing; returns whether it opened with it."""
        self._failures += 1
        if self.state == "closed" and self._failures < self._bears:
            return False
        return self.open(now)

    def open(self, now: float, least: float = 0.0) -> bool:
        """Open it, whatever was counted; returns whether it was not open before.

        least: seconds for which the provider wants to be left alone.
        """
        if self.state == "open":
            return False
        if self.state == "half":
            self._span = min(2 * self._span, self._longest)
        self.state, self.until = "open", now + max(self._span, least)
        self.opened += 1
        return True

    def probe(self) -> None:
        """Let something through, to see."""
        if self.state == "open":
            self.state = "half"
