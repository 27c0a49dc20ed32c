"""quota: the checks beside a ping, and what 64 reservations at once cost in commits.

Claims: deciding whether a call is permitted and whether quotas leave room for it takes, in memory,
at most a tenth of a ping's round trip; 64 concurrent requests that quotas bind are reserved in at
most 8 commits.

How: the checks are the kernel's own objects in this process: the dispatcher's question to access
(an agent that stops its child, found in no cache of this call's own making) and the question of
inference admission, for an agent ten forebears down with limits on tokens, requests, dollars and
requests in flight, of itself and of its uid. The ping goes to a real daemon.
The commits are the database's own count, over opening and reserving 64 requests as their handlers
do it, each in a task of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from aiosd.abi.accounts import GrantRecord
from aiosd.abi.process import SuspendAgent
from aiosd.abi.system import Ping
from aiosd.abi.table import BY_ARGS
from aiosd.access import Access, Caller
from aiosd.db import Database
from aiosd.events import Events
from aiosd.journal import together
from aiosd.limits import MOST, Limit
from aiosd.quota import Quotas
from aiosd.schema import MIGRATIONS
from tests.bench.kernel import Kernel
from tests.bench.ratio import Ratio, divide, interleave

ROUNDS = 7
CALLS = 2000
AT_ONCE = 64
AID, UID = 30, 1000


class Family:
    """Agents of one line: 20 is 21's parent, and so on."""

    def uid_of(self, aid: int) -> int:
        """All belong to one."""
        return UID

    def lineage(self, aid: int) -> tuple[int, ...]:
        """Return those before it."""
        return tuple(range(20, aid))


class Guard:
    """Access and quotas as the kernel puts them together, with limits that leave room."""

    def __init__(self, db: Database) -> None:
        self.access = Access(0)
        self.access.kin = Family()
        member = GrantRecord(1, "agent:20", "member", "group:g", "allow", "uid:0", 0.0, 0.0)
        self.access.book.put(member)
        self.access.changed()
        self.quotas = Quotas(db, self.access, Events(), 1e9)
        for subject in (f"agent:{AID}", f"uid:{UID}"):
            for resource in ("tokens", "requests", "dollars", "concurrent"):
                self.quotas.put(Limit(subject, resource, "root", MOST, period=3600.0))
        self._caller = Caller(UID, 0, 0, AID)
        self._call = BY_ARGS[SuspendAgent]

    def once(self) -> None:
        """Check as for a request."""
        self.access.permit(self._caller, self._call, SuspendAgent(AID + 1))
        self.quotas.admit(AID, "llm_generate")

    def time(self) -> float:
        """Return the median seconds of both checks."""
        taken = []
        for _ in range(CALLS):
            began = perf_counter()
            self.once()
            taken.append(perf_counter() - began)
        return median(taken)


def run(rounds: int) -> Iterator[Ratio]:
    """Measure the checks, then count commits."""
    yield asyncio.run(_checks(rounds or ROUNDS))
    counts = [asyncio.run(_commits()) for _ in range(rounds or ROUNDS)]
    yield Ratio(
        bench="quota",
        what=f"commits of {AT_ONCE} requests reserved at once",
        rounds=[float(count) for count in counts],
        limit=8.0,
        worst=True,
    )


async def _checks(rounds: int) -> Ratio:
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as place, Kernel() as kernel:
        db = Database.open(Path(place) / "aios.db", MIGRATIONS)
        guard, client = Guard(db), kernel.client()

        def ping() -> float:
            taken = []
            for _ in range(CALLS):
                began = perf_counter()
                client.call(Ping(b"0123456789abcdef"))
                taken.append(perf_counter() - began)
            return median(taken)

        (checks, pings), noise = interleave(rounds, guard.time, ping)
        await db.close()
    return Ratio(
        bench="quota",
        what="quota and access checks / ping p50",
        rounds=divide(checks, pings),
        limit=0.1,
        noise=noise,
        figures={"checks µs": median(checks) * 1e6, "ping µs": median(pings) * 1e6},
    )


async def _commits() -> int:
    """Return how many commits it takes to have 64 requests reserved."""
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as place:
        db = Database.open(Path(place) / "aios.db", MIGRATIONS)
        guard = Guard(db)
        before = db.commits

        async def request(rid: int) -> None:
            guard.once()
            begun = db.submit(together(*guard.quotas.open(rid, AID)))
            await asyncio.sleep(0.0001 * (rid % 16))  # the core reads its prompt
            reserved = guard.quotas.reserve(rid, {"tokens": 100}, "llm_generate")
            assert reserved is not None
            await asyncio.shield(reserved)
            await begun

        await asyncio.gather(*(request(rid) for rid in range(1, AT_ONCE + 1)))
        count = db.commits - before
        await db.close()
    return count
