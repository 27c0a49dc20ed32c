"""Accounts: limits, reservations and what was used, as they are on disk.

Functions that make writes (to go into a transaction together with what they belong to) and read
back at boot. What is charged is written as an increment, in the order in which it was charged: the
sum is right whichever of several transactions a full disk lets fail.

What was used is kept per agent, core, tool and day; `line` names the agent with all its forebears,
so that an agent's use includes that of all which descended from it, also when nothing else is
kept of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd.abi.accounts import UsageRow
from aiosd.killpoint import reach
from aiosd.limits import NANO, Limit, Reservation

if TYPE_CHECKING:
    from aiosd.db import Connection
    from aiosd.journal import Write

DAY: Final = 86_400

_LIMIT: Final = "subject, resource, setter, amount, hard, period, since, used"
_PUT: Final = f"insert or replace into limits ({_LIMIT}) values (?, ?, ?, ?, ?, ?, ?, ?)"
_DROP: Final = "delete from limits where subject = ? and resource = ? and setter = ?"
_CHARGE: Final = (  # of a period that is over on disk as well, nothing counts any more
    "update limits set used = case when since < ? then 0 else used end + ?, since = max(since, ?)"
    " where subject = ? and resource = ? and setter = ?"
)
_RESERVE: Final = (
    "insert or replace into reservations (rid, aid, subjects, amounts) values (?, ?, ?, ?)"
)
_USED: Final = (
    "insert into usage (day, aid, uid, line, core, tool, tokens_in, tokens_out, nano, requests)"
    " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (day, aid, core, tool) do update set"
    " tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out,"
    " nano = nano + excluded.nano, requests = requests + excluded.requests"
)


@dataclass(frozen=True, slots=True)
class Use:
    """What one request, or one call of a tool, used. line: see `line_of`. nano: dollars."""

    aid: int
    uid: int
    line: str
    core: str = ""
    tool: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    nano: int = 0
    requests: int = 0


def line_of(lineage: Iterable[int]) -> str:
    """Return an agent with its forebears, oldest first, as one word to search in: /1/5/9/."""
    return "".join(f"/{aid}" for aid in lineage) + "/"


# Limits.


def putting(limit: Limit) -> Write:
    """Return what writes a limit whole."""
    values = (
        *limit.name,
        limit.amount,
        int(limit.hard),
        limit.period,
        limit.since,
        limit.used or 0,
    )

    def write(db: Connection) -> None:
        db.execute(_PUT, values)

    return write


def dropping(names: Iterable[tuple[str, str, str]]) -> Write:
    """Return what deletes limits."""
    rows = list(names)

    def write(db: Connection) -> None:
        db.conn.executemany(_DROP, rows)

    return write


# Reservations.


def reserving(reservations: Iterable[Reservation]) -> Write:
    """Return what writes reservations as they are at this moment."""
    rows = [
        (each.rid, each.aid, _text(each.subjects), _text(each.amounts)) for each in reservations
    ]

    def write(db: Connection) -> None:
        db.conn.executemany(_RESERVE, rows)
        reach("quota.reserve")

    return write


def settling(rid: int, charges: Sequence[tuple[Limit, int]], use: Use | None, now: float) -> Write:
    """Return what ends a reservation: its row goes, what was spent is charged, use is counted."""
    rows = _charges(charges)
    day = int(now // DAY)

    def write(db: Connection) -> None:
        db.execute("delete from reservations where rid = ?", (rid,))
        db.conn.executemany(_CHARGE, rows)
        if use is not None:
            count(db, use, day)
        reach("quota.settle")

    return write


def charging(charges: Sequence[tuple[Limit, int]]) -> Write:
    """Return what charges limits with what was used without a reservation."""
    rows = _charges(charges)

    def write(db: Connection) -> None:
        db.conn.executemany(_CHARGE, rows)

    return write


def _charges(charges: Sequence[tuple[Limit, int]]) -> list[tuple[Any, ...]]:
    return [(limit.since, amount, limit.since, *limit.name) for limit, amount in charges]


def count(db: Connection, use: Use, day: int) -> None:
    """Add what was used to a day's sums. day: since 1970, UTC."""
    values = (
        day, use.aid, use.uid, use.line, use.core, use.tool,
        use.tokens_in, use.tokens_out, use.nano, use.requests,
    )  # fmt: skip
    db.execute(_USED, values)


# Reading.


def load(db: Connection) -> tuple[list[Limit], list[Reservation]]:
    """Return all limits, and the reservations that nobody has settled."""
    limits = [
        Limit(subject, resource, setter, amount, bool(hard), period, since, used)
        for subject, resource, setter, amount, hard, period, since, used in db.execute(
            f"select {_LIMIT} from limits order by rowid"
        ).fetchall()
    ]
    rows = db.execute("select rid, aid, subjects, amounts from reservations order by rid")
    reservations = [
        Reservation(rid, aid, tuple(msgspec.json.decode(subjects)), msgspec.json.decode(amounts))
        for rid, aid, subjects, amounts in rows.fetchall()
    ]
    return limits, reservations


def forget(db: Connection, before: float) -> None:
    """Delete what was used before this time."""
    db.execute("delete from usage where day < ?", (int(before // DAY),))


@dataclass(frozen=True, slots=True)
class Question:
    """Whose use is asked for: an agent's with all below it, a uid's, that of some trees, or all.

    by: core, tool, day, agent or uid; group for one row of the whole. since: Unix time; the whole
    day counts in which it lies.
    """

    subject: str
    by: str
    since: float
    limit: int
    aid: int = 0
    uid: int = -1
    roots: frozenset[int] = frozenset()
    everybody: bool = False


_COLUMNS: Final = {
    "core": "core", "tool": "tool", "day": "day", "agent": "aid", "uid": "uid", "group": "''"
}  # fmt: skip


def usage(db: Connection, asked: Question) -> list[UsageRow]:
    """Return what was used, one row for each core, tool, day, agent or uid."""
    where, values = _whose(asked)
    column = _COLUMNS[asked.by]
    of = {"core": "tool = ''", "tool": "tool != ''"}.get(asked.by, "1")
    rows = db.execute(
        f"select {column}, min(day), max(day), sum(tokens_in), sum(tokens_out), sum(nano),"
        f" sum(requests) from usage where day >= ? and {where} and {of} group by {column}"
        f" order by {column} limit ?",
        (int(asked.since // DAY), *values, asked.limit),
    ).fetchall()
    return [_row(asked, row) for row in rows]


def _whose(asked: Question) -> tuple[str, list[Any]]:
    if asked.everybody:
        return "1", []
    if asked.aid:
        return "(aid = ? or line like ?)", [asked.aid, f"%/{asked.aid}/%"]
    if asked.uid >= 0:
        return "uid = ?", [asked.uid]
    marks = " or ".join(["line like ?"] * len(asked.roots)) or "0"
    return f"({marks})", [f"/{aid}/%" for aid in sorted(asked.roots)]


def _row(asked: Question, row: tuple[Any, ...]) -> UsageRow:
    what, first, last, tokens_in, tokens_out, nano, requests = row
    return UsageRow(
        subject=f"{asked.by}:{what}" if asked.by in ("agent", "uid") else asked.subject,
        core=what if asked.by == "core" else "",
        tool=what if asked.by == "tool" else "",
        since=float(first * DAY),
        until=float((last + 1) * DAY),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        dollars=nano / NANO,
        requests=requests,
    )


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
