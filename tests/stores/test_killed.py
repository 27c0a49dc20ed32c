"""The kernel killed at each of its write points: what is acknowledged is there, nothing is half."""

from __future__ import annotations

import hashlib
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aiosd.abi.memory import AddMemory, SearchMemory
from aiosd.abi.storage import StoDelete, StoHistory, StoList, StoWrite
from aiosd.killpoint import POINTS
from tests.daemon import PATIENCE, Client, Daemon
from tests.stores.conftest import FAKE, Start
from tests.stores.test_memory import texts
from tests.stores.test_storage import PART, blobs, read, send, until

HERE = [point for point in POINTS if point.startswith(("memory.", "storage."))]
DATA = bytes(range(256)) * (PART // 256) * 2 + b"end"


SEALED = FAKE + '[storage]\nencrypt = "all"\n'
WHILE_WRITTEN = ("storage.part", "storage.synced", "storage.placed")
"""Points at which what is on disk is other bytes when it is sealed."""
TRIED = [(point, FAKE) for point in HERE] + [(point, SEALED) for point in WHILE_WRITTEN]


@pytest.mark.parametrize(
    ("point", "config"), TRIED, ids=[p + ("-sealed" if c == SEALED else "") for p, c in TRIED]
)
def test_killed_at_a_write_point(
    start: Start, monkeypatch: pytest.MonkeyPatch, point: str, config: str
) -> None:
    daemon = start(config)
    with daemon.connect() as client:
        client.call(AddMemory("kept record"))
        client.call(StoWrite("gone", b"soon deleted"))
        client.call(StoWrite("kept", b"first", key="a"))
    daemon.stop()
    mark = daemon.state_dir / "died"
    monkeypatch.setenv("AIOS_KILL_AT", f"{point}:1:{mark}")
    daemon = start(config)
    told = work(daemon)
    assert daemon.process.wait(PATIENCE) == -signal.SIGKILL and mark.exists()
    daemon = start(config)
    with daemon.connect() as client:
        check(client, told)
        finish(client)
    whole(daemon)


def work(daemon: Daemon) -> set[str]:
    """Do some of everything until the kernel dies; return what was acknowledged."""
    told: set[str] = set()
    with daemon.connect() as client:
        try:
            client.call(AddMemory("new record", key="m"))
            told.add("memory")
            client.call(StoDelete("gone"))
            told.add("delete")
            until(lambda: len(blobs(daemon)) == 1 or daemon.process.poll() is not None)
            send(client, "kept", DATA)
            told.add("write")
        except (EOFError, OSError):
            pass
    return told


def check(client: Client, told: set[str]) -> None:
    """What was acknowledged is there; what was not is there whole, or not at all."""
    kept = texts(client, "record", mode="keyword")
    assert sorted(kept) in (["kept record"], ["kept record", "new record"])
    assert "memory" not in told or len(kept) == 2
    names = {stored.name for stored in client.call(StoList())}
    assert "kept" in names
    assert "delete" not in told or "gone" not in names
    assert "gone" not in names or read(client, "gone") == b"soon deleted"
    versions = client.call(StoHistory("kept"))
    assert len(versions) == 2 or "write" not in told
    wanted = {1: b"first", 2: DATA}
    for stored in versions:
        assert read(client, "kept", version=stored.version) == wanted[stored.version]


def finish(client: Client) -> None:
    """Asked again with their keys, they are done once."""
    client.call(AddMemory("new record", key="m"))
    client.call(StoWrite("kept", b"first", key="a"))
    assert sorted(texts(client, "record", mode="keyword")) == ["kept record", "new record"]
    assert len(client.call(SearchMemory("record", mode="vector"))) == 2
    assert len(client.call(StoHistory("kept"))) <= 2


def whole(daemon: Daemon) -> None:
    """Every blob is what its name says, and those that are there are those referred to."""
    state = daemon.state_dir

    def files() -> set[str]:
        return {file.parent.name + file.name for file in blobs(daemon)}

    def wanted() -> set[str]:
        with closing(sqlite3.connect(state / "aios.db")) as db:
            return {row[0] for row in db.execute("select distinct digest from versions")}

    until(lambda: files() == wanted())
    for file in blobs(daemon):
        assert hashlib.sha256(Path(file).read_bytes()).hexdigest() == file.parent.name + file.name


@pytest.mark.parametrize("first", ["search", "add"])
def test_damage_in_the_words_is_mended(start: Start, first: str) -> None:
    daemon = start()
    with daemon.connect() as client:
        client.call(AddMemory("kept record"))
    daemon.stop()
    with closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db, db:
        db.execute("update memories_words_data set block = x'00ff00ff' where id > 10")
    daemon = start()
    with daemon.connect() as client:
        if first == "search":
            assert texts(client, "record", mode="keyword") == ["kept record"]
        client.call(AddMemory("new record"))
        assert len(texts(client, "record", mode="keyword")) == 2
