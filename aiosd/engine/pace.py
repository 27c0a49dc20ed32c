"""How many threads a device computes with. Pure: the caller says what the last call cost.

llama.cpp's threads wait for each other some 500 times in a step, and spin while they do. Alone on
the machine that is the fastest way (30 ms for 8 rows on 2 cores; sleeping instead takes 48). But
beside other busy processes a thread that is not running holds up all the others, and a step can
take ten times as long. Then fewer threads are faster: as many as there are cores to be had. Two
workers on 2 cores take 51 ms a step each so, and 110-150, at times 1,500, without.

Spinning makes it easy to see: undisturbed, a call uses all its threads' time.

The counts given are those that the probe has found to give the same bits, in prefill (the whole KV
of a chunk is compared) and decode, so nothing needs to be recorded when one is changed for another.
A core that does not ask for exactness may change among all.
"""

from __future__ import annotations

from collections.abc import Sequence

CROWDED = 0.7  # a call that got less of its threads' time than this was disturbed
ROOM = 0.8  # of a core that stands idle is enough for one more thread
PATIENCE = 2  # disturbed calls in a row before threads are given up
FIRST_REST_S = 0.5
LONGEST_REST_S = 8.0
CALM = 50  # undisturbed calls after which the next rest is short again


class Pace:
    """Chooses among `choices`; `threads` is the number to use for the next call."""

    def __init__(self, choices: Sequence[int]) -> None:
        """choices: thread counts that give the same bits; the largest is used when possible."""
        self._choices = sorted(choices, reverse=True)
        self.threads = self._choices[0]
        self._disturbed = self._calm = 0
        self._rest = FIRST_REST_S
        self._until = 0.0

    @property
    def resting(self) -> bool:
        """Whether threads have been given up."""
        return self.threads < self._choices[0]

    def room(self, idle: float) -> None:
        """So many cores stand idle just now: when all threads find one, the rest is over."""
        if idle >= ROOM * (self._choices[0] - self.threads):
            self._until = 0.0

    def after(self, wall: float, cpu: float, now: float) -> int:
        """A call took `wall` seconds and `cpu` seconds of CPU; returns threads for the next."""
        if self.resting and now >= self._until:
            self.threads, self._disturbed = self._choices[0], PATIENCE - 1
        elif self.threads > self._choices[-1] and cpu < CROWDED * wall * self.threads:
            self._disturbed, self._calm = self._disturbed + 1, 0
            if self._disturbed >= PATIENCE:
                self._give_up(cpu / wall, now)
        else:
            self._disturbed = 0
            self._calm += self.threads == self._choices[0]
            if self._calm >= CALM:
                self._rest = FIRST_REST_S
        return self.threads

    def _give_up(self, got: float, now: float) -> None:
        """Use no more threads than there were cores to be had, for a while."""
        fewer = [n for n in self._choices if n < self.threads]
        self.threads = next((n for n in fewer if n <= got), fewer[-1])
        self._disturbed, self._until = 0, now + self._rest
        self._rest = min(2 * self._rest, LONGEST_REST_S)


def choices(threads: int) -> list[int]:
    """The counts worth trying: all threads, half of them, and so on down to one."""
    found = [threads]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found
