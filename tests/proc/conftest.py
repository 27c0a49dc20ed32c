"""Coroutine tests of the process table: each on an event loop of its own, with a deadline."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from tests.proc.world import DEADLINE, World


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests, with a booted World for those that ask for one."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(_limited(pyfuncitem, {name: pyfuncitem.funcargs[name] for name in names}))
    return True


async def _limited(test: pytest.Function, arguments: dict[str, object]) -> None:
    world = None
    if "world" in arguments:
        directory = arguments["world"]
        assert isinstance(directory, Path)
        world = arguments["world"] = await World(directory).boot()
    try:
        await asyncio.wait_for(test.obj(**arguments), DEADLINE)
    finally:
        if world is not None:
            await world.end()


@pytest.fixture
def world(state_dir: Path) -> Path:
    """Stand for a booted World, which needs the test's own loop."""
    return state_dir
