"""Contexts: what a model has read for an agent, kept between its requests.

A context belongs to one agent and lives on one core; its tokens and the record of its KV are here
(in its `Sequence`), the KV itself wherever the core has put it.

A context outlives the kernel: the journal has its tokens and how their KV came to be, so that the
next kernel can have it computed again, bit for bit, where the core is still the one that it was.

What must hold: at most one request at a time works on a context (`busy`); an agent has no more
than the configured number, the longest unused idle one making room; with its agent they all go.
"""

from __future__ import annotations

import errno
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aiosd import pictures
from aiosd.abi import inference as abi
from aiosd.access import Access, Caller
from aiosd.cores.core import Core
from aiosd.cores.local import LocalCore
from aiosd.cores.sequence import DISK, RAM, Place, Sequence
from aiosd.engine import runs as record
from aiosd.engine.protocol import SHIFT
from aiosd.journal import ContextRow, Journal
from aiosd.window import Window


@dataclass(slots=True, eq=False)
class Context:
    """One context. busy: a request works on it. created, used: Unix time.

    exact: False once its KV could not be rebuilt as on record. fingerprint: of the core (model,
    build, processor, setting) that computed its KV, "" before one did. gone: it was forgotten.
    snapshots: how many named ones it has. held: a request that calls tools is between two of its
    rounds on it, and nobody else may change it. route: why its latest request is on this core.
    turns: of the chat, on a provider's core, where they are all there is; the list is never
    changed, but replaced.
    """

    sequence: Sequence
    core: Core
    busy: bool = False
    window: Window = field(default_factory=Window)
    exact: bool = True
    fingerprint: str = ""
    gone: bool = False
    snapshots: int = 0
    held: bool = False
    route: str = ""
    turns: list[abi.Turn] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)

    def meta(self) -> dict[str, Any]:
        """Return what the journal keeps beside tokens and history: JSON, a fresh dict."""
        return {
            "exact": self.exact,
            "window": self.window.meta(),
            "public": self.sequence.public,
            "shared": self.sequence.shared,
            **({"turns": msgspec.to_builtins(self.turns)} if self.turns else {}),
        }

    def take_meta(self, meta: dict[str, Any]) -> None:
        """Take back what `meta` gave, under this kernel or an earlier one that knew less."""
        self.window = Window.of(meta.get("window", {"policy": meta.get("policy", "error")}))
        self.exact = meta.get("exact", self.exact)
        self.sequence.public = meta.get("public", 0)
        self.sequence.shared = meta.get("shared", 0)
        self.turns = msgspec.convert(meta.get("turns", []), list[abi.Turn])

    def record(self) -> ContextRow:
        """Return all of it as it is at this moment, for the journal."""
        sequence = self.sequence
        return ContextRow(
            cid=sequence.cid,
            aid=sequence.aid,
            uid=sequence.uid,
            core=self.core.name,
            fingerprint=self.fingerprint,
            tokens=sequence.tokens.copy(),
            runs=sequence.history.copy(),
            kv=sequence.kv,
            meta=self.meta(),
            created=self.created,
            used=self.used,
            bulk=pictures.size(self.turns),
        )

    def fit(self) -> bool:
        """Make its record hold for its core, which must be loaded; the sequence is settled.

        KV that another model, build or setting computed can't be had again: that record is void,
        and the context computed anew is no longer what a solo run would have. Returns whether the
        core is such another one.
        """
        loaded = self.local.loaded
        assert loaded is not None
        before, self.fingerprint = self.fingerprint, loaded.fingerprint
        moved = before not in ("", self.fingerprint)
        if moved and self.sequence.kv:
            tokens = self.sequence.tokens
            self.restart(record.window(tokens, self.sequence.history), tokens)
            self.exact = False
        return moved

    def restart(self, kept: list[int], tokens: list[int], inserted: Iterable[int] = ()) -> None:
        """Begin anew with those of the tokens that are at these indices; its KV is void.

        inserted: tokens that come right behind the system prompt.
        """
        window, sequence, more = self.window, self.sequence, list(inserted)
        system = bisect_left(kept, window.head)
        window.slid += sum(run.kind == SHIFT for run in sequence.history)
        window.restart(kept, len(tokens), len(more))
        stay = [*(tokens[at] for at in kept[:system]), *more, *(tokens[at] for at in kept[system:])]
        self.local.placement.restart(sequence, stay)

    @property
    def blank(self) -> bool:
        """Whether nothing was read into it yet."""
        return not (self.sequence.tokens or self.turns)

    @property
    def local(self) -> LocalCore:
        """Its core, whose KV is in our hands; raises OSError(ENOTSUP) where it is not."""
        if not isinstance(self.core, LocalCore):
            raise OSError(
                errno.ENOTSUP,
                f"context {self.cid} is on core {self.core.name}, a provider's: what it has read "
                "is kept here as text alone; this can be asked of contexts on local cores",
            )
        return self.core

    @property
    def certain(self) -> bool:
        """Whether its core promises the tokens of a solo run, and its KV is what it would be."""
        return self.exact and self.core.certain

    @property
    def engaged(self) -> bool:
        """Whether it is somebody's: a request works on it, or will go on with it."""
        return self.busy or self.held

    @property
    def cid(self) -> int:
        """The context's id, never used again while this kernel's state lives."""
        return self.sequence.cid

    @property
    def tier(self) -> str:
        """Where its KV is: slot, ram, disk, or tokens when it would have to be computed again.

        remote: there is none here, a provider computes it.
        """
        if not isinstance(self.core, LocalCore):
            return "remote"
        if self.sequence.resident:
            return "slot"
        snapshot = self.sequence.snapshot
        return snapshot.tier if snapshot else "tokens"

    @property
    def kv_ram(self) -> int:
        """Bytes that its KV takes, in a slot and in memory; files that are shared count in full."""
        in_slot = self.sequence.cells(self.sequence.slot_kv) * self.core.bytes_per_token
        return in_slot + self._bytes(RAM)

    @property
    def kv_disk(self) -> int:
        """Bytes that its KV takes on disk."""
        return self._bytes(DISK)

    def _bytes(self, tier: str) -> int:
        return sum(s.size for s in self.sequence.snapshots if s.tier == tier)

    def row(self) -> abi.Context:
        """Describe it for list_contexts."""
        sequence = self.sequence
        return abi.Context(
            cid=self.cid,
            aid=sequence.aid,
            core=self.core.name,
            tier=self.tier,
            tokens=sequence.length,
            kv=sequence.cells(sequence.held),
            limit=self.core.window,
            bytes=self.kv_ram,
            slot=sequence.slot,
            policy=self.window.policy,
            exact=self.certain,
            created=self.created,
            used=self.used,
            shared=sequence.shared,
            busy=self.engaged,
            ram=self.kv_ram,
            disk=self.kv_disk,
            snapshots=self.snapshots,
            note=sequence.note,
            length=self.window.before + len(sequence.tokens),
            slid=self.window.slid + sum(run.kind == SHIFT for run in sequence.history),
            truncated=self.window.truncated,
            summarized=self.window.summarized,
            expanded=self.window.expanded,
        )


class Contexts:
    """All contexts of this kernel, by id and by agent. new_cid: gives an id never given before."""

    def __init__(
        self, new_cid: Callable[[], int], access: Access, journal: Journal, max_per_agent: int
    ) -> None:
        self.max_per_agent = max_per_agent
        self._new_cid = new_cid
        self._journal = journal
        self._access = access
        self.forgotten: Callable[[int], None] = lambda cid: None  # told of each that goes
        self.count: Callable[[Core, int], None]  # told of requests that change their core
        self._all: dict[int, Context] = {}
        self._of: dict[int, dict[int, Context]] = {}
        access.context_owner = self.owner

    def __iter__(self) -> Iterator[Context]:
        return iter(list(self._all.values()))

    def of(self, aid: int) -> list[Context]:
        """Return an agent's contexts, oldest first."""
        return list(self._of.get(aid, {}).values())

    def owner(self, cid: int) -> int:
        """Return the agent that a context belongs to; raises FileNotFoundError."""
        return self.get(cid).sequence.aid

    def get(self, cid: int) -> Context:
        """Return a context; raises FileNotFoundError that says what may have become of it."""
        context = self._all.get(cid)
        if context is None:
            reason = "it was cleared, made room for newer ones, or ended with its agent"
            raise FileNotFoundError(errno.ENOENT, f"no context {cid}: {reason}")
        return context

    def create(
        self,
        core: Core,
        aid: int,
        uid: int,
        nice: int,
        policy: str = "error",
        *,
        internal: bool = False,
    ) -> Context:
        """Make an empty context on a core; raises OSError(EAGAIN) when the agent has too many.

        policy: what it does when its window is full. internal: it is the kernel's own, for one
        request, and counts for nothing.
        """
        if not internal:
            self._make_room(aid)
        sequence = Sequence(cid=self._new_cid(), aid=aid, uid=uid, nice=nice)
        window = Window(policy=policy, internal=internal)
        return self._enter(Context(sequence, core, window=window))

    def restore(self, row: ContextRow, core: Core, nice: int) -> Context:
        """Make a context of an earlier kernel again, its KV yet to be found or computed."""
        sequence = Sequence(cid=row.cid, aid=row.aid, uid=row.uid, nice=nice)
        sequence.tokens, sequence.history, sequence.kv = row.tokens, row.runs, row.kv
        context = Context(sequence, core, fingerprint=row.fingerprint)
        context.created, context.used = row.created, row.used
        context.take_meta(row.meta)
        return self._enter(context)

    def _enter(self, context: Context) -> Context:
        context.core.add(context.sequence)
        self._all[context.cid] = context
        self._of.setdefault(context.sequence.aid, {})[context.cid] = context
        return context

    def move(self, context: Context, core: Core) -> None:
        """Put a context whose core is gone on another one of the same name."""
        old, context.core = context.core, core
        if context.busy:
            self.count(old, -1)
            self.count(core, 1)
        old.part(context.sequence)
        core.add(context.sequence)

    def find(self, cid: int) -> Context | None:
        """Return a context, None when there is none of this id."""
        return self._all.get(cid)

    def sequences(self) -> dict[int, Sequence]:
        """Return all sequences by context id."""
        return {cid: context.sequence for cid, context in self._all.items()}

    async def keep(self, context: Context) -> None:
        """Make a context durable as it is, once it holds something."""
        if not context.blank:
            await self._journal.save([context.record()])

    async def save(self, aid: int) -> None:
        """Make an agent's contexts durable as they are. Raises OSError when the disk fails."""
        await self._journal.save(context.record() for context in self.of(aid))

    async def copy(self, parent: Context, aid: int) -> Context:
        """Give an agent a copy of a context: its tokens, its record, and its KV as it is held."""
        if not isinstance(parent.core, LocalCore):
            child = self.create(parent.core, aid, parent.sequence.uid, parent.sequence.nice)
            child.take_meta(parent.meta())
            return child
        source, core = parent.sequence, parent.local
        await core.placement.save(source)
        child = self.create(core, aid, source.uid, source.nice)
        target = child.sequence
        target.tokens = list(source.tokens)
        target.history, target.kv = list(source.history), source.kv
        core.placement.copy_snapshot(source, target)
        child.take_meta(parent.meta())
        child.fingerprint = parent.fingerprint
        target.public, target.shared = source.public, target.held
        core.sharing.enter(target)
        return child

    def forget(self, context: Context) -> None:
        """Drop a context and everything it holds; a request on it ends as its core says."""
        context.gone = True
        self._journal.forget(context.cid)
        self.forgotten(context.cid)
        self._all.pop(context.cid, None)
        mine = self._of.get(context.sequence.aid, {})
        mine.pop(context.cid, None)
        if not mine:
            self._of.pop(context.sequence.aid, None)
        context.core.forget(context.sequence)

    def _make_room(self, aid: int) -> None:
        mine = self._of.get(aid, {})
        if len(mine) < self.max_per_agent:
            return
        idle = [context for context in mine.values() if not context.engaged]
        if not idle:
            raise OSError(
                errno.EAGAIN,
                f"agent {aid} has {len(mine)} contexts at work, the limit is {self.max_per_agent} "
                "([context] max_per_agent); wait for a request to end",
            )
        self.forget(min(idle, key=lambda context: context.used))

    # System calls.

    def sys_list_contexts(self, caller: Caller, args: abi.ListContexts) -> list[abi.Context]:
        """List contexts that the caller may see."""
        found = self.of(args.aid) if args.aid else self
        return [
            context.row() for context in found if self._access.may_see(caller, context.sequence.aid)
        ]

    async def sys_clr_context(self, caller: Caller, args: abi.ClrContext) -> None:
        """Forget a context; answered once that is durable."""
        context = self.get(args.context)
        if context.engaged:
            raise OSError(
                errno.EBUSY,
                f"clr_context: context {context.cid} is at work; cancel its request first",
            )
        self.forget(context)
        await self._journal.settled()


def runs(context: Context) -> bool:
    """Whether the core is computing this context right now."""
    return context.sequence.place is Place.LIVE
