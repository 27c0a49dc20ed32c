"""switch: what it costs to take an agent off a core and put it back.

Claim: snapshot, evict and restore of a 1,024-token context cost at most 0.2 % of computing it
again.

How: a core of one slot holds a context of 1,024 tokens, computed in a round of its own. Saving is
the worker's own time for the eviction; restoring runs from the admission that follows to the end of
the first decode step, less the time of a decode step, so that it holds the way through the pipe.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from statistics import median

from aiosd.cores.local import LocalCore
from aiosd.engine import protocol
from aiosd.engine.protocol import DECODE, PREFILL, Event
from tests.bench.bare import bare_core, submit
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio

ROUNDS = 9
LENGTH = 1024
SWITCHES = 8  # a round


class Recorder:
    """Listens to what a worker says; keeps evictions, and each step with its arrival."""

    def __init__(self, core: LocalCore) -> None:
        self.evicted: list[protocol.Evicted] = []
        self.steps: list[tuple[float, protocol.Step]] = []
        self.news = asyncio.Event()
        self._pass_on = core._on_event
        assert core._worker is not None
        core._worker._on_event = self._hear

    def _hear(self, event: Event) -> None:
        if isinstance(event, protocol.Evicted):
            self.evicted.append(event)
        elif isinstance(event, protocol.Step):
            self.steps.append((time.monotonic(), event))
        self._pass_on(event)
        self.news.set()

    async def until_evicted(self, count: int) -> None:
        """Wait for an eviction."""
        while len(self.evicted) < count:
            self.news.clear()
            await self.news.wait()

    async def until_steps(self, count: int) -> None:
        """Wait for a step."""
        while len(self.steps) < count:
            self.news.clear()
            await self.news.wait()


def run(rounds: int) -> Iterator[Ratio]:
    """Measure on a core of one slot."""
    yield asyncio.run(_measure(rounds or ROUNDS))


async def _measure(rounds: int) -> Ratio:
    async with bare_core(slots=1) as core:
        heard = Recorder(core)
        words = "The keeper of the lighthouse wrote about the storm in the harbour. " * 120
        tokens = (await core.questions.tokenize(words, "", True, False))[:LENGTH]
        await _round(core, heard, tokens, 0)  # warms buffers up
        taken = Rounds[tuple[float, float, float]](rounds)
        for turn in taken:
            taken.add(await _round(core, heard, tokens, turn + 1))
    computing, saving, restoring = zip(*taken.quietest(), strict=True)
    return Ratio(
        bench="switch",
        what=f"snapshot + evict + restore / computing {LENGTH} tokens",
        rounds=[(save + restore) / again for again, save, restore in taken.quietest()],
        limit=0.002,
        noise=taken.noise,
        figures={
            "compute ms": median(computing) * 1e3,
            "save ms": median(saving) * 1e3,
            "restore ms": median(restoring) * 1e3,
        },
    )


async def _round(
    core: LocalCore, heard: Recorder, tokens: list[int], turn: int
) -> tuple[float, float, float]:
    """Return seconds to compute the context, and medians to save and to restore it."""
    heard.steps.clear()
    sequence, _ = await submit(core, turn + 1, tokens, 600)
    await heard.until_steps(len(tokens) // 64 + 4)
    computing = sum(s.seconds for _, s in heard.steps if s.computed[0][1] == PREFILL)
    saving, restoring = [], []
    for _ in range(SWITCHES):
        heard.evicted.clear()
        core.hold(sequence, "bench")
        await core.placement.settle(sequence)
        core.placement._evict(sequence)
        await heard.until_evicted(1)
        saving.append(heard.evicted[0].seconds)
        heard.steps.clear()
        began = time.monotonic()
        core.release(sequence, "bench")
        await heard.until_steps(6)
        steps = [s.seconds for _, s in heard.steps if s.computed[0][1] == DECODE]
        restoring.append(max(0.0, heard.steps[0][0] - began - steps[0]))
    heard.evicted.clear()
    core.forget(sequence)
    await heard.until_evicted(1)  # or it would go on while the next round waits for quiet
    return computing, median(saving), median(restoring)
