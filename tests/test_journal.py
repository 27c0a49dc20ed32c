"""The journal's order: what was written last is what a limit on kept answers must not take."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from aiosd.db import Database
from aiosd.journal import AnswerRow, Journal
from aiosd.keys import KEEP_S, Keys
from aiosd.schema import MIGRATIONS


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "b", "a"]])
def test_the_newest_answers_are_those_kept_over_a_restart(tmp_path: Path, names: list[str]) -> None:
    async def main() -> None:
        db = Database.open(tmp_path / "aios.db", MIGRATIONS)
        journal = Journal(db)
        for age, name in enumerate(reversed(names)):
            until = time.time() + KEEP_S - age
            await journal.answer(AnswerRow((True, 1), "grant", name, b"print", b"\xc0", until))
        found = (await journal.load()).answers
        await db.close()
        assert [row.key for row in found] == names
        keys = Keys(max_answers=1)
        for row in found:
            keys.restore(row)
        assert keys.stale() == [((True, 1), "grant", name) for name in names[:2]]

    asyncio.run(main())
