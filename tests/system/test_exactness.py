"""Through the public door: whatever else runs, an agent gets the tokens of its solo run.

Solo means here: the same daemon, core and requests, and no other agent at work. Half of the agents
sample at temperature 0, half at 0.8 with a seed of their own.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import aios
from tests.daemon import Daemon

AGENTS = 12
TOKENS = 32
FAKE = """
[sched]
policy = "rr"
quantum = 8
[[cores]]
name = "c"
driver = "fake"
slots = 4
options = {step_ms = 1, prefill_ms = 3, eog = 0.004}
"""
REAL = """
[sched]
policy = "rr"
quantum = 8
[[cores]]
name = "c"
slots = 4
quantize = "q4_0"
"""


@pytest.fixture(params=[FAKE, pytest.param(REAL, marks=pytest.mark.model)], ids=["fake", "real"])
def daemon(
    request: pytest.FixtureRequest, state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> Iterator[Daemon]:
    """Run a daemon with one core of four slots under rr with a quantum of 8 tokens."""
    with Daemon(state_dir, runtime_dir, kv_dir, config=request.param) as running:
        yield running


def prompt(index: int, real: bool, longest: int) -> str:
    """Return a prompt of about 20 to `longest` tokens: the fake core's tokens are bytes."""
    words = f"Agent {index} keeps a diary about the sea, the wind and a small boat. "
    # Each is longer than the last by the same factor.
    tokens = round(20 * math.pow(longest / 20, index / (AGENTS - 1)))
    return words * (tokens // 16 + 1) if real else (words * (tokens // len(words) + 1))[:tokens]


class Crowd:
    """Agents at work, each on a connection of its own, and a person who bothers them."""

    def __init__(self, daemon: Daemon, longest: int = 1500, tokens: int = TOKENS) -> None:
        self.daemon = daemon
        self.longest = longest
        self.tokens = tokens
        self.aids: dict[int, int] = {}
        self.counts: dict[int, int] = {}
        self.moved = asyncio.Event()

    def prompt(self, index: int) -> str:
        """Return an agent's first prompt."""
        return prompt(index, "fake" not in self.daemon.config.read_text(), self.longest)

    async def run(self, index: int, requests: int = 1) -> list[list[int]]:
        """Be one agent: stream one request after the other, each in the context of the last."""
        replies: list[list[int]] = []
        async with aios.connect_async(self.daemon.socket, name=f"a{index}") as kernel:
            self.aids[index] = kernel.aid
            context = 0
            for turn in range(requests):
                stream = kernel.llm_generate(
                    f" And then, on day {turn}," if turn else self.prompt(index),
                    raw=True,
                    max_tokens=self.tokens,
                    temperature=0.8 if index % 2 else 0.0,
                    seed=index,
                    context=context,
                    stream=True,
                )
                tokens: list[int] = []
                async for chunk in stream:
                    assert chunk.index == len(tokens)
                    tokens += chunk.token_ids
                    self.counts[index] = self.counts.get(index, 0) + len(chunk.token_ids)
                    self.moved.set()
                reply = stream.reply
                assert reply.token_ids == tokens and reply.exact
                context = reply.context
                replies.append(tokens)
            del self.aids[index]
            self.moved.set()
        return replies

    async def bother(self, deed: Callable[[int], Awaitable[None]], times: int, seed: int) -> int:
        """Do something to a random agent whenever one has moved on, as often as `times`."""
        rng, done = random.Random(seed), 0
        while done < times:
            self.moved.clear()
            async with asyncio.timeout(300):
                await self.moved.wait()
            if not self.aids:
                break
            await deed(rng.choice(sorted(self.aids.values())))
            done += 1
        return done


@pytest.mark.timeout(1200)
def test_twelve_agents_on_four_slots(daemon: Daemon) -> None:
    """Random suspends, resumes and renices under rr: every token equals the solo run's."""

    async def main() -> None:
        crowd = Crowd(daemon)
        solo = [await crowd.run(i) for i in range(AGENTS)]
        rng = random.Random(7)
        async with aios.connect_async(daemon.socket) as person:

            async def deed(aid: int) -> None:
                with suppress(ProcessLookupError):  # it ended meanwhile
                    if rng.random() < 0.5:
                        await person.set_priority(aid, rng.randint(-20, 19))
                        return
                    await person.suspend_agent(aid)
                    await person.ping()
                    await person.resume_agent(aid)

            bothered = rounds = 0
            while bothered <= 20:  # most often one round is enough
                rounds += 1
                assert rounds < 12
                bothering = asyncio.create_task(crowd.bother(deed, 100, seed=rounds))
                together = await asyncio.gather(*(crowd.run(i) for i in range(AGENTS)))
                crowd.moved.set()
                bothered += await bothering
                assert together == solo
            sched = await person.get_sched()
        assert sched.preemptions > AGENTS

    asyncio.run(main())


@pytest.mark.timeout(1200)
def test_worker_killed_at_twenty_random_moments(daemon: Daemon) -> None:
    """Eight agents with two requests each, continued: SIGKILL of the worker changes no token."""

    async def main() -> None:
        crowd = Crowd(daemon, longest=300)  # what a dead worker held is computed again each time
        solo = [await crowd.run(i, requests=2) for i in range(8)]
        rng, killed = random.Random(3), set[int]()
        async with aios.connect_async(daemon.socket) as person:

            async def deed(aid: int) -> None:
                core = (await person.list_cores())[0]
                if core.pid and core.pid not in killed and rng.random() < 0.5:
                    killed.add(core.pid)
                    with suppress(ProcessLookupError):
                        os.kill(core.pid, signal.SIGKILL)

            rounds = 0
            while len(killed) < 20:
                rounds += 1
                assert rounds < 12
                bothering = asyncio.create_task(crowd.bother(deed, 60, seed=rounds))
                together = await asyncio.gather(*(crowd.run(i, requests=2) for i in range(8)))
                crowd.moved.set()
                await bothering
                assert together == solo
            core = (await person.list_cores())[0]
            assert core.restarts >= 20

    asyncio.run(main())


def test_a_suspended_generation_stops_and_goes_on_with_the_next_token(daemon: Daemon) -> None:
    async def main() -> None:
        # Enough of them that it is not done before it is suspended.
        tokens = 1500 if "fake" in daemon.config.read_text() else 100
        crowd = Crowd(daemon, tokens=tokens)
        solo = await crowd.run(1)
        crowd.counts.clear()
        async with aios.connect_async(daemon.socket) as person:
            running = asyncio.create_task(crowd.run(1))
            while crowd.counts.get(1, 0) < 3:
                crowd.moved.clear()
                await crowd.moved.wait()
            aid = crowd.aids[1]
            await person.suspend_agent(aid)
            crowd.tokens = TOKENS
            await crowd.run(0)  # time passes: another agent's whole request
            (row,) = await person.list_agents(aid=aid)
            seen = row.usage.tokens_out
            assert row.state == "T" and 3 <= seen < tokens
            await crowd.run(2)
            (row,) = await person.list_agents(aid=aid)
            assert (row.state, row.usage.tokens_out) == ("T", seen)
            await person.resume_agent(aid)
            assert await running == solo

    asyncio.run(main())
