"""A core whose worker can't be started: everybody who waits for it is told, and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess

import pytest

from tests.cores.conftest import DEADLINE, MakeBench, within


def no_process(*_: object, **__: object) -> None:
    raise OSError(errno.EAGAIN, "no more processes")


def test_a_worker_that_can_not_be_started(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with bench() as b:
            waiting = asyncio.create_task(b.core.questions.tokenize("x", "", True, False))
            await asyncio.sleep(0)
            monkeypatch.setattr(subprocess, "Popen", no_process)
            with pytest.raises(OSError, match=r"can't be started: .*no more processes"):
                await b.core.start()
            with pytest.raises(OSError, match="can't be started"):
                await waiting
            assert b.core.state == "failed" and not b.core.accepting

    asyncio.run(main())


def test_a_worker_that_can_not_be_started_again(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with bench(step_ms=1, eog=0.0) as b:
            await b.core.start()
            _, result = await b.submit("x", max_tokens=2000)
            await result.reach(3)
            monkeypatch.setattr(subprocess, "Popen", no_process)
            os.kill(b.core.pid, signal.SIGKILL)
            with pytest.raises(OSError, match="can't be started"):
                await within(result.done)
            assert b.core.state == "failed"

    asyncio.run(main())


def test_a_removed_core_leaves_nobody_waiting_and_no_buffer(bench: MakeBench) -> None:
    async def main() -> None:
        async with bench(slots=1, quantum=1, step_ms=1, eog=0.0) as b:
            await b.core.start()
            runs = [await b.submit(f"run {i} " * 30, max_tokens=1500) for i in range(4)]
            await runs[3][1].reach(3)
            b.core.cancel(runs[0][0])
            settling = [
                asyncio.create_task(b.core.placement.settle(sequence)) for sequence, _ in runs
            ]
            await b.core.stop()
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*settling)
            for _, result in runs[1:]:
                with pytest.raises(OSError, match="removed"):
                    await within(result.done)
            assert b.tiers.ram.used == b.tiers.disk.used == 0 and b.core.placement.resident == 0

    asyncio.run(main())
