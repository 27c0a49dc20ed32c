"""Running boxes in tests, and the mark of tests that need a machine which can make them."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from aiosd import sandbox
from aiosd.sandbox import Box

MISSING = [r for r in sandbox.doctor() if not r.available and r.layer != "cgroup"]
needs_layers = pytest.mark.skipif(
    bool(MISSING),
    reason="; ".join(f"this machine lacks {r.layer}: {r.reason}; {r.cure}" for r in MISSING),
)


T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, or fail when that does not come."""
    return asyncio.run(asyncio.wait_for(main, 300))


async def outcome(box: Box, **given: Any) -> tuple[int, bytes]:
    """Run a box to its end; return its status and all that it wrote."""
    ours, theirs = os.pipe()
    try:
        boxed = sandbox.start(box, stdout=theirs, stderr=theirs, **given)
    finally:
        os.close(theirs)
    with io.FileIO(ours) as file:
        data = await asyncio.to_thread(file.read)
    return await boxed.exited, data


def shell(workspace: Path, script: str, **fields: Any) -> Box:
    return Box(argv=("/bin/sh", "-c", script), workspace=str(workspace), **fields)
