"""The real shim under a kernel's event loop: a watcher that records, and a leak check at the end.

A test is a coroutine function; it runs on uvloop, as in the kernel, with a deadline over all of it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest
import uvloop

from aiosd.proctree import processes
from tests.shim.kernel import Kernel

# libuv opens one pipe for the whole process with its first loop: not a leak of a test's.
uvloop.new_event_loop().close()

TEST_DEADLINE = 240.0  # seconds for one test


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests on uvloop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    body = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    kernel = pyfuncitem.funcargs.get("kernel")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_limited(body, kernel if isinstance(kernel, Kernel) else None))
    return True


async def _limited(body: Coroutine[None, None, None], kernel: Kernel | None) -> None:
    try:
        await asyncio.wait_for(body, TEST_DEADLINE)
    finally:
        if kernel is not None:
            await kernel.end()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel; afterwards no shim, no member of its session and no descriptor is left."""
    before = set(os.listdir("/proc/self/fd"))
    kernel = Kernel(tmp_path / "agents")
    yield kernel
    sessions = {shim.shim_pid for shim in kernel.shims}
    left = {p: s for p, s in processes().items() if s.session in sessions and s.state != "Z"}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert set(os.listdir("/proc/self/fd")) - before == set()
