"""A kernel goes and another comes, or none: agents live on, ends are kept, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from aiosd.spawn import ExitRecord
from tests.shim.kernel import Kernel, alive, gone, until

KERNEL = """
import asyncio, sys
from pathlib import Path
from aiosd.spawn import Spawner, Spec
class Deaf:
    def __getattr__(self, name):
        return lambda *args: None
async def main():
    spawner = Spawner(Path(sys.argv[1]), Deaf())
    spec = Spec(argv=["/bin/sleep", "1000"], cwd="/", env={}, orphan_timeout=float(sys.argv[2]))
    shim = await spawner.start(7, spec)
    print(await shim.ready(), shim.shim_pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_back_within_the_timeout(kernel: Kernel) -> None:
    first = await kernel.start("/bin/cat", "/dev/zero", log_limit=4096)
    pid = await first.ready()
    first.detach()
    second = await kernel.adopt()
    assert await second.ready() == pid
    assert (second.pid, second.shim_pid) == (pid, first.shim_pid)
    assert second.started == first.started
    assert second.start_ticks == first.start_ticks > 0
    second.signal(signal.SIGTERM)
    record = await kernel.exit()
    assert record.signal == signal.SIGTERM
    second.bye()
    await second.closed()
    assert [name for name, _, _ in kernel.events if name != "log"] == ["started", "started", "exit"]


async def test_it_ends_while_no_kernel_is_there(kernel: Kernel) -> None:
    first = await kernel.start("/bin/sleep", "1000")
    pid = await first.ready()
    first.detach()
    os.kill(pid, signal.SIGUSR1)
    await until((kernel.dir / "7" / "exit.json").exists, "the end is recorded")
    second = await kernel.adopt()
    assert (await kernel.exit()).signal == signal.SIGUSR1
    second.bye()
    await second.closed()
    await gone(second.shim_pid)
    record = await kernel.spawner.adopt(7)
    assert isinstance(record, ExitRecord)
    assert record.signal == signal.SIGUSR1


async def test_no_kernel_comes_back(kernel: Kernel) -> None:
    shim = await kernel.start(
        "/bin/sh", "-c", "trap '' TERM; sleep 1000 & wait; wait",
        orphan_timeout=0.2, kill_timeout=0.2,
    )  # fmt: skip
    pid = await shim.ready()
    shim.detach()
    await gone(shim.shim_pid)
    assert not alive(pid)
    record = await kernel.spawner.adopt(7)
    assert isinstance(record, ExitRecord)
    assert (record.signal, record.reason) == (signal.SIGKILL, "orphaned")


async def test_a_stopped_agent_is_orphaned_too(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sleep", "1000", orphan_timeout=0.2, kill_timeout=1000.0)
    await shim.ready()
    shim.signal(signal.SIGSTOP)
    shim.detach()
    await gone(shim.shim_pid)
    record = await kernel.spawner.adopt(7)
    assert isinstance(record, ExitRecord)
    assert (record.signal, record.reason) == (signal.SIGTERM, "orphaned")


async def test_an_ended_agents_shim_does_not_wait_for_ever(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sh", "-c", "exit 3", orphan_timeout=0.2)
    await kernel.exit()
    shim.detach()
    await gone(shim.shim_pid)
    record = await kernel.spawner.adopt(7)
    assert isinstance(record, ExitRecord)
    assert (record.code, record.reason) == (3, "exited")


async def test_the_timeout_starts_anew_with_each_kernel(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sleep", "1000", orphan_timeout=3.0)
    for _ in range(5):
        shim.detach()
        await shim.closed()
        shim = await kernel.adopt()
    assert shim.record is None
    await asyncio.wait({asyncio.create_task(kernel.heard("exit"))}, timeout=3.2)
    assert shim.record is None  # connected for longer than the timeout


async def test_the_kernel_is_killed(kernel: Kernel) -> None:
    process = await _kernel(kernel.dir, orphan_timeout=60.0)
    assert process.stdout is not None
    pid, shim_pid = map(int, (await process.stdout.readline()).split())
    process.kill()
    await process.wait()
    shim = await kernel.adopt()
    assert (await shim.ready(), shim.shim_pid) == (pid, shim_pid)
    shim.kill_tree()
    assert (await kernel.exit()).reason == "killed"


async def test_the_kernel_is_killed_for_good(kernel: Kernel) -> None:
    process = await _kernel(kernel.dir, orphan_timeout=0.2)
    assert process.stdout is not None
    pid, shim_pid = map(int, (await process.stdout.readline()).split())
    process.kill()
    await process.wait()
    await gone(shim_pid)
    assert not alive(pid)
    record = await kernel.spawner.adopt(7)
    assert isinstance(record, ExitRecord)
    assert record.reason == "orphaned"


async def _kernel(directory: Path, orphan_timeout: float) -> asyncio.subprocess.Process:
    root = Path(__file__).parents[2]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", KERNEL, str(directory), str(orphan_timeout),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


async def test_killed_with_its_shim_while_no_kernel_is_there(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
    child = int(await kernel.text("\n"))
    pid = await shim.ready()
    shim.detach()
    os.kill(shim.shim_pid, signal.SIGKILL)
    await gone(pid)
    assert alive(child)
    assert await kernel.spawner.adopt(7) is None
    await gone(child)


async def test_a_shim_that_does_not_answer(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosd.spawn.HELLO_TIMEOUT", 0.2)
    shim = await kernel.start("/bin/sleep", "1000")
    pid = await shim.ready()
    shim.detach()
    os.kill(shim.shim_pid, signal.SIGSTOP)
    assert await kernel.spawner.adopt(7) is None
    await gone(shim.shim_pid)
    await gone(pid)


async def test_nothing_to_adopt(kernel: Kernel) -> None:
    assert await kernel.spawner.adopt(7) is None
    kernel.spawner.remove(7)


async def test_a_long_path(kernel: Kernel, tmp_path: Path) -> None:
    deep = Kernel(tmp_path / ("d" * 120) / "agents")
    first = await deep.start("/bin/sleep", "1000")
    kernel.shims.append(first)
    first.detach()
    second = await deep.adopt()
    kernel.shims.append(second)
    second.kill_tree()
    assert (await deep.exit()).signal == signal.SIGKILL
