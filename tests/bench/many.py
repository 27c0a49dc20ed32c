"""many: what a thousand suspended agents cost, whose contexts are on disk.

Claims: `aiosctl ps` takes at most 3 times as long with 1,000 agents as with 10, and an agent costs
the kernel at most 20 KB of memory.

How: a core without a model; each agent is a connection of its own, has one context of about 100
tokens, and is suspended. There is so little room in memory that nearly all contexts are on disk.
The kernel's memory is its resident set, before and after; `ps` is the whole command, as typed.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import aios
from tests.bench.kernel import Kernel
from tests.bench.ratio import Ratio
from tests.daemon import ROOT

FEW = 10
MANY = 1000
AT_ONCE = 20  # agents that are born at a time
ROUNDS = 5
LIMIT_BYTES = 20_000  # of the kernel's memory, an agent
_FILES = 4096
_CORE = '[[cores]]\nname = "c"\ndriver = "fake"\nslots = 8\n'


class _Kernel(Kernel):
    def configure(self, text: str) -> None:
        super().configure(text)
        with self.config.open("a") as file:
            file.write('ram_limit = "1MiB"\n')
            file.write(f"[agents]\nmax_agents = {MANY + 10}\n")
            file.write(f"[kernel]\nmax_connections = {MANY + 10}\n")


def run(rounds: int) -> Iterator[Ratio]:
    """Measure with FEW agents, then with MANY."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard), hard))
    with _Kernel(_CORE) as kernel:
        kernel.cores()
        yield from asyncio.run(_measure(kernel, rounds or ROUNDS))


async def _measure(kernel: Kernel, rounds: int) -> list[Ratio]:
    agents: list[aios.AsyncKernel] = []
    async with await aios.connect_async(kernel.socket) as person:
        await _populate(kernel, person, agents, FEW)
        _ps(kernel)  # its modules are compiled once
        few = [_ps(kernel) for _ in range(rounds)]
        before = kernel.resident()
        await _populate(kernel, person, agents, MANY)
        many = [_ps(kernel) for _ in range(rounds)]
        grown = (kernel.resident() - before) / (MANY - FEW)
        tiers = [context.tier for context in await person.list_contexts()]
        for agent in agents:
            await agent.close()
    figures = {"ps ms": median(many) * 1e3, "on disk": float(tiers.count("disk"))}
    return [
        Ratio(
            bench="many",
            what=f"ps with {MANY} suspended agents / with {FEW}",
            rounds=[a / b for a, b in zip(many, few, strict=True)],
            limit=3.0,
            figures=figures,
        ),
        Ratio(
            bench="many",
            what=f"the kernel's memory for an agent / {LIMIT_BYTES / 1000:.0f} KB",
            rounds=[grown / LIMIT_BYTES],
            limit=1.0,
            figures={"bytes": grown},
        ),
    ]


async def _populate(
    kernel: Kernel, person: aios.AsyncKernel, agents: list[aios.AsyncKernel], count: int
) -> None:
    while len(agents) < count:
        most = min(AT_ONCE, count - len(agents))
        agents += await asyncio.gather(
            *(_settle(kernel, person, len(agents) + n) for n in range(most))
        )


async def _settle(kernel: Kernel, person: aios.AsyncKernel, number: int) -> aios.AsyncKernel:
    agent = await aios.connect_async(kernel.socket, name=f"agent{number}")
    prompt = f"{number:4} has something to remember. " * 3
    await agent.llm_generate(prompt, raw=True, max_tokens=8)
    await person.suspend_agent(agent.aid)
    return agent


def _ps(kernel: Kernel) -> float:
    """Return the seconds that the command takes."""
    began = perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from aiosh.app import main_ctl; main_ctl()", "ps"],
        stdout=subprocess.DEVNULL,
        check=True,
        cwd=ROOT,
        env=os.environ | {"AIOS_SOCKET": kernel.socket, "PYTHONPATH": f"{ROOT}:{ROOT}/sdk"},
    )
    return perf_counter() - began
