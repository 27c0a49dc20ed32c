"""Who may do what: identities, credentials, and the one place where access is decided.

The dispatcher asks `Access.permit` before any handler runs. A handler asks again, `over` or
`may_see`, only where the answer depends on more than the call's capability: what a list shows,
which agent a status is about. Identity is the uid that the socket reports and, for an agent, its
credential; never a pid.

The rules, until grants say otherwise: a person (a connection that is no agent) may act on the
agents of the same uid, and root and the daemon's owner on all; an agent may act on itself and its
descendants; everything else between agents is denied.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from aiosd.abi.call import Call, Syscall

TARGETED: Final = frozenset({"signal", "observe", "wait", "fork", "context"})
"""Capabilities that are about one agent: the call's `aid`, or the owner of its `context`."""


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


class Kinship(Protocol):
    """What access needs to know of the process table; both raise ProcessLookupError."""

    def uid_of(self, aid: int) -> int:
        """Return the uid that owns an agent."""

    def ancestors(self, aid: int) -> Iterable[int]:
        """Yield an agent's parent, its parent's parent, and so on."""


class Access:
    """Decides whether a caller may make a call.

    owner: the uid that the daemon serves. context_owner maps a context id to its agent and raises
    FileNotFoundError.
    """

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.kin: Kinship | None = None
        self.context_owner: Callable[[int], int] | None = None

    def permit(self, caller: Caller, call: Syscall, args: Call) -> None:
        """Return when the call is allowed; raise PermissionError with the reason otherwise."""
        if not call.needs:
            return
        if call.needs == "admin":
            self._admin(caller, call)
        elif call.needs in TARGETED:
            target = self._target(args)
            if target:
                self.over(caller, target, call.name)

    def superuser(self, caller: Caller) -> bool:
        """Whether the caller is root or the daemon's owner, in person."""
        return not caller.aid and caller.uid in (0, self.owner)

    def over(self, caller: Caller, target: int, deed: str) -> None:
        """Return when the caller may act on agent `target`; raise PermissionError otherwise.

        Raises ProcessLookupError when there is no such agent.
        """
        assert self.kin is not None
        uid = self.kin.uid_of(target)
        if caller.aid:
            if target == caller.aid or caller.aid in self.kin.ancestors(target):
                return
        elif caller.uid == uid or self.superuser(caller):
            return
        raise PermissionError(
            errno.EPERM,
            f"{deed}: {caller} has no rights over agent {target}; "
            "its parent, its owner and root have",
        )

    def may_see(self, caller: Caller, target: int) -> bool:
        """Whether events and rows about agent `target` may be shown to the caller."""
        try:
            self.over(caller, target, "see")
        except OSError:
            return False
        return True

    def _admin(self, caller: Caller, call: Syscall) -> None:
        if not self.superuser(caller):
            raise PermissionError(
                errno.EPERM, f"{call.name}: only the daemon's owner or root may do this"
            )

    def _target(self, args: Call) -> int:
        aid = getattr(args, "aid", 0)
        context = getattr(args, "context", 0)
        if context and self.context_owner is not None:
            return self.context_owner(context)
        return int(aid)


def new_credential() -> str:
    """Return a fresh secret of 256 bits."""
    return secrets.token_urlsafe(32)


def digest(credential: str) -> str:
    """Return what is stored of a credential: its SHA-256 in hex (the secret has full entropy)."""
    return hashlib.sha256(credential.encode()).hexdigest()
