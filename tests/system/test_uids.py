"""Users: who may connect, as whom a program runs, what others see. Only root can test it."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiosd.abi.call import Call
from aiosd.abi.process import (
    GetStatus,
    Kill,
    ListAgents,
    QueryHistory,
    ReadLog,
    SetPriority,
    Wait,
)
from tests.daemon import Daemon
from tests.system.agents import SLEEPER, end_all, log, processes_below, spawn, wait

NOBODY = pwd.getpwnam("nobody")
GROUP = grp.getgrgid(NOBODY.pw_gid).gr_name

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory that other users can reach into."""
    path = Path(tempfile.mkdtemp(prefix="aios-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def serving(place: Path, config: str) -> Iterator[Daemon]:
    for name in ("state", "kv"):
        (place / name).mkdir(mode=0o700)
    with Daemon(place / "state", place / "run", place / "kv", config=config) as daemon:
        yield daemon
        end_all(daemon)
    assert processes_below(place / "state") == []


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be another user for a moment. A socket's credentials are those of when it connects."""
    os.setegid(NOBODY.pw_gid)
    os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_another_user_cannot_connect(place: Path) -> None:
    with (
        serving(place, "") as daemon,
        socket.socket(socket.AF_UNIX) as sock,
        as_nobody(),
        pytest.raises(PermissionError),
    ):
        sock.connect(daemon.socket)


def test_root_runs_a_program_as_the_user_who_asked(place: Path) -> None:
    with (
        serving(place, f'[kernel]\ngroup = "{GROUP}"\n') as daemon,
        daemon.connect() as root,
    ):
        with as_nobody():
            nobody = daemon.connect()
        roots = spawn(root, SLEEPER)
        own = spawn(nobody, ["sh", "-c", "id -u; id -g; echo $USER"])
        assert wait(nobody, own).code == 0
        assert log(nobody, own).split() == [str(NOBODY.pw_uid), str(NOBODY.pw_gid), "nobody"]
        calls: list[Call] = [
            Kill(roots),
            Wait(roots),
            ReadLog(roots),
            QueryHistory(roots),
            GetStatus(roots),
            SetPriority(roots, 5),
        ]
        for call in calls:
            with pytest.raises(PermissionError) as caught:
                nobody.call(call)
            assert caught.value.errno == errno.EPERM
        assert [row.aid for row in nobody.call(ListAgents(all=True))] == [own]
        assert {happening.aid for happening in nobody.call(QueryHistory())} == {own}
        assert [row.aid for row in root.call(ListAgents(all=True))] == [roots, own]
        nobody.close()
