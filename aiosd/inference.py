"""Inference: the generations of llm_generate, for all agents.

Takes a request through its rooms: is the caller an agent, may it queue; `preparation.py` finds what
it works on and what its tokens are; then the core has it until it ends. Also hears from the process
table what becomes of agents, and passes it on to their generations.

What must hold: every request that was taken is answered once, or its connection is gone; requests
that wait are bounded per agent and in total; a keyed request is computed once, however often it is
asked for, until some time after its end (keys.KEEP_S), and whichever kernel is asked; a token is
sent after its request is on record, a reply after its end is.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from aiosd import again, doing, kv, remotely, revival
from aiosd.abi import inference as abi
from aiosd.access import Access, Caller
from aiosd.admission import Admission
from aiosd.audience import Audience
from aiosd.config import Config
from aiosd.context import Context, Contexts
from aiosd.cores.dispatcher import Cores
from aiosd.cores.rate import Rate
from aiosd.engine.protocol import Goal
from aiosd.generation import Generation
from aiosd.journal import Journal, RequestRow
from aiosd.keys import Kept, Keys
from aiosd.killpoint import reach
from aiosd.ledger import Ledger
from aiosd.moving import Moving
from aiosd.order import Order
from aiosd.originals import Originals
from aiosd.preparation import Preparation
from aiosd.process import ASLEEP, Activity, Process
from aiosd.room import Room
from aiosd.series import Series

if TYPE_CHECKING:
    from aiosd.db import Database
    from aiosd.events import Events
    from aiosd.proc import ProcessTable
    from aiosd.quota import Quotas

log = logging.getLogger(__name__)

RATE_SPAN: Final = 3.0  # seconds over which an agent's tokens/s are averaged


class Inference:
    """All generations of this kernel.

    managers: the objects whose sys_ methods serve the calls about generations, the contexts that
    they work on, and the audience that follows them.
    """

    def __init__(
        self,
        config: Config,
        db: Database,
        events: Events,
        table: ProcessTable,
        access: Access,
        cores: Cores,
        keys: Keys,
        quotas: Quotas,
    ) -> None:
        self.journal = Journal(db)
        self._rids = Series(db, "request")
        self._cids = Series(db, "context")
        self.contexts = Contexts(
            self._cids.take, access, self.journal, config.context.max_per_agent
        )
        self.contexts.count = cores.count
        self.cores = cores
        self.requests = 0  # generations in flight
        self._events = events
        self._table = table
        self._active: dict[int, dict[int, Generation]] = {}
        self._keys = keys
        self._quotas = quotas
        self._ledger = Ledger(table, self.journal, keys, quotas, config.history.keep_requests)
        self._leaving = False
        self._order = Order(cores, db, events, access)
        self._admission = Admission(config.agents)
        self._rates: dict[int, Rate] = {}
        self._audience = Audience(table)
        self._originals = Originals(db, config.context.keep_originals)
        self._room = Room(cores, self.contexts, events, self._originals, self._think)
        self.preparation = Preparation(
            table,
            cores,
            self.contexts,
            self._room,
            self._order,
            quotas,
            config.context.policy,
            self.journal,
        )
        self.preparation.elsewhere = self._elsewhere
        self.moving = Moving(cores, self.contexts, events)
        self.managers = (self, self.contexts, self._audience, self._room, self.moving)

    async def boot(self) -> None:
        """Go on with the numbers of requests and contexts where the last kernel stopped."""
        await asyncio.gather(self._rids.boot(), self._cids.boot())

    async def recover(self, adopt: revival.Adopt) -> None:
        """Take up what the last kernel left: contexts, requests under way, answers.

        adopt: finds the KV of sequences, by context id.
        """
        found = await self.journal.load()
        for answer in found.answers:
            self._keys.restore(answer)
        made = revival.contexts_of(found, self._table, self.contexts, self.cores)
        await adopt(self.contexts.sequences())  # before one begins to work
        stale = revival.requests_of(found, made, self._table, self.contexts, self._reopen)
        await self.journal.drop(stale)
        for context in self.contexts:
            if context.window.internal:  # whoever asked asks anew
                self.contexts.forget(context)

    def number(self) -> int:
        """Return the id of a request that is none of a generation; raises OSError(EAGAIN)."""
        return self._rids.take()

    async def leave(self) -> None:
        """Leave keyed requests to the next kernel, as far as they have come."""
        self.journal.flush()
        self._leaving = True

    async def close(self) -> None:
        """Leave the next kernel the numbers to go on with."""
        await asyncio.gather(self._rids.close(), self._cids.close())

    def reload(self, config: Config) -> None:
        """Take on the limits of a configuration that was read again."""
        self._ledger.keep = config.history.keep_requests
        self._admission.limits = config.agents
        self.contexts.max_per_agent = config.context.max_per_agent
        self.preparation.policy = config.context.policy
        self._originals.keep = config.context.keep_originals

    # llm_generate.

    async def generate(
        self, caller: Caller, args: abi.LlmGenerate, stream: again.Asker, *, hold: bool = False
    ) -> abi.Generation:
        """Generate text for the calling agent; llm_generate without tools.

        hold: the context goes on being held when the generation ends (Context.held).
        """
        self.preparation.check(caller, args)
        process = self.agent(caller)
        kept = self._kept(process, args) if args.key else None
        if kept is not None and kept.answer is not None:
            return await again.repeat(kept.answer, args, stream)
        generation = kept.work if kept is not None else None
        if generation is None:
            generation = self._open(process, args, kept)
        generation.holds = generation.holds or hold
        stream.on_cancel = lambda reason: self._cancelled(generation, reason, stream)
        if args.resume:
            await again.catch_up(generation, args.resume)
        if args.stream:
            await self._read(generation, args.resume, stream)
        await generation.end()
        await again.on_disk(generation.stored)
        reach("inference.answer")
        return generation.result()

    def agent(self, caller: Caller) -> Process:
        """Return the agent that asks; raises OSError(ESRCH) for a caller that is none."""
        if not caller.aid:
            raise OSError(
                errno.ESRCH,
                "llm_generate: this connection is no agent; call register_agent first "
                "(aios.connect(name=...))",
            )
        return self._table.get(caller.aid)

    def _kept(self, process: Process, args: abi.LlmGenerate) -> Kept:
        """Return what is known under a request's key; EINVAL when that is another request."""
        kept = self._keys.take((True, process.aid), "llm_generate", args.key, again.body(args))
        if args.resume and kept.work is None and kept.answer is None:
            self._keys.drop(kept)
            raise OSError(
                errno.ENOENT,
                "llm_generate: no request of this key is kept any more: it ended long ago, or it "
                "failed when aiosd was restarted; ask anew with another key",
            )
        return kept

    def _open(self, process: Process, args: abi.LlmGenerate, kept: Kept | None) -> Generation:
        """Take a request on: find its core and context, enter it in the books, and begin."""
        try:
            self._admit(process.aid)
            context = self.preparation.context(process, args)
        except OSError:
            if kept is not None:
                self._keys.drop(kept)
            raise
        return self._take_on(process, args, context, kept)

    def _take_on(
        self, process: Process, args: abi.LlmGenerate, context: Context, kept: Kept | None
    ) -> Generation:
        generation = self._generation(self._rids.take(), process.aid, args, context)
        self._enter(generation, kept, process.stopped)
        reserved = self._quotas.open(generation.rid, process.aid, internal=context.window.internal)
        try:
            generation.begun = self.journal.begin(generation.request(), context.record(), *reserved)
        except OSError as error:  # the disk is too far behind: nothing begins
            generation.failed(error.errno or errno.EIO, error.strerror or str(error))
            return generation
        generation.preparing = asyncio.get_running_loop().create_task(self._prepare(generation))
        more = {"internal": True} if context.window.internal else {}
        self._events.emit(
            "request.submit", process.aid, request=generation.rid, context=context.cid, **more
        )
        return generation

    async def _think(self, context: Context, turns: list[abi.Turn], max_tokens: int) -> str:
        """Answer a chat for the kernel itself, in the name of a context's agent, on its core.

        The agent is charged. Raises OSError.
        """
        process, core = self._table.get(context.sequence.aid), context.core
        own = self.contexts.create(core, process.aid, process.uid, process.nice, internal=True)
        args = abi.LlmGenerate(messages=turns, max_tokens=max_tokens)
        generation = self._take_on(process, args, own, None)
        try:
            await generation.end()
            if generation.result().finish_reason == "cancelled":
                raise OSError(errno.ECANCELED, f"it was cancelled: {generation.reason}")
            return generation.result().text
        finally:
            generation.cancel("not needed any more")
            if not own.gone:
                self.contexts.forget(own)

    def _generation(
        self, rid: int, aid: int, args: abi.LlmGenerate, context: Context
    ) -> Generation:
        tell = self._started, self._token, self._ended, self._full
        return Generation(rid, aid, args, context, *tell)

    def _enter(self, generation: Generation, kept: Kept | None, stopped: bool) -> None:
        """Enter a request in the books."""
        context = generation.context
        context.busy = True
        self.cores.count(context.core, 1)
        generation.load = context.core.requests
        self.requests += 1
        self._active.setdefault(generation.aid, {})[generation.rid] = generation
        self._order.opened(generation)
        if kept is not None:
            generation.kept, kept.work = kept, generation
        if stopped:
            context.core.hold(context.sequence, "stopped")
            generation.disturbed = True
        else:
            generation.start_clock()

    def _reopen(self, row: RequestRow, context: Context, cancel: str) -> None:
        """Go on with a request of an earlier kernel. cancel: why it can't, "" when it can."""
        args = msgspec.msgpack.decode(row.args, type=abi.LlmGenerate)
        generation = self._generation(row.rid, row.aid, args, context)
        goal = generation.take_progress(row.submitted, row.progress)
        self._quotas.resume(row.rid, row.aid)
        kept = None
        if row.key and not cancel:
            kept = self._keys.reopen((True, row.aid), "llm_generate", row.key, again.body(args))
        self._enter(generation, kept, bool(cancel) or self._table.get(row.aid).stopped)
        if generation.bill is not None and generation.bill.sent:
            generation.bill.lost, generation.certain = True, generation.known
            generation.cut(cancel or remotely.KILLED)
            return
        if cancel:
            generation.cancel(cancel)
            return
        work = self._go_on(generation, goal) if goal else self._prepare(generation)
        generation.preparing = asyncio.get_running_loop().create_task(work)
        self._events.emit("request.resume", row.aid, request=row.rid, context=context.cid)

    def _admit(self, aid: int) -> None:
        self._rids.check()
        mine = self._active.get(aid, {})
        self._admission.admit(aid, mine.values(), self.requests, self._order.flight)
        self._quotas.admit(aid, "llm_generate")

    async def _go_on(self, generation: Generation, goal: Goal) -> None:
        """Give a request that has been on its core before to it again, once there is room."""
        context = generation.context
        with _ending(generation):
            await context.core.ready()
            context.core.check()
            goal = await self._room.go_on(generation, goal)
            sequence = context.sequence
            await context.local.placement.settle(sequence)
            generation.goal = sequence.goal = goal
            sequence.sink = generation
            context.core.submit(sequence)
            self.journal.touch(generation)

    def _full(self, generation: Generation, tail: str) -> None:
        """A generation has used the last cell of its window: it ends, or room is made."""
        if generation.context.window.policy == "error":
            generation.filled(tail)
        else:
            work = self._find_room(generation, tail)
            generation.preparing = asyncio.get_running_loop().create_task(work)

    async def _find_room(self, generation: Generation, tail: str) -> None:
        try:
            assert generation.goal is not None
            goal = await self._room.go_on(generation, generation.goal)
        except OSError as error:
            log.warning("context %d: %s", generation.context.cid, error.strerror or error)
            generation.filled(tail)
        except Exception as error:
            log.exception("request %d can't go on", generation.rid)
            generation.broken(error)
        else:
            await self._go_on(generation, goal)

    async def _prepare(self, generation: Generation) -> None:
        """Give a request to its core once all is known that this takes; an error ends it.

        A task of its own, which the request's end cancels: the caller of a request that is
        cancelled meanwhile is answered at once.
        """
        context = generation.context
        known = context.fingerprint
        with _ending(generation):
            await self.preparation.goal(generation)
            context.core.submit(context.sequence)
            self.journal.touch(generation)
            if context.fingerprint != known:  # by which core is on record before a token is sent
                generation.begun = self.journal.flush() or generation.begun

    def _elsewhere(self, generation: Generation, code: int, message: str) -> None:
        """Have a request done by another core; a provider's core could not, and nothing came of it.

        What can't go elsewhere, since its core was asked for by name or there is no other one, ends
        with the error.
        """
        context, tried = generation.context, generation.tried
        tried.append(context.core.name)
        try:
            core = self.preparation.another(generation, tried)
        except OSError as error:
            generation.failed(code, f"{message}; no other core: {error.strerror or error}")
            return
        log.info("request %d goes on on core %s: %s", generation.rid, core.name, message)
        old = context.core
        self.contexts.move(context, core)
        if old.draining and not old.requests:
            self.moving.drained(old)
        self._events.emit(
            "request.rerouted", generation.aid, request=generation.rid, core=core.name, why=message
        )
        generation.bill = None
        generation.preparing = asyncio.get_running_loop().create_task(self._prepare(generation))

    async def _read(self, generation: Generation, seen: int, stream: again.Asker) -> None:
        """Send a generation's tokens as they come, no faster than the reader takes them."""
        generation.read_to(stream, seen)
        try:
            await again.on_disk(generation.begun)
            while True:
                await generation.news(seen)
                if len(generation.tokens) > seen or (generation.done and generation.tail):
                    chunk = generation.chunk(seen)
                    seen = len(generation.tokens)
                    await stream.send(chunk)
                if generation.done and seen == len(generation.tokens):
                    return
                generation.read_to(stream, seen)
        finally:
            generation.unread(stream)

    def _cancelled(self, generation: Generation, reason: str, stream: again.Asker) -> None:
        """The caller cancelled, or its connection is gone: a keyed request outlives the latter."""
        if reason == "connection lost" and generation.args.key:
            generation.unread(stream)
        else:
            generation.cancel(reason)

    # What happens to generations.

    def _started(self, generation: Generation) -> None:
        self._events.emit("request.start", generation.aid, request=generation.rid)
        cid = generation.context.cid
        self._audience.tell(generation.aid, cid, "", prompt_tokens=generation.prompt_tokens)

    def _token(self, generation: Generation, text: str) -> None:
        rate = self._rates.get(generation.aid)
        if rate is None:
            rate = self._rates[generation.aid] = Rate(RATE_SPAN)
        rate.add(1, generation.first_token if len(generation.tokens) == 1 else time.monotonic())
        self._audience.tell(generation.aid, generation.context.cid, text)
        self.journal.touch(generation)

    def _ended(self, generation: Generation) -> None:
        """Take a request off the books and into the accounts."""
        mine = self._active.get(generation.aid, {})
        mine.pop(generation.rid, None)
        if not mine:
            self._active.pop(generation.aid, None)
        self.requests -= 1
        self._order.ended(generation)
        self._admission.ended(generation.aid)
        if generation.preparing is not None:
            generation.preparing.cancel()
        context = generation.context
        self.cores.count(context.core, -1)
        self.cores.measured(context.core, generation.load, generation.speed())
        context.busy, context.used = False, time.time()
        context.held = generation.holds and generation.error is None
        context.sequence.holds.clear()
        self._audience.tell(generation.aid, context.cid, "", finish=generation.finish)
        if self._leaving and generation.kept is not None:
            self.journal.leave(generation.rid)
        else:
            if generation.bill is not None:
                remotely.remember(generation)
            if context.blank:
                self.contexts.forget(context)
            self._ledger.close(generation)
        if context.core.draining and not context.core.requests:
            self.moving.drained(context.core)

    # What becomes of agents (process.Listener).

    def agent_stopped(self, aid: int) -> None:
        """Freeze an agent's generations between two tokens."""
        for generation in self._of(aid):
            generation.stop_clock()
            generation.context.core.hold(generation.context.sequence, "stopped")

    def agent_continued(self, aid: int) -> None:
        """Let an agent's generations go on with the very next token."""
        for generation in self._of(aid):
            generation.start_clock()
            generation.context.core.release(generation.context.sequence, "stopped")

    def agent_reniced(self, aid: int, nice: int) -> None:
        """Schedule an agent's generations by another nice value."""
        for generation in self._of(aid):
            generation.context.core.queue.renice(generation.context.sequence, nice)
            self._order.reniced(generation, nice)

    def agent_interrupted(self, aid: int) -> None:
        """End an agent's generations; each answers with the text that it has."""
        for generation in self._of(aid):
            generation.cancel("interrupted")

    def agent_ended(self, aid: int) -> None:
        """Cancel an agent's requests and drop its contexts."""
        for generation in self._of(aid):
            generation.cancel("agent ended")
        for context in self.contexts.of(aid):
            self.contexts.forget(context)
        self._rates.pop(aid, None)
        self._admission.forget(aid)
        self._audience.close(aid)
        self._keys.forget((True, aid))

    async def fork_contexts(self, parent_aid: int, child_aid: int) -> None:
        """Give a child a copy of each of its parent's contexts; ESRCH if it ends meanwhile.

        They are on disk before it returns.
        """
        held = sum(kv.held(context) for context in self.contexts.of(parent_aid))
        self._quotas.may_hold(child_aid, {"kv_bytes": held}, "fork")
        for context in self.contexts.of(parent_aid):
            child = await self.contexts.copy(context, child_aid)
            if context.window.summarized:
                await self._originals.copy(context.cid, child.cid)
        await self.contexts.save(child_aid)
        try:
            self._table.get(child_aid)
        except ProcessLookupError:
            for context in self.contexts.of(child_aid):
                self.contexts.forget(context)
            raise

    def activity(self, aid: int) -> Activity:
        """Say what an agent's requests do."""
        mine, contexts = self._of(aid), self.contexts.of(aid)
        if not mine and not contexts:
            return ASLEEP
        rate = self._rates.get(aid)
        rates = rate.value(time.monotonic()) if rate else 0.0
        return doing.activity(mine, contexts, rates, self._order.channel)

    def kv_held(self, subject: str) -> int:
        """Return the bytes of KV that contexts hold which count for a subject.

        What requests in flight may take at worst is reserved; of theirs, named snapshots count.
        """
        covers = self._quotas.covers
        at_work = {g.cid for mine in self._active.values() for g in mine.values()}
        return sum(
            kv.marked(each) if each.cid in at_work else kv.held(each)
            for each in self.contexts
            if covers(subject, each.sequence.aid)
        )

    def running(self, context: Context) -> int:
        """Return the id of the request that works on a context, 0 for none."""
        mine = self._active.get(context.sequence.aid, {}).values()
        return next((g.rid for g in mine if g.context is context), 0)

    def _of(self, aid: int) -> list[Generation]:
        return list(self._active.get(aid, {}).values())


@contextmanager
def _ending(generation: Generation) -> Iterator[None]:
    """Let an error end a request."""
    try:
        yield
    except OSError as error:
        generation.failed(error.errno or errno.EIO, error.strerror or str(error))
    except Exception as error:
        log.exception("request %d can't go on", generation.rid)
        generation.broken(error)
