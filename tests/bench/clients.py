"""clients: two hundred HTTP clients of the gateway at once, every other one with a stream.

Claim: each answer comes within 3 times the fair share of the time: the time that one takes on the
average while all of them ask, which is what each would take if none were preferred.

How: a core without a model, so that what HTTP, the gateway and the kernel do is what counts; eight
agents' keys; each client asks TURNS times, one question after the other, on a connection for each.
The slowest answer is compared with the mean. The figures show how much the gateway's memory grew
from the first round to the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import mean, median
from time import perf_counter
from typing import Final

import psutil

from aiosd.abi.process import RegisterAgent
from aiosd.abi.system import Gateway, GetGateway
from tests.bench.kernel import Kernel
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio
from tests.gateway.test_crowd import CLIENTS, KINDS, ask

CORE: Final = '[[cores]]\nname = "c"\ndriver = "fake"\nslots = 8\noptions = { step_ms = 1 }\n'
TURNS: Final = 4
ROUNDS: Final = 3


def run(rounds: int) -> Iterator[Ratio]:
    """Measure rounds of TURNS questions of every client."""
    with Kernel(CORE) as kernel, ExitStack() as stack:
        kernel.cores()
        agents = [stack.enter_context(kernel.connect()) for _ in range(KINDS)]
        keys = [agent.call(RegisterAgent(name="crowd")).credential for agent in agents]
        port = int(agents[0].call(GetGateway()).http.rpartition(":")[2])
        asyncio.run(_wave(port, keys))
        gateway: Gateway = agents[0].call(GetGateway())
        process = psutil.Process(gateway.pid)
        before, taken = process.memory_info().rss, Rounds[list[float]](rounds or ROUNDS)
        for _ in taken:
            taken.add(asyncio.run(_wave(port, keys)))
        waves, grown = taken.quietest(), process.memory_info().rss - before
    yield Ratio(
        bench="clients",
        what=f"the slowest answer of {CLIENTS} clients at once / the mean",
        rounds=[max(wave) / mean(wave) for wave in waves],
        limit=3.0,
        worst=True,
        noise=taken.noise,
        figures={
            "mean_s": median(mean(wave) for wave in waves),
            "slowest_s": max(max(wave) for wave in waves),
            "gateway_grew_MB": grown / 1e6,
        },
    )


async def _wave(port: int, keys: list[str]) -> list[float]:
    """Let all clients ask; return the seconds that each answer took."""
    took = await asyncio.gather(*(_client(port, keys[n % KINDS], n) for n in range(CLIENTS)))
    return [seconds for client in took for seconds in client]


async def _client(port: int, key: str, number: int) -> list[float]:
    seconds = []
    for _ in range(TURNS):
        began = perf_counter()
        await ask(port, key, number)
        seconds.append(perf_counter() - began)
    return seconds
