"""mixed: what the policies mlfq and fair do for 32 agents of mixed length on eight slots.

Claims: where every fourth agent has much to do, the mean turnaround under mlfq is at most 0.7 times
that under fifo. Under fair all get the same while all have something to do: Jain's index of the
tokens that they get in windows of two seconds is at least 0.99 (the mean of the windows), though
their prompts are 20 to 1,000 tokens long.

How: tests/bench/work/mixed.toml. For turnaround it is played under both policies in turns. For
fairness the agents' prompts are computed first, then all go on at once under fair, and the windows
count that begin when all have got a token and end before the first has got all; prompts are charged
as replies are, but a slice of one is more than an agent's share of two seconds. Quanta are 1 token
then, as an agent gets only 7 or 8 in two seconds (left alone they are 4, as 32 agents share 8
slots: less even, and faster).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from statistics import fmean, median

from aiosd.sched.simulation import jain
from aiosd.sched.workload import Workload
from tests.bench.generate import read
from tests.bench.kernel import Kernel, core
from tests.bench.play import Players, numbers, play
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio, divide, interleave

ROUNDS = 3
SLOTS = 8
WINDOW_S = 2.0
REPLY = 150  # tokens; an agent gets about 8 a second


def run(rounds: int) -> Iterator[Ratio]:
    """Measure turnaround under fifo and mlfq, then fairness under fair."""
    work, salts = read("mixed"), iter(range(1, 1000))
    with Kernel(core("c", slots=SLOTS), sched='policy = "fifo"') as kernel:
        kernel.cores()

        def turnaround(policy: str) -> float:
            return asyncio.run(_turnaround(kernel, work, policy, next(salts)))

        (mlfq, fifo), noise = interleave(
            rounds or ROUNDS, lambda: turnaround("mlfq"), lambda: turnaround("fifo")
        )
        yield Ratio(
            bench="mixed",
            what="mean turnaround, mlfq / fifo",
            rounds=divide(mlfq, fifo),
            limit=0.7,
            noise=noise,
            figures={"mlfq s": median(mlfq), "fifo s": median(fifo)},
        )
        taken = Rounds[tuple[list[float], float]](rounds or ROUNDS)
        for _ in taken:
            taken.add(asyncio.run(_fairness(kernel, work, next(salts))))
    kept = taken.quietest()
    yield Ratio(
        bench="mixed",
        what="Jain's index under fair, mean of windows of 2 s",
        rounds=[fmean(windows) for windows, _ in kept],
        limit=0.99,
        at_most=False,
        noise=taken.noise,
        figures={
            "lowest": min(min(windows) for windows, _ in kept),
            "windows": min(len(windows) for windows, _ in kept),
            "tokens/s": median(rate for _, rate in kept),
        },
    )


async def _turnaround(kernel: Kernel, work: Workload, policy: str, salt: int) -> float:
    async with Players(kernel, work) as players:
        await players.chief.set_sched(policy=policy, quantum=64)
        return fmean(each.turnaround_s for each in await play(work, players.ask, salt))


async def _fairness(kernel: Kernel, work: Workload, salt: int) -> tuple[list[float], float]:
    async with Players(kernel, work) as players:
        await players.chief.set_sched(policy="fifo")
        texts = [
            numbers(agent.turns[0].prompt, salt * 1009 + n * 31)
            for n, agent in enumerate(work.agents)
        ]
        read_ = await asyncio.gather(
            *(players.stream(a, 1, prompt=t) for a, t in zip(work.agents, texts, strict=True))
        )
        await players.chief.set_sched(policy="fair", quantum=1)
        went_on = await asyncio.gather(
            *(
                players.stream(agent, REPLY, context=context)
                for agent, (_, context) in zip(work.agents, read_, strict=True)
            )
        )
    times = [times for times, _ in went_on]
    rate = sum(map(len, times)) / (max(t[-1] for t in times) - min(t[0] for t in times))
    return windows(times), rate


def windows(times: list[list[float]]) -> list[float]:
    """Return Jain's index of each window in which all get tokens. times: of each agent's tokens."""
    begin, end = max(t[0] for t in times), min(t[-1] for t in times)
    found = []
    while begin + WINDOW_S <= end:
        got = [sum(begin <= at < begin + WINDOW_S for at in t) for t in times]
        found.append(jain([float(count) for count in got]))
        begin += WINDOW_S
    if not found:
        raise RuntimeError(f"all agents had something to do for less than {WINDOW_S} s")
    return found
