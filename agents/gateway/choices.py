"""Choices: several generations for one request (`n`), each with dice of its own.

for told in seeded(told, 3): ...            # what each is asked
replies = await together([one(...), ...])   # all or an error; then none goes on
async for piece in merged([stream, ...]):   # pieces as they come, of whichever it is
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import aios

from .refusal import Refusal

MOST: Final = 16
"""Generations of one request."""
AHEAD: Final = 4
"""Pieces of each stream that may wait for the client."""

T = TypeVar("T")


def count(given: int | None, prompts: int = 1) -> int:
    """Return how many choices there are to be of each prompt. Raises Refusal."""
    wanted = 1 if given is None else given
    if wanted < 1 or wanted * prompts > MOST:
        sentence = f"n: {wanted} for {prompts} prompts; there are 1 to {MOST} in one request"
        raise Refusal(400, f"{sentence}; ask again for more", param="n")
    return wanted


def seeded(told: dict[str, Any], wanted: int) -> list[dict[str, Any]]:
    """Return what each generation is told: with a seed and a temperature, seeds that follow it.

    At temperature 0 they are all the same.
    """
    seed = told.get("seed", secrets.randbits(62))
    mask = (1 << 63) - 1
    return [told, *({**told, "seed": (seed + at) & mask} for at in range(1, wanted))]


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what comes of all; the first error ends the others, as cancelling this does."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


def merged(streams: Sequence[AsyncGenerator[bytes]]) -> AsyncGenerator[bytes]:
    """Give the pieces of all streams as they come; the first error ends them all."""
    return streams[0] if len(streams) == 1 else _merged(streams)


async def _merged(streams: Sequence[AsyncGenerator[bytes]]) -> AsyncGenerator[bytes]:
    pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(AHEAD * len(streams))
    tasks = [asyncio.ensure_future(_pump(stream, pieces)) for stream in streams]
    left = len(tasks)
    try:
        while left:
            found = await pieces.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        await _end(tasks)


def sum_of(usages: Sequence[aios.TokenUsage]) -> aios.TokenUsage:
    """Return what all took: each has read its prompt."""
    return aios.TokenUsage(
        sum(used.prompt_tokens for used in usages),
        sum(used.completion_tokens for used in usages),
        sum(used.cached_tokens for used in usages),
        sum(used.dollars for used in usages),
    )


async def _pump(
    stream: AsyncGenerator[bytes], pieces: asyncio.Queue[bytes | Exception | None]
) -> None:
    """Pass on what comes of a stream, and how it ends: who reads waits for that."""
    try:
        async with aclosing(stream) as source:
            async for piece in source:
                await pieces.put(piece)
    except Exception as error:  # noqa: BLE001 - raised where the pieces are read
        await pieces.put(error)
    else:
        await pieces.put(None)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # told already, by the first of them
