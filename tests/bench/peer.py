"""peer: how the kernel's cores compare with llama.cpp's own server on the same work.

Claims: eight agents at once, 64 tokens each, greedy, get at least 0.97 times the tokens per second
of llama.cpp's server (xllamacpp) on an exact core, and at least as many on one with exact = false.

How: same model file, threads, slots and context; the same raw prompts, as many tokens each; each
server a process of its own, and only the one that is measured has work. Seconds run from the first
request to the last answer. New prompts in every round, so no prompt cache has a part in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from statistics import median

from aiosd.config import PACKAGED_MODEL, find_model
from tests.bench.crowd import Crowd, prompts
from tests.bench.kernel import N_CTX, Kernel, core
from tests.bench.llama_server import LlamaServer
from tests.bench.ratio import Ratio, divide, interleave

ROUNDS = 5
COUNT = 8


def run(rounds: int) -> Iterator[Ratio]:
    """Measure an exact core, an inexact one and the peer in turns."""
    model = str(find_model(PACKAGED_MODEL))
    with Kernel(core("exact"), core("inexact", exact=False)) as kernel:
        kernel.cores()
        threads = os.cpu_count() or 1
        with (
            LlamaServer(model, COUNT, N_CTX, threads) as server,
            Crowd(kernel, COUNT, "exact") as exact,
            Crowd(kernel, COUNT, "inexact") as inexact,
        ):
            for side in (exact, inexact, server):
                side.together(prompts(99, COUNT))
            sides = (_timed(exact.together), _timed(inexact.together), _timed(server.together))
            (ours, loose, theirs), noise = interleave(rounds or ROUNDS, *sides)
    for name, limit, rates in (("exact core", 0.97, ours), ("exact = false", 1.0, loose)):
        yield Ratio(
            bench="peer",
            what=f"tokens/s, {COUNT} at once, {name} / llama.cpp's server",
            rounds=divide(rates, theirs),
            limit=limit,
            at_most=False,
            noise=noise,
            figures={"ours/s": median(rates), "theirs/s": median(theirs)},
        )


def _timed(together: Callable[[list[str]], tuple[float, object]]) -> Callable[[], float]:
    turn = iter(range(1000))
    return lambda: together(prompts(next(turn), COUNT))[0]
