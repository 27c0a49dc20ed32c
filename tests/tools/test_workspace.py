"""put_file and get_file: bounded, inside the workspace, whatever tools have left there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosd.abi.tools import ExecuteTool, FilePart, GetFile, PutFile, WorkspaceFile
from tests.conftest import World
from tests.daemon import Client
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
