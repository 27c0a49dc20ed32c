"""put_file and get_file: bounded, inside the workspace, whatever tools have left there."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosd import workspace
from aiosd.abi.tools import ExecuteTool, FilePart, GetFile, PutFile, WorkspaceFile
from aiosd.access import Caller
from aiosd.toolfiles import Workspaces
from aiosd.toolwatch import Watch
from aiosd.workspace import FRESH
from tests.conftest import World
from tests.daemon import PATIENCE, Client
from tests.tools.conftest import Bench


@pytest.fixture(scope="module")
def bench(world: World) -> Iterator[Bench]:
    """Give a daemon with a tool that reads a file of its workspace."""
    bench = Bench(world)
    bench.add("show", "cat >/dev/null; cat notes/a.txt; echo left > made.txt", kind="text")
    with bench.daemon:
        yield bench


@pytest.fixture
def agent(bench: Bench) -> Iterator[Client]:
    with bench.agent() as client:
        yield client


def _put(client: Client, name: str, data: bytes, offset: int = 0) -> WorkspaceFile:
    stored = client.call(PutFile(name, data, offset))
    assert isinstance(stored, WorkspaceFile)
    return stored


def _get(client: Client, name: str, offset: int = 0, size: int = 100) -> FilePart:
    part = client.call(GetFile(name, offset, size))
    assert isinstance(part, FilePart)
    return part


def test_tools_find_what_was_put_and_leave_what_is_got(agent: Client) -> None:
    _put(agent, "notes/a.txt", b"old")
    stored = _put(agent, "notes/a.txt", b"hello ")
    assert (stored.name, stored.size) == ("notes/a.txt", 6)
    assert _put(agent, "notes/a.txt", b"worlds!", offset=6).size == 13
    assert _put(agent, "notes/a.txt", b"!", offset=11).size == 12
    assert agent.call(ExecuteTool(name="show")).value == "hello world!"
    assert _get(agent, "made.txt") == FilePart(b"left\n", 5)
    assert _get(agent, "notes/a.txt", 6, 5) == FilePart(b"world", 12)
    assert _get(agent, "notes/a.txt", 50) == FilePart(b"", 12)


def test_no_name_leads_out_of_the_workspace(bench: Bench, agent: Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    root = Path(_put(agent, "a.txt", b"a").workspace)
    (root / "link.txt").symlink_to(secret)
    (root / "away").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    wrong = {
        "/etc/passwd": errno.EINVAL, "../a": errno.EINVAL, "x/../../a": errno.EINVAL,
        "a//b": errno.EINVAL, "a/": errno.EINVAL, "./a": errno.EINVAL,
        "/".join("abcdefghijklmnopq"): errno.EINVAL,
        "link.txt": errno.ELOOP, "away/secret.txt": errno.ENOTDIR, "a.txt/b": errno.ENOTDIR,
        "pipe": errno.ENXIO, "folder": errno.EISDIR, "none.txt": errno.ENOENT,
    }  # fmt: skip
    for name, number in wrong.items():
        with pytest.raises(OSError, match="get_file: ") as no:
            _get(agent, name)
        assert no.value.errno == number, name
        if number != errno.ENOENT:
            with pytest.raises(OSError, match="put_file: ") as no:
                _put(agent, name, b"x", offset=1)
            assert no.value.errno == number, name
    _put(agent, "link.txt", b"theirs")  # the link gives way, what it led to stays
    assert secret.read_text() == "mine" and _get(agent, "link.txt").data == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.txt"]
    with bench.agent("other") as other, pytest.raises(FileNotFoundError):
        _get(other, "a.txt")
    with pytest.raises(OSError, match="the file has 1 bytes only"):
        _put(agent, "a.txt", b"x", offset=2)


def test_a_workspace_takes_no_more_than_it_may(agent: Client) -> None:
    """Its limit is 1 MiB here."""
    root = Path(_put(agent, "half.bin", bytes(700 << 10)).workspace)
    with pytest.raises(OSError, match=r"workspace_limit") as no:
        _put(agent, "more/more.bin", bytes(700 << 10))
    assert no.value.errno == errno.EDQUOT
    with pytest.raises(OSError, match=r"workspace_limit"):
        _put(agent, "half.bin", bytes(700 << 10), offset=500 << 10)
    assert (root / "half.bin").stat().st_size == 700 << 10
    _put(agent, "half.bin", bytes(800 << 10))  # in place of the old one
    (root / "half.bin").unlink()
    _put(agent, "other.bin", b"small")
    _put(agent, "more/more.bin", bytes(900 << 10))


def test_what_a_killed_kernel_left_of_a_file_takes_no_room(agent: Client) -> None:
    root = Path(_put(agent, "whole.txt", b"whole").workspace)
    (root / FRESH).write_bytes(bytes(700 << 10))
    _put(agent, "half.bin", bytes(800 << 10))
    assert sorted(path.name for path in root.iterdir()) == ["half.bin", "whole.txt"]
    with pytest.raises(OSError, match="put_file: ") as no:
        _put(agent, FRESH, b"x")
    assert no.value.errno == errno.EINVAL


def test_a_file_that_is_written_is_waited_for_though_its_caller_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one in the workspace comes after it, or the limit would hold for neither."""
    began, go = threading.Event(), threading.Event()
    order: list[str] = []
    real = workspace._put

    def slow(folder: str, way: list[str], args: PutFile, room: int) -> int:
        order.append(f"{args.name} begins")
        if args.name == "a.txt":
            began.set()
            assert go.wait(PATIENCE)
        size = real(folder, way, args, room)
        order.append(f"{args.name} ends")
        return size

    monkeypatch.setattr(workspace, "_put", slow)

    async def run() -> None:
        files = workspace.WorkspaceFiles(Workspaces(str(tmp_path)), Watch(lambda: 1 << 20))
        caller = Caller(os.getuid(), os.getgid(), os.getpid(), 5)
        first = asyncio.create_task(files.sys_put_file(caller, PutFile("a.txt", b"a")))
        await asyncio.to_thread(began.wait)
        first.cancel()
        second = asyncio.create_task(files.sys_put_file(caller, PutFile("b.txt", b"b")))
        for _ in range(50):
            await asyncio.sleep(0)
        go.set()
        assert (await second).size == 1
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert order == ["a.txt begins", "a.txt ends", "b.txt begins", "b.txt ends"]
