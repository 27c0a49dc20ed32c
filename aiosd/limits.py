"""Limits: what may be used, by whom, in which span of time. Pure: no clock, no database, no call.

    book = Book()
    book.put(Limit("agent:5", "tokens", "root", 1000, period=60.0, since=now))
    book.reserve(Reservation(rid, aid, subjects), {"tokens": 160}, now)   # or Exceeded
    book.settle(rid, {"tokens": 120}, now)

A limit has a subject, a resource and a setter: who set it. Subjects: `agent:AID` (that agent and
all that descends from it), `group:NAME` (its members, and its pool), `uid:UID` (all agents of that
uid, and the person). Limits on one thing set by several all hold, so nobody widens what another
one set.

Two kinds of resource. What flows (tokens, dollars, requests, calls of tools) is used up: a limit
with a period begins anew after it. What is held (KV, memory, storage, children, requests in flight)
is free again when it is given back, and has no period. Amounts are whole numbers, dollars in
billionths (NANO).

What must hold: with hard limits alone, used + reserved never exceeds a limit by anything reserved
after it was set; a reservation that doesn't fit changes nothing; it ends exactly once.
"""

from __future__ import annotations

import difflib
import errno
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

NANO: Final = 10**9
"""Amounts of dollars are in billionths."""
LONGEST: Final = 366 * 86400.0
"""Seconds that a period may have at most."""
SHORTEST: Final = 1.0
MOST: Final = 2**53
"""The highest limit; of dollars a billion."""


@dataclass(frozen=True)
class Resource:
    """Something that can be limited. flows: it is used up. cure: for whoever is refused."""

    name: str
    words: str
    cure: str
    flows: bool = False


RESOURCES: Final = {
    resource.name: resource
    for resource in (
        Resource("tokens", "tokens", "ask for fewer (max_tokens)", flows=True),
        Resource("dollars", "dollars", "ask for fewer tokens, or another core", flows=True),
        Resource("requests", "requests", "ask less often", flows=True),
        Resource("tool_calls", "calls of tools", "call tools less often", flows=True),
        Resource("concurrent", "requests in flight", "wait for one to end"),
        Resource("children", "living agents", "let some end"),
        Resource("kv_bytes", "bytes of KV", "clear a context (clr_context), or ask for less"),
        Resource("working_bytes", "bytes of working memory", "mem_alloc less elsewhere"),
        Resource("memory_records", "records of memory", "delete_memory some"),
        Resource("memory_bytes", "bytes of memory", "delete_memory some"),
        Resource("storage_objects", "stored objects", "sto_delete some"),
        Resource("storage_bytes", "bytes of storage", "sto_delete some"),
    )
}
"""Every resource there is, by name."""


@dataclass(slots=True, eq=False)
class Limit:
    """One limit. since: when its period began, Unix time. period: seconds, 0: it never ends.

    used and reserved are of what flows; of what is held, used is what somebody counted last (None:
    nobody has), and `epoch` when. told: a soft limit's excess was told in this period.
    """

    subject: str
    resource: str
    setter: str
    amount: int
    hard: bool = True
    period: float = 0.0
    since: float = 0.0
    used: int | None = 0
    reserved: int = 0
    epoch: int = -1
    told: bool = False

    @property
    def name(self) -> tuple[str, str, str]:
        """What it is known by."""
        return self.subject, self.resource, self.setter

    @property
    def resets(self) -> float:
        """When the period ends, Unix time; 0: never."""
        return self.since + self.period if self.period else 0.0

    @property
    def left(self) -> int:
        """What may still be reserved; below 0 where a limit came late, or is soft."""
        return self.amount - (self.used or 0) - self.reserved

    def roll(self, now: float) -> None:
        """Begin a new period when the last one is over. A clock that goes back changes nothing."""
        if self.period and now >= self.since + self.period:
            self.since += math.floor((now - self.since) / self.period) * self.period
            self.used, self.told = 0, False


class Exceeded(Exception):
    """A hard limit leaves no room. wanted: what was to come on top."""

    def __init__(self, limit: Limit, wanted: int) -> None:
        super().__init__(f"{wanted} on top of {limit}")
        self.limit = limit
        self.wanted = wanted


@dataclass(slots=True, eq=False)
class Reservation:
    """What a request in flight may use up at worst. subjects: whom it is charged to."""

    rid: int
    aid: int
    subjects: tuple[str, ...]
    amounts: dict[str, int] = field(default_factory=dict)


class Book:
    """All limits and all open reservations."""

    def __init__(self) -> None:
        self.open: dict[int, Reservation] = {}
        self._limits: dict[tuple[str, str, str], Limit] = {}
        self._of: dict[str, dict[str, list[Limit]]] = {}  # by subject, by resource

    def __iter__(self) -> Iterator[Limit]:
        return iter(list(self._limits.values()))

    def __len__(self) -> int:
        return len(self._limits)

    def get(self, name: tuple[str, str, str]) -> Limit | None:
        """Return a limit by subject, resource and setter."""
        return self._limits.get(name)

    def put(self, limit: Limit) -> None:
        """Enter a limit, in place of the one of the same name; what is reserved counts at once."""
        self.drop(limit.name)
        self._limits[limit.name] = limit
        self._of.setdefault(limit.subject, {}).setdefault(limit.resource, []).append(limit)
        limit.reserved = sum(
            each.amounts.get(limit.resource, 0)
            for each in self.open.values()
            if limit.subject in each.subjects
        )

    def drop(self, name: tuple[str, str, str]) -> None:
        """Take a limit out; nothing when there is none."""
        limit = self._limits.pop(name, None)
        if limit is not None:
            mine = self._of[limit.subject]
            mine[limit.resource].remove(limit)
            if not mine[limit.resource]:
                del mine[limit.resource]
            if not mine:
                del self._of[limit.subject]

    def of(self, subject: str) -> list[Limit]:
        """Return a subject's own limits."""
        return [limit for limits in self._of.get(subject, {}).values() for limit in limits]

    def binding(self, subjects: Iterable[str]) -> dict[str, tuple[Limit, ...]]:
        """Return the limits that bind whoever is charged to these subjects, by resource."""
        found: dict[str, list[Limit]] = {}
        for subject in subjects:
            for resource, limits in self._of.get(subject, {}).items():
                found.setdefault(resource, []).extend(limits)
        return {resource: tuple(limits) for resource, limits in found.items()}

    def reserve(
        self, reservation: Reservation, amounts: Mapping[str, int], now: float
    ) -> list[Limit]:
        """Make a request's reservation these amounts; what it has of others stays.

        Returns the soft limits that it exceeds. Raises Exceeded, with nothing changed.
        """
        more = {
            resource: amount - reservation.amounts.get(resource, 0)
            for resource, amount in amounts.items()
        }
        binding = self.binding(reservation.subjects)
        over = check(binding, more, now)
        for resource, amount in more.items():
            for limit in binding.get(resource, ()):
                limit.reserved += amount
        reservation.amounts.update(amounts)
        self.open[reservation.rid] = reservation
        return over

    def settle(self, rid: int, spent: Mapping[str, int], now: float) -> list[tuple[Limit, int]]:
        """End a reservation: what was spent is used, the rest free. Returns what is to be charged.

        What ends in a period counts there, whenever it began.
        """
        reservation = self.open.pop(rid, None)
        if reservation is None:
            return []
        charges = []
        for resource, limits in self.binding(reservation.subjects).items():
            amount = spent.get(resource, 0) if RESOURCES[resource].flows else 0
            for limit in limits:
                limit.roll(now)
                limit.reserved -= reservation.amounts.get(resource, 0)
                if amount:
                    limit.used = (limit.used or 0) + amount
                    charges.append((limit, amount))
        return charges


def check(
    binding: Mapping[str, tuple[Limit, ...]], more: Mapping[str, int], now: float
) -> list[Limit]:
    """Return the soft limits that so much more would exceed; raises Exceeded for a hard one.

    What only gets less is never refused.
    """
    over = []
    for resource, limits in binding.items():
        amount = more.get(resource, 0)
        if amount <= 0:
            continue
        for limit in limits:  # on every request's way: properties and calls only where needed
            if limit.period and now >= limit.since + limit.period:
                limit.roll(now)
            if amount > limit.amount - (limit.used or 0) - limit.reserved:
                if limit.hard:
                    raise Exceeded(limit, amount)
                over.append(limit)
    return over


# What may be set.


def amount(resource: str, value: float) -> int:
    """Return a value as the book counts it. Raises OSError(EINVAL) that names field and cure."""
    if resource not in RESOURCES:
        near = difflib.get_close_matches(resource, RESOURCES, 1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise _wrong(
            f"field 'resource': there is no {resource!r}{hint}; there are {', '.join(RESOURCES)}"
        )
    if not math.isfinite(value) or value < 0:
        raise _wrong(f"field 'limit': {value} is no amount; give 0 or more")
    most = NANO if resource == "dollars" else MOST
    if value > most:
        raise _wrong(f"field 'limit': {value:g} {resource}, the highest limit is {most}")
    if resource == "dollars":
        return round(value * NANO)
    if value != int(value):
        raise _wrong(f"field 'limit': {value} {resource}: a whole number counts them")
    return int(value)


def value(resource: str, amount: int) -> float:
    """Return an amount of the book as people count it."""
    return amount / NANO if resource == "dollars" else float(amount)


def check_period(resource: str, period: float) -> None:
    """Raise OSError(EINVAL) for a period that can't be, with what can."""
    if not period:
        return
    if not RESOURCES[resource].flows:
        flows = ", ".join(name for name, each in RESOURCES.items() if each.flows)
        raise _wrong(
            f"field 'period': {resource} are held, not used up, so nothing resets: give 0 "
            f"(periods are for {flows})"
        )
    if not SHORTEST <= period <= LONGEST:
        raise _wrong(
            f"field 'period': {period:g} s, it is {SHORTEST:g} to {LONGEST:g} s (366 days), or 0: "
            "never resets"
        )


def refusal(error: Exceeded, call: str, now: float) -> OSError:
    """Return the EDQUOT that says which limit left no room, how much is left, when it resets."""
    limit, resource = error.limit, RESOURCES[error.limit.resource]
    held = "used" if resource.flows else "held"
    used = f"{show(limit.resource, limit.used or 0)} {held}"
    if limit.reserved:
        used += f", {show(limit.resource, limit.reserved)} reserved"
    return OSError(
        errno.EDQUOT,
        f"{call}: {show(limit.resource, error.wanted)} more {resource.words} are more than the "
        f"{show(limit.resource, max(0, limit.left))} that the quota of {limit.subject} leaves "
        f"({limit.resource} {show(limit.resource, limit.amount)} set by {limit.setter}: {used}); "
        f"{_when(error, now)}",
    )


def _when(error: Exceeded, now: float) -> str:
    limit, resource = error.limit, RESOURCES[error.limit.resource]
    if not resource.flows:
        return resource.cure
    if error.wanted > limit.amount:
        return f"that is more than it ever allows: {resource.cure}"
    if not limit.resets:
        return f"it never resets: {resource.cure}, or have it raised (set_quota)"
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(limit.resets))
    return f"it resets at {moment}, in {max(0.0, limit.resets - now):.1f} s; {resource.cure}"


def show(resource: str, amount: int) -> str:
    """Return an amount in words."""
    if resource == "dollars":
        return f"{amount / NANO:.9f}".rstrip("0").rstrip(".")
    return str(amount)


def _wrong(sentence: str) -> OSError:
    return OSError(errno.EINVAL, f"set_quota: {sentence}")
