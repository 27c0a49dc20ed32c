"""A core on a real worker process, driven without a kernel around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from aiosd import sched
from aiosd.cores.core import Core
from aiosd.cores.local import Launch, LocalCore
from aiosd.cores.sequence import Sequence
from aiosd.cores.tiers import Tiers
from aiosd.cores.worker import Worker
from aiosd.engine.protocol import Beam, CoreSetup, Goal, Sampling, Slide, Token

DEADLINE = 180.0


class Result:
    """A sink that gathers what a sequence produces."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.beams: list[Beam] = []
        self.began = 0.0
        self.cached = self.kv = 0
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.grown = asyncio.Event()

    def computed(self, kind: int, start: int, end: int, began: float) -> None:
        self.began = self.began or began
        self.kv = end
        self.grown.set()

    def token(self, token: Token) -> None:
        if token.kept:
            self.tokens.append(token.token)
        self.text += token.text
        self.grown.set()
        if token.finish:
            self.done.set_result(token.finish)

    def shared(self, count: int) -> None:
        self.cached += count

    def found(self, beams: list[Beam]) -> None:
        self.beams = beams
        self.tokens = list(beams[0].tokens)
        self.done.set_result(beams[0].finish)

    def failed(self, errno: int, message: str) -> None:
        self.grown.set()
        self.done.set_exception(OSError(errno, message))

    async def reach(self, count: int) -> None:
        """Wait until there are this many tokens, or the end."""
        async with asyncio.timeout(DEADLINE):
            while len(self.tokens) < count and not self.done.done():
                self.grown.clear()
                await self.grown.wait()

    async def compute(self, end: int) -> None:
        """Wait until this many positions have been computed."""
        async with asyncio.timeout(DEADLINE):
            while self.kv < end:
                self.grown.clear()
                await self.grown.wait()


class Bench:
    """A core, what it told its listener, and a way to run prompts on it."""

    def __init__(self, core: LocalCore, tiers: Tiers, news: list[str]) -> None:
        self.core = core
        self.tiers = tiers
        self.news = news
        self._cid = 0

    async def submit(
        self,
        prompt: str,
        *,
        sequence: Sequence | None = None,
        nice: int = 0,
        max_tokens: int = 40,
        temperature: float = 0.0,
        slide: Slide | None = None,
        aid: int = 0,
        public: int = 0,
    ) -> tuple[Sequence, Result]:
        """Begin to generate from a prompt, on a fresh sequence or after what one holds.

        aid: whose it is; every sequence has an owner of its own if not. public: its characters that
        are no secret.
        """
        if sequence is None:
            self._cid += 1
            sequence = Sequence(cid=self._cid, aid=aid or 1000 + self._cid, uid=0, nice=nice)
            sequence.public = public
            self.core.add(sequence)
        tokens = await self.core.questions.tokenize(prompt, "", True, bool(sequence.tokens))
        await self.core.placement.settle(sequence)
        sequence.tokens.extend(tokens)
        result = Result()
        sequence.sink = result
        length = len(sequence.tokens)
        sampling = Sampling(temperature, 1.0, 0, 0.0, 7)
        sequence.goal = Goal(length, max_tokens, sampling, [], slide=slide)
        self.core.submit(sequence)
        return sequence, result

    async def solo(
        self,
        *prompts: str,
        temperature: float = 0.0,
        max_tokens: int = 40,
        slide: Slide | None = None,
    ) -> list[int]:
        """Run prompts one after the other in one context, alone, and return the tokens."""
        sequence: Sequence | None = None
        tokens: list[int] = []
        for prompt in prompts:
            sequence, result = await self.submit(
                prompt,
                sequence=sequence,
                temperature=temperature,
                max_tokens=max_tokens,
                slide=slide,
            )
            await within(result.done)
            tokens += result.tokens
        assert sequence is not None
        self.core.forget(sequence)
        return tokens


async def within(awaitable: Awaitable[str]) -> str:
    """Await with the suite's deadline."""
    async with asyncio.timeout(DEADLINE):
        return await awaitable


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def bench(kv_dir: Path, tmp_path: Path) -> MakeBench:
    """Make a core: `async with bench(slots=4, policy="rr", quantum=8, step_ms=1) as b`."""

    disk_dir = tmp_path / "contexts"

    @asynccontextmanager
    async def make(
        *,
        model: str = "",
        slots: int = 4,
        n_ctx: int = 2048,
        policy: str = "rr",
        quantum: int = 8,
        ram: int = 1 << 30,
        disk: int = 1 << 30,
        node: Path | None = None,
        place: dict[str, object] | None = None,
        **options: object,
    ) -> AsyncIterator[Bench]:
        """node: where to keep files of a worker behind a bridge; place: what else it is told."""
        tiers = Tiers(kv_dir, ram, disk_dir, disk)
        tiers.boot()
        news: list[str] = []
        given = {"quantum": quantum} if sched.takes(policy, "quantum") else {}
        setup = CoreSetup(
            runner="llama" if model else "fake",
            model=model or json.dumps({"eog": 0.002, **options}),
            slots=slots,
            n_ctx=n_ctx,
            grid=64,
            threads=2,
            gpu_layers=0,
            kv_k="auto",
            kv_v="auto",
            exact=True,
            verdict="",
        )
        launch: Launch = Worker
        if node is not None:
            behind = {"address": str(node), "runner": "fake", "model": setup.model, **(place or {})}
            setup = msgspec.structs.replace(setup, runner="ray", model=json.dumps(behind))
            launch = Bridge
        plan = sched.make(policy, **given)
        core = LocalCore("c", setup, 19, plan, tiers, _News(news), worker=launch)
        try:
            yield Bench(core, tiers, news)
        finally:
            await core.stop()
            tiers.close()

    return make


class Bridge(Worker):
    """A worker on a node that is this machine."""

    program: ClassVar[str] = "tests.cores.bridge"


class _News:
    def __init__(self, news: list[str]) -> None:
        self._news = news

    def core_changed(self, core: Core, what: str) -> None:
        self._news.append(what)

    def preempted(self, core: Core, sequence: Sequence) -> None:
        self._news.append("preempt")

    def started(self, core: Core, sequence: Sequence) -> None:
        self._news.append("start")

    def fell_back(self, core: Core, sequence: Sequence, why: str) -> None:
        self._news.append(f"fell back: {why}")

    def verdict(self, setup: CoreSetup, verdict: str) -> None:
        self._news.append("verdict")
