"""Beam searches on a core with other work, too few slots, little memory, and a worker that dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from aiosd.cores.sequence import Sequence
from aiosd.engine.protocol import Beam, Goal, Sampling
from tests.cores.conftest import Bench, MakeBench, Result, within

PROMPTS = [f"search {i} for the likeliest words. " * (1 + 3 * i) for i in range(4)]
OTHERS = [f"agent {i} says hello to the world. " * (1 + 4 * i) for i in range(4)]


async def search(b: Bench, cid: int, prompt: str, beams: int, most: int) -> tuple[Sequence, Result]:
    """Begin a search on a fresh sequence."""
    sequence = Sequence(cid=cid, aid=cid, uid=0, nice=0)
    b.core.add(sequence)
    sequence.tokens.extend(await b.core.questions.tokenize(prompt, "", True, False))
    result = Result()
    sequence.sink = result
    sequence.goal = Goal(len(sequence.tokens), most, Sampling(), [], beams=beams)
    b.core.submit(sequence)
    return sequence, result


async def alone(b: Bench, prompt: str, beams: int, most: int) -> list[Beam]:
    sequence, result = await search(b, 999, prompt, beams, most)
    await within(result.done)
    b.core.forget(sequence)
    return result.beams


async def trouble(
    b: Bench, runs: list[tuple[Sequence, Result]], kills: int, rng: random.Random
) -> None:
    """Hold, release, renice and kill until all have ended."""
    killed = set[int]()
    while pending := [run for run in runs if not run[1].done.done()]:
        sequence, _ = rng.choice(pending)
        b.core.hold(sequence, "stopped")
        await b.core.questions.tokenize("a little while", "", True, False)
        b.core.release(sequence, "stopped")
        b.core.queue.renice(sequence, rng.randint(-20, 19))
        await b.core.questions.tokenize("goes by " * rng.randrange(200), "", True, False)
        if len(killed) < kills and b.core.pid not in killed | {0} and rng.random() < 0.1:
            killed.add(b.core.pid)
            os.kill(b.core.pid, signal.SIGKILL)
        assert b.core.placement.resident <= b.core.setup.slots


@pytest.mark.parametrize(
    ("policy", "ram", "kills"),
    [("rr", 1 << 30, 0), ("priority", 1 << 30, 3), ("rr", 40_000, 2), ("fair", 1 << 30, 1)],
)
def test_searches_equal_their_solo_runs(
    bench: MakeBench, policy: str, ram: int, kills: int
) -> None:
    async def main() -> None:
        async with bench(policy=policy, slots=5, ram=ram, quantum=6, step_ms=1) as b:
            await b.core.start()
            expected = [await alone(b, prompt, 2 + i, 25) for i, prompt in enumerate(PROMPTS)]
            solo = [await b.solo(prompt) for prompt in OTHERS]
            runs = [await search(b, 100 + i, prompt, 2 + i, 25) for i, prompt in enumerate(PROMPTS)]
            others = [await b.submit(prompt) for prompt in OTHERS]
            rng = random.Random(policy)
            await asyncio.gather(
                trouble(b, [*runs, *others], kills, rng),
                *(within(result.done) for _, result in [*runs, *others]),
            )
            assert [result.beams for _, result in runs] == expected
            assert [result.tokens for _, result in others] == solo
            for sequence, _ in [*runs, *others]:
                b.core.forget(sequence)
            await b.solo("a last word")
            assert b.core.placement.resident == 0

    asyncio.run(main())
