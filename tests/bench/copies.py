"""copies: two copies of a model on two cores of the machine.

Claim: together they generate at least 0.9 times as many tokens a second as the best single core
that has the threads of both.

How: one kernel with all of them: two cores of 8 slots and half the processors' threads each, and
single ones of 8 and of 16 slots with all threads. 16 agents at once, sent to the copies by the
dispatcher's own rule, to a single core by its name; nobody else has a core to do anything
meanwhile. Tokens of replies per second, from the first request to the last reply.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from statistics import median
from time import perf_counter

import aios
from tests.bench.kernel import Kernel
from tests.bench.kernel import core as table
from tests.bench.ratio import Ratio, interleave

ROUNDS = 2
AGENTS = 16
TOKENS = 32
SINGLES = ("eight", "sixteen")
RULE = '[routing.rules.copies]\npolicy = "shortest"\ncores = ["copy-*"]\n'


class _Kernel(Kernel):
    def configure(self, text: str) -> None:
        super().configure(text)
        with self.config.open("a") as file:
            file.write(RULE)


def run(rounds: int) -> Iterator[Ratio]:
    """Measure the copies and both single cores in turns."""
    threads = os.cpu_count() or 1
    half = max(1, threads // 2)
    cores = [table(name, threads=half) for name in ("copy-a", "copy-b")]
    cores += [table("eight", threads=2 * half), table("sixteen", slots=16, threads=2 * half)]
    with _Kernel(*cores) as kernel:
        kernel.cores()
        sides = [partial(_rate, kernel, route="copies")]
        sides += [partial(_rate, kernel, core=name) for name in SINGLES]
        for side in sides:
            side()  # memory is fresh only once
        (ours, *singles), noise = interleave(rounds or ROUNDS, *sides)
    best = [max(values) for values in zip(*singles, strict=True)]
    named = zip(SINGLES, singles, strict=True)
    yield Ratio(
        bench="copies",
        what="tokens/s of two copies / of the best single core of the same threads",
        rounds=[a / b for a, b in zip(ours, best, strict=True)],
        limit=0.9,
        at_most=False,
        noise=noise,
        figures={"copies": median(ours), **{name: median(values) for name, values in named}},
    )


def _rate(kernel: Kernel, core: str = "", route: str = "") -> float:
    """Return the tokens per second of AGENTS agents at once."""
    return asyncio.run(_crowd(kernel, core, route))


async def _crowd(kernel: Kernel, core: str, route: str) -> float:
    agents = [
        await aios.connect_async(kernel.socket, name=f"agent{number}") for number in range(AGENTS)
    ]
    began = perf_counter()
    replies = await asyncio.gather(
        *(
            agent.llm_generate(
                f"Tell the story of number {number}.",
                max_tokens=TOKENS,
                min_tokens=TOKENS,
                core=core,
                route=route,
            )
            for number, agent in enumerate(agents)
        )
    )
    seconds = perf_counter() - began
    for agent in agents:
        await agent.exit(0)
        await agent.close()
    said: int = sum(reply.usage.completion_tokens for reply in replies)
    return said / seconds
