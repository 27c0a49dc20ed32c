"""Speed: how soon a core was seen to answer, and how fast, by how much it had to do.

Averages of what requests have met, kept apart for 1, 2-3, 4-7, ... requests at a time. What is old
counts less and less, so that a core that was slow once is tried again. Pure: whoever asks says what
time it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SHARE: Final = 1 / 8  # of a new observation in its average
HALF_LIFE: Final = 600.0  # seconds after which an average counts half


@dataclass(slots=True)
class _Seen:
    """Seconds to the first token, seconds of each further one, and when that was seen last."""

    first: float
    pace: float
    at: float


class Speed:
    """What is known of one core. slots: requests that it runs at once."""

    def __init__(self, slots: int) -> None:
        self._slots = max(1, slots)
        self._seen: dict[int, _Seen] = {}

    def add(self, load: int, first: float, pace: float, now: float) -> None:
        """Take up what a request met. load: requests on the core with it, when it came.

        first: seconds to its first token; pace: seconds of each further one.
        """
        level = max(1, load).bit_length()
        seen = self._seen.get(level)
        if seen is None:
            self._seen[level] = _Seen(first, pace, now)
            return
        seen.first += (first - seen.first) * SHARE
        seen.pace += (pace - seen.pace) * SHARE
        seen.at = now

    def expect(self, load: int, now: float) -> tuple[float, float]:
        """Return the seconds to the first token and of each further one under a load.

        Both are 0 when nothing is known. What was not seen is judged by the nearest lower load:
        beyond its slots a core takes as much longer as there are more to wait for.
        """
        level = max(1, load).bit_length()
        known = self._nearest(level)
        if known is None:
            return 0.0, 0.0
        seen = self._seen[known]
        fades = 0.5 ** (max(0.0, now - seen.at) / HALF_LIFE)
        beyond = max(1.0, load / max(self._slots, 1 << known - 1)) if level > known else 1.0
        return seen.first * beyond * fades, seen.pace * fades

    @property
    def known(self) -> bool:
        """Whether anything was seen."""
        return bool(self._seen)

    def _nearest(self, level: int) -> int | None:
        """Return the level that says most about one: itself, the next below, the next above."""
        below = [known for known in self._seen if known <= level]
        return max(below) if below else min(self._seen, default=None)
