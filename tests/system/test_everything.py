"""Everything at once: whatever happens to agents and kernel, each token is the solo run's.

24 agents on four slots under `fair`, with next to no room for KV in memory, so that contexts go to
disk and come back. A person suspends, resumes and renices them, marks points of their contexts and
takes them back there; every third agent continues in a fork of itself; the core's worker is killed
three times, and the kernel once. The agents notice none of it: they use the SDK as all programs do.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import aios
from tests.daemon import Daemon

AGENTS = 24
SLOTS = 4
TOKENS = 32
DEEDS = 150
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "wet": {"type": "boolean"}},
    "required": ["name", "wet"],
}
REAL = 'quantize = "q4_0"\n'  # quicker than the packaged file, and as good here
FAKE = 'driver = "fake"\noptions = {step_ms = 1, prefill_ms = 3, eog = 0.004}\n'
CONFIG = f"""
[sched]
policy = "fair"
quantum = 8
[[cores]]
name = "c"
slots = {SLOTS}
"""


class Cramped(Daemon):
    """A daemon with room for few snapshots in memory."""

    def configure(self, text: str) -> None:
        super().configure(text)
        room = "20kB" if "fake" in text else "40MB"
        with self.config.open("a") as file:
            file.write(f'ram_limit = "{room}"\n')


@pytest.fixture(params=[FAKE, pytest.param(REAL, marks=pytest.mark.model)], ids=["fake", "real"])
def daemon(
    request: pytest.FixtureRequest, state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> Iterator[Daemon]:
    """Run a daemon with one core of four slots."""
    with Cramped(state_dir, runtime_dir, kv_dir, config=CONFIG + request.param) as running:
        yield running


class Troupe:
    """The agents: two requests each, the second in the first one's context or a fork of it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.fake = "fake" in daemon.config.read_text()
        self.aids: set[int] = set()
        self.contexts: dict[int, int] = {}  # whose each context is, by the agent's index
        self.moved = asyncio.Event()

    def kind(self, index: int) -> dict[str, Any]:
        """How an agent's text is made."""
        warm = {"temperature": 0.8, "seed": index, "stream": True}
        kinds: list[dict[str, Any]] = [
            {"stream": True},
            warm,
            {"beams": SLOTS},
            {"schema": SCHEMA},
        ]
        return kinds[index % (3 if self.fake else 4)]

    def prompt(self, index: int) -> str:
        """20 to 400 tokens, which are bytes on the fake core; on a real one, which has to compute
        them again after each of four kills, 20 to 150."""
        words = f"Agent {index} keeps a diary about the sea, the wind and a small boat. "
        tokens = 20 + index * (380 if self.fake else 130) // (AGENTS - 1)
        return (words * 30)[:tokens] if self.fake else words * (1 + tokens // 16)

    async def perform(self, index: int) -> list[list[int]]:
        """Be one agent; returns the tokens of its replies."""
        async with aios.connect_async(self.daemon.socket, name=f"a{index}") as kernel:
            self.aids.add(kernel.aid)
            first, context = await self.ask(kernel, index, self.prompt(index), 0)
            if index % 3:
                second, _ = await self.ask(kernel, index, " And on the next day,", context)
            else:
                second = await self.ask_fork(kernel, index)
            self.aids.discard(kernel.aid)
            self.moved.set()
        return [first, second]

    async def ask_fork(self, kernel: aios.AsyncKernel, index: int) -> list[int]:
        """Go on in a copy of oneself."""
        child = await kernel.fork(kernel.aid)
        async with aios.connect_async(self.daemon.socket, credential=child.credential) as forked:
            self.aids.add(forked.aid)
            (context,) = await forked.list_contexts(aid=forked.aid)
            tokens, _ = await self.ask(forked, index, " And on the next day,", context.cid)
            self.aids.discard(forked.aid)
        return tokens

    async def ask(
        self, kernel: aios.AsyncKernel, index: int, prompt: str, context: int
    ) -> tuple[list[int], int]:
        """Make one request; returns its tokens and its context."""
        how = self.kind(index)
        made = kernel.llm_generate(
            prompt,
            raw=True,
            max_tokens=TOKENS if self.fake else TOKENS // 2,
            context=context,
            **how,
        )
        if not how.get("stream"):
            reply = await made
        else:
            tokens: list[int] = []
            async for chunk in made:
                assert chunk.index == len(tokens)  # nothing twice, nothing left out
                tokens += chunk.token_ids
                self.moved.set()
            reply = made.reply
            assert reply.token_ids == tokens
        self.moved.set()
        self.contexts[reply.context] = index
        assert reply.exact and reply.finish_reason in ("stop", "length")
        return reply.token_ids, reply.context


class Trouble:
    """The person, who does one thing whenever an agent has moved on."""

    def __init__(self, daemon: Daemon, troupe: Troupe, seed: int) -> None:
        self.daemon = daemon
        self.troupe = troupe
        self.dice = random.Random(seed)
        self.done: dict[str, int] = {}
        self.marks: dict[int, int] = {}  # context -> its newest snapshot
        self.late: set[int] = set()  # contexts that went back when their request had just ended
        self.killed: set[int] = set()
        self.number = 0  # of the things that were tried
        self.fatal = [  # when to kill whom
            (DEEDS // 5, self.kill_worker),
            (DEEDS * 2 // 5, self.kill_worker),
            (DEEDS // 2, self.kill_kernel),
            (DEEDS * 3 // 5, self.kill_worker),
        ]

    def enough(self) -> bool:
        """Whether everything was done, and more than twice what can be done often."""
        often = ("suspend", "renice", "mark", "go_back")
        return not self.fatal and min(self.done.get(deed, 0) for deed in often) > 2

    async def make(self, times: int) -> None:
        """Do `times` things, or as many as there is time for."""
        for _ in range(times):
            self.troupe.moved.clear()
            async with asyncio.timeout(300):
                await self.troupe.moved.wait()
            fatal = bool(self.fatal) and self.number >= self.fatal[0][0]
            deed = self.dice.choice(
                [self.suspend, self.suspend, self.renice, self.mark, self.mark, self.go_back]
            )
            if fatal:
                deed = self.fatal[0][1]
            async with aios.connect_async(self.daemon.socket) as person:
                if not self.troupe.aids:
                    return
                self.number += 1
                aid = self.dice.choice(sorted(self.troupe.aids))
                with suppress(ProcessLookupError, FileNotFoundError, BlockingIOError):
                    if await deed(person, aid):
                        self.done[deed.__name__] = self.done.get(deed.__name__, 0) + 1
                        self.fatal = self.fatal[fatal:]

    async def suspend(self, person: aios.AsyncKernel, aid: int) -> bool:
        await person.suspend_agent(aid)
        await person.ping()
        await person.resume_agent(aid)
        return True

    async def renice(self, person: aios.AsyncKernel, aid: int) -> bool:
        await person.set_priority(aid, self.dice.randint(-20, 19))
        return True

    async def mark(self, person: aios.AsyncKernel, aid: int) -> bool:
        for context in await person.list_contexts(aid=aid):
            if context.busy:
                self.marks[context.cid] = (await person.gen_snapshot(context.cid)).id
                return True
        return False

    async def go_back(self, person: aios.AsyncKernel, aid: int) -> bool:
        for context in await person.list_contexts(aid=aid):
            if context.busy and context.cid in self.marks:
                with suppress(OSError):  # marked in the request before: EBUSY
                    mark = self.marks[context.cid]
                    if not (await person.gen_restore(context.cid, snapshot=mark)).busy:
                        self.late.add(context.cid)
                    return True
        return False

    async def kill_worker(self, person: aios.AsyncKernel, aid: int) -> bool:
        (core,) = await person.list_cores()
        if not core.pid or core.pid in self.killed:
            return False
        self.killed.add(core.pid)
        os.kill(core.pid, signal.SIGKILL)
        return True

    async def kill_kernel(self, person: aios.AsyncKernel, aid: int) -> bool:
        await asyncio.to_thread(self.daemon.stop, signal.SIGKILL)
        await asyncio.to_thread(self.daemon.start)
        return True


@pytest.mark.timeout(1200)
def test_everything_at_once(daemon: Daemon) -> None:
    async def main() -> None:
        troupe = Troupe(daemon)
        solo = [await troupe.perform(index) for index in range(AGENTS)]
        trouble = Trouble(daemon, troupe, seed=5)
        rounds = 0
        while not trouble.enough():  # most often one round is enough
            rounds += 1
            assert rounds < 12, trouble.done
            trouble.late.clear()
            making = asyncio.create_task(trouble.make(DEEDS))
            together = await asyncio.gather(*(troupe.perform(index) for index in range(AGENTS)))
            troupe.moved.set()
            await making
            late = {troupe.contexts[cid] for cid in trouble.late if cid in troupe.contexts}
            for index in late:  # it went on from an earlier point, as it was told to
                together[index][1] = solo[index][1]
            wrong = [index for index in range(AGENTS) if together[index] != solo[index]]
            assert not wrong and len(late) < AGENTS // 2, (wrong, late, trouble.done)

    asyncio.run(main())
