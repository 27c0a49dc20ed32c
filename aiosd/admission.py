"""Admission: how many requests may be in flight, of one agent and in all, and when to come back.

A request beyond the limits is refused with EAGAIN, and the sentence ends in `try again in N s`: by
how often requests have ended lately, or, when none has, by what the one that is furthest on has
still to compute at its core's measured speed.

What must hold: the queues are bounded ([agents] max_queue_per_agent and max_queue).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection
from itertools import islice
from typing import Final

from aiosd.config import Agents
from aiosd.cores.rate import Rate
from aiosd.generation import Generation

SPAN: Final = 30.0  # seconds over which ends are counted
LOOK: Final = 256  # requests among which the one that is furthest on is sought
LEAST, MOST = 0.1, 3600.0  # seconds that are ever named


class Admission:
    """The limits, and how fast places come free."""

    def __init__(self, limits: Agents) -> None:
        self.limits = limits
        self._ends: dict[int, Rate] = {}  # by agent; 0: all

    def admit(
        self, aid: int, mine: Collection[Generation], total: int, flight: Collection[Generation]
    ) -> None:
        """Return when an agent may have one more request; raise OSError(EAGAIN) if not.

        mine: the agent's requests in flight. flight: all of them, total their number.
        """
        limits = self.limits
        if len(mine) >= limits.max_queue_per_agent:
            raise OSError(
                errno.EAGAIN,
                f"llm_generate: agent {aid} has {len(mine)} requests in flight, the limit is "
                f"{limits.max_queue_per_agent} ([agents] max_queue_per_agent); "
                f"wait for one to end, {self._when(aid, mine)}",
            )
        if total >= limits.max_queue:
            raise OSError(
                errno.EAGAIN,
                f"llm_generate: {total} requests are in flight, the limit is "
                f"{limits.max_queue} ([agents] max_queue); {self._when(0, flight)}",
            )

    def ended(self, aid: int) -> None:
        """A request of an agent has ended: its place is free."""
        now = time.monotonic()
        for who in (aid, 0):
            rate = self._ends.get(who)
            if rate is None:
                rate = self._ends[who] = Rate(SPAN)
            rate.add(1, now)

    def forget(self, aid: int) -> None:
        """An agent has ended."""
        self._ends.pop(aid, None)

    def _when(self, who: int, flight: Collection[Generation]) -> str:
        seconds = self._seconds(who, flight)
        if seconds is None:
            return "try again later"
        return f"try again in {min(max(seconds, LEAST), MOST):.1f} s"

    def _seconds(self, who: int, flight: Collection[Generation]) -> float | None:
        rate = self._ends.get(who)
        per_second = rate.value(time.monotonic()) if rate is not None else 0.0
        if per_second * SPAN >= 0.5:
            return 1 / per_second
        left = (_left(each) for each in islice(flight, LOOK))
        return min((seconds for seconds in left if seconds is not None), default=None)


def _left(generation: Generation) -> float | None:
    """Seconds that a request that runs will take at most; None when that is not known yet."""
    sequence, core = generation.context.sequence, generation.context.core
    running = core.queue.policy.running
    if sequence.goal is None or sequence.cid not in running or not core.tokens_per_s:
        return None
    tokens = sequence.goal.prompt_len + sequence.goal.max_tokens - sequence.kv
    return tokens * len(running) / core.tokens_per_s
