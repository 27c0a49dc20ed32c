"""Numbers that are never given twice, whatever becomes of the kernel that gave them."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from aiosd import series
from aiosd.db import Connection, Database
from aiosd.schema import MIGRATIONS
from aiosd.series import BLOCK, Series


async def begin(db: Database, name: str = "request") -> Series:
    found = Series(db, name)
    await found.boot()
    return found


async def moved(db: Database) -> None:
    """Return once a mark that is to be moved is: its write begins while the first flush waits."""
    await db.flush()
    await db.flush()


def open_database(directory: Path) -> Database:
    return Database.open(directory / "a.db", MIGRATIONS)


def test_numbers_go_on_without_a_gap_after_an_end_in_order(tmp_path: Path) -> None:
    async def scene() -> None:
        for first in (1, 4):
            db = open_database(tmp_path)
            rids, cids = await begin(db), await begin(db, "context")
            assert [rids.take() for _ in range(3)] == [first, first + 1, first + 2]
            assert cids.take() == (1 if first == 1 else 2)
            await rids.close()
            await cids.close()
            await db.close()

    asyncio.run(scene())


def test_a_kernel_that_was_killed_leaves_a_gap_and_no_number_twice(tmp_path: Path) -> None:
    async def scene() -> None:
        db = open_database(tmp_path)
        given: list[int] = []
        for _ in range(3):
            rids = await begin(db)  # the one before said no word of its end
            given += [rids.take() for _ in range(BLOCK // 4)]
        assert len(set(given)) == len(given)
        await db.close()

    asyncio.run(scene())


def test_the_mark_moves_on_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "BLOCK", 10)

    async def scene() -> None:
        db = open_database(tmp_path)
        rids = await begin(db)
        for number in range(1, 101):
            assert rids.take() == number
            await moved(db)
        assert (await begin(db)).take() > 100
        await db.close()

    asyncio.run(scene())


def test_without_a_mark_on_disk_nothing_is_given(tmp_path: Path) -> None:
    async def scene() -> None:
        db = open_database(tmp_path)
        rids = await begin(db)
        given = [rids.take() for _ in range(BLOCK)]
        with pytest.raises(BlockingIOError, match="disk") as found:
            rids.take()
        assert found.value.errno == errno.EAGAIN and given[-1] == BLOCK
        await moved(db)
        assert rids.take() == BLOCK + 1
        await db.close()

    asyncio.run(scene())


def test_the_marks_of_an_older_database_lie_above_its_requests(tmp_path: Path) -> None:
    def request(db: Connection) -> None:
        db.execute("insert into requests (id, aid, cid, t_submit) values (41, 2, 17, 0)")

    async def scene() -> None:
        old = Database.open(tmp_path / "a.db", MIGRATIONS[:2])
        await old.write(request)
        await old.close()
        db = open_database(tmp_path)
        assert (await begin(db)).take() == 42
        assert (await begin(db, "context")).take() == 18
        await db.close()

    asyncio.run(scene())
