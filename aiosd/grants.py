"""Grants: giving rights, taking them back, and the groups that they make.

    grants = Grants(settings, db, access, audit, roster_knows)
    await grants.boot()                # before the first call is answered

The rules for what a grant means are in rights.py, those for who may give one in access.py. A group
comes to be when somebody makes an agent its member, and belongs to that person's uid from then on.

What must hold: a grant counts from when it is durable, through power loss, until it expires; one
that is taken back counts no more from the moment that this is asked; each change is in the audit
log before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from aiosd.abi.accounts import Grant, GrantRecord, ListGrants, Revoke
from aiosd.access import Access, Caller
from aiosd.db import Connection, Database
from aiosd.keys import answerer
from aiosd.owed import Debt, Debts, Log, owe
from aiosd.rights import check, parse
from aiosd.settings import Config

T = TypeVar("T")

_COLUMNS: Final = ("id", "subject", "capability", "object", "mode", "by", "created", "expires")
_INSERT: Final = (
    "insert into grants (subject, capability, object, mode, by, created, expires) "
    "values (?, ?, ?, ?, ?, ?, ?)"
)


class Grants:
    """All grants, in memory in `access.book` and in the database. config: what is set now."""

    def __init__(
        self, config: Callable[[], Config], db: Database, access: Access, audit: Log
    ) -> None:
        self._config = config
        self._db = db
        self._access = access
        self._audit = audit
        self._debts = Debts(db, audit)
        self._under_way: set[asyncio.Future[Any]] = set()
        access.on_expired = self._expired

    async def boot(self) -> None:
        """Read what was granted; what has expired meanwhile goes."""
        await self._debts.boot()
        grants, groups = await self._db.read(_load)
        for row in grants:
            self._access.book.put(GrantRecord(*row))
        self._access.group_owner.update(groups)
        self._access.changed()
        self._access.expire()

    async def prune(self) -> None:
        """Drop grants to and on agents of which nothing is kept any more."""
        gone = [grant for grant in self._access.book if self._stale(grant)]
        for grant in gone:
            self._access.book.drop(grant.id)
        self._expired(gone)

    # -- the calls ------------------------------------------------------------------------------

    async def sys_grant(self, caller: Caller, args: Grant) -> GrantRecord:
        """Give a right; EEXIST when it is given already, whatever its mode."""
        wanted = GrantRecord(
            id=0,
            subject=args.subject,
            capability=args.capability,
            object=args.object,
            mode=args.mode,
            by=caller.subject,
            created=time.time(),
            expires=args.expires,
        )
        check(wanted)
        if len(self._access.book) >= self._config().access.max_grants:
            await self.prune()
        if args.expires and args.expires <= wanted.created:
            raise OSError(errno.EINVAL, "expires: lies in the past; 0 is for ever")
        group = self._new_group(caller, wanted)
        self._permit(caller, wanted, group)
        self._check_parties(wanted)
        return await self._whole(self._give(wanted, caller, group))

    async def sys_revoke(self, caller: Caller, args: Revoke) -> None:
        """Take a grant back; ENOENT when there is none, or it is no business of the caller's."""
        grant = self._access.book.get(args.id)
        if grant is None or not self._concerns(caller, grant):
            raise FileNotFoundError(errno.ENOENT, f"there is no grant {args.id}")
        if not self._may_take(caller, grant):
            raise PermissionError(
                errno.EPERM,
                f"revoke: grant {grant.id} was given by {grant.by}; "
                f"who gave it and who may grant on {grant.object} take it back",
            )
        await self._whole(self._take(grant, caller))

    def sys_list_grants(self, caller: Caller, args: ListGrants) -> list[GrantRecord]:
        """List the grants that the caller gave, has, or may take back."""
        self._access.expire()
        return [
            grant
            for grant in self._access.book
            if args.subject in ("", grant.subject) and self._concerns(caller, grant)
        ]

    # -- who may --------------------------------------------------------------------------------

    def _permit(self, caller: Caller, wanted: GrantRecord, group: str) -> None:
        """Raise PermissionError when the caller may not give this."""
        may = bool(group) or self._access.may_grant(caller, wanted.object)
        # A member's own state is opened to the other members: that takes a right over it as well.
        if may and wanted.capability == "member":
            may = self._access.may_grant(caller, wanted.subject)
        if not may:
            raise PermissionError(
                errno.EPERM,
                f"grant: {caller} may not grant {wanted.capability} on {wanted.object}; its owner,"
                " the daemon's owner and root may, as [access] grantors says",
            )

    def _may_take(self, caller: Caller, grant: GrantRecord) -> bool:
        given = grant.by == caller.subject and self._access.grantors != "owner"
        return given or self._access.may_grant(caller, grant.object)

    def _concerns(self, caller: Caller, grant: GrantRecord) -> bool:
        """Whether the caller may know of a grant."""
        if caller.subject in (grant.subject, grant.by):
            return True
        kind, _, name = grant.subject.partition(":")
        if kind == "group" and caller.aid and name in self._access.groups(caller.aid):
            return True
        return any(
            self._access.may_grant(caller, party)
            for party in (grant.subject, grant.object)
            if not party.startswith("group:") or party.removeprefix("group:") in self._groups
        )

    @property
    def _groups(self) -> dict[str, int]:
        return self._access.group_owner

    def _new_group(self, caller: Caller, wanted: GrantRecord) -> str:
        """Return the name of the group that this grant would make, or nothing."""
        name = wanted.object.removeprefix("group:")
        if wanted.capability != "member" or name in self._groups or caller.aid:
            return ""
        if self._access.grantors == "owner" and not self._access.superuser(caller):
            return ""
        most = self._config().access.max_groups
        mine = sum(uid == caller.uid for uid in self._groups.values())
        if len(self._groups) >= most or (caller.uid and mine >= max(1, most // 4)):
            raise OSError(
                errno.EDQUOT,
                f"{most} groups at most (access.max_groups), and a quarter of them for one user",
            )
        return name

    def _check_parties(self, wanted: GrantRecord) -> None:
        """Raise OSError for a grant whose parties aren't there, or which nobody could use."""
        book, kin = self._access.book, self._access.kin
        assert kin is not None
        for party in (wanted.subject, wanted.object):
            kind, name = parse(party, "subject")
            if kind == "agent":
                kin.uid_of(int(name))
            elif kind == "group" and name not in self._groups and wanted.capability != "member":
                raise FileNotFoundError(
                    errno.ENOENT, f"there is no group {name!r}: grant it a member first"
                )
        if same := book.same(wanted):
            raise FileExistsError(
                errno.EEXIST, f"grant {same.id} says so already, with mode {same.mode}: revoke it"
            )
        if len(book) >= (most := self._config().access.max_grants):
            raise OSError(errno.EDQUOT, f"{most} grants are in force (access.max_grants)")
        kind, name = parse(wanted.subject, "subject")
        if kind == "agent" and wanted.mode == "allow":
            self._check_line(int(name), wanted)

    def _check_line(self, aid: int, wanted: GrantRecord) -> None:
        """Raise PermissionError where a child would get what its parent lacks."""
        kin, access = self._access.kin, self._access
        assert kin is not None
        lineage = kin.lineage(aid)
        if not lineage:
            return
        parent = Caller(kin.uid_of(aid), 0, 0, lineage[-1])
        if wanted.capability == "member":
            has = wanted.object.removeprefix("group:") in access.groups(aid)
        else:
            has = access.covers(parent, wanted.capability, wanted.object)
        if not has:
            raise PermissionError(
                errno.EPERM,
                f"grant: agent {aid} is a child of agent {lineage[-1]}, which has no "
                f"{wanted.capability} on {wanted.object}: a child never has more than its parent",
            )

    # -- doing it -------------------------------------------------------------------------------

    async def _give(self, wanted: GrantRecord, caller: Caller, group: str) -> GrantRecord:
        values = [getattr(wanted, name) for name in _COLUMNS[1:]]

        name = wanted.object.removeprefix("group:")
        if group:
            self._groups[group] = caller.uid  # nobody else may take the name meanwhile
        owner = self._groups.get(name)

        answer = answerer()

        def write(db: Connection) -> tuple[GrantRecord, Debt]:
            if owner is not None:
                row = (name, owner, wanted.created)
                db.execute("insert or ignore into groups values (?, ?, ?)", row)
            db.execute("delete from grants where expires != 0 and expires <= ?", (wanted.created,))
            id = int(db.execute(_INSERT, values).lastrowid or 0)
            given = msgspec.structs.replace(wanted, id=id)
            answer(db, given)
            return given, owe(db, "grant.add", caller, _target(given), _facts(given))

        try:
            given, debt = await self._db.write(write, durable=True)
        except sqlite3.IntegrityError:  # the same grant, asked for twice at once
            raise FileExistsError(errno.EEXIST, "grant: it was given just now") from None
        self._access.book.put(given)
        self._access.changed()
        await self._debts.pay(debt)
        return given

    async def _take(self, grant: GrantRecord, caller: Caller) -> None:
        self._access.book.drop(grant.id)  # at once: not durable yet, but no longer of use
        self._access.changed()
        answer = answerer()

        def write(db: Connection) -> Debt:
            db.execute("delete from grants where id = ?", (grant.id,))
            answer(db, None)
            return owe(db, "grant.revoke", caller, _target(grant), _facts(grant))

        try:
            debt = await self._db.write(write, durable=True)
        except OSError:
            self._access.book.put(grant)
            self._access.changed()
            raise
        await self._debts.pay(debt)

    def _expired(self, gone: list[GrantRecord]) -> None:
        for grant in gone:
            self._audit.record("grant.expire", None, _target(grant), _facts(grant))
        if gone:
            self._access.changed()
            ids = [(grant.id,) for grant in gone]
            self._db.write_soon(
                lambda db: db.conn.executemany("delete from grants where id = ?", ids)
            )

    def _stale(self, grant: GrantRecord) -> bool:
        return any(
            party.startswith("agent:") and not self._access.known(int(party[6:]))
            for party in (grant.subject, grant.object)
        )

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a change to its end, also when the one who asked no longer waits for it."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)


def _target(grant: GrantRecord) -> int:
    return int(grant.object[6:]) if grant.object.startswith("agent:") else 0


def _facts(grant: GrantRecord) -> dict[str, Any]:
    return {"grant": msgspec.to_builtins(grant)}


def _load(db: Connection) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    grants = db.execute(f"select {', '.join(_COLUMNS)} from grants order by id").fetchall()
    return grants, dict(db.execute("select name, uid from groups").fetchall())
