"""restart: how soon an agent goes on after the machine was started again.

Claim: with the worker up again and the page cache dropped where that is permitted, a context of
1,024 tokens goes from disk to its next token in at most 3 % of the time to compute it again.

How: through the socket and the SDK. An agent computes a context; the kernel is told to end, what it
kept in memory is removed, as a restart of the machine would, and it is started again. Once its core
is ready and the agent connected, it asks for one more token from a word that follows. Computing it
again is timed in the same round, on the kernel that was just started, from a prompt of other words.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import aios
from tests.bench.kernel import Kernel, core
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio

ROUNDS = 5
LENGTH = 1024
WORDS = "The keeper of the lighthouse wrote about the storm in the harbour. "


def run(rounds: int) -> Iterator[Ratio]:
    """Measure on a core of eight slots."""
    with Kernel(core("local")) as kernel:
        kernel.cores()
        yield asyncio.run(_measure(kernel, rounds or ROUNDS))


async def _measure(kernel: Kernel, rounds: int) -> Ratio:
    taken = Rounds[tuple[float, float, bool]](rounds)
    for turn in taken:
        taken.add(await _round(kernel, turn))
    computing, going_on, dropped = zip(*taken.quietest(), strict=True)
    return Ratio(
        bench="restart",
        what=f"from disk to the next token / computing {LENGTH} tokens",
        rounds=[again / anew for anew, again, _ in taken.quietest()],
        limit=0.03,
        noise=taken.noise,
        figures={
            "compute ms": median(computing) * 1e3,
            "next token ms": median(going_on) * 1e3,
            "page cache dropped": float(all(dropped)),
        },
    )


async def _round(kernel: Kernel, turn: int) -> tuple[float, float, bool]:
    """Return seconds to compute a context and to go on with one, and if the cache was dropped."""
    async with aios.connect_async(kernel.socket, name="keeper") as agent:
        first = await agent.llm_generate(f"{turn} " + WORDS * 80, raw=True, max_tokens=1)
        dropped = await asyncio.to_thread(_restart, kernel)
        await agent.ping()  # connected again
        began = perf_counter()
        second = await agent.llm_generate(" And", raw=True, max_tokens=1, context=first.context)
        going_on = perf_counter() - began
        if second.usage.cached_tokens < LENGTH:
            raise RuntimeError(f"only {second.usage.cached_tokens} tokens were held")
        began = perf_counter()
        anew = await agent.llm_generate(f"{turn} a " + WORDS * 80, raw=True, max_tokens=1)
        computing = (perf_counter() - began) * LENGTH / anew.usage.prompt_tokens
        await agent.exit(0)
    return computing, going_on, dropped


def _restart(kernel: Kernel) -> bool:
    """End the kernel and start it, as with the machine; whether the page cache was dropped."""
    kernel.stop()
    for file in kernel.kv.iterdir():
        file.unlink()
    dropped = _drop_caches()
    kernel.start()
    kernel.cores()
    return dropped


def _drop_caches() -> bool:
    """Have files read from the disk again; False when that is not permitted."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True
