"""What an agent starts ends with it: daemons, deaf children, forks in flight, stopped trees."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from aiosd.proctree import Cgroup, descendants, processes
from tests.shim.kernel import Kernel, alive, until

CGROUP_MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")

DAEMON = """
import os, signal, sys, time
ready, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if sys.argv[1] == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        os.write(tell, b"x")
        for fd in range(3):
            os.close(fd)
        time.sleep(1000)
    os._exit(0)
os.wait()
os.read(ready, 1)
"""


async def test_a_daemon_ends_with_its_agent(kernel: Kernel) -> None:
    await kernel.python(DAEMON, "hearing", kill_timeout=1000.0)
    record = await kernel.exit()
    daemon = int(kernel.output()[0].text)
    assert (record.code, record.reason) == (0, "exited")
    assert daemon not in processes()


async def test_a_deaf_daemon_is_killed(kernel: Kernel) -> None:
    began = time.monotonic()
    await kernel.python(DAEMON + "os.kill(os.getpid(), 9)", "deaf", kill_timeout=0.3)
    record = await kernel.exit()
    daemon = int((await kernel.text("\n")).split()[0])
    assert record.signal == signal.SIGKILL
    assert time.monotonic() - began >= 0.3
    assert daemon not in processes()


async def test_kill_tree(kernel: Kernel) -> None:
    shim = await kernel.python(DAEMON + "signal.pause()", "deaf", kill_timeout=1000.0)
    daemon = int(await kernel.text("\n"))
    shim.kill_tree()
    record = await kernel.exit()
    assert (record.signal, record.reason) == (signal.SIGKILL, "killed")
    assert daemon not in processes()


async def test_signal_to_the_tree_reaches_other_sessions(kernel: Kernel) -> None:
    shim = await kernel.python(DAEMON + "signal.pause()", "hearing", kill_timeout=1000.0)
    daemon = int(await kernel.text("\n"))
    shim.signal(signal.SIGSTOP, tree=True)
    await until(lambda: processes()[daemon].state == "T", "the daemon is stopped")
    shim.signal(signal.SIGTERM, tree=True)
    shim.signal(signal.SIGCONT, tree=True)
    assert (await kernel.exit()).signal == signal.SIGTERM
    assert daemon not in processes()


async def test_a_stopped_tree_can_be_killed(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sh", "-c", "sleep 1000 & echo $!; wait")
    pid = await shim.ready()
    child = int(await kernel.text("\n"))
    shim.signal(signal.SIGSTOP)
    await until(lambda: processes()[child].state == "T", "stopped")
    shim.kill_tree()
    assert (await kernel.exit()).signal == signal.SIGKILL
    assert {pid, child}.isdisjoint(processes())


@pytest.mark.parametrize(("end", "kills"), [("signal.pause()", True), ("", False)])
async def test_forks_in_flight_do_not_escape(kernel: Kernel, end: str, kills: bool) -> None:
    # Every child forks its successor and ends: a pid is never there for long.
    code = """
import os, signal, time
if os.fork() == 0:
    stop = time.monotonic() + 15
    while time.monotonic() < stop:
        if os.fork():
            os._exit(0)
    os._exit(0)
print("up")
"""
    shim = await kernel.python(f"{code}{end}", kill_timeout=0.1)
    await kernel.text("up")
    if kills:
        shim.kill_tree()
    await kernel.exit()
    assert descendants(shim.shim_pid) == {}


async def test_no_zombie_stays(kernel: Kernel) -> None:
    # The orphans end while the agent lives: the shim has to reap what it never started.
    code = "for i in 1 2 3 4 5; do (sh -c 'echo $$' &) ; done; echo up; sleep 1000"
    shim = await kernel.start("/bin/sh", "-c", code)
    pid = await shim.ready()
    await until(lambda: len(kernel.output()) == 6, "all spoke")
    await until(lambda: set(_children(shim.shim_pid)) == {pid}, "the orphans are reaped")


def _children(parent: int) -> list[int]:
    return [pid for pid, stat in processes().items() if stat.parent == parent]


@pytest.fixture
def cgroup() -> Path:
    """A cgroup v2 directory in which we may make others."""
    for mount in map(Path, CGROUP_MOUNTS):
        if (mount / "cgroup.procs").exists():
            parent = mount / f"aios-test-{os.getpid()}"
            probe = Cgroup(str(parent), "probe")
            if probe.path:
                probe.remove()
                return parent
    pytest.skip("no cgroup v2 directory that we may write to")


async def test_own_cgroup(kernel: Kernel, cgroup: Path) -> None:
    try:
        code = DAEMON + "signal.pause()"
        shim = await kernel.python(code, "deaf", cgroup=str(cgroup), kill_timeout=1000.0)
        daemon = (await kernel.text("\n")).strip()
        members = (cgroup / "agent-7" / "cgroup.procs").read_text().split()
        assert {daemon, str(await shim.ready())} <= set(members)
        assert str(shim.shim_pid) not in members
        shim.kill_tree()
        await kernel.exit()
        assert not (cgroup / "agent-7").exists()
    finally:
        cgroup.rmdir()


async def test_without_a_cgroup_it_runs_all_the_same(kernel: Kernel) -> None:
    await kernel.start("/bin/true", cgroup="/proc/nowhere")
    assert (await kernel.exit()).code == 0
    assert "no cgroup below" in (kernel.dir / "7" / "shim.err").read_text()


async def test_a_killed_shims_daemon_is_swept(kernel: Kernel) -> None:
    # In the agent's session; without a cgroup one that left the session can't be told from others.
    shim = await kernel.start("/bin/sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
    child = int(await kernel.text("\n"))
    os.kill(shim.shim_pid, signal.SIGKILL)
    await kernel.heard("lost")
    await until(lambda: not alive(child), "swept")
