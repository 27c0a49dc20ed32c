"""A crowd: agents that ask for text, one after the other or all at once, and how fast it comes.

    with Crowd(kernel, 8, core="exact") as crowd:
        crowd.one_by_one(prompts(0, 8)); crowd.together(prompts(0, 8))

Every agent is a connection of its own, through the SDK. No two rounds share a prompt's beginning,
so no server can answer one from what it kept of another.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, TypeVar

import uvloop

from aios import AsyncKernel, connect_async
from aiosd.abi.inference import Generation
from tests.bench.kernel import Kernel

TOKENS: Final = 64  # of every answer
SWAP_S: Final = 0.05  # between two swaps of a suspended agent for a live one

T = TypeVar("T")


class Crowd:
    """`count` agents of a kernel; their requests name the core, when one is given."""

    def __init__(self, kernel: Kernel, count: int, core: str = "") -> None:
        self._kernel = kernel
        self._count = count
        self._core = core

    def __enter__(self) -> Crowd:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._agents: list[AsyncKernel] = []
        self._run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._leave())
        self._runner.close()

    def one_by_one(self, texts: Sequence[str]) -> tuple[float, list[list[int]]]:
        """Give each agent its prompt when the one before has its answer: (tokens/s, tokens)."""
        return self._run(self._one_by_one(texts))

    def together(self, texts: Sequence[str]) -> tuple[float, list[list[int]]]:
        """Give every agent its prompt at once: (tokens/s, tokens)."""
        return self._run(self._together(texts))

    def restless(
        self, texts: Sequence[str], live: int, dice: random.Random
    ) -> tuple[float, list[list[int]]]:
        """As `together`, with `live` awake at a time: at random one falls asleep for another."""
        return self._run(self._restless(texts, live, dice))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _connect(self) -> None:
        self._chief = await connect_async(self._kernel.socket)
        for n in range(self._count):
            self._agents.append(await connect_async(self._kernel.socket, name=f"crowd{n}"))

    async def _leave(self) -> None:
        for agent in self._agents:
            with suppress(OSError):  # the kernel may be going down
                await agent.exit(0)
            await agent.close()
        await self._chief.close()

    async def _ask(self, agent: AsyncKernel, text: str) -> list[int]:
        reply: Generation = await agent.llm_generate(
            text, raw=True, max_tokens=TOKENS, temperature=0, core=self._core
        )
        if reply.finish_reason != "length":
            raise RuntimeError(f"the model had no more to say: {text!r} -> {reply.text!r}")
        await agent.clr_context(reply.context)
        return reply.token_ids

    async def _one_by_one(self, texts: Sequence[str]) -> tuple[float, list[list[int]]]:
        began = perf_counter()
        pairs = zip(self._agents, texts, strict=True)
        tokens = [await self._ask(agent, text) for agent, text in pairs]
        return _rate(tokens, began), tokens

    async def _together(self, texts: Sequence[str]) -> tuple[float, list[list[int]]]:
        began = perf_counter()
        pairs = zip(self._agents, texts, strict=True)
        tokens = await asyncio.gather(*(self._ask(agent, text) for agent, text in pairs))
        return _rate(tokens, began), tokens

    async def _restless(
        self, texts: Sequence[str], live: int, dice: random.Random
    ) -> tuple[float, list[list[int]]]:
        asleep = [agent.aid for agent in self._agents[live:]]
        for aid in asleep:
            await self._chief.suspend_agent(aid)
        began = perf_counter()
        pairs = zip(self._agents, texts, strict=True)
        asked = {agent.aid: asyncio.ensure_future(self._ask(agent, text)) for agent, text in pairs}
        while left := [answer for answer in asked.values() if not answer.done()]:
            awake = [aid for aid in asked if aid not in asleep and not asked[aid].done()]
            await self._swap(asleep, awake, live, dice)
            await asyncio.wait(left, timeout=SWAP_S, return_when=asyncio.FIRST_COMPLETED)
        tokens = [answer.result() for answer in asked.values()]
        rate = _rate(tokens, began)
        for aid in asleep:  # its answer was on the way when it fell asleep
            await self._chief.resume_agent(aid)
        return rate, tokens

    async def _swap(
        self, asleep: list[int], awake: list[int], live: int, dice: random.Random
    ) -> None:
        """Wake as many as are wanted, and one more in exchange for one that falls asleep."""
        while asleep and len(awake) < live:
            awake.append(asleep.pop(dice.randrange(len(asleep))))
            await self._chief.resume_agent(awake[-1])
        if asleep:
            risen, tired = dice.randrange(len(asleep)), dice.choice(awake)
            await self._chief.resume_agent(asleep[risen])
            asleep[risen] = tired
            await self._chief.suspend_agent(tired)


def prompts(turn: int, count: int) -> list[str]:
    """Return the prompts of one round: about 25 tokens each, of different beginnings.

    Rows of numbers: a greedy model goes on with them and never finds an end.
    """
    starts = (100 + (turn * 16 + n) * 7 % 800 for n in range(count))
    return [", ".join(str(number) for number in range(at, at + 6)) + "," for at in starts]


def _rate(tokens: list[list[int]], began: float) -> float:
    return sum(map(len, tokens)) / (perf_counter() - began)
