"""Who may do what: identities, credentials, and the one place where access is decided.

The dispatcher asks `Access.permit` before any handler runs. A handler asks again, `over` or
`may_see`, only where the answer depends on more than the call's capability: what a list shows,
which agent a status is about. Identity is the uid that the socket reports and, for an agent, its
credential; never a pid.

The rules. A person (a connection that is no agent) may act on the agents of the same uid, and root
and the daemon's owner on all. An agent may act on itself and its descendants; agents of one group
may signal, observe and write to each other and use each other's contexts; all else between agents
is denied until it is granted (rights.py says what a grant is). What an agent has by a grant or a
group it has only as far as all its forebears have it too: a child never has more than its parent.

What must hold: a capability that is not known here never passes; what is decided about anything
but the caller's own state is told to `witness`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from aiosd.abi.accounts import AuditRecord
from aiosd.abi.call import Call, Syscall
from aiosd.rights import KERNEL, OVER, SELF, SHARED, Book, Party, Verdict, parse

CACHED: Final = 65_536
"""Decisions about agents that are remembered."""

Witness = Callable[[str, "Caller", int, dict[str, Any]], None]
"""Told of a decision: its kind, the caller, the agent that it is about (0: none), and facts."""


class Caller:
    """The identity behind one connection; there is one object per connection.

    uid, gid and pid are the peer's by SO_PEERCRED. aid is 0 until the connection becomes an
    agent. `on_close` holds what is to be called when the connection ends; `hang_up`, set by the
    server, ends it.
    """

    __slots__ = ("aid", "gid", "hang_up", "on_close", "pid", "uid")

    def __init__(self, uid: int, gid: int, pid: int, aid: int = 0) -> None:
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.aid = aid
        self.on_close: list[Callable[[], None]] = []
        self.hang_up: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"agent {self.aid}" if self.aid else f"uid {self.uid}"

    @property
    def subject(self) -> str:
        """The caller as grants name it."""
        return f"agent:{self.aid}" if self.aid else f"uid:{self.uid}"


class Kinship(Protocol):
    """What access needs to know of the process table; all raise ProcessLookupError."""

    def uid_of(self, aid: int) -> int:
        """Return the uid that owns an agent."""

    def lineage(self, aid: int) -> tuple[int, ...]:
        """Return all forebears of an agent at its birth, the oldest first, also those ended."""


class Access:
    """Decides whether a caller may make a call.

    owner: the uid that the daemon serves. context_owner maps a context id to its agent and raises
    FileNotFoundError. book: the grants; `changed` must be called after a change of it. group_owner:
    the uid that a group belongs to, by its name. ask: capabilities that agents have only with
    somebody's approval. grantors: "owner", "persons" (over what is their own) or "agents" (they
    too, over themselves and their descendants).
    """

    def __init__(self, owner: int, ask: Iterable[str] = (), grantors: str = "persons") -> None:
        self.owner = owner
        self.kin: Kinship | None = None
        self.context_owner: Callable[[int], int] | None = None
        self.book = Book()
        self.group_owner: dict[str, int] = {}
        self.on_expired: Callable[[list[Any]], None] = lambda grants: None
        self.witness: Witness = lambda kind, caller, target, data: None
        self.epoch = 0
        """Goes up whenever grants change: groups may be others."""
        self._cache: dict[tuple[int, str, int], Verdict] = {}
        self._clock = time.time
        self.set_policy(ask, grantors)

    def set_policy(self, ask: Iterable[str], grantors: str) -> None:
        """Take on which capabilities agents must ask for, and who may grant."""
        self._ask = frozenset(ask)
        self.grantors = grantors
        self.changed()

    def changed(self) -> None:
        """Forget what was decided by the grants as they were."""
        self._cache.clear()
        self.epoch += 1
        self._asking = bool(self._ask or self.book.asks)

    # -- the question of the dispatcher ---------------------------------------------------------

    def permit(self, caller: Caller, call: Syscall, args: Call) -> bool:
        """Return False when the call is allowed, True when somebody has to approve it first.

        Raises PermissionError with the reason otherwise.
        """
        needs = call.needs
        if not needs:
            return False
        target = self._target(args) if needs in OVER else 0
        if target:
            if target == caller.aid and not self._asking:
                return False
            return self._settle(caller, needs, target, call.name)
        if needs in SELF or needs in OVER:
            pool = getattr(args, "pool", "")
            if pool:
                self.pool(caller, pool, call.name in WRITES, call.name)
            return self._asking and self._of_itself(caller, needs) is Verdict.ASK
        if needs not in KERNEL:
            raise self._refusal(f"{call.name}: no rule gives the capability {needs!r}")
        subject = getattr(args, "subject", "") if needs == "admin" else ""
        if subject and self.administers(caller, subject):
            facts = _facts(call.name, needs, subject)
            self.witness("access.allow", caller, 0, facts)
            return False
        if needs == "admin" or (needs == "audit" and caller.aid):
            return self._of_kernel(caller, call)
        return False  # grant, audit of a person: the handler knows about what

    def refused(
        self, caller: Caller, call: Syscall, args: Call | None, number: int, reason: str
    ) -> None:
        """Put on record that a call was refused, or asked about an agent that is not there.

        What was refused as malformed is on record too: it may be an attack on the kernel itself.
        """
        numbered = hasattr(args, "aid") or (call.needs and hasattr(args, "id"))
        about = call.needs in OVER | {"grant"} or numbered
        missed = about and number in (errno.ESRCH, errno.ENOENT)
        kind = "access.miss" if missed else _REFUSED.get(number)
        if kind is None:
            return
        facts = {"call": call.name, "errno": errno.errorcode[number], "reason": reason[:512]}
        target = getattr(args, "aid", 0)
        with contextlib.suppress(OSError):  # a log that is behind refuses more, not less
            self.witness(kind, caller, target if isinstance(target, int) else 0, facts)

    def superuser(self, caller: Caller) -> bool:
        """Whether the caller is root or the daemon's owner, in person."""
        return not caller.aid and caller.uid in (0, self.owner)

    def over(self, caller: Caller, target: int, deed: str, capability: str = "observe") -> None:
        """Return when the caller may act on agent `target`; raise PermissionError otherwise.

        Raises ProcessLookupError when there is no such agent.
        """
        if target == caller.aid and not self._asking:
            return
        if self._settle(caller, capability, target, deed):
            raise self._refusal(f"{deed}: {capability} of agent {target} needs approval")

    def may(self, caller: Caller, target: int, capability: str) -> bool:
        """Whether the caller may act on an agent without asking; nothing is recorded."""
        try:
            return self._verdict(caller, capability, target) is Verdict.ALLOW
        except ProcessLookupError:
            return False

    def may_see(self, caller: Caller, target: int) -> bool:
        """Whether events and rows about agent `target` may be shown to the caller."""
        return self.may(caller, target, "observe")

    def may_audit(self, caller: Caller, record: AuditRecord) -> bool:
        """Whether a record of the audit log may be shown to a caller that may read the log."""
        if caller.aid or self.superuser(caller):
            return True
        target = record.data.get("target", 0)
        return caller.uid in (record.uid, self.uid_of(target) if target else -1)

    # -- groups ---------------------------------------------------------------------------------

    def groups(self, aid: int) -> frozenset[str]:
        """Return an agent's groups: those that the oldest of its forebears was made a member of."""
        assert self.kin is not None
        self.expire()
        lineage = self.kin.lineage(aid)
        return self.book.groups(f"agent:{lineage[0] if lineage else aid}")

    def pool(self, caller: Caller, name: str, write: bool, deed: str = "pool") -> None:
        """Return when the caller may read (or write) a group's shared pool.

        Raises PermissionError: the same for a pool that is not there as for one without a grant.
        """
        capability = "pool.write" if write else "pool.read"
        if name in self.group_owner and self._pool(caller, name, capability):
            self.witness("access.allow", caller, 0, _facts(deed, capability, f"group:{name}"))
            return
        raise self._refusal(f"{deed}: there is no pool {name!r}, or no grant of {capability} on it")

    def may_grant(self, caller: Caller, object: str) -> bool:
        """Whether the caller may give and take rights on an object, and approve of their use.

        Root and the daemon's owner may; `grantors` says who else may over what is its own; and
        whoever was granted `grant` on the object or on the kernel.
        """
        if self.superuser(caller) or (self.grantors != "owner" and self._owns(caller, object)):
            return True
        objects = self._objects_of(object) | {"kernel"}
        return self._given(caller, "grant", objects) is Verdict.ALLOW

    def administers(self, caller: Caller, subject: str) -> bool:
        """Whether the caller may limit what a subject uses, without being told so by anybody.

        A person may for what is his own, where `grantors` lets him grant on it, an agent for those
        that descend from it: never for itself. Raises OSError(EINVAL) for what is no subject.
        """
        kind, name = parse(subject, "subject")
        if not caller.aid:
            return self.superuser(caller) or (
                kind in ("agent", "group", "uid")
                and self.grantors != "owner"
                and self._owns(caller, subject)
            )
        assert self.kin is not None
        below = kind == "agent" and self.known(int(name))
        return below and caller.aid in self.kin.lineage(int(name))

    def covers(self, caller: Caller, capability: str, object: str) -> bool:
        """Whether a caller has a capability on an object, be it after asking."""
        kind, _, name = object.partition(":")
        if kind == "agent":
            return self._verdict(caller, capability, int(name)) is not Verdict.DENY
        return self._given(caller, capability, {object}) is not Verdict.DENY

    def question(self, caller: Caller, call: Syscall, args: Call) -> tuple[str, str]:
        """Return which capability on which object a call that `permit` wants approved is about."""
        target = self._target(args) if call.needs in OVER else 0
        if call.needs in KERNEL:
            return call.needs, "kernel"
        return call.needs, f"agent:{target}" if target else caller.subject

    # -- decisions ------------------------------------------------------------------------------

    def _settle(self, caller: Caller, capability: str, target: int, deed: str) -> bool:
        """Decide about an agent, tell the witness; return whether approval is needed."""
        verdict = self._verdict(caller, capability, target)
        if target != caller.aid and verdict is Verdict.ALLOW:
            facts = _facts(deed, capability, f"agent:{target}")
            self.witness("access.allow", caller, target, facts)
        if verdict is Verdict.DENY:
            raise self._refusal(
                f"{deed}: {caller} has no rights over agent {target}; "
                "its parent, its owner, root and whoever was granted "
                f"{capability} on it have"
            )
        return verdict is Verdict.ASK

    def _verdict(self, caller: Caller, capability: str, target: int) -> Verdict:
        assert self.kin is not None
        self.kin.uid_of(target)  # ESRCH when there is none, whatever was decided once
        self.expire()
        name = (caller.aid or -1 - caller.uid, capability, target)
        verdict = self._cache.get(name)
        if verdict is None:
            verdict = self._decide(caller, capability, target)
            if len(self._cache) >= CACHED:
                self._cache.clear()
            self._cache[name] = verdict
        return verdict

    def _decide(self, caller: Caller, capability: str, target: int) -> Verdict:
        assert self.kin is not None
        uid = self.kin.uid_of(target)
        if self.superuser(caller):
            return Verdict.ALLOW
        if not caller.aid:
            granted = self._person(caller, capability, self._objects(target))
            return granted if granted is not None else Verdict(2 * (caller.uid == uid))
        own = target == caller.aid
        line = (*self.kin.lineage(caller.aid), caller.aid)
        return min(self._agent(aid, capability, aid if own else target) for aid in line)

    def _agent(self, aid: int, capability: str, target: int) -> Verdict:
        """Decide for one agent of a line, whatever its forebears may do."""
        assert self.kin is not None
        groups = self._groups_of(aid)
        objects = self._objects(target) if self.known(target) else {f"agent:{target}"}
        granted = self.book.verdict(Party(f"agent:{aid}", groups), capability, objects)
        if granted is not None:
            return granted
        kin = aid == target or (self.known(target) and aid in self.kin.lineage(target))
        if capability == "message" and self.known(aid):
            kin = kin or self.kin.lineage(aid)[-1:] == (target,)  # a child writes to its parent
        if kin or (capability in SHARED and groups & self._groups_of(target)):
            return Verdict.ASK if capability in self._ask else Verdict.ALLOW
        return Verdict.DENY

    def _of_itself(self, caller: Caller, capability: str) -> Verdict:
        """Decide about what a caller does with what is its own; never a denial."""
        if caller.aid:
            return self._verdict(caller, capability, caller.aid)
        if self.superuser(caller):
            return Verdict.ALLOW
        granted = self._person(caller, capability, {f"uid:{caller.uid}"})
        return Verdict.ALLOW if granted is None else granted

    def _of_kernel(self, caller: Caller, call: Syscall) -> bool:
        superuser = self.superuser(caller)
        verdict = Verdict.ALLOW if superuser else self._given(caller, call.needs, {"kernel"})
        if verdict is Verdict.DENY:
            raise self._refusal(
                f"{call.name}: only the daemon's owner or root may do this, "
                f"and whoever was granted {call.needs} on the kernel"
            )
        if verdict is Verdict.ALLOW:
            self.witness("access.allow", caller, 0, _facts(call.name, call.needs, "kernel"))
        return verdict is Verdict.ASK

    def _given(self, caller: Caller, capability: str, objects: set[str]) -> Verdict:
        """Decide by grants alone, of the caller and of every forebear."""
        self.expire()
        if not caller.aid:
            return self._person(caller, capability, objects) or Verdict.DENY
        assert self.kin is not None
        return min(
            self.book.verdict(Party(f"agent:{aid}", self._groups_of(aid)), capability, objects)
            or Verdict.DENY
            for aid in (*self.kin.lineage(caller.aid), caller.aid)
        )

    def _pool(self, caller: Caller, name: str, capability: str) -> bool:
        if self.superuser(caller):
            return True
        if not caller.aid and caller.uid == self.group_owner[name]:
            return True
        if caller.aid and name in self.groups(caller.aid):
            return True
        if name in self.book.groups(caller.subject) and not caller.aid:
            return True
        return self._given(caller, capability, {f"group:{name}"}) is Verdict.ALLOW

    def _owns(self, caller: Caller, object: str) -> bool:
        kind, _, name = object.partition(":")
        if caller.aid:
            assert self.kin is not None
            mine = kind == "agent" and self.known(int(name))
            mine = mine and caller.aid in (int(name), *self.kin.lineage(int(name)))
            return mine and self.grantors == "agents"
        if kind == "group":
            return self.group_owner.get(name) == caller.uid
        owner = self.uid_of(int(name)) if kind == "agent" else int(name or -1)
        return kind in ("agent", "uid") and owner == caller.uid

    def _person(self, caller: Caller, capability: str, objects: set[str]) -> Verdict | None:
        return self.book.verdict(Party(f"uid:{caller.uid}"), capability, objects)

    def _groups_of(self, aid: int) -> frozenset[str]:
        return self.groups(aid) if self.known(aid) else self.book.groups(f"agent:{aid}")

    def _objects(self, target: int) -> set[str]:
        """Return every name under which an agent may be the object of a grant."""
        uid = self.uid_of(target)
        groups = {f"group:{name}" for name in self.groups(target)}
        return {f"agent:{target}", f"uid:{uid}", *groups}

    def _objects_of(self, object: str) -> set[str]:
        kind, _, name = object.partition(":")
        known = kind == "agent" and self.known(int(name))
        return self._objects(int(name)) if known else {object}

    def known(self, aid: int) -> bool:
        """Whether anything is kept of an agent."""
        return self.uid_of(aid) >= 0

    def uid_of(self, aid: int) -> int:
        """Return an agent's uid, -1 when its row is gone."""
        assert self.kin is not None
        try:
            return self.kin.uid_of(aid)
        except ProcessLookupError:
            return -1

    def expire(self) -> None:
        """Let grants whose time is over count no more."""
        now = self._clock()
        if now >= self.book.expires:
            gone = self.book.expired(now)
            self.changed()
            self.on_expired(gone)

    def _refusal(self, sentence: str) -> PermissionError:
        return PermissionError(errno.EPERM, sentence)

    def _target(self, args: Call) -> int:
        aid = getattr(args, "aid", 0)
        context = getattr(args, "context", 0)
        if context and self.context_owner is not None:
            return self.context_owner(context)
        return int(aid)


WRITES: Final = frozenset(
    {"add_memory", "update_memory", "delete_memory", "sto_alloc", "sto_write", "sto_delete",
     "sto_rollback"}
)  # fmt: skip
"""Calls that change a pool."""


_REFUSED: Final = {
    errno.EPERM: "access.deny",
    errno.EACCES: "access.deny",
    errno.EBADMSG: "access.deny",
    errno.EINVAL: "access.invalid",
}
"""The kind of record that a refusal makes, by its errno."""


def _facts(deed: str, capability: str, object: str) -> dict[str, Any]:
    return {"call": deed, "capability": capability, "object": object}


def new_credential() -> str:
    """Return a fresh secret of 256 bits."""
    return secrets.token_urlsafe(32)


def digest(credential: str) -> str:
    """Return what is stored of a credential: its SHA-256 in hex (the secret has full entropy)."""
    return hashlib.sha256(credential.encode()).hexdigest()
