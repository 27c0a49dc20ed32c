"""Working memory: keyed records in the kernel's own memory, as long as their agent lives.

mem_alloc, mem_write, mem_read and mem_clear answer at once, without a task or the disk: the one
state of an agent that is not durable. A forked child gets a copy.

What must hold: an agent holds no more than it reserved (working_default until mem_alloc, less where
a quota leaves less), all agents together have reserved no more than working_total, and what an
agent that has ended held is free again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiosd.abi import memory as abi
from aiosd.access import Caller
from aiosd.settings import Memory

if TYPE_CHECKING:
    from aiosd.proc import ProcessTable
    from aiosd.quota import Quotas

RECORD_COST: Final = 128
"""Bytes that a record counts beside its name and value: what the kernel needs to keep it."""


class _Space:
    """One agent's records. limit: bytes reserved for it."""

    __slots__ = ("limit", "records", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.records: dict[str, bytes] = {}

    def told(self) -> abi.Space:
        return abi.Space(self.limit, self.used, len(self.records))


class WorkingMemory:
    """The working memory of all agents. settings: gives the limits as they are now."""

    def __init__(self, table: ProcessTable, quotas: Quotas, settings: Callable[[], Memory]) -> None:
        self._table = table
        self._quotas = quotas
        self._settings = settings
        self._spaces: dict[int, _Space] = {}
        self.reserved = 0  # bytes, the limits of all spaces
        table.on_settled(self.forget)
        table.on_forked(self.copy)

    @property
    def used(self) -> int:
        """Bytes that all agents' records count."""
        return sum(space.used for space in self._spaces.values())

    def held(self, subject: str) -> int:
        """Return the bytes that the agents which a subject stands for have reserved."""
        covers = self._quotas.covers
        return sum(space.limit for aid, space in self._spaces.items() if covers(subject, aid))

    def forget(self, aid: int) -> None:
        """Free what an agent held."""
        space = self._spaces.pop(aid, None)
        if space is not None:
            self.reserved -= space.limit

    def copy(self, parent: int, child: int) -> None:
        """Give a forked child a copy of its parent's records; raises OSError(ENOMEM)."""
        source = self._spaces.get(parent)
        if source is None:
            return
        self.forget(child)
        self._reserve(child, source.limit, "fork")
        space = self._spaces[child] = _Space(source.limit)
        space.records, space.used = dict(source.records), source.used

    def sys_mem_alloc(self, caller: Caller, args: abi.MemAlloc) -> abi.Space:
        """Make the caller's reservation so many bytes; raises OSError(ENOMEM)."""
        space = self._space(caller, "mem_alloc")
        most = self._settings().working_limit
        if args.size > most:
            raise OSError(
                errno.ENOMEM,
                f"mem_alloc: {args.size} bytes, the limit is {most} ([memory] working_limit)",
            )
        if args.size < space.used:
            raise OSError(
                errno.ENOMEM,
                f"mem_alloc: {args.size} bytes are fewer than the {space.used} in use; "
                "mem_clear some first",
            )
        self._reserve(caller.aid, args.size - space.limit, "mem_alloc")
        space.limit = args.size
        return space.told()

    def sys_mem_write(self, caller: Caller, args: abi.MemWrite) -> abi.Space:
        """Keep a record; raises OSError(ENOMEM) when it doesn't fit, with nothing changed."""
        space = self._spaces.get(caller.aid) or self._space(caller, "mem_write")
        name, value = args.name, args.value
        old = space.records.get(name)
        more = len(value) - len(old) if old is not None else _cost(name, value)
        if space.used + more > space.limit:
            self._quotas.may_hold(caller.aid, {"working_bytes": more}, "mem_write")
            raise OSError(
                errno.ENOMEM,
                f"mem_write: {space.used} of {space.limit} bytes are in use, this record needs "
                f"{more} more; mem_clear some, or mem_alloc more",
            )
        space.records[name] = value
        space.used += more
        return space.told()

    def sys_mem_read(self, caller: Caller, args: abi.MemRead) -> bytes:
        """Return a record; raises FileNotFoundError."""
        space = self._spaces.get(caller.aid) or self._space(caller, "mem_read")
        value = space.records.get(args.name)
        if value is None:
            raise _missing("mem_read", args.name)
        return value

    def sys_mem_clear(self, caller: Caller, args: abi.MemClear) -> abi.Space:
        """Remove one record, or all; raises FileNotFoundError for one that is not there."""
        space = self._space(caller, "mem_clear")
        if not args.name:
            space.records.clear()
            space.used = 0
        else:
            value = space.records.pop(args.name, None)
            if value is None:
                raise _missing("mem_clear", args.name)
            space.used -= _cost(args.name, value)
        return space.told()

    def _space(self, caller: Caller, call: str) -> _Space:
        if not caller.aid:
            raise ProcessLookupError(
                errno.ESRCH,
                f"{call}: this connection is no agent, and working memory is an agent's; call "
                "register_agent first (aios.connect(name=...))",
            )
        space = self._spaces.get(caller.aid)
        if space is None:
            self._table.get(caller.aid)
            limit, room = self._settings().working_default, None
            if self._quotas.active:
                room = self._quotas.room(caller.aid, "working_bytes")
            limit = limit if room is None else min(limit, room)
            self._reserve(caller.aid, limit, call)
            space = self._spaces[caller.aid] = _Space(limit)
        return space

    def _reserve(self, aid: int, size: int, call: str) -> None:
        self._quotas.may_hold(aid, {"working_bytes": size}, call)
        total = self._settings().working_total
        if size > 0 and self.reserved + size > total:
            raise OSError(
                errno.ENOMEM,
                f"{call}: the agents have reserved {self.reserved} of {total} bytes ([memory] "
                f"working_total), {size} more don't fit; let others mem_alloc less",
            )
        self.reserved += size


def _cost(name: str, value: bytes) -> int:
    return len(name.encode()) + len(value) + RECORD_COST


def _missing(call: str, name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"{call}: no record {name!r} in working memory")
