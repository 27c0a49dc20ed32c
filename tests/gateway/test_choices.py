"""Several streams of one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from agents.gateway import choices
from tests.daemon import PATIENCE


def test_whatever_ends_one_stream_ends_them_all() -> None:
    """Also an error that nobody has thought of: its reader waits no longer."""
    ended: list[str] = []

    async def endless() -> AsyncGenerator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended.append("endless")

    async def broken() -> AsyncGenerator[bytes]:
        yield b"second"
        raise ValueError("that should not be")

    async def run() -> list[bytes]:
        async with aclosing(choices.merged([endless(), broken()])) as pieces:
            return [piece async for piece in pieces]

    with pytest.raises(ValueError, match="that should not be"):
        asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert ended == ["endless"]
