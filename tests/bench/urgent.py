"""urgent: how long an urgent request waits behind a crowd with long prompts.

Claim: one request at nice -10 against 16 background generations with prompts of 1,500 tokens waits,
from its submission to its commencement, at most one prefill slice plus two decode steps. That is
judged of each request, not of their median.

How: a core of eight slots under the policy priority. Each round submits a short urgent request
while the crowd computes, in whatever it is doing just then; its prompt is still to be tokenized.
Slice and step are the longest of the same round: that is what the request may have met.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from statistics import median

from aiosd.engine.protocol import PREFILL
from tests.bench.bare import bare_core, submit
from tests.bench.ratio import Ratio
from tests.bench.switch import Recorder

ROUNDS = 12
CROWD = 16
PROMPT = 1500
ANSWER = 300
ARRIVAL_S = 0.25


def run(rounds: int) -> Iterator[Ratio]:
    """Measure one urgent request after the other against the same crowd."""
    yield asyncio.run(_measure(rounds or ROUNDS))


async def _measure(rounds: int) -> Ratio:
    dice = random.Random(1)
    waits, ratios, bounds = [], [], []
    async with bare_core(slots=8, policy="priority") as core:
        heard = Recorder(core)
        words = "The keeper of the lighthouse wrote about the storm in the harbour. " * 160
        text = (await core.questions.tokenize(words, "", True, False))[: PROMPT + CROWD]
        crowd = [
            await submit(core, n + 1, text[n : n + PROMPT], ANSWER, nice=5) for n in range(CROWD)
        ]
        await heard.until_steps(20)
        for turn in range(rounds):
            heard.steps.clear()
            await heard.until_steps(dice.randint(2, 12))
            await asyncio.sleep(dice.uniform(0, ARRIVAL_S))  # anywhere within a slice or a step
            began = time.monotonic()
            short = await core.questions.tokenize("Quick: what is two and two?", "", True, False)
            sequence, answer = await submit(core, 1000 + turn, short, 4, nice=-10)
            await answer.done
            slices = [s.seconds for _, s in heard.steps if s.computed[0][1] == PREFILL]
            steps = [s.seconds for _, s in heard.steps if s.computed[0][1] != PREFILL]
            bound = max(slices, default=0.0) + 2 * max(steps, default=0.0)
            waits.append(answer.began - began)
            bounds.append(bound)
            ratios.append(waits[-1] / bound)
            core.forget(sequence)
        busy = sum(not done.done.done() for _, done in crowd)
        for each, _ in crowd:
            core.forget(each)
    return Ratio(
        bench="urgent",
        what="waiting at nice -10 / (a prefill slice + two decode steps)",
        rounds=ratios,
        limit=1.0,
        worst=True,
        figures={
            "waiting ms": median(waits) * 1e3,
            "worst ms": max(waits) * 1e3,
            "bound ms": median(bounds) * 1e3,
            "background at the end": busy,
        },
    )
