"""A core under everything at once: each sequence produces the tokens of its solo run."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal

import pytest

from aiosd.cores.sequence import Sequence
from tests.cores.conftest import DEADLINE, Bench, MakeBench, Result, within

PROMPTS = [f"agent {i} says hello to the world. " * (1 + 4 * i) for i in range(12)]


def temperature(index: int) -> float:
    return 0.8 if index % 2 else 0.0


async def trouble(b: Bench, runs: list[tuple[object, Result]], kills: int, seed: int) -> None:
    """Suspend, resume, renice and kill at random until all runs have ended."""
    rng, killed = random.Random(seed), set[int]()
    while pending := [run for run in runs if not run[1].done.done()]:
        sequence, result = rng.choice(pending)
        await result.reach(len(result.tokens) + 1)
        match rng.randrange(3):
            case 0:
                b.core.hold(sequence, "stopped")  # type: ignore[arg-type]
                other = rng.choice(pending)[1]
                if other is not result:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):  # the other may be held as well
                            await other.reach(len(other.tokens) + 1)
                b.core.release(sequence, "stopped")  # type: ignore[arg-type]
            case 1:
                b.core.queue.renice(sequence, rng.randint(-20, 19))  # type: ignore[arg-type]
            case 2:
                if len(killed) < kills and b.core.pid not in killed | {0}:
                    killed.add(b.core.pid)
                    os.kill(b.core.pid, signal.SIGKILL)


async def crowd(b: Bench, kills: int, seed: int, max_tokens: int) -> None:
    """Run all prompts alone, then all at once with trouble, and compare."""
    await b.core.start()
    solo = [
        await b.solo(prompt, temperature=temperature(i), max_tokens=max_tokens)
        for i, prompt in enumerate(PROMPTS)
    ]
    runs = [
        await b.submit(prompt, temperature=temperature(i), max_tokens=max_tokens)
        for i, prompt in enumerate(PROMPTS)
    ]
    await asyncio.gather(
        trouble(b, list(runs), kills, seed), *(within(result.done) for _, result in runs)
    )
    assert [result.tokens for _, result in runs] == solo
    assert b.core.preemptions > 0 and b.core.placement.resident <= b.core.setup.slots
    for sequence, _ in runs:
        b.core.forget(sequence)
    assert b.tiers.ram.used == b.tiers.disk.used == 0


@pytest.mark.parametrize("policy", ["rr", "fifo", "priority"])
def test_twelve_on_four_slots_equal_their_solo_runs(bench: MakeBench, policy: str) -> None:
    async def main() -> None:
        async with bench(policy=policy, step_ms=1, prefill_ms=2) as b:
            if policy == "fifo":
                await fifo(b)
            else:
                await crowd(b, kills=0, seed=1, max_tokens=40)

    async def fifo(b: Bench) -> None:
        await b.core.start()
        solo = [await b.solo(prompt) for prompt in PROMPTS]
        runs = [await b.submit(prompt) for prompt in PROMPTS]
        await asyncio.gather(*(within(result.done) for _, result in runs))
        assert [result.tokens for _, result in runs] == solo
        assert b.core.preemptions == 0

    asyncio.run(main())


def test_kills_at_random_moments_change_no_token(bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(step_ms=1, prefill_ms=2) as b:
            await crowd(b, kills=20, seed=2, max_tokens=40)
            assert b.core.restarts > 3

    asyncio.run(main())


def test_without_room_for_snapshots_everything_is_computed_again(bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(ram=0, slots=2, quantum=32) as b:
            await crowd(b, kills=2, seed=3, max_tokens=30)

    asyncio.run(main())


def test_a_context_goes_on_after_eviction_cancel_and_a_dead_worker(bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(slots=1) as b:
            await b.core.start()
            words = ["One two three. " * 9, "Four five. " * 7, "Six."]
            solo = await b.solo(*words)
            tokens: list[int] = []
            sequence = None
            for word in words:
                sequence, result = await b.submit(word, sequence=sequence)
                await within(result.done)
                tokens += result.tokens
                await b.solo("another one takes the only slot " * 5)
                os.kill(b.core.pid, signal.SIGKILL)
            assert tokens == solo

    asyncio.run(main())


@pytest.mark.parametrize("rolls_back", [True, False])
def test_a_cancelled_goal_leaves_the_tokens_that_were_seen(
    bench: MakeBench, rolls_back: bool
) -> None:
    async def main() -> None:
        async with bench(step_ms=1, rolls_back=rolls_back) as b:
            await b.core.start()
            sequence, result = await b.submit("cancel me " * 10, max_tokens=400)
            await result.reach(5)
            seen = len(sequence.tokens)
            b.core.cancel(sequence)
            await b.core.placement.settle(sequence)
            assert len(sequence.tokens) == seen and sequence.kv <= seen
            _, again = await b.submit(" and go on", sequence=sequence)
            await within(again.done)
            twin = await b.submit("cancel me " * 10, max_tokens=len(result.tokens))
            await within(twin[1].done)
            assert twin[1].tokens == result.tokens
            _, twin_again = await b.submit(" and go on", sequence=twin[0])
            await within(twin_again.done)
            assert twin_again.tokens == again.tokens

    asyncio.run(main())


def test_an_urgent_request_preempts_and_a_held_one_frees_its_slot(bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(slots=1, policy="priority", quantum=9999, step_ms=1, eog=0.0) as b:
            await b.core.start()
            _, slow = await b.submit("background " * 20, nice=10, max_tokens=1800)
            await slow.reach(3)
            _, quick = await b.submit("urgent", nice=-10, max_tokens=5)
            await within(quick.done)
            assert not slow.done.done() and "preempt" in b.news
            await within(slow.done)

    asyncio.run(main())


def test_the_order_of_prefill_follows_the_policy(bench: MakeBench) -> None:
    """Two long prompts: under fair they are computed in turns."""

    async def main() -> None:
        async with bench(policy="fair", prefill_ms=3, eog=0.0, slots=2) as b:
            await b.core.start()
            one, two = (Sequence(cid=n, aid=n, uid=0, nice=0) for n in (101, 102))
            for sequence in (one, two):
                b.core.add(sequence)
                b.core.hold(sequence, "stopped")
            _, first = await b.submit("a" * 1600, sequence=one, max_tokens=1)
            _, second = await b.submit("b" * 1600, sequence=two, max_tokens=1)
            for sequence in (one, two):
                b.core.release(sequence, "stopped")
            await first.reach(1)
            assert two.kv >= 800
            await second.reach(1)
            assert one.kv == 1600

    asyncio.run(main())


def test_a_core_that_can_not_load_says_why_and_ends(bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(fail_load="no such tensor") as b:
            with pytest.raises(OSError, match="no such tensor"):
                await b.core.start()
            assert b.core.state == "failed"
            with pytest.raises(OSError, match="no such tensor"):
                await b.core.questions.tokenize("x", "", True, False)

    asyncio.run(main())


def test_a_worker_that_dies_again_and_again_ends_the_request_not_the_kernel(
    bench: MakeBench,
) -> None:
    async def main() -> None:
        async with bench(die_after=1) as b:
            await b.core.start()
            _, result = await b.submit("poison", max_tokens=5)
            with pytest.raises(OSError, match="died") as caught:
                await within(result.done)
            assert caught.value.errno == errno.EIO

    asyncio.run(main())


def test_a_hung_worker_is_killed_and_replaced(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosd.cores.local.SILENCE", 4.0)  # it looks twice a second

    async def main() -> None:
        async with bench(step_ms=10, eog=0.0) as b:
            await b.core.start()
            _, result = await b.submit("hang after a while", max_tokens=300)
            await result.reach(3)
            pid = b.core.pid
            os.kill(pid, signal.SIGSTOP)
            monkeypatch.setattr("aiosd.cores.local.SILENCE", 0.4)
            async with asyncio.timeout(DEADLINE):
                while b.core.pid == pid:  # noqa: ASYNC110 - its end is no event here
                    await asyncio.sleep(0.01)
            monkeypatch.undo()  # the next one may be slow to begin, on a busy machine
            await within(result.done)
            assert b.core.restarts == 1 and len(result.tokens) == 300

    asyncio.run(main())
