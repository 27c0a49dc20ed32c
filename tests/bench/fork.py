"""fork: what it costs to start an agent from another one's context.

Claim: forking an agent whose context has 1,024 tokens costs at most 0.25 % of computing them.

How: through the socket and the SDK. The parent computes a context of 1,024 tokens; then it forks,
and parent and child each generate one token from a word that follows. The cost is the fork call,
and what the child's token took longer than the parent's, whose context is in a slot: that is the
copy's way out of one slot and into another. The child's connection is not part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from statistics import median
from time import perf_counter

import aios
from tests.bench.kernel import Kernel, core
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio

ROUNDS = 9
FORKS = 8  # a round
LENGTH = 1024
WORDS = "The keeper of the lighthouse wrote about the storm in the harbour. "


def run(rounds: int) -> Iterator[Ratio]:
    """Measure on a core of eight slots."""
    with Kernel(core("local")) as kernel:
        kernel.cores()
        yield asyncio.run(_measure(kernel, rounds or ROUNDS))


async def _measure(kernel: Kernel, rounds: int) -> Ratio:
    taken = Rounds[tuple[float, float, float]](rounds)
    await _round(kernel, 0)  # memory is fresh only once
    for turn in taken:
        taken.add(await _round(kernel, turn + 1))
    computing, calling, copying = zip(*taken.quietest(), strict=True)
    return Ratio(
        bench="fork",
        what=f"fork of {LENGTH} tokens / computing them",
        rounds=[(call + copy) / again for again, call, copy in taken.quietest()],
        limit=0.0025,
        noise=taken.noise,
        figures={
            "compute ms": median(computing) * 1e3,
            "call ms": median(calling) * 1e3,
            "copy ms": median(copying) * 1e3,
        },
    )


async def _round(kernel: Kernel, turn: int) -> tuple[float, float, float]:
    """Return seconds to compute the context, and medians of the fork call and of the copy."""
    calls, copies = [], []
    async with aios.connect_async(kernel.socket, name="parent") as parent:
        began = perf_counter()
        reply = await parent.llm_generate(f"{turn} " + WORDS * 80, raw=True, max_tokens=1)
        computing = (perf_counter() - began) * LENGTH / reply.usage.prompt_tokens
        for _ in range(FORKS):
            began = perf_counter()
            child = await parent.fork(parent.aid)
            calls.append(perf_counter() - began)
            async with aios.connect_async(kernel.socket, credential=child.credential) as forked:
                (copy,) = await forked.list_contexts(aid=forked.aid)
                theirs = await _token(forked, copy.cid)
                await forked.exit(0)
            copies.append(max(0.0, theirs - await _token(parent, reply.context)))
        await parent.exit(0)
    return computing, median(calls), median(copies)


async def _token(kernel: aios.AsyncKernel, context: int) -> float:
    """Return the seconds that one more token takes."""
    began = perf_counter()
    await kernel.llm_generate(" And", raw=True, max_tokens=1, context=context)
    return perf_counter() - began
