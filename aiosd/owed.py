"""What is owed to the audit log: records of changes that are committed, until the log has them.

    debt = owe(db, "grant.add", caller, target, data)     # in the change's own transaction
    await debts.pay(debt)                                 # before the change is acknowledged

What must hold: a change that a kernel committed is on record, though it was killed before it could
write the record: the next one does. It may then be there twice, with the same `owed` number.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from aiosd.access import Caller
from aiosd.db import Connection, Database

_json = msgspec.json.Encoder(enc_hook=str).encode


class Log(Protocol):
    """What is needed of the audit log."""

    def record(self, kind: str, caller: Caller | None, target: int, data: dict[str, Any]) -> None:
        """Enter a record."""

    async def synced(self) -> None:
        """Return once what was entered is on disk."""


class Debt(NamedTuple):
    """One record that is owed: who did what, to which agent (0: none)."""

    id: int
    kind: str
    uid: int
    aid: int
    target: int
    data: dict[str, Any]


def owe(db: Connection, kind: str, caller: Caller, target: int, data: dict[str, Any]) -> Debt:
    """Note within a transaction what is to be recorded of it."""
    facts = (kind, caller.uid, caller.aid, target)
    row = db.execute(
        "insert into audit_owed (kind, uid, aid, target, data) values (?, ?, ?, ?, ?)",
        (*facts, _json(data).decode()),
    )
    return Debt(int(row.lastrowid or 0), *facts, data)


class Debts:
    """Pays what is owed."""

    def __init__(self, db: Database, log: Log) -> None:
        self._db = db
        self._log = log

    async def boot(self) -> None:
        """Record what the last kernel could not."""
        rows = await self._db.read(
            lambda db: db.execute(
                "select id, kind, uid, aid, target, data from audit_owed order by id"
            ).fetchall()
        )
        for id, kind, uid, aid, target, data in rows:
            await self.pay(Debt(id, kind, uid, aid, target, msgspec.json.decode(data)))

    async def pay(self, debt: Debt) -> None:
        """Return once a record that is owed is on disk."""
        caller = Caller(debt.uid, 0, 0, debt.aid)
        self._log.record(debt.kind, caller, debt.target, {**debt.data, "owed": debt.id})
        await self._log.synced()
        self._db.write_soon(
            lambda db: db.execute("delete from audit_owed where id = ?", (debt.id,))
        )
