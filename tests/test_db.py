"""The database layer: groups, savepoints, what survives, and what the disk may do to it."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiosd import db as dbmod
from aiosd.db import Connection, Database
from aiosd.schema import MIGRATIONS, last_aid

DEADLINE = 60.0  # seconds for anything that is waited for

Blocker = Callable[[], None]


def make_notes(db: Connection) -> None:
    db.execute("create table notes (id integer primary key, text text unique)")


def note(text: str) -> Callable[[Connection], int]:
    return lambda db: db.execute("insert into notes (text) values (?)", [text]).lastrowid or 0


def count(db: Connection) -> int:
    return int(db.execute("select count(*) from notes").fetchone()[0])


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    db = Database.open(path, [make_notes])
    try:
        yield db
    finally:
        await db.close()


def run(path: Path, test: Callable[[Database], Awaitable[None]]) -> None:
    """Run a test on a fresh database, with a deadline, and see that nothing is left behind."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), opened(path / "test.db") as db:
            await test(db)

    threads = threading.active_count()
    files = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files


def block(db: Database) -> Blocker:
    """Keep the writer busy with one write until the function returned is called."""
    release = threading.Event()
    entered = threading.Event()

    def hold(_: Connection) -> None:
        entered.set()
        assert release.wait(DEADLINE)

    db.write_soon(hold)
    assert entered.wait(DEADLINE)
    return release.set


def test_a_write_returns_its_result_and_can_be_read(tmp_path: Path) -> None:
    async def test(db: Database) -> None:
        assert await db.write(note("a")) == 1
        assert await db.read(count) == 1
        assert db.read_now(count) == 1

    run(tmp_path, test)
    assert (tmp_path / "test.db").stat().st_mode & 0o777 == 0o600


def test_what_is_written_meanwhile_is_one_commit(tmp_path: Path) -> None:
    async def test(db: Database) -> None:
        release = block(db)
        writes = [asyncio.ensure_future(db.write(note(str(i)))) for i in range(100)]
        await asyncio.sleep(0)
        before = db.commits
        release()
        assert await asyncio.gather(*writes) == list(range(1, 101))
        assert db.commits - before == 2  # the one that blocked, and the hundred

    run(tmp_path, test)


def test_groups_are_bounded(tmp_path: Path) -> None:
    async def test(db: Database) -> None:
        release = block(db)
        for i in range(2 * dbmod.GROUP):
            db.write_soon(note(str(i)))
        release()
        await db.flush()
        assert db.commits == 4  # the one that blocked, two full groups, the flush

    run(tmp_path, test)


def test_one_that_fails_undoes_only_itself(tmp_path: Path) -> None:
    def half(db: Connection) -> None:
        note("half")(db)
        raise KeyError("changed my mind")

    async def test(db: Database) -> None:
        release = block(db)
        writes = [db.write(fn) for fn in (note("a"), half, note("a"), note("b"))]
        tasks = [asyncio.ensure_future(write) for write in writes]
        await asyncio.sleep(0)
        release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(r) for r in results] == [int, KeyError, sqlite3.IntegrityError, int]
        assert await db.read(count) == 2
        assert db.commits == 2

    run(tmp_path, test)


def test_sqlite_utils_own_transactions_nest(tmp_path: Path) -> None:
    async def test(db: Database) -> None:
        rows = [{"id": i, "text": str(i)} for i in range(300)]
        await db.write(lambda d: d.table("notes").insert_all(rows, batch_size=50))
        await db.write(lambda d: d.table("notes").upsert({"id": 1, "text": "x"}, pk="id"))
        assert await db.read(count) == 300
        assert db.commits == 2

    run(tmp_path, test)


def test_durable_commits_are_full_and_others_normal(tmp_path: Path) -> None:
    def level(db: Connection) -> int:
        assert db.conn.in_transaction
        return int(db.execute("pragma synchronous").fetchone()[0])

    async def test(db: Database) -> None:
        normal, full = 1, 2
        assert await db.write(level) == normal
        assert await db.write(level, durable=True) == full
        assert await db.write(level) == normal
        release = block(db)
        tasks = [asyncio.ensure_future(db.write(level, durable=d)) for d in (False, True)]
        await asyncio.sleep(0)
        release()
        assert await asyncio.gather(*tasks) == [full, full], "one group, one commit"

    run(tmp_path, test)


def test_the_loop_goes_on_and_writers_wait_when_the_disk_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbmod, "MAX_QUEUED", 3)
    monkeypatch.setattr(dbmod, "MAX_BEHIND", 5)

    async def test(db: Database) -> None:
        release = block(db)  # 1 behind
        tasks = [asyncio.ensure_future(db.write(note(str(i)))) for i in range(6)]
        await asyncio.sleep(0)  # 3 of them handed over: 4 behind
        db.write_soon(note("soon"))
        with pytest.raises(BlockingIOError, match="5 writes behind"):
            db.write_soon(note("too soon"))
        release()
        await asyncio.gather(*tasks)
        await db.flush()
        assert await db.read(count) == 7

    run(tmp_path, test)


def test_a_cancelled_caller_does_not_take_its_write_back(tmp_path: Path) -> None:
    async def test(db: Database) -> None:
        release = block(db)
        task = asyncio.ensure_future(db.write(note("a")))
        await asyncio.sleep(0)
        task.cancel()
        release()
        with pytest.raises(asyncio.CancelledError):
            await task
        await db.flush()
        assert await db.read(count) == 1

    run(tmp_path, test)


def test_failures_nobody_waits_for_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(db: Database) -> None:
        db.write_soon(lambda d: d.execute("insert into nowhere values (1)"))
        await db.flush()

    run(tmp_path, test)
    assert "no such table: nowhere" in caplog.text


def test_close_commits_what_was_handed_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "a.db") as db:
            for i in range(50):
                db.write_soon(note(str(i)))
            await db.close()
            await db.close()
            with pytest.raises(OSError, match="closed") as caught:
                await db.write(note("late"))
            assert caught.value.errno == errno.EBADF

    asyncio.run(main())
    assert sorted(os.listdir(tmp_path)) == ["a.db"]
    found = sqlite3.connect(tmp_path / "a.db")
    assert found.execute("select count(*) from notes").fetchone() == (50,)
    found.close()


def test_readers_cannot_write_and_see_one_state(tmp_path: Path) -> None:
    async def test(db: Database) -> None:
        with pytest.raises(OSError, match="can't be written") as caught:
            await db.read(note("a"))
        assert caught.value.errno == errno.EROFS
        between = threading.Event()
        started = threading.Event()

        def twice(d: Connection) -> tuple[int, int]:
            first = count(d)
            started.set()
            assert between.wait(DEADLINE)
            return first, count(d)

        reading = asyncio.ensure_future(db.read(twice))
        assert await asyncio.to_thread(started.wait, DEADLINE)
        await db.write(note("a"))
        between.set()
        assert await reading == (0, 0)

    run(tmp_path, test)


def test_a_full_disk_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    def pages(limit: int) -> Callable[[Connection], object]:
        return lambda d: d.execute(f"pragma max_page_count = {limit}").fetchone()

    async def test(db: Database) -> None:
        await db.write(pages(1))  # as many as there are already
        writes = (db.write(note(f"{i}" * 1000)) for i in range(100))
        results = await asyncio.gather(*writes, return_exceptions=True)
        kept = [result for result in results if isinstance(result, int)]
        lost = [result for result in results if isinstance(result, OSError)]
        assert len(kept) + len(lost) == 100
        assert {error.errno for error in lost} == {errno.ENOSPC}
        assert "no space left" in str(lost[0])
        assert await db.read(count) == len(kept)
        await db.write(pages(1_000_000))
        await db.write(note("again"))
        assert await db.read(count) == len(kept) + 1

    run(tmp_path, test)


def test_nothing_is_acknowledged_that_went_down_with_its_group(tmp_path: Path) -> None:
    async def test(db: Database) -> None:
        trigger = "create trigger t before insert on notes when new.text = 'bomb'"
        await db.write(lambda d: d.execute(f"{trigger} begin select raise(rollback, 'boom'); end"))
        release = block(db)
        texts = ["a", "bomb", "b"]
        tasks = [asyncio.ensure_future(db.write(note(text))) for text in texts]
        await asyncio.sleep(0)
        release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, sqlite3.Error) for r in results] == [True, True, False]
        assert await db.read(count) == 1

    run(tmp_path, test)


def test_another_process_holding_the_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbmod, "BUSY_TIMEOUT", 0.05)

    async def test(db: Database) -> None:
        other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(BlockingIOError, match="another process"):
            await db.write(note("a"))
        other.close()
        await db.write(note("a"))

    run(tmp_path, test)


def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    ran: list[int] = []
    migrations = [lambda d: ran.append(1), lambda d: ran.append(2)]

    async def boot(known: int) -> None:
        await Database.open(tmp_path / "a.db", migrations[:known]).close()

    for known in (1, 1, 2, 2):
        asyncio.run(boot(known))
    assert ran == [1, 2]
    with pytest.raises(OSError, match=r"newer aios \(schema 2, this one knows 1\)") as caught:
        asyncio.run(boot(1))
    assert caught.value.errno == errno.EPROTO


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def bad(db: Connection) -> None:
        db.execute("create table half (x)")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        Database.open(tmp_path / "a.db", [make_notes, bad])

    async def again() -> None:
        db = Database.open(tmp_path / "a.db", [make_notes])
        assert db.read_now(lambda d: d.table_names()) == ["migrations", "notes"]
        await db.close()

    asyncio.run(again())


@pytest.mark.parametrize("damage", ["garbage", "flipped"])
def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.db"
    conn = sqlite3.connect(path)
    conn.execute("create table notes (id integer primary key, text text unique)")
    conn.executemany("insert into notes (text) values (?)", [(f"{i}" * 50,) for i in range(2000)])
    conn.commit()
    conn.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(0 if damage == "garbage" else size // 2)
        file.write(random.Random(7).randbytes(8192))
    with pytest.raises(OSError, match="is damaged") as caught:
        Database.open(path, [])
    assert caught.value.errno == errno.EUCLEAN
    assert str(path) in str(caught.value)
    assert "RECOVERY" in str(caught.value)


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Database.open(tmp_path / "nowhere" / "a.db", [])


def test_the_first_schema_never_uses_an_aid_twice(tmp_path: Path) -> None:
    agent = {"name": "a", "uid": 1, "gid": 1, "kind": "spawned", "state": "Q", "created": 0.0}

    async def boot() -> int:
        db = Database.open(tmp_path / "a.db", MIGRATIONS)
        before = db.read_now(last_aid)
        aid = await db.write(lambda d: d.table("agents").insert(agent).last_pk)
        assert aid == before + 1
        await db.write(lambda d: d.execute("delete from agents"))
        await db.close()
        return int(aid)

    assert [asyncio.run(boot()) for _ in range(3)] == [1, 2, 3]


_CHILD = """
import asyncio, sys
from aiosd.db import Database

def make(db):
    db.execute("create table pairs (id integer, half integer)")

def pair(id):
    def fn(db):
        db.execute("insert into pairs values (?, 1)", [id])
        db.execute("insert into pairs values (?, 2)", [id])
    return fn

async def one(db, id):
    await db.write(pair(id), durable=id % 50 == 0)
    sys.stdout.write(f"{id}\\n")
    sys.stdout.flush()

async def worker(db, first):
    for id in range(first, 10**9, 20):
        await one(db, id)

async def main():
    db = Database.open(sys.argv[1], [make])
    await asyncio.gather(*(worker(db, first) for first in range(20)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 137, 2000])
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "a.db"
    command = [sys.executable, "-c", _CHILD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += [line for line in child.stdout.readlines() if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    acknowledged = {int(line) for line in said}
    assert len(acknowledged) >= lines

    async def look() -> None:
        db = Database.open(path, [lambda d: None])
        rows = db.read_now(lambda d: d.execute("select id, half from pairs").fetchall())
        await db.close()
        found = {id for id, _ in rows}
        assert acknowledged <= found
        assert len(rows) == 2 * len(found), "half a write"
        assert set(rows) == {(id, half) for id in found for half in (1, 2)}

    asyncio.run(look())
