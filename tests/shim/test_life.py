"""An agent's life under the real shim: start, signals, end, and what is recorded of it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import msgspec
import pytest

from aiosd.proctree import processes
from aiosd.spawn import ExitRecord
from tests.shim.kernel import Kernel, alive, until

SLEEPER = "import signal; print('up'); signal.pause()"


@pytest.mark.parametrize("code", [0, 1, 7, 255])
async def test_exit_code(kernel: Kernel, code: int) -> None:
    shim = await kernel.start("/bin/sh", "-c", f"exit {code}")
    pid = await shim.ready()
    record = await kernel.exit()
    assert (record.code, record.signal, record.reason) == (code, None, "exited")
    assert (record.pid, record.aid) == (pid, "7")
    assert record.started is not None and record.started <= record.ended
    stored = (kernel.dir / "7" / "exit.json").read_bytes()
    assert msgspec.json.decode(stored, type=ExitRecord) == record
    assert [name for name, _, _ in kernel.events if name != "log"] == ["started", "exit"]
    shim.bye()
    await shim.closed()
    assert not alive(shim.shim_pid)
    kernel.spawner.remove(7)
    assert not (kernel.dir / "7").exists()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
async def test_signal_ends_it(kernel: Kernel, sig: signal.Signals) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    await shim.ready()
    shim.signal(sig)
    record = await kernel.exit()
    assert (record.code, record.signal) == (None, sig)


async def test_signal_before_the_program_runs(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    shim.signal(signal.SIGKILL)
    assert (await kernel.exit()).signal == signal.SIGKILL


async def test_the_whole_group_is_signalled(kernel: Kernel) -> None:
    await kernel.start("/bin/sh", "-c", "sleep 1000 & echo $!; sleep 1000")
    child = int(await kernel.text("\n"))
    kernel.shims[0].signal(signal.SIGTERM)
    assert (await kernel.exit()).signal == signal.SIGTERM
    assert not alive(child)


@pytest.mark.parametrize("sig", [signal.SIGSTOP, signal.SIGTSTP])
async def test_stop_and_continue(kernel: Kernel, sig: signal.Signals) -> None:
    shim = await kernel.start("/bin/sh", "-c", "sleep 1000 & echo $!; wait; echo woken")
    pid = await shim.ready()
    child = int(await kernel.text("\n"))
    shim.signal(sig)
    await until(lambda: _states(pid, child) == "TT", "stopped")
    shim.signal(signal.SIGCONT)
    await until(lambda: _states(pid, child) == "SS", "continued")
    os.kill(child, signal.SIGTERM)
    await kernel.text("woken")


async def test_a_stopped_agent_hears_term_once_continued(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    pid = await shim.ready()
    shim.signal(signal.SIGSTOP)
    await until(lambda: _states(pid) == "T", "stopped")
    shim.signal(signal.SIGTERM)
    shim.signal(signal.SIGCONT)
    assert (await kernel.exit()).signal == signal.SIGTERM


def _states(*pids: int) -> str:
    table = processes()
    return "".join(table[pid].state for pid in pids)


async def test_usage_is_recorded(kernel: Kernel) -> None:
    code = "import os\nb = bytearray(40 << 20)\nwhile os.times().user < 0.2: pass"
    await kernel.python(code)
    record = await kernel.exit()
    assert 0.2 <= record.cpu_s < 5
    assert 40 << 20 < record.max_rss < 200 << 20


@pytest.mark.parametrize(
    ("content", "mode", "code", "words"),
    [
        (None, 0, errno.ENOENT, "No such file"),
        ("#!/bin/sh\n", 0o644, errno.EACCES, "Permission denied"),
        ("no program\n", 0o755, errno.ENOEXEC, "format error"),
        ("#!/nowhere/sh\n", 0o755, errno.ENOENT, "the interpreter that its first line names"),
    ],
)
async def test_exec_failure(
    kernel: Kernel, tmp_path: Path, content: str | None, mode: int, code: int, words: str
) -> None:
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    shim = await kernel.start(str(program))
    with pytest.raises(OSError, match=words) as caught:
        await shim.ready()
    assert caught.value.errno == code
    assert f"cannot execute {program}" in str(caught.value)
    record = await kernel.heard("exec_failed")
    assert (record.errno, record.code, record.reason) == (code, None, "exec_failed")
    shim.bye()
    await shim.closed()
    assert [name for name, _, _ in kernel.events] == ["exec_failed"]
    assert await kernel.spawner.adopt(7) == record


async def test_missing_working_directory(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/true", cwd="/nowhere")
    with pytest.raises(FileNotFoundError, match="cannot enter the working directory /nowhere"):
        await shim.ready()


async def test_bye_before_the_end_is_refused(kernel: Kernel) -> None:
    shim = await kernel.start("/bin/sleep", "1000")
    with pytest.raises(ValueError, match="has not ended"):
        shim.bye()


async def test_a_directory_is_used_once(kernel: Kernel) -> None:
    await kernel.start("/bin/true")
    with pytest.raises(FileExistsError):
        await kernel.start("/bin/true")


async def test_a_shim_that_cannot_start_is_lost(kernel: Kernel) -> None:
    kernel.spawner._python = "/bin/false"
    shim = await kernel.start("/bin/true")
    await kernel.heard("lost")
    with pytest.raises(OSError, match="the agent's shim ended"):
        await shim.ready()
    await shim.closed()


async def test_no_process_can_be_started(kernel: Kernel) -> None:
    kernel.spawner._python = "/nowhere/python"
    with pytest.raises(FileNotFoundError):
        await kernel.start("/bin/true")
    assert kernel.spawner.aids() == []


async def test_sigterm_to_the_shim_ends_all(kernel: Kernel) -> None:
    shim = await kernel.python(SLEEPER)
    pid = await shim.ready()
    os.kill(shim.shim_pid, signal.SIGTERM)
    record = await kernel.exit()
    assert (record.signal, record.reason) == (signal.SIGTERM, "terminated")
    await shim.closed()
    assert not alive(pid)


async def test_the_agent_dies_with_its_shim(kernel: Kernel) -> None:
    shim = await kernel.python(
        "import os, signal, time\nif os.fork() == 0: time.sleep(1000)\nprint('up'); signal.pause()"
    )
    pid = await shim.ready()
    await kernel.text("up")
    (child,) = [p for p, s in processes().items() if s.parent == pid]
    os.kill(shim.shim_pid, signal.SIGKILL)
    await kernel.heard("lost")
    await shim.closed()
    await until(lambda: not alive(pid) and not alive(child), "the tree is gone")
    assert await kernel.spawner.adopt(7) is None


async def test_many_at_once(kernel: Kernel) -> None:
    for aid in range(1, 13):
        await kernel.start("/bin/sh", "-c", f"exit {aid}", aid=aid)
    for aid in range(1, 13):
        assert (await kernel.exit(aid)).code == aid
    assert kernel.spawner.aids() == list(range(1, 13))
