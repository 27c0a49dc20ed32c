"""background: how long a person waits beside long work, and what that costs the long work.

Claims: 16 agents with prompts of 1,500 tokens keep a core of eight slots busy, and somebody asks
for something short every second at nice -10: until the first token 95 of 100 of those wait at most
a fiftieth of what they wait with llama.cpp's own server, and the long work gets at least 0.9 times
the tokens per second, prompts counted.

How: tests/bench/work/background.toml, played against the daemon under `priority` and against the
server in turns; same model, threads, slots and prompts. The person doesn't wait for an answer
before the next question. The server's best settings are llama_server.py's; ours computes prompts in
slices of 128 tokens, which are quicker by the token than the usual 64 (426 and 407 tokens/s), and
whoever comes meanwhile waits 0.15 s longer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from statistics import median

from aiosd.config import PACKAGED_MODEL, find_model
from aiosd.sched.workload import Workload
from tests.bench.generate import read
from tests.bench.kernel import N_CTX, Kernel, core
from tests.bench.llama_server import LlamaServer
from tests.bench.play import Players, Served, play, quantile
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio, divide

ROUNDS = 3
SLOTS = 8
GRID = 128
SCHED = 'policy = "priority"'
PERSON = "person"

Figures = tuple[float, float]  # seconds to the person's first tokens (p95); tokens/s of the rest


def run(rounds: int) -> Iterator[Ratio]:
    """Measure the daemon and the server in turns."""
    work = read("background")
    model, threads = str(find_model(PACKAGED_MODEL)), os.cpu_count() or 1
    taken = Rounds[tuple[Figures, Figures]](rounds or ROUNDS)
    with Kernel(core("c", slots=SLOTS, grid=GRID), sched=SCHED) as kernel:
        kernel.cores()
        with LlamaServer(model, SLOTS, N_CTX, threads) as server:
            for salt in taken:
                ours = asyncio.run(_ours(kernel, work, 2 * salt))
                theirs = figures(server.play(work, 2 * salt + 1))
                taken.add((ours, theirs))
    kept = taken.quietest()
    (waits, rates), (their_waits, their_rates) = (
        zip(*side, strict=True) for side in zip(*kept, strict=True)
    )
    yield Ratio(
        bench="background",
        what="a person's p95 to the first token / llama.cpp's server",
        rounds=divide(waits, their_waits),
        limit=0.02,
        noise=taken.noise,
        figures={"ours s": median(waits), "theirs s": median(their_waits)},
    )
    yield Ratio(
        bench="background",
        what="tokens/s of the long work meanwhile / llama.cpp's server",
        rounds=divide(rates, their_rates),
        limit=0.9,
        at_most=False,
        noise=taken.noise,
        figures={"ours/s": median(rates), "theirs/s": median(their_rates)},
    )


async def _ours(kernel: Kernel, work: Workload, salt: int) -> Figures:
    async with Players(kernel, work, one=PERSON) as players:
        return figures(await play(work, players.ask, salt))


def figures(served: list[Served]) -> Figures:
    """Return the person's p95 until the first token, and the long work's tokens per second."""
    long = [each for each in served if not each.agent.name.startswith(PERSON)]
    end = max(each.tokens[-1] for each in long)
    seconds = end - min(each.asked for each in long)
    waits = [each.first_s for each in served if each not in long and each.asked < end]
    tokens = sum(each.turn.prompt + each.turn.output for each in long)
    return quantile(waits, 0.95), tokens / seconds
