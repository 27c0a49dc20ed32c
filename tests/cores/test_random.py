"""A core under random deeds: whatever is done to the others, a sequence says what it says alone.

A story is one context: prompts, and after each as many tokens as it was left with, by its end or by
a cancel. Copies share their beginning, and many others begin alike. In the end every story is told
again, alone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from typing import Any, cast

import pytest

from aiosd.access import Access
from aiosd.context import Context, Contexts
from aiosd.journal import Journal
from tests.cores.conftest import Bench, MakeBench, Result, within

DEEDS = ["start", "go on", "hold", "release", "cancel", "copy", "forget", "renice"]
BEGINNINGS = ["", "It was a dark night. " * 11, "It was a dark night. " * 25]
OFTEN = [3, 3, 1, 1, 1, 1, 1, 1]


class Story:
    """One context, what was asked of it, and what it said."""

    def __init__(
        self, context: Context, told: list[tuple[str, list[int]]], results: list[Result]
    ) -> None:
        self.context = context
        self.told = told
        self.prompt = ""
        self.result: Result | None = None
        self.results = results  # of all stories, those forgotten as well

    @property
    def active(self) -> bool:
        return self.result is not None and not self.result.done.done()

    def so_far(self) -> list[tuple[str, list[int]]]:
        """What was told, up to now."""
        if self.result is None:
            return list(self.told)
        return [*self.told, (self.prompt, list(self.result.tokens))]

    async def ask(self, b: Bench, prompt: str) -> None:
        """Go on with a prompt."""
        self.told, self.prompt = self.so_far(), prompt
        self.result = None
        _, self.result = await b.submit(prompt, sequence=self.context.sequence, max_tokens=30)
        self.results.append(self.result)


class NoDisk:
    """A database that keeps nothing."""

    def write_soon(self, write: object) -> None:
        """Drop it."""


class Chaos:
    """Random deeds on one core."""

    def __init__(self, b: Bench, seed: int, kills: int) -> None:
        self.b = b
        self.rng = random.Random(seed)
        self.kills = kills
        journal = Journal(cast(Any, NoDisk()))
        self.contexts = Contexts(itertools.count(1).__next__, Access(0), journal, 1000)
        self.stories: list[Story] = []
        self.results: list[Result] = []
        self.killed: set[int] = set()

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step(self.rng.choices(DEEDS, OFTEN)[0])
            if self.rng.random() < 0.05 and len(self.killed) < self.kills:
                self.kill()
            for _ in range(self.rng.randrange(3)):
                await self.b.core.questions.tokenize("time goes by", "", True, False)
            placement = self.b.core.placement
            assert placement.resident <= placement.slots >= len(self.b.core.queue.policy.running)

    async def step(self, deed: str) -> None:
        core, rng = self.b.core, self.rng
        active = [story for story in self.stories if story.active]
        idle = [story for story in self.stories if not story.active]
        words = " ".join(["word"] * rng.randrange(1, 40)) + str(rng.random())
        if deed == "start" and len(active) < 9:
            words = rng.choice(BEGINNINGS) + words
            context = self.contexts.create(core, aid=1, uid=0, nice=rng.randint(-20, 19))
            self.stories.append(Story(context, [], self.results))
            await self.stories[-1].ask(self.b, words)
        elif deed == "go on" and idle:
            story = rng.choice(idle)
            if len(story.context.sequence.tokens) < 1200:
                await story.ask(self.b, words)
        elif deed == "copy" and self.stories:
            source = rng.choice(self.stories)
            copy = await self.contexts.copy(source.context, aid=1)
            self.stories.append(Story(copy, source.so_far(), self.results))
        elif deed == "forget" and len(self.stories) > 5:
            self.contexts.forget(self.stories.pop(rng.randrange(len(self.stories))).context)
        elif active:
            self.disturb(deed, rng.choice(active))

    def disturb(self, deed: str, story: Story) -> None:
        core, sequence = self.b.core, story.context.sequence
        if deed == "hold":
            core.hold(sequence, "stopped")
        elif deed == "release":
            core.release(sequence, "stopped")
        elif deed == "renice":
            core.queue.renice(sequence, self.rng.randint(-20, 19))
        elif deed == "cancel":
            core.cancel(sequence)
            sequence.holds.clear()
            story.told, story.result = story.so_far(), None

    def kill(self) -> None:
        pid = self.b.core.pid
        if pid and pid not in self.killed:
            self.killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    async def finish(self) -> None:
        """Let all that is active come to its end."""
        for story in self.stories:
            self.b.core.release(story.context.sequence, "stopped")
        for story in self.stories:
            if story.result is not None:
                await within(story.result.done)

    async def told_alone(self, told: list[tuple[str, list[int]]]) -> list[list[int]]:
        """Tell a story again, alone; prompts without an answer are read with the next."""
        context = self.contexts.create(self.b.core, aid=2, uid=0, nice=0)
        said, prompt = [], ""
        for words, tokens in told:
            prompt += words
            if tokens:
                _, result = await self.b.submit(
                    prompt, sequence=context.sequence, max_tokens=len(tokens)
                )
                await within(result.done)
                said.append(result.tokens)
                prompt = ""
        self.contexts.forget(context)
        return said


@pytest.mark.parametrize(
    ("seed", "policy", "ram", "kills"),
    [
        (1, "rr", 1 << 30, 0),
        (2, "priority", 1 << 30, 0),
        (3, "rr", 1 << 30, 6),
        (4, "priority", 600_000, 6),
        (5, "fifo", 300_000, 3),
    ],
)
def test_random_deeds(bench: MakeBench, seed: int, policy: str, ram: int, kills: int) -> None:
    async def main() -> None:
        # An end-of-text token would be computed to be known: cutting there is not the same story.
        async with bench(policy=policy, slots=3, ram=ram, quantum=5, eog=0.0) as b:
            await b.core.start()
            chaos = Chaos(b, seed, kills)
            await chaos.run(250)
            await chaos.finish()
            assert b.core.restarts == len(chaos.killed)
            assert any(result.cached for result in chaos.results)
            for story in chaos.stories:
                told = story.so_far()
                said = [tokens for _, tokens in told if tokens]
                assert await chaos.told_alone(told) == said
            for story in chaos.stories:
                chaos.contexts.forget(story.context)
            await b.core.questions.tokenize("all that was sent before is answered", "", True, False)
            await b.solo("a last word")
            if b.tiers._spilling is not None:  # on its way to the disk when its context went
                await asyncio.wait_for(b.tiers._spilling, 60)
            assert b.tiers.ram.used == b.tiers.disk.used == 0 and b.core.placement.resident == 0
            assert not list(chaos.contexts) and not b.core.placement.sequences

    asyncio.run(main())
