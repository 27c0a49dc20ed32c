"""A full disk, a damaged database, a lost one: clear errors, reads that go on, cures that work."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from aiosd.abi.accounts import Grant
from aiosd.abi.call import Call
from aiosd.abi.memory import AddMemory, GetMemory, MemRead, MemWrite, SearchMemory
from aiosd.abi.messages import SendMessage
from aiosd.abi.process import GetStatus, ListAgents, LogEvent, RegisterAgent, Spawn
from aiosd.abi.storage import StoHistory, StoList, StoWrite
from tests.daemon import ROOT, Client, Daemon
from tests.stores.conftest import Start
from tests.stores.test_memory import texts
from tests.stores.test_storage import read
from tests.system.parties import audit, register

WORDS = '[memory]\nembedder = "none"\n'
TEXT = "text/plain"
COUNT = 200  # records: several pages


@pytest.fixture
def small(state_dir: Path) -> Iterator[Path]:
    """Make the state directory a file system of 8 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(state_dir)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield state_dir
    subprocess.run(["umount", "-l", str(state_dir)], check=True)


def fill(place: Path) -> Path:
    """Fill a file system; return the file that does."""
    path = place / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):  # no space is left
                while True:
                    file.write(bytes(size))
    return path


def refused(client: Client, args: Call, number: int) -> str:
    """Return the sentence of a call that is refused."""
    with pytest.raises(OSError, match=": ") as caught:
        client.call(args)
    assert caught.value.errno == number, caught.value
    return str(caught.value)


def test_with_a_full_disk_reads_go_on_and_writes_say_why(small: Path, start: Start) -> None:
    daemon = start(WORDS)
    owner = daemon.connect()
    (one, a), (two, b) = register(daemon, "one"), register(daemon, "two")
    id = one.call(AddMemory("kept record")).id
    one.call(StoWrite("kept", b"x" * 1000))
    ballast = fill(small)
    for _ in range(3):
        assert "no space left" in refused(one, AddMemory("y" * 100_000), errno.ENOSPC)
    writes: list[tuple[Client, Call]] = [
        (one, StoWrite("new", b"z" * 100_000)), (one, LogEvent("note", {"text": "x" * 60_000})),
        (owner, Grant(f"agent:{a}", "observe", f"agent:{b}")), (owner, Spawn(["true"])),
        (owner, SendMessage(a, "x" * 60_000)),
    ]  # fmt: skip
    for client, call in writes:
        assert "free some" in refused(client, call, errno.ENOSPC)
    refused(one, GetStatus(b), errno.EPERM)
    one.call(MemWrite("note", b"in memory alone"))
    assert one.call(MemRead("note")) == b"in memory alone"
    assert one.call(GetMemory(id)).text == "kept record"
    assert texts(one, "kept", mode="keyword") == ["kept record"]
    assert read(one, "kept") == b"x" * 1000
    assert len(owner.call(ListAgents())) == 2
    ballast.unlink()
    one.call(AddMemory("another record"))
    one.call(StoWrite("new", b"z" * 100_000))
    owner.call(Grant(f"agent:{a}", "observe", f"agent:{b}"))
    one.call(GetStatus(b))
    assert len(texts(one, "record", mode="keyword")) == 2
    assert [r.aid for r in audit(owner, kind="access.deny")] == [a]  # written when it could be
    ballast = fill(small)
    for client in (owner, one, two):
        client.close()
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    done = daemon.run()
    assert done.returncode == 1
    assert "no space left on its disk; free some" in done.stderr.splitlines()[-1]
    ballast.unlink()
    daemon.start()
    with daemon.connect() as client:
        assert len(client.call(ListAgents())) == 2


def furnish(daemon: Daemon) -> None:
    """Keep something of each kind, as the person."""
    with daemon.connect() as client:
        for n in range(COUNT):
            client.send(AddMemory(f"record number{n} of many words"))
        assert not any(client.read().errno for _ in range(COUNT))
        client.call(StoWrite("kept", b"text of the object", content_type=TEXT))


def furnished(daemon: Daemon) -> bool:
    """Whether all of it is there."""
    with daemon.connect() as client:
        all_there = len(texts(client, "record", mode="keyword", k=300)) == COUNT
        return all_there and read(client, "kept") == b"text of the object"


def spoil(daemon: Daemon, table: str) -> None:
    """Overwrite the beginning of a table in the database."""
    path = daemon.state_dir / "aios.db"
    sql = "select rootpage from sqlite_master where name = ?"
    with closing(sqlite3.connect(path)) as db:
        [(page,)] = db.execute(sql, (table,)).fetchall()
        [(size,)] = db.execute("pragma page_size").fetchall()
        assert db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 64)


def refuses(daemon: Daemon) -> str:
    """Return the one line with which a daemon refuses to start."""
    done = daemon.run()
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert str(daemon.state_dir / "aios.db") in line and "RECOVERY" in line
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_damaged_database_is_refused_and_a_copy_restores_it(
    start: Start, tmp_path: Path, number: int
) -> None:
    daemon = start(WORDS)
    furnish(daemon)
    daemon.stop()
    copy = tmp_path / "copy"
    shutil.copytree(daemon.state_dir, copy, ignore=shutil.ignore_patterns("notify"))
    daemon.start()
    with daemon.connect() as client:
        client.call(AddMemory("after the copy"))
    daemon.stop(number)
    spoil(daemon, "memories")
    refuses(daemon)
    for path in list(daemon.state_dir.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(copy, daemon.state_dir, dirs_exist_ok=True)
    daemon.start()
    assert furnished(daemon)
    with daemon.connect() as client:
        assert texts(client, "after copy", mode="keyword") == []


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="no sqlite3 to rescue with")
def test_what_is_readable_is_rescued(start: Start) -> None:
    daemon = start(WORDS)
    furnish(daemon)
    daemon.stop()
    path = daemon.state_dir / "aios.db"
    page = path.read_bytes().index(b"record number100 ") // 4096
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * 64)
    refuses(daemon)
    done = subprocess.run(["sh", "-c", rescue()], cwd=daemon.state_dir, check=True)
    assert done.returncode == 0 and (daemon.state_dir / "damaged.db").exists()
    daemon.start()
    with daemon.connect() as client:
        left = texts(client, "record", mode="keyword", k=300)
        assert COUNT // 4 < len(left) < COUNT  # all but those of that page
        assert read(client, "kept") == b"text of the object"
        client.call(RegisterAgent("new"))
        client.call(AddMemory("after the rescue"))
        assert texts(client, "rescue", mode="keyword") == ["after the rescue"]


def rescue() -> str:
    """Return the commands that the manual gives."""
    page = (ROOT / "man/man1/aiosd.1").read_text(encoding="utf-8")
    _, _, rest = page.partition('\n.\\" rescue\n')
    return rest.partition('\n.\\" end\n')[0].replace("\\-", "-").replace("\\(aq", "'")


def test_a_running_kernels_database_can_be_copied(start: Start, tmp_path: Path) -> None:
    daemon = start(WORDS)
    furnish(daemon)
    copy = tmp_path / "copy.db"
    with (
        closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db,
        closing(sqlite3.connect(copy)) as target,
    ):
        db.backup(target)
    daemon.stop(signal.SIGKILL)
    for name in ("aios.db", "aios.db-wal", "aios.db-shm"):
        (daemon.state_dir / name).unlink(missing_ok=True)
    shutil.copy(copy, daemon.state_dir / "aios.db")
    (daemon.state_dir / "aios.db").chmod(0o600)
    daemon.start()
    assert furnished(daemon)


def test_damage_met_at_work_is_an_error_and_the_rest_goes_on(start: Start) -> None:
    daemon = start(WORDS)
    furnish(daemon)
    daemon.stop()
    daemon.start()
    spoil(daemon, "memories")
    with daemon.connect() as client:
        assert "aios.db is damaged" in refused(client, GetMemory(7), errno.EUCLEAN)
        assert "RECOVERY" in refused(client, SearchMemory("many", mode="keyword"), errno.EUCLEAN)
        assert "damaged" in refused(client, AddMemory("more"), errno.EUCLEAN)
        assert read(client, "kept") == b"text of the object"
        assert [o.name for o in client.call(StoList())] == ["kept"]
        client.call(StoWrite("kept", b"another"))
        assert len(client.call(StoHistory("kept"))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_damaged_index_of_words_does_not_keep_it_from_starting(start: Start, number: int) -> None:
    daemon = start(WORDS)
    furnish(daemon)
    daemon.stop(number)
    with closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db, db:
        db.execute("update memories_words_data set block = x'00ff00ff' where id > 10")
    daemon.start()
    assert furnished(daemon)


def test_without_its_database_nothing_is_thrown_away(start: Start) -> None:
    daemon = start(WORDS)
    furnish(daemon)
    daemon.stop()
    database, aside = daemon.state_dir / "aios.db", daemon.state_dir / "aside.db"
    database.rename(aside)
    assert "is missing" in refuses(daemon)
    assert not database.exists()
    aside.rename(database)
    daemon.start()
    assert furnished(daemon)
