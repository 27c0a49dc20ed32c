"""decode: what running agents side by side gains over running them one after the other.

Claims: eight agents at once, 64 tokens each, greedy, on an exact core, get at least 1.4 times the
tokens per second of one after the other; and eight live ones among sixteen in sixteen slots, while
agents are suspended and resumed at random, at least 1.3 times. Both get the very same tokens.

How: through the socket and the SDK, agents of their own connections. A round takes the same prompts
one by one and at once; seconds run from the first request to the last answer, prefill included.
Among sixteen, one of the live agents changes places with a suspended one every 50 ms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import median

from tests.bench.crowd import Crowd, prompts
from tests.bench.kernel import Kernel, core
from tests.bench.ratio import Ratio, divide, interleave

ROUNDS = 3
LIVE = 8
SLOTS = 16


def run(rounds: int) -> Iterator[Ratio]:
    """Measure on a core of eight slots, then on one of sixteen."""
    rounds = rounds or ROUNDS
    with Kernel(core("local")) as kernel:
        kernel.cores()
        with Crowd(kernel, LIVE) as crowd:
            together = crowd.together
            yield from _compare(crowd, LIVE, together, rounds, 1.4, f"{LIVE} agents at once")
    with Kernel(core("local", slots=SLOTS)) as kernel:
        kernel.cores()
        dice = random.Random(1)
        with Crowd(kernel, SLOTS) as crowd:
            what = f"{LIVE} live of {SLOTS}, suspended at random"

            def restless(texts: list[str]) -> tuple[float, list[list[int]]]:
                return crowd.restless(texts, LIVE, dice)

            yield from _compare(crowd, SLOTS, restless, rounds, 1.3, what)


def _compare(
    crowd: Crowd,
    count: int,
    many: Callable[[list[str]], tuple[float, list[list[int]]]],
    rounds: int,
    limit: float,
    what: str,
) -> Iterator[Ratio]:
    crowd.together(prompts(99, count))  # memory is fresh only once
    alone: list[list[list[int]]] = []
    beside: list[list[list[int]]] = []

    def one_by_one() -> float:
        rate, tokens = crowd.one_by_one(prompts(len(alone), count))
        alone.append(tokens)
        return rate

    def at_once() -> float:
        rate, tokens = many(prompts(len(beside), count))
        beside.append(tokens)
        return rate

    (fast, slow), noise = interleave(rounds, at_once, one_by_one)
    yield Ratio(
        bench="decode",
        what=f"tokens/s, {what} / one after the other",
        rounds=divide(fast, slow),
        limit=limit,
        at_most=False,
        noise=noise,
        figures={"at once/s": median(fast), "one by one/s": median(slow)},
    )
    pairs = [(a, b) for x, y in zip(alone, beside, strict=True) for a, b in zip(x, y, strict=True)]
    yield Ratio(
        bench="decode",
        what=f"texts, {what}, same as alone / all",
        rounds=[sum(a == b for a, b in pairs) / len(pairs)],
        limit=1.0,
        at_most=False,
        figures={"texts": len(pairs)},
    )
