"""Budgets: setting limits, showing them, and saying what was used.

Root and the daemon's owner set limits for everyone, a person for his uid, his agents and the groups
that are his, an agent for those that descend from it; never one for itself. Each has limits of his
own on the same thing, and all of them hold: what root set is only ever made tighter by others.

What must hold: a limit counts from the moment that it is asked for, and is answered once it and its
record in the audit log survive power loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from aiosd import accounts, limits
from aiosd.abi.accounts import GetQuota, GetUsage, Quota, SetQuota, UsageRow
from aiosd.access import Access, Caller
from aiosd.keys import answerer
from aiosd.killpoint import reach
from aiosd.limits import RESOURCES, Limit
from aiosd.owed import Debt, Debts, Log, owe
from aiosd.rights import parse

if TYPE_CHECKING:
    from aiosd.db import Connection, Database
    from aiosd.journal import Write
    from aiosd.quota import Quotas

T = TypeVar("T")

MOST: Final = 10_000
"""Limits in force; a quarter of them set by one other than root."""

ROOT: Final = "root"
"""Who sets what root or the daemon's owner sets."""

BY: Final = ("core", "tool", "day", "agent", "uid", "group")


async def _all_settled() -> None:
    """What is used is written at once."""


class Budgets:
    """The calls about quotas and accounts. settle: has what was used written, if it is not yet."""

    def __init__(self, quotas: Quotas, db: Database, access: Access, audit: Log) -> None:
        self._quotas = quotas
        self._db = db
        self._access = access
        self._debts = Debts(db, audit)
        self._under_way: set[asyncio.Future[Any]] = set()
        self.settle: Callable[[], Awaitable[None]] = _all_settled

    # Setting.

    async def sys_set_quota(self, caller: Caller, args: SetQuota) -> Quota:
        """Set a limit, change it, or take it away; it counts at once."""
        self._check_subject(args.subject)
        amount = limits.amount(args.resource, args.limit)
        limits.check_period(args.resource, args.period)
        self._check_caller(caller, args.subject)
        setter = ROOT if self._access.superuser(caller) else caller.subject
        if args.remove:
            return await self._whole(self._remove(caller, args, setter))
        name = (args.subject, args.resource, setter)
        self._check_room(name)
        if not RESOURCES[args.resource].flows:
            await self._quotas.prepare(args.subject)
        limit = Limit(*name, amount, args.hard, args.period)
        return await self._whole(self._put(caller, limit))

    sys_set_quota.lasting = True  # type: ignore[attr-defined]

    def _check_subject(self, subject: str) -> None:
        """Raise OSError for what is no subject, or is not there."""
        kind, name = parse(subject, "subject")
        if kind == "kernel":
            raise OSError(
                errno.EINVAL, "set_quota: field 'subject': agent:AID, group:NAME or uid:UID"
            )
        if kind == "agent":
            assert self._access.kin is not None
            self._access.kin.uid_of(int(name))
        if kind == "group" and name not in self._access.group_owner:
            raise FileNotFoundError(
                errno.ENOENT, f"there is no group {name!r}: grant it a member first"
            )

    def _check_caller(self, caller: Caller, subject: str) -> None:
        """Raise PermissionError for an agent that would set a limit which binds itself."""
        if caller.aid and subject in self._quotas.subjects(caller.aid):
            raise PermissionError(
                errno.EPERM,
                f"set_quota: {subject} is what agent {caller.aid} itself is charged to: an agent "
                "never sets its own limits; its owner and root do",
            )

    def _check_room(self, name: tuple[str, str, str]) -> None:
        """Raise OSError(EDQUOT) when there are too many limits."""
        book = self._quotas.book
        if book.get(name) is not None:
            return
        if len(book) >= MOST // 4 and (gone := self._quotas.prune()):
            self._db.write_soon(accounts.dropping(limit.name for limit in gone))
        mine = sum(limit.setter == name[2] for limit in book)
        if len(book) >= MOST or (name[2] != ROOT and mine >= MOST // 4):
            raise OSError(
                errno.EDQUOT,
                f"set_quota: {MOST} limits at most, and a quarter of them by one who is not root; "
                "remove some (field 'remove')",
            )

    def _go_on(self, limit: Limit, old: Limit | None) -> None:
        """Go on with what was used under the old limit, unless the period is another one."""
        limit.since = now = self._quotas.clock()
        if old is not None and old.period == limit.period:
            old.roll(now)
            limit.since, limit.used, limit.epoch = old.since, old.used, old.epoch
        elif not RESOURCES[limit.resource].flows:
            limit.used = None

    async def _put(self, caller: Caller, limit: Limit) -> Quota:
        quotas = self._quotas
        old = quotas.book.get(limit.name)
        self._go_on(limit, old)
        quotas.put(limit)  # from here on requests are charged to it: the row says what was before
        row = self.row(limit)
        reserved = [each for each in quotas.book.open.values() if limit.subject in each.subjects]
        parts = [accounts.putting(limit), accounts.reserving(reserved)]
        facts = {"quota": msgspec.to_builtins(row), "was": self._was(old)}
        try:
            await self._commit(caller, parts, row, facts)
        except OSError:
            self._take_back(limit, old)
            raise
        return row

    def _take_back(self, limit: Limit, old: Limit | None) -> None:
        """Let the old limit bind again, with what was charged meanwhile."""
        if self._quotas.book.get(limit.name) is not limit:
            return
        if old is None:
            self._quotas.drop(limit)
            return
        if old.since == limit.since:
            old.used = limit.used
        self._quotas.put(old)

    async def _remove(self, caller: Caller, args: SetQuota, setter: str) -> Quota:
        """Take away what the caller set on this; root, what anybody did."""
        found = [
            limit
            for limit in self._quotas.book.of(args.subject)
            if limit.resource == args.resource and setter in (ROOT, limit.setter)
        ]
        if not found:
            raise FileNotFoundError(
                errno.ENOENT,
                f"set_quota: {setter} has set no limit on {args.resource} of {args.subject}; "
                "get_quota shows those that there are",
            )
        row = self.row(found[0])
        for limit in found:
            self._quotas.drop(limit)
        parts = [accounts.dropping(limit.name for limit in found)]
        facts = {"removed": [self._was(limit) for limit in found]}
        try:
            await self._commit(caller, parts, row, facts)
        except OSError:
            for limit in found:
                self._quotas.put(limit)
            raise
        return row

    async def _commit(
        self, caller: Caller, parts: list[Write], row: Quota, facts: dict[str, Any]
    ) -> None:
        answer = answerer()
        kind, _, name = row.subject.partition(":")
        target = int(name) if kind == "agent" else 0

        def write(db: Connection) -> Debt:
            for part in parts:
                part(db)
            answer(db, row)
            debt = owe(db, "quota.set", caller, target, facts)
            reach("quota.set")
            return debt

        # Handed over in this very moment: what is charged from now on is written behind it.
        await self._debts.pay(await self._db.submit(write, durable=True))

    def _was(self, limit: Limit | None) -> dict[str, Any] | None:
        return None if limit is None else msgspec.to_builtins(self.row(limit))

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a change to its end, also when the one who asked no longer waits for it."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    # Showing.

    def sys_get_quota(self, caller: Caller, args: GetQuota) -> list[Quota]:
        """Return the limits that bind a subject: of an agent also those of its forebears."""
        subject = args.subject or caller.subject
        kind, name = self._see(caller, subject, "get_quota")
        if kind == "agent":
            subjects = self._quotas.subjects(int(name))
            found = [limit for each in subjects for limit in self._quotas.book.of(each)]
        else:
            found = self._quotas.book.of(subject)
        return [self.row(limit) for limit in found]

    def row(self, limit: Limit) -> Quota:
        """Describe a limit as it stands."""
        resource = limit.resource
        return Quota(
            subject=limit.subject,
            resource=resource,
            limit=limits.value(resource, limit.amount),
            hard=limit.hard,
            used=limits.value(resource, self._quotas.held(limit)),
            reserved=limits.value(resource, limit.reserved),
            resets=limit.resets,
            period=limit.period,
            by=limit.setter,
        )

    async def sys_get_usage(self, caller: Caller, args: GetUsage) -> list[UsageRow]:
        """Say what a subject has used, by core, tool or day; of an agent with all below it."""
        if args.by not in BY:
            raise OSError(
                errno.EINVAL, f"get_usage: field 'by': {args.by!r} is none of {', '.join(BY)}"
            )
        subjects = [args.subject or caller.subject]
        if args.by == "group":
            subjects = self._groups(caller, args)
        asked = [self._question(caller, subject, args) for subject in subjects]
        await self.settle()
        return await self._db.read(
            lambda db: [r for each in asked for r in accounts.usage(db, each)]
        )

    def _question(self, caller: Caller, subject: str, args: GetUsage) -> accounts.Question:
        kind, name = self._see(caller, subject, "get_usage")
        return accounts.Question(
            subject,
            args.by,
            args.since,
            args.limit,
            aid=int(name) if kind == "agent" else 0,
            uid=int(name) if kind == "uid" else -1,
            roots=self._roots(name) if kind == "group" else frozenset(),
            everybody=kind == "kernel",
        )

    def _groups(self, caller: Caller, args: GetUsage) -> list[str]:
        """Return the groups that a caller may see, at most as many as rows are asked for."""
        if args.subject:
            text = "get_usage: by group: it is of all groups that you may see; leave subject empty"
            raise OSError(errno.EINVAL, text)
        found = []
        for group in sorted(self._access.group_owner)[: args.limit]:
            with contextlib.suppress(PermissionError):
                self._see(caller, f"group:{group}", "get_usage")
                found.append(f"group:{group}")
        return found

    def _roots(self, group: str) -> frozenset[int]:
        """Return the agents that were made members of a group."""
        return frozenset(
            int(grant.subject[6:])
            for grant in self._access.book
            if (grant.capability, grant.object) == ("member", f"group:{group}")
            and grant.subject.startswith("agent:")
        )

    def _see(self, caller: Caller, subject: str, call: str) -> tuple[str, str]:
        """Return a subject's kind and name; raises OSError when it is not the caller's to see."""
        kind, name = parse(subject, "subject")
        if kind == "agent":
            self._access.over(caller, int(name), call)
            return kind, name
        mine = subject == f"uid:{caller.uid}" or self._access.superuser(caller)
        if kind == "group":
            owner = self._access.group_owner.get(name) == caller.uid and not caller.aid
            member = bool(caller.aid) and name in self._access.groups(caller.aid)
            mine = mine or owner or member
        if not mine or (kind == "kernel" and call != "get_usage"):
            raise PermissionError(
                errno.EPERM,
                f"{call}: {caller} has no rights over {subject}; who it belongs to, its members, "
                "the daemon's owner and root have",
            )
        return kind, name
