"""The soak's part about quotas: agents that spend what they are allowed, and ask for more.

Spenders are members of one group. Each has several small generations in flight, some with a
deadline; who is refused has the limit raised, and goes on. What must hold, at every moment on disk:
used and reserved together are never above a limit; what is charged is the sum of what is on record,
and of what was answered; a limit that was acknowledged is in force. In the end nothing is reserved.
Of what keepers hold, the group's limits are never exceeded either.
"""

from __future__ import annotations

import asyncio
import errno
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tests.soakstores import POOL, TOGETHER

if TYPE_CHECKING:
    from aios import AsyncKernel, Generation

THRIFT: Final = "group:thrift"
AT_ONCE: Final = 5  # generations of one spender, one more than it may have
MOST: Final = 12  # tokens of a generation
STEP: Final = {"tokens": 150, "dollars": 0.001, "requests": 12}
"""By how much a limit is raised for whoever comes up against it."""
PRICES: Final = "price_in = 1.0\nprice_out = 10.0\n"
"""What the core's table has besides."""
BURST: Final = 25  # requests of all spenders in each period
PERIOD: Final = 1.0
Rows = Callable[[str], list[tuple[Any, ...]]]
Limits = list[tuple[str, float, float]]
"""Of each limit the resource, how much, and the period in seconds, 0: none."""


class Budget:
    """What a person allows the spenders, and what is on record about it."""

    def __init__(self) -> None:
        self.allowed: dict[tuple[str, str], float] = {}  # by subject and resource
        self.refused: Counter[str] = Counter()
        self._fixed: set[tuple[str, str]] = set()
        self._in_doubt: dict[tuple[str, str], float] = {}
        self._lock = asyncio.Lock()

    async def allow(
        self, person: AsyncKernel, subject: str, resource: str, most: float, period: float = 0.0
    ) -> None:
        """Set a limit; it is in force when this returns."""
        name = (subject, resource)
        self._in_doubt[name] = most
        row = await person.set_quota(subject, resource, most, period=period)
        assert row.limit == most
        self.allowed[name] = self._in_doubt.pop(name)
        if period or resource not in STEP:
            self._fixed.add(name)

    async def begin(self, person: AsyncKernel, subject: str, limits: Limits) -> None:
        """Set limits that others may have set just now; of a group, say."""
        async with self._lock:
            for resource, most, period in limits:
                if (subject, resource) not in self.allowed:
                    await self.allow(person, subject, resource, most, period)

    async def loosen(self, person: AsyncKernel, error: OSError) -> None:
        """Raise the limit that stood in the way, unless there is more by itself, or it was."""
        found = _REFUSED.search(str(error))
        assert found is not None, f"it does not say which limit: {error}"
        subject, resource, amount = found.groups()
        self.refused[resource] += 1
        async with self._lock:
            most = self.allowed[subject, resource]
            if (subject, resource) in self._fixed or float(amount) != most:
                return
            await self.allow(person, subject, resource, round(most + STEP[resource], 6))

    def look(self, rows: Rows, aids: Iterable[int]) -> None:
        """Nothing on disk is above a limit, and what was charged is what was used."""
        allowed, doubt = dict(self.allowed), dict(self._in_doubt)
        found, now = rows(_LIMITS), time.time()
        limits = {(subject, resource): tuple(rest) for subject, resource, *rest in found}
        for name, most in allowed.items():
            assert name in limits, f"the limit on {name} is lost"
            amount, used, reserved, since, period = limits[name]
            unit = 10**9 if name[1] == "dollars" else 1
            assert amount in {round(most * unit), round(doubt.get(name, most) * unit)}, name
            if name[1] in TOGETHER:
                continue
            if period and now >= since + period:
                used = 0  # of a period that is over
            assert used + reserved <= amount, f"{name}: {used} and {reserved} of {amount}"
        _sums(rows, aids)

    async def limit_keepers(self, person: AsyncKernel) -> None:
        """Limit what the keepers and their pool may hold together."""
        held = [(resource, float(most), 0.0) for resource, most in TOGETHER.items()]
        await self.begin(person, f"group:{POOL}", held)

    def look_at_held(self, rows: Rows, keepers: Iterable[str]) -> None:
        """The keepers and their pool hold no more than their group may."""
        names = ", ".join(f"'{name}'" for name in keepers if name)
        of = f"(kind = 'agent' and name in ({names})) or (kind = 'pool' and name = '{POOL}')"
        for resource, held in zip(TOGETHER, rows(_KEPT.format(of=of))[0], strict=True):
            if (f"group:{POOL}", resource) in self.allowed:
                assert held <= TOGETHER[resource], f"{held} {resource}"

    async def count(self, person: AsyncKernel, rows: Rows) -> None:
        """Nothing is reserved, and the kernel has the same sums in memory as on disk."""
        assert rows("select count(*) from reservations") == [(0,)]
        on_disk = {(subject, what): used for subject, what, _, used, *_ in rows(_LIMITS)}
        for subject, resource in self.allowed:
            [row] = [
                row
                for row in await person.get_quota(subject=subject)
                if (row.subject, row.resource) == (subject, resource)
            ]
            assert row.reserved == 0, row
            if not row.period and resource in ("tokens", "requests"):
                assert row.used == on_disk[subject, resource], row


class Spender:
    """One agent, and what it was answered: by request its tokens."""

    def __init__(self, index: int, seed: int, budget: Budget) -> None:
        self.tag = f"spender{index}"
        self.aid = 0
        self.answered: dict[int, int] = {}
        self._rng = random.Random(seed)
        self._budget = budget

    async def live(
        self, kernel: AsyncKernel, person: AsyncKernel, over: Callable[[], bool]
    ) -> None:
        """Ask for several things at once, again and again, until it is over."""
        self.aid, me = kernel.aid, f"agent:{kernel.aid}"
        await person.grant(me, "member", THRIFT)
        mine = [(resource, STEP[resource], 0.0) for resource in ("dollars", "requests")]
        await self._budget.begin(person, me, [("concurrent", AT_ONCE - 1, 0.0), *mine])
        shared = [("tokens", STEP["tokens"], 0.0), ("requests", BURST, PERIOD)]
        await self._budget.begin(person, THRIFT, shared)
        while not over():
            await asyncio.gather(*(self._spend(kernel, person) for _ in range(AT_ONCE)))

    async def _spend(self, kernel: AsyncKernel, person: AsyncKernel) -> None:
        try:
            reply = await kernel.llm_generate(
                f"{self._rng.randrange(1000)}",
                raw=True,
                max_tokens=self._rng.randint(1, MOST),
                deadline=self._rng.choice([None, None, None, 0.01]),
            )
        except OSError as error:
            if error.errno != errno.EDQUOT:
                raise
            await self._budget.loosen(person, error)
            await asyncio.sleep(0.05)
            return
        assert reply.request not in self.answered, "a request was answered twice"
        self.answered[reply.request] = spent(reply)
        with suppress(FileNotFoundError):  # it is done already, or had no tokens
            await kernel.clr_context(reply.context)

    def look(self, rows: Rows) -> None:
        """What was answered is on record, with these tokens; not more requests than it may."""
        if not self.aid:
            return
        answered = dict(self.answered)
        recorded: dict[int, int] = dict(rows(_RECORDED % self.aid))
        missing = answered.items() - recorded.items()
        assert not missing, f"{self.tag}: answered {missing}, not on record"
        [(open_,)] = rows(f"select count(*) from open_requests where aid = {self.aid}")
        assert open_ < AT_ONCE, f"{self.tag}: {open_} requests in flight"

    def count(self, rows: Rows) -> None:
        """Each of its requests was answered."""
        recorded: dict[int, int] = dict(rows(_RECORDED % self.aid))
        assert recorded == self.answered, f"{self.tag}: {recorded.items() ^ self.answered.items()}"


def spent(reply: Generation) -> int:
    """Return the tokens that a reply is charged."""
    usage = reply.usage
    return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens


def _sums(rows: Rows, aids: Iterable[int]) -> None:
    """What the group and each spender is charged is what requests on record have used."""
    listed = ", ".join(map(str, aids))
    for subject, resource, charged, used in rows(_CHARGED.format(aids=listed, group=THRIFT)):
        assert charged == used, f"{subject} is charged {charged} {resource}, and has used {used}"


_REFUSED: Final = re.compile(r"quota of (\S+) leaves \((\w+) ([\d.]+) set by")
_LIMITS: Final = """
    select subject, resource, amount, used,
        (select coalesce(sum(json_extract(r.amounts, '$.' || l.resource)), 0)
            from reservations as r where exists
            (select 1 from json_each(r.subjects) as s where s.value = l.subject)),
        since, period
    from limits as l"""
_RECORDED: Final = (
    "select id, prompt_tokens - cached_tokens + completion_tokens from requests where aid = %d"
    " and error in ('', 'deadline')"
)
_CHARGED: Final = """
    with spent as (
        select aid, prompt_tokens - cached_tokens + completion_tokens as tokens,
            (prompt_tokens - cached_tokens) * 1000 + completion_tokens * 10000 as dollars
        from requests where aid in ({aids}) and error in ('', 'deadline'))
    select subject, resource, used, case resource
        when 'tokens' then (select coalesce(sum(tokens), 0) from spent)
        when 'dollars' then
            (select coalesce(sum(dollars), 0) from spent where subject = 'agent:' || aid)
        else (select count(*) from spent where subject = 'agent:' || aid) end
    from limits where (subject = '{group}' and resource = 'tokens')
        or (subject like 'agent:%' and resource in ('dollars', 'requests'))
    union all
    select 'all', 'tokens by day', coalesce(sum(tokens_in + tokens_out), 0),
        (select coalesce(sum(tokens), 0) from spent) from usage where aid in ({aids})"""
_KEPT: Final = """
    with mine as (select id from owners where {of})
    select (select count(*) from memories where owner in mine),
        (select coalesce(sum(size), 0) from memories where owner in mine),
        (select count(*) from objects where owner in mine),
        (select coalesce(sum(size), 0) from versions join objects on objects.id = object
            where owner in mine)"""
