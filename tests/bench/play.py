"""Plays a workload against a server: every agent asks for its turns at its time.

    served = await play(workload, ask, salt=3)

`ask(agent, text, tokens)` streams a reply and returns when each of its tokens came. Prompts are
rows of numbers, about as many tokens as the workload says: no two agents' begin alike, nor do those
of different salts, so nothing is answered from a cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from aios import AsyncKernel, connect_async
from aiosd.sched.workload import Agent, Turn, Workload
from tests.bench.kernel import Kernel

PER_NUMBER: Final = 5.0  # tokens of "123, " with the packaged model's vocabulary

Ask = Callable[[Agent, str, int], Awaitable[list[float]]]


@dataclass(slots=True)
class Served:
    """One turn: when it was asked for and when each token of the reply came, in seconds."""

    agent: Agent
    turn: Turn
    asked: float
    tokens: list[float]

    @property
    def first_s(self) -> float:
        """Seconds until the first token."""
        return self.tokens[0] - self.asked

    @property
    def turnaround_s(self) -> float:
        """Seconds until the last token."""
        return self.tokens[-1] - self.asked


async def play(workload: Workload, ask: Ask, salt: int) -> list[Served]:
    """Let all agents ask; return what they got, in the order in which it ended."""
    began = perf_counter()
    served: list[Served] = []

    async def one(number: int, agent: Agent) -> None:
        await asyncio.sleep(max(0.0, began + agent.arrival - perf_counter()))
        for count, turn in enumerate(agent.turns):
            asked = perf_counter()
            text = numbers(turn.prompt, (salt * 1009 + number * 31 + count * 7) % 9000)
            served.append(Served(agent, turn, asked, await ask(agent, text, turn.output)))
            await asyncio.sleep(turn.think)

    await asyncio.gather(*(one(n, agent) for n, agent in enumerate(workload.agents)))
    return served


def numbers(tokens: int, at: int) -> str:
    """Return a prompt of about so many tokens that a model goes on with for ever."""
    count = max(2, round(tokens / PER_NUMBER))
    return ", ".join(str(100 + (at + n) % 900) for n in range(count)) + ","


class Players:
    """The agents of a workload on a kernel, a connection each, with their nice.

    `name.N` of the workload are turns of one agent where `one` names it.
    """

    def __init__(self, kernel: Kernel, workload: Workload, one: str = "") -> None:
        self._kernel = kernel
        self._workload = workload
        self._one = one
        self._agents: dict[str, AsyncKernel] = {}

    async def __aenter__(self) -> Players:
        self.chief = await connect_async(self._kernel.socket)
        for agent in self._workload.agents:
            name = self._name(agent)
            if name not in self._agents:
                self._agents[name] = await connect_async(self._kernel.socket, name=name)
                if agent.nice:
                    await self.chief.set_priority(self._agents[name].aid, agent.nice)
        return self

    async def __aexit__(self, *_: object) -> None:
        for agent in self._agents.values():
            with suppress(OSError):
                await agent.exit()
            await agent.close()
        await self.chief.close()

    def _name(self, agent: Agent) -> str:
        base = agent.name.partition(".")[0]
        return base if base == self._one else agent.name

    def of(self, agent: Agent) -> AsyncKernel:
        """Return an agent's connection."""
        return self._agents[self._name(agent)]

    async def ask(self, agent: Agent, text: str, tokens: int) -> list[float]:
        """Ask on a fresh context and forget it afterwards."""
        times, context = await self.stream(agent, tokens, prompt=text)
        await self.of(agent).clr_context(context)
        return times

    async def stream(
        self, agent: Agent, tokens: int, prompt: str = "", context: int = 0
    ) -> tuple[list[float], int]:
        """Return when each token came, and the context that holds them."""
        times: list[float] = []
        stream = await self.of(agent).llm_generate(
            prompt, raw=True, max_tokens=tokens, min_tokens=tokens, stream=True, context=context
        )
        async for chunk in stream:
            times += [perf_counter()] * len(chunk.token_ids)
        reply = await stream.result()
        if len(times) != tokens:
            raise RuntimeError(f"{agent.name}: {len(times)} tokens of {tokens}: {reply}")
        return times, reply.context


def quantile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that this part of all doesn't exceed."""
    return sorted(values)[max(0, -int(-part * len(values) // 1) - 1)]
