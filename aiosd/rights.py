"""Rights: what grants say, and what follows for an agent. Pure: no clock, no database, no call.

    book = Book()
    book.put(grant)
    verdict = book.verdict(Party("agent:5", groups), "signal", objects, now)

A grant gives a subject a capability on an object. Subjects: `agent:AID` (that agent), `group:NAME`
(the agents of a group), `uid:UID` (the person: connections of that uid that are no agent). Objects:
`agent:AID`, `group:NAME` (every member, or its pool), `uid:UID` (all agents of that uid), `kernel`.

The grant to the narrowest subject decides, an agent's own before its group's; among equals `ask`
before `allow`. Where no grant speaks there is no verdict: whoever asks has a rule for that.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterator
from enum import IntEnum
from math import inf
from typing import Final, NamedTuple

from aiosd.abi.accounts import GrantRecord

SELF: Final = frozenset({"spawn", "memory", "storage", "encrypt", "tool"})
"""What an agent does by itself, with what is its own."""
OVER: Final = frozenset({"signal", "observe", "wait", "fork", "context", "message"})
"""What is done to an agent."""
KERNEL: Final = frozenset({"admin", "audit", "grant"})
"""What concerns everybody: given on `kernel`, and `grant` on other objects too."""
GROUP: Final = frozenset({"member", "pool.read", "pool.write"})
"""What is given on a group: to belong to it, or to use its pool from outside."""
SHARED: Final = frozenset({"signal", "observe", "context", "message"})
"""What agents of one group may do to each other."""
CAPABILITIES: Final = SELF | OVER | KERNEL | GROUP
"""Every capability there is. A call that needs another one is refused."""

MODES: Final = ("allow", "ask")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,57}")


class Verdict(IntEnum):
    """What is decided; the smaller one is the stricter."""

    DENY = 0
    ASK = 1
    ALLOW = 2


class Party(NamedTuple):
    """Whom grants are looked up for: its own subject and its groups."""

    subject: str
    groups: Collection[str] = ()


class Book:
    """All grants in force. Not aware of time by itself: a grant counts until its expiry."""

    def __init__(self) -> None:
        self._grants: dict[int, GrantRecord] = {}
        self._of: dict[str, dict[int, GrantRecord]] = {}
        self.asks = 0
        """How many grants want approval."""
        self.expires = inf
        """When the next grant expires, Unix time."""

    def __iter__(self) -> Iterator[GrantRecord]:
        return iter(list(self._grants.values()))

    def __len__(self) -> int:
        return len(self._grants)

    def get(self, id: int) -> GrantRecord | None:
        """Return a grant by its id, or None."""
        return self._grants.get(id)

    def put(self, grant: GrantRecord) -> None:
        """Enter a grant."""
        self.asks += grant.mode == "ask"
        self._grants[grant.id] = grant
        self._of.setdefault(grant.subject, {})[grant.id] = grant
        self.expires = min(self.expires, grant.expires or inf)

    def drop(self, id: int) -> None:
        """Take a grant out; nothing when it is not there."""
        grant = self._grants.pop(id, None)
        if grant is not None:
            self.asks -= grant.mode == "ask"
            mine = self._of[grant.subject]
            del mine[id]
            if not mine:
                del self._of[grant.subject]

    def expired(self, now: float) -> list[GrantRecord]:
        """Take out what has expired; return it."""
        if now < self.expires:
            return []
        gone = [grant for grant in self._grants.values() if grant.expires and grant.expires <= now]
        for grant in gone:
            self.drop(grant.id)
        left = [grant.expires for grant in self._grants.values() if grant.expires]
        self.expires = min(left, default=inf)
        return gone

    def same(self, wanted: GrantRecord) -> GrantRecord | None:
        """Return the grant of the same capability on the same object to the same subject."""
        for grant in self._of.get(wanted.subject, {}).values():
            if (grant.capability, grant.object) == (wanted.capability, wanted.object):
                return grant
        return None

    def of(self, subject: str) -> list[GrantRecord]:
        """Return a subject's grants."""
        return list(self._of.get(subject, {}).values())

    def groups(self, subject: str) -> frozenset[str]:
        """Return the groups that a subject was made a member of."""
        return frozenset(
            grant.object.removeprefix("group:")
            for grant in self._of.get(subject, {}).values()
            if grant.capability == "member"
        )

    def verdict(self, party: Party, capability: str, objects: Collection[str]) -> Verdict | None:
        """Return what grants say of a party's capability on any of the objects; None: nothing."""
        for subjects in ((party.subject,), [f"group:{name}" for name in party.groups]):
            modes = {
                grant.mode
                for subject in subjects
                for grant in self._of.get(subject, {}).values()
                if grant.capability == capability and grant.object in objects
            }
            if modes:
                return Verdict.ASK if "ask" in modes else Verdict.ALLOW
        return None


def check(grant: GrantRecord) -> None:
    """Raise OSError(EINVAL) for a grant that means nothing, with what would."""
    if grant.capability not in CAPABILITIES:
        known = ", ".join(sorted(CAPABILITIES))
        raise _wrong(f"capability: there is no {grant.capability!r}; there are {known}")
    if grant.mode not in MODES:
        raise _wrong(f"mode: {grant.mode!r} is neither allow nor ask")
    kind, _ = parse(grant.subject, "subject")
    if kind == "kernel":
        raise _wrong("subject: agent:AID, group:NAME or uid:UID, not the kernel")
    on, _ = parse(grant.object, "object")
    if grant.capability in GROUP and (on != "group" or grant.mode != "allow"):
        raise _wrong(f"{grant.capability} is given on group:NAME, with mode allow")
    if grant.capability in ("admin", "audit") and on != "kernel":
        raise _wrong(f"{grant.capability} is given on the object `kernel`")
    if grant.capability in SELF | OVER and on == "kernel":
        raise _wrong(f"{grant.capability} is given on agent:AID, group:NAME or uid:UID")
    if grant.capability == "member" and kind == "group":
        raise _wrong("subject: a member is agent:AID or uid:UID; groups don't belong to groups")


def parse(text: str, field: str) -> tuple[str, str]:
    """Return the kind and the name of a subject or object; OSError(EINVAL) for any other text."""
    kind, colon, name = text.partition(":")
    if text == "kernel":
        return "kernel", ""
    number = name.isascii() and name.isdecimal() and name == str(int(name)) and len(name) <= 10
    if colon and ((kind in ("agent", "uid") and number) or (kind == "group" and _named(name))):
        return kind, name
    raise _wrong(f"{field}: {text!r} is not agent:AID, group:NAME or uid:UID (or kernel)")


def _named(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def _wrong(sentence: str) -> OSError:
    return OSError(errno.EINVAL, sentence)
