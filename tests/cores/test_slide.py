"""A sequence whose window is full shifts, and produces the tokens that it produces alone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import Any

import pytest

from aiosd.cores.sequence import Sequence
from aiosd.engine.protocol import DECODE, PREFILL, SHIFT, Slide
from tests.cores.conftest import Bench, MakeBench, Result, within

WINDOW = 192
SLIDE = Slide(keep=5, gone=64, window=WINDOW, limit=8 * WINDOW)


async def disturb(b: Bench, sequence: Sequence, result: Result, kills: int, seed: int) -> None:
    """Suspend and kill at random; another sequence pushes it out of its slot meanwhile."""
    rng, killed = random.Random(seed), set[int]()
    while not result.done.done():
        await result.reach(len(result.tokens) + 1)
        if rng.random() < 0.2:
            b.core.hold(sequence, "stopped")
            await b.solo("somebody else is here " * 4, max_tokens=5)
            b.core.release(sequence, "stopped")
        elif len(killed) < kills and b.core.pid not in killed | {0} and rng.random() < 0.1:
            killed.add(b.core.pid)
            os.kill(b.core.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        (WINDOW - 1, [PREFILL, DECODE, SHIFT, DECODE]),
        (WINDOW, [PREFILL, SHIFT, DECODE]),
        (WINDOW + 1, [PREFILL, SHIFT, DECODE]),
        (WINDOW + 2, [PREFILL, SHIFT, PREFILL, DECODE]),
    ],
)
def test_a_prompt_about_as_long_as_the_window(
    bench: MakeBench, prompt: int, kinds: list[int]
) -> None:
    """The first position that finds no cell shifts, be it of the prompt or of the reply."""

    async def main() -> None:
        async with bench(n_ctx=WINDOW, slots=2, eog=0.0) as b:
            await b.core.start()
            sequence, result = await b.submit("x" * prompt, max_tokens=10, slide=SLIDE)
            assert await within(result.done) == "length" and len(result.tokens) == 10
            assert [run.kind for run in sequence.history] == kinds
            (shift,) = (run for run in sequence.history if run.kind == SHIFT)
            assert (shift.start, shift.end, shift.keep, shift.gone) == (WINDOW, WINDOW + 1, 5, 64)
            assert sequence.length == len(sequence.tokens) - 64

    asyncio.run(main())


@pytest.mark.parametrize(
    ("seed", "kills", "ram", "temperature"),
    [(1, 0, 1 << 30, 0.0), (2, 3, 1 << 30, 0.8), (3, 2, 0, 0.8)],
)
def test_it_equals_its_solo_run(
    bench: MakeBench, seed: int, kills: int, ram: int, temperature: float
) -> None:
    """Preempted, evicted and killed about its shifts; with no room at all for snapshots too."""

    async def main() -> None:
        async with bench(n_ctx=WINDOW, slots=1, ram=ram, quantum=4, eog=0.0) as b:
            await b.core.start()
            how: dict[str, Any] = {"temperature": temperature, "max_tokens": 260, "slide": SLIDE}
            solo = await b.solo("tell me of the sea " * 8, **how)
            sequence, result = await b.submit("tell me of the sea " * 8, **how)
            await disturb(b, sequence, result, kills, seed)
            assert result.tokens == solo
            assert sum(run.kind == SHIFT for run in sequence.history) >= 3

    asyncio.run(main())


def test_it_goes_on_in_a_later_request(bench: MakeBench) -> None:
    """The prompt of a later request shifts the window as well; what comes then is as alone."""

    async def main() -> None:
        async with bench(n_ctx=WINDOW, slots=1, quantum=4, eog=0.0) as b:
            await b.core.start()
            words = ["one " * 30, "two " * 40, "three " * 90]
            solo = await b.solo(*words, slide=SLIDE)
            tokens: list[int] = []
            sequence = None
            for word in words:
                sequence, result = await b.submit(word, sequence=sequence, slide=SLIDE)
                await disturb(b, sequence, result, 1, len(word))
                tokens += result.tokens
                await b.solo("another takes the only slot")
            assert tokens == solo

    asyncio.run(main())


def test_the_record_is_bounded(bench: MakeBench) -> None:
    """A sequence of `limit` tokens doesn't shift again: its user has to begin anew."""

    async def main() -> None:
        async with bench(n_ctx=WINDOW, slots=1, eog=0.0) as b:
            await b.core.start()
            slide = Slide(keep=5, gone=64, window=WINDOW, limit=2 * WINDOW)
            sequence, result = await b.submit("x" * 100, max_tokens=2000, slide=slide)
            assert await within(result.done) == "window"
            assert 2 * WINDOW <= len(sequence.tokens) < 3 * WINDOW
            assert sequence.length == WINDOW

    asyncio.run(main())
