"""What it costs to get KV back, as this core was seen to do it.

Averages over the last events; until there is one, an estimate of a small model's on two processors
stands in. They decide what is evicted, never what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiosd.engine.protocol import PREFILL, Run, Step

SHARE: Final = 1 / 16  # of a new observation in its average
FEW: Final = 4096  # bytes; a smaller file says nothing about bytes per second
FEW_TOKENS: Final = 16  # fewer in a prefill say more about the call than about tokens


class Costs:
    """Seconds of a prefilled token, of a decode step, and of a byte read back from each tier."""

    def __init__(self) -> None:
        self.prefill = 2.5e-3
        self.decode = 10e-3
        self.byte = {"ram": 1 / 10e9, "disk": 1 / 1e9}
        self._seen: set[str] = set()

    def step(self, step: Step) -> None:
        """A batch took so long: for the tokens of a prefill, or for every sequence of a decode."""
        computed = step.computed
        if not computed:
            return
        if computed[0][1] != PREFILL:
            self.decode = self._mean("decode", self.decode, step.seconds)
        elif (tokens := sum(end - start for _, _, start, end in computed)) >= FEW_TOKENS:
            self.prefill = self._mean("prefill", self.prefill, step.seconds / tokens)

    def restored(self, tier: str, size: int, seconds: float) -> None:
        """A file of this size was read back from a tier."""
        if size >= FEW:
            self.byte[tier] = self._mean(tier, self.byte[tier], seconds / size)

    def read(self, tier: str, size: int) -> float:
        """Seconds to read a file of this size back."""
        return self.byte[tier] * size

    def again(self, runs: Iterable[Run], start: int) -> float:
        """Seconds to compute the runs again from position `start` on, in the way they were."""
        seconds = 0.0
        for run in runs:
            count = run.end - max(run.start, start)
            if count > 0:
                seconds += count * (self.prefill if run.kind == PREFILL else self.decode)
        return seconds

    def _mean(self, name: str, old: float, new: float) -> float:
        if name not in self._seen:
            self._seen.add(name)
            return new
        return old + (new - old) * SHARE
