"""A box: what it runs, how it ends, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from pathlib import Path

import pytest

from aiosd import sandbox
from aiosd.sandbox import Box
from tests.sandbox.boxes import needs_layers, outcome, run, shell

pytestmark = needs_layers


def test_program_runs_in_its_workspace(tmp_path: Path) -> None:
    async def main() -> None:
        status, data = await outcome(shell(tmp_path, "pwd; echo hello > note; exit 3"))
        assert (status, data) == (3, b"/workspace\n")
        assert (tmp_path / "note").read_text() == "hello\n"

    run(main())


def test_module_of_this_python_runs_in_place(tmp_path: Path) -> None:
    async def main() -> None:
        argv = (sys.executable, "-m", "timeit", "-n1", "-r1", "import os; print(os.environ['X'])")
        status, data = await outcome(Box(argv=argv, workspace=str(tmp_path), env={"X": "seen"}))
        assert (status, data.split()[0]) == (0, b"seen")

    run(main())


def test_descriptor_comes_at_its_number(tmp_path: Path) -> None:
    async def main() -> None:
        ours, theirs = os.pipe()
        status, _ = await outcome(shell(tmp_path, "echo over >&5"), fds={5: theirs})
        os.close(theirs)
        with io.FileIO(ours) as file:
            assert (status, file.read()) == (0, b"over\n")

    run(main())


def test_unknown_program_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        boxed = sandbox.start(Box(argv=("/no/such",), workspace=str(tmp_path)))
        with pytest.raises(FileNotFoundError, match="/no/such"):
            await boxed.ready()
        assert await boxed.exited == 126

    run(main())


def test_killed_box_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        ours, theirs = os.pipe()
        script = "(trap '' TERM; setsid sleep 1000 & echo started; sleep 1000)"
        boxed = sandbox.start(shell(tmp_path, script), stdout=theirs)
        os.close(theirs)
        with io.FileIO(ours) as file:
            assert await asyncio.to_thread(file.readline) == b"started\n"
            boxed.kill_tree()
            assert await boxed.exited == 137
            assert await asyncio.to_thread(file.read) == b""  # nobody holds the other end
        assert set(os.listdir("/proc/self/fd")) <= before | {"100"}

    run(main())


def test_terminate_reaches_the_program(tmp_path: Path) -> None:
    async def main() -> None:
        ours, theirs = os.pipe()
        script = "trap 'echo bye; exit 7' TERM; echo started; while :; do sleep 0.05; done"
        boxed = sandbox.start(shell(tmp_path, script), stdout=theirs)
        os.close(theirs)
        with io.FileIO(ours) as file:
            assert await asyncio.to_thread(file.readline) == b"started\n"
            await boxed.ready()  # until the kernel knows that it runs, to end it is to kill it
            boxed.terminate()
            assert await boxed.exited == 7
            assert file.read() == b"bye\n"

    run(main())


def test_hidden_directory_is_empty_wherever_it_lies(tmp_path: Path) -> None:
    async def main() -> None:
        for name in ("declared/kernel", "workspace"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "declared/seen").write_text("yes")
        (tmp_path / "declared/kernel/state").write_text("no")
        declared = str(tmp_path / "declared")
        box = shell(
            tmp_path / "workspace",
            f"cat {declared}/seen {declared}/kernel/state; ls {declared}/kernel | wc -l",
            write=(declared,),
            hidden=(f"{declared}/kernel",),
        )
        _, data = await outcome(box)
        assert data.startswith(b"yescat: ") and data.endswith(b"\n0\n")

    run(main())


def test_what_is_seen_anyway_may_be_declared(tmp_path: Path) -> None:
    async def main() -> None:
        box = shell(tmp_path, "echo fine", read=(sys.executable, "/usr/bin", "/usr"))
        assert await outcome(box) == (0, b"fine\n")

    run(main())
