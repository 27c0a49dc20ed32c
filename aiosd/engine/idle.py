"""How many of the processors that this process may use stand idle, from /proc/stat (proc(5))."""

from __future__ import annotations

import os
from typing import Final

GLANCE_S: Final = 0.1  # a shorter look says nothing: the counts are in hundredths of a second
_TICK: Final = 1.0 / os.sysconf("SC_CLK_TCK")


class Idle:
    """Remembers what it saw last; `cores` says what has been idle since."""

    def __init__(self) -> None:
        self._mine = {f"cpu{n}" for n in os.sched_getaffinity(0)}
        self._at = 0.0
        self._idle = 0.0

    def cores(self, now: float) -> float | None:
        """Return the cores idle on average since the last answer; None when it is too soon to say.

        now: seconds of a clock that only goes forward. Raises OSError without /proc.
        """
        if now - self._at < GLANCE_S:
            return None
        idle, since = self._read(), now - self._at
        found = (idle - self._idle) / since if self._at and since < 1.0 else None
        self._at, self._idle = now, idle
        return found

    def _read(self) -> float:
        """Return the idle seconds of all processors of ours, waiting for disks included."""
        total = 0
        with open("/proc/stat", encoding="ascii") as file:
            for line in file:
                name, *counts = line.split()
                if name in self._mine:
                    total += int(counts[3]) + int(counts[4])
                elif not name.startswith("cpu"):
                    break
        return total * _TICK
