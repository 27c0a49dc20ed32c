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
from tests.system.writer import Writer

NOBODY = pwd.getpwnam("nobody")
GROUP = grp.getgrgid(NOBODY.pw_gid).gr_name
CORE = '[[cores]]\nname = "c"\ndriver = "fake"\nslots = 2\nn_ctx = 4096\noptions = {eog = 0.0}\n'

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


def test_what_was_computed_for_one_user_serves_no_other(place: Path) -> None:
    """How many tokens were cached tells whether somebody has asked the same: only one's own did."""
    question = "Is there a pot of gold at the end of the rainbow? " * 6
    with serving(place, f'[kernel]\ngroup = "{GROUP}"\n{CORE}') as daemon, Writer(daemon) as mine:
        with as_nobody():
            theirs = Writer(daemon)
        with theirs:
            first = mine.ask(question, max_tokens=9)
            foreign = theirs.ask(question, max_tokens=9)
            assert foreign.usage.cached_tokens == 0 and foreign.token_ids == first.token_ids
            assert theirs.ask(question, max_tokens=9).usage.cached_tokens > 0
