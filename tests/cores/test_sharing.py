"""Sequences that begin alike, on a real worker process: what they compute, and that it is right.

Reference tokens come from a core that nothing else runs on, so any slip in a record, a file or a
slot shows: the fake model's tokens depend on how each position was computed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiosd.cores.sequence import Sequence
from tests.cores.conftest import Bench, MakeBench, Result, within

SYSTEM = "You are one of many agents that all begin in the same way. " * 6
CHUNKS = len(SYSTEM) // 64 * 64
GRID = 64


@asynccontextmanager
async def core(bench: MakeBench, **options: Any) -> AsyncIterator[Bench]:
    """A core that is ready."""
    async with bench(**options) as b:
        await b.core.start()
        yield b


async def alone(bench: MakeBench, *prompts: str, **options: object) -> list[list[int]]:
    """Return what each prompt gets on a core that has nothing to share."""
    async with core(bench, slots=4, **options) as b:
        return [await b.solo(prompt) for prompt in prompts]


async def say(b: Bench, prompt: str, aid: int, public: int = 0) -> tuple[Sequence, Result]:
    sequence, result = await b.submit(prompt, aid=aid, public=public)
    await within(result.done)
    return sequence, result


def questions(count: int) -> list[str]:
    return [f"{SYSTEM}Question {n}: what is {n} and {n}?" for n in range(count)]


def test_an_agent_computes_a_beginning_once(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(3)
        expected = await alone(bench, *prompts)
        async with core(bench) as b:
            first, result = await say(b, prompts[0], aid=5)
            assert result.cached == 0 and first.shared == 0
            before = b.core.tokens_in
            second, result = await say(b, prompts[1], aid=5)
            assert result.tokens == expected[1]
            assert result.cached == second.shared == CHUNKS
            assert b.core.tokens_in - before == len(prompts[1]) - CHUNKS
            b.core.forget(first)
            _, result = await say(b, prompts[2], aid=5)
            assert (result.tokens, result.cached) == (expected[2], CHUNKS)

    asyncio.run(main())


@pytest.mark.parametrize("policy", ["rr", "fifo", "priority"])
def test_those_that_come_together_compute_a_beginning_once(bench: MakeBench, policy: str) -> None:
    async def main() -> None:
        prompts = questions(9)
        expected = await alone(bench, *prompts)
        async with core(bench, policy=policy, slots=4, quantum=64, prefill_ms=80) as b:
            begun = [await b.submit(prompt, aid=5) for prompt in prompts]
            for _, result in begun:
                await within(result.done)
            assert [result.tokens for _, result in begun] == expected
            tails = sum(len(prompt) - CHUNKS for prompt in prompts)
            # All but one take it over; a batch may have begun when the kernel says so.
            assert b.core.tokens_in <= CHUNKS + tails + 2 * GRID
            assert sum(r.cached for _, r in begun) == sum(map(len, prompts)) - b.core.tokens_in

    asyncio.run(main())


def test_nobody_profits_from_what_is_anothers(bench: MakeBench) -> None:
    async def main() -> None:
        prompt = questions(1)[0]
        async with core(bench) as b:
            _, first = await say(b, prompt, aid=5)
            before = b.core.tokens_in
            _, second = await say(b, prompt, aid=6)
            assert second.cached == 0 and b.core.tokens_in - before == len(prompt)
            assert second.tokens == first.tokens

    asyncio.run(main())


def test_what_is_public_is_shared_and_stays(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(3)
        expected = await alone(bench, *prompts)
        async with core(bench, slots=2) as b:
            b.core.sharing.public_limit = 1 << 20
            first, result = await say(b, prompts[0], aid=5, public=len(SYSTEM))
            assert result.cached == 0
            await b.core.placement.save(first)  # this worker may be done before it is kept
            b.core.forget(first)
            sequence, result = await say(b, prompts[1], aid=6)
            assert (result.tokens, result.cached) == (expected[1], CHUNKS)
            b.core.forget(sequence)
            # What follows the public part is nobody else's.
            sequence, result = await say(b, prompts[0] + "And more.", aid=7)
            assert result.cached == CHUNKS
            b.core.forget(sequence)
            b.core.sharing.public_limit = 0
            b.core.sharing.bound()
            assert b.tiers.ram.used == 0
            sequence, result = await say(b, prompts[2], aid=8)
            assert (result.tokens, result.cached) == (expected[2], 0)

    asyncio.run(main())


def test_public_beginnings_are_bounded_the_longest_unused_going_first(bench: MakeBench) -> None:
    async def main() -> None:
        texts = [f"{name} is how this one begins. " * 20 for name in ("Ann", "Ben", "Cid", "Dan")]
        async with core(bench, slots=2) as b:
            b.core.sharing.public_limit = 1 << 20
            for number, text in enumerate(texts[:3], 1):
                sequence, result = await b.submit(text, aid=number, public=len(text), max_tokens=1)
                await within(result.done)
                await b.core.placement.save(sequence)
                b.core.forget(sequence)
                if number == 1:
                    b.core.sharing.public_limit = b.tiers.ram.used * 5 // 2
                assert b.tiers.ram.used <= b.core.sharing.public_limit
                again, result = await say(b, texts[0] + "?", aid=10 + number)
                assert result.cached == len(texts[0]) // 64 * 64, "it is used all the time"
                b.core.forget(again)
            sequence, result = await say(b, texts[1] + "?", aid=20)
            assert result.cached == 0, "it was the longest unused"

    asyncio.run(main())


def test_the_first_may_go_away_or_stand_still(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(5)
        expected = await alone(bench, *prompts)
        for end in ("cancel", "forget", "hold"):
            async with core(bench, prefill_ms=5) as b:
                begun = [await b.submit(prompt, aid=5) for prompt in prompts]
                first = begun[0][0]
                await begun[0][1].compute(3 * GRID)
                if end == "hold":
                    b.core.hold(first, "stopped")
                else:
                    getattr(b.core, end)(first)
                for _, result in begun[1:]:
                    await within(result.done)
                assert [r.tokens for _, r in begun[1:]] == expected[1:]
                if end == "hold":
                    b.core.release(first, "stopped")
                    await within(begun[0][1].done)
                    assert begun[0][1].tokens == expected[0]

    asyncio.run(main())


def test_an_urgent_one_overtakes_whom_it_took_from(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(2)
        expected = await alone(bench, *prompts)
        async with core(bench, policy="priority", slots=2, prefill_ms=200) as b:
            slow, slow_result = await b.submit(prompts[0], aid=5, nice=19)
            await slow_result.compute(2 * GRID)
            b.core.hold(slow, "stopped")
            urgent, result = await b.submit(prompts[1], aid=5, nice=-10)
            await within(result.done)
            assert result.tokens == expected[1] and urgent.shared >= GRID
            b.core.release(slow, "stopped")
            await within(slow_result.done)
            assert slow_result.tokens == expected[0] and slow.shared == CHUNKS

    asyncio.run(main())


def test_a_file_that_is_gone_or_damaged_costs_time_alone(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(3)
        expected = await alone(bench, *prompts)
        async with core(bench, slots=1) as b:
            donor, _ = await say(b, prompts[0], aid=5)
            _, result = await say(b, "Something else.", aid=6)
            assert donor.snapshot is not None
            os.unlink(donor.snapshot.path)
            _, result = await say(b, prompts[1], aid=5)
            assert result.tokens == expected[1]
            _, result = await say(b, prompts[2], aid=5)
            assert (result.tokens, result.cached) == (expected[2], CHUNKS)

    asyncio.run(main())


def test_without_memory_for_it_everybody_computes(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(6)
        expected = await alone(bench, *prompts)
        for ram, disk in ((0, 0), (80_000, 0), (0, 80_000)):
            async with core(bench, ram=ram, disk=disk, slots=2, quantum=16) as b:
                b.core.sharing.public_limit = 1 << 20
                begun = [
                    await b.submit(p, aid=n % 2 + 1, public=200) for n, p in enumerate(prompts)
                ]
                for _, result in begun:
                    await within(result.done)
                assert [result.tokens for _, result in begun] == expected
                assert b.tiers.ram.used <= ram and b.tiers.disk.used <= disk

    asyncio.run(main())


def test_a_model_that_cant_be_rolled_back_shares_what_fits_exactly(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(2)
        expected = await alone(bench, *prompts, rolls_back=False)
        async with core(bench, rolls_back=False, slots=1, policy="fifo") as b:
            exact, result = await say(b, SYSTEM[:CHUNKS], aid=5)
            _, result = await say(b, prompts[0], aid=5)
            assert (result.tokens, result.cached) == (expected[0], 0), "it has gone on decoding"
            b.core.forget(exact)
            first, _ = await b.submit(prompts[1], aid=6)
            b.core.cancel(first)
            _, result = await say(b, prompts[1], aid=6)
            assert result.tokens == expected[1]

    asyncio.run(main())


def test_after_a_kill_a_beginning_is_computed_again_once(bench: MakeBench) -> None:
    async def main() -> None:
        prompts = questions(4)
        expected = await alone(bench, *prompts)
        async with core(bench, slots=4, policy="fifo", step_ms=25, prefill_ms=4) as b:
            begun = [await b.submit(prompt, aid=5) for prompt in prompts]
            for _, result in begun:
                await result.reach(5)
            os.kill(b.core.pid, signal.SIGKILL)
            for _, result in begun:
                await within(result.done)
            assert [result.tokens for _, result in begun] == expected
            assert b.core.restarts == 1

    asyncio.run(main())


@pytest.mark.model
@pytest.mark.timeout(1200)
def test_a_real_model_says_what_it_says_alone(bench: MakeBench, model_path: Path) -> None:
    async def main() -> None:
        system = "You are a helpful keeper of a lighthouse, and you write about the sea. " * 12
        prompts = [f"{system}Tell me about the storm of the year {1900 + n}." for n in range(4)]
        async with core(bench, model=str(model_path), quantum=32) as b:
            alone = [await b.solo(prompt, max_tokens=24) for prompt in prompts]
            begun = [await b.submit(prompt, aid=5, max_tokens=24) for prompt in prompts]
            for _, result in begun:
                await within(result.done)
            assert [result.tokens for _, result in begun] == alone
            assert sum(result.cached > 0 for _, result in begun) == len(prompts) - 1

    asyncio.run(main())
