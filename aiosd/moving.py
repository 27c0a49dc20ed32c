"""Moving: contexts go from one core to another, because they are told to, or their core leaves.

Between cores of one model, build and setting the KV goes along, and the next token is the one that
it would have been. Between others of one model the tokens go, and their KV is computed anew. What
was on a provider's core is turns, which any core can read: its next request begins with them.

What must hold: a context that moves is on one core at any time, and nobody works on it meanwhile;
one that can't move stays as it was.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING

from aiosd import pictures
from aiosd.abi import cores as abi
from aiosd.abi import inference as abi_inference
from aiosd.access import Caller
from aiosd.context import Context, Contexts
from aiosd.cores.core import Core
from aiosd.cores.dispatcher import Cores
from aiosd.cores.local import LocalCore
from aiosd.cores.offer import VISION

if TYPE_CHECKING:
    from aiosd.events import Events

log = logging.getLogger(__name__)


class Moving:
    """Moves contexts between the cores of this kernel."""

    def __init__(self, cores: Cores, contexts: Contexts, events: Events) -> None:
        self._cores = cores
        self._contexts = contexts
        self._events = events
        self._leaving: set[asyncio.Task[None]] = set()
        cores.evacuate = self.evacuate

    async def sys_move_context(
        self, caller: Caller, args: abi.MoveContext
    ) -> abi_inference.Context:
        """Put an idle context on another core; durable when answered."""
        context = self._contexts.get(args.context)
        core = self._cores.get(args.core)
        if context.engaged:
            raise OSError(
                errno.EBUSY, f"move_context: context {context.cid} is at work; wait for its request"
            )
        if core is not context.core:
            await self._move(context, core)
            await self._contexts.keep(context)
        return context.row()

    async def evacuate(self, core: Core) -> None:
        """Move the idle contexts of a core that is to go to others that can go on with their KV."""
        for context in list(self._contexts):
            if context.core is not core or context.engaged or not isinstance(core, LocalCore):
                continue
            other = self._sibling(context)
            if other is None:
                continue
            try:
                await self._move(context, other)
                await self._contexts.keep(context)
            except OSError as error:
                log.warning("context %d stays on core %s: %s", context.cid, core.name, error)

    def drained(self, core: Core) -> None:
        """Remove a draining core that has nothing left, once its contexts have moved."""
        task = asyncio.get_running_loop().create_task(self._leave(core))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, core: Core) -> None:
        await self.evacuate(core)
        if not core.requests:
            self._cores.retire(core)

    def _sibling(self, context: Context) -> LocalCore | None:
        """Return the least crowded core that a context can move to with its KV."""
        fit = [
            core
            for core in self._cores.local
            if core is not context.core
            and core.accepting
            and core.loaded is not None
            and core.loaded.fingerprint == context.fingerprint
            and core.setup.n_ctx >= context.local.setup.n_ctx
        ]
        return min(fit, key=lambda core: core.requests / core.width, default=None)

    async def _move(self, context: Context, core: Core) -> None:
        if not core.accepting:
            raise OSError(errno.ENODEV, f"move_context: core {core.name} is {core.state}")
        context.busy = True  # nobody else may touch it meanwhile
        self._cores.count(context.core, 1)
        try:
            await core.ready()
            if context.turns or not isinstance(context.core, LocalCore):
                self._hand_over(context, core)
            else:
                await self._carry(context, core)
        finally:
            context.busy = False
            self._cores.count(context.core, -1)
        self._events.emit(
            "context.moved", context.sequence.aid, context=context.cid, core=core.name
        )

    def _hand_over(self, context: Context, core: Core) -> None:
        """Move a context that is its turns. Raises OSError(ENODEV) where it can't be seen there."""
        pictures.need(context.turns, core.name, self._cores.has(core, VISION))
        _check_there(context)
        self._contexts.move(context, core)

    async def _carry(self, context: Context, core: Core) -> None:
        """Move a context that is tokens."""
        if not isinstance(core, LocalCore):
            text = f"move_context: core {core.name} is a provider's, which takes no tokens"
            raise OSError(errno.ENOTSUP, f"{text}; begin a chat there with what was said")
        self._check(context, context.local, core)
        await self._bring(context, context.local, core)

    def _check(self, context: Context, old: LocalCore, core: LocalCore) -> None:
        """Raise OSError when a context can't be on a core, which is loaded."""
        assert core.loaded is not None
        if core.loaded.fingerprint == context.fingerprint or not context.fingerprint:
            same = True
        else:
            same = old.loaded is not None and (old.loaded.name, old.loaded.n_vocab) == (
                core.loaded.name, core.loaded.n_vocab,
            )  # fmt: skip
        if not same:
            text = f"move_context: core {core.name} has another model than context {context.cid}"
            raise OSError(errno.EINVAL, f"{text}; its tokens mean something else there")
        held = context.sequence.length
        if held >= core.setup.n_ctx:
            text = f"move_context: context {context.cid} has {held} tokens"
            raise OSError(
                errno.ENOSPC, f"{text}, the window of core {core.name} is {core.setup.n_ctx}"
            )

    async def _bring(self, context: Context, old: LocalCore, core: LocalCore) -> None:
        sequence = context.sequence
        await old.placement.settle(sequence)
        assert core.loaded is not None
        if core.loaded.fingerprint == context.fingerprint:
            await old.placement.save(sequence)
        old.placement.leave(sequence)
        await old.placement.settle(sequence)
        _check_there(context)
        self._contexts.move(context, core)
        context.fit()  # where the KV can't go along its record is void


def _check_there(context: Context) -> None:
    if context.gone:
        raise FileNotFoundError(errno.ENOENT, f"context {context.cid} has gone meanwhile")
