"""Where everyone stands in a core's run queue, and what they have got of the core lately.

All is counted once a turn of the loop, so that a list of all agents costs one walk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from aiosd.cores.rate import Rate
from aiosd.sched.due import Parties
from aiosd.sched.policy import Policy

SPAN: Final = 3.0  # seconds that count as lately
REMEMBERED: Final = 4096  # agents; of more, those that got least lately go


class Standing:
    """One core's. parties: who shares with whom; set by whoever configures it."""

    def __init__(self, policy: Callable[[], Policy]) -> None:
        self.parties = Parties()
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._got: dict[int, Rate] = {}
        self._places: Mapping[int, int] | None = None
        self._due: Mapping[int, float] = {}
        self._total = 0.0

    def computed(self, aid: int, tokens: int, now: float) -> None:
        """The core has computed tokens, of prompt or reply, for an agent."""
        rate = self._got.get(aid)
        if rate is None:
            if len(self._got) >= REMEMBERED:
                self._forget(now)
            rate = self._got[aid] = Rate(SPAN)
        rate.add(tokens, now)

    def place(self, cid: int) -> int:
        """A sequence's place in the run queue, 0 is next; -1 when it doesn't queue."""
        return self._counted().get(cid, -1)

    def share(self, aid: int) -> tuple[float, float]:
        """An agent's part of all tokens computed lately, and the part due to it (both 0 to 1)."""
        self._counted()
        rate = self._got.get(aid)
        got = rate.value(time.monotonic()) if rate is not None else 0.0
        return (min(1.0, got / self._total) if self._total else 0.0), self._due.get(aid, 0.0)

    def _counted(self) -> Mapping[int, int]:
        if self._places is None:
            policy, now = self._policy(), time.monotonic()
            queue = list(policy.order())
            self._places = {id: place for place, id in enumerate(queue)}
            self._due = self.parties.due(policy.task(id) for id in (*policy.running, *queue))
            self._total = sum(rate.value(now) for rate in self._got.values())
            self._loop.call_soon(self._stale)
        return self._places

    def _stale(self) -> None:
        self._places = None

    def _forget(self, now: float) -> None:
        least = sorted(self._got, key=lambda aid: self._got[aid].value(now))
        for aid in least[: REMEMBERED // 4]:
            del self._got[aid]
