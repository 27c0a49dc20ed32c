"""Contexts: what a model has read for an agent, kept between its requests.

A context belongs to one agent and lives on one core; its tokens and the record of its KV are here
(in its `Sequence`), the KV itself wherever the core has put it.

What must hold: at most one request at a time works on a context (`busy`); an agent has no more
than the configured number, the longest unused idle one making room; with its agent they all go.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aiosd.abi import inference as abi
from aiosd.access import Access, Caller
from aiosd.cores.local import LocalCore
from aiosd.cores.sequence import Place, Sequence


@dataclass(slots=True, eq=False)
class Context:
    """One context. busy: a request works on it. created, used: Unix time."""

    sequence: Sequence
    core: LocalCore
    busy: bool = False
    policy: str = "error"
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)

    @property
    def cid(self) -> int:
        """The context's id, never used again while this kernel's state lives."""
        return self.sequence.cid

    @property
    def tier(self) -> str:
        """Where its KV is: slot, ram, or tokens when it would have to be computed again."""
        if self.sequence.resident:
            return "slot"
        return "ram" if self.sequence.snapshot else "tokens"

    @property
    def kv_ram(self) -> int:
        """Bytes that its KV takes, in a slot and in a buffer."""
        snapshot = self.sequence.snapshot
        in_slot = self.sequence.cells(self.sequence.slot_kv) * self.core.placement.bytes_per_token
        return in_slot + (snapshot.size if snapshot else 0)

    def row(self) -> abi.Context:
        """Describe it for list_contexts."""
        sequence = self.sequence
        return abi.Context(
            cid=self.cid,
            aid=sequence.aid,
            core=self.core.name,
            tier=self.tier,
            tokens=len(sequence.tokens),
            kv=sequence.held,
            limit=self.core.setup.n_ctx,
            bytes=self.kv_ram,
            slot=sequence.slot,
            policy=self.policy,
            exact=bool(self.core.loaded and self.core.loaded.exact),
            created=self.created,
            used=self.used,
            busy=self.busy,
        )


class Contexts:
    """All contexts of this kernel, by id and by agent. new_cid: gives an id never given before."""

    def __init__(self, new_cid: Callable[[], int], access: Access, max_per_agent: int) -> None:
        self.max_per_agent = max_per_agent
        self._new_cid = new_cid
        self._access = access
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
            reason = "it was cleared, made room for newer ones, or ended with its agent or aiosd"
            raise FileNotFoundError(errno.ENOENT, f"no context {cid}: {reason}")
        return context

    def create(self, core: LocalCore, aid: int, uid: int, nice: int) -> Context:
        """Make an empty context on a core; raises OSError(EAGAIN) when the agent has too many."""
        self._make_room(aid)
        sequence = Sequence(cid=self._new_cid(), aid=aid, uid=uid, nice=nice)
        context = Context(sequence, core)
        core.add(sequence)
        self._all[context.cid] = context
        self._of.setdefault(aid, {})[context.cid] = context
        return context

    async def copy(self, parent: Context, aid: int) -> Context:
        """Give an agent a copy of a context: its tokens, its record, and its KV as it is held."""
        source, core = parent.sequence, parent.core
        await core.placement.save(source)
        child = self.create(core, aid, source.uid, source.nice)
        target = child.sequence
        target.tokens = list(source.tokens)
        target.history, target.kv = list(source.history), source.kv
        core.placement.copy_snapshot(source, target)
        child.policy = parent.policy
        return child

    def forget(self, context: Context) -> None:
        """Drop a context and everything it holds; a request on it ends as its core says."""
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
        idle = [context for context in mine.values() if not context.busy]
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

    def sys_get_context(self, caller: Caller, args: abi.GetContext) -> abi.Context:
        """Describe one context."""
        return self.get(args.context).row()

    def sys_clr_context(self, caller: Caller, args: abi.ClrContext) -> None:
        """Forget a context."""
        context = self.get(args.context)
        if context.busy:
            raise OSError(
                errno.EBUSY,
                f"clr_context: context {context.cid} is at work; cancel its request first",
            )
        self.forget(context)


def runs(context: Context) -> bool:
    """Whether the core is computing this context right now."""
    return context.sequence.place is Place.LIVE
