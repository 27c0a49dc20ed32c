"""Inference: llm_generate and the contexts it works on, for all agents.

Takes a request through its rooms: is the caller an agent, may it queue, on which core and context,
what are its tokens; then the core has it until it ends. Also hears from the process table what
becomes of agents, and passes it on to their generations.

What must hold: every request that was taken is answered once, or its connection is gone; requests
that wait are bounded per agent and in total; a keyed request is computed once, however often it is
asked for within KEPT seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from aiosd.abi import inference as abi
from aiosd.abi import process as abi_process
from aiosd.access import Access, Caller
from aiosd.config import Config
from aiosd.context import Context, Contexts, runs
from aiosd.cores.dispatcher import Cores
from aiosd.cores.local import LocalCore, Rate
from aiosd.engine.protocol import Goal, Sampling
from aiosd.generation import Generation, check, unbuilt
from aiosd.process import ASLEEP, Activity, Process

if TYPE_CHECKING:
    from aiosd.db import Database
    from aiosd.events import Events
    from aiosd.proc import ProcessTable
    from aiosd.syscall import Stream

KEPT: Final = 600.0  # seconds that the answer of a keyed request is kept
KEPT_MOST: Final = 1024  # such answers in all
WATCHED_MOST: Final = 4096  # pieces that a slow `attach` may be behind; older ones are lost
RATE_SPAN: Final = 3.0  # seconds over which an agent's tokens/s are averaged


class Inference:
    """All generations of this kernel, and the contexts they work on."""

    def __init__(
        self,
        config: Config,
        db: Database,
        events: Events,
        table: ProcessTable,
        access: Access,
        cores: Cores,
    ) -> None:
        self.contexts = Contexts(config.context.max_per_agent)
        self.cores = cores
        self._limits = config.agents
        self._db = db
        self._events = events
        self._table = table
        self._access = access
        self._active: dict[int, dict[int, Generation]] = {}
        self._waiting: dict[int, int] = {}
        self._kept: OrderedDict[tuple[str, str], tuple[float, Generation]] = OrderedDict()
        self._rates: dict[int, Rate] = {}
        self._watchers: dict[int, list[_Watcher]] = {}
        self._ids = itertools.count(1)
        access.context_owner = self.contexts.owner

    async def boot(self) -> None:
        """Go on with the numbers of requests and contexts where the last kernel stopped."""
        rows = await self._db.read(
            lambda db: list(db.query("select max(id) as rid, max(cid) as cid from requests"))
        )
        self._ids = itertools.count((rows[0]["rid"] or 0) + 1)
        self.contexts.boot(rows[0]["cid"] or 0)

    def reload(self, config: Config) -> None:
        """Take on the limits of a configuration that was read again."""
        self._limits = config.agents
        self.contexts.max_per_agent = config.context.max_per_agent

    @property
    def requests(self) -> int:
        """Generations in flight."""
        return sum(len(mine) for mine in self._active.values())

    # llm_generate.

    async def sys_llm_generate(
        self, caller: Caller, args: abi.LlmGenerate, stream: Stream
    ) -> abi.Generation:
        """Generate text for the calling agent."""
        check(args)
        unbuilt(args)
        generation = self._again(caller, args)
        fresh = generation is None
        if generation is None:
            generation = self._open(caller, args)
        stream.on_cancel = lambda reason: self._cancelled(generation, reason)
        if fresh:
            await self._prepare(generation)
        if args.stream:
            await self._read(generation, args.resume, stream)
        await generation.end()
        return generation.result()

    sys_llm_generate.keeps_keys = True  # type: ignore[attr-defined]

    def _again(self, caller: Caller, args: abi.LlmGenerate) -> Generation | None:
        """Return the generation that this key already names; EINVAL when it is another request."""
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values()))[0] < now - KEPT:
            self._kept.popitem(last=False)
        found = self._kept.get(_key(caller, args)) if args.key else None
        if found is None:
            if args.resume:
                raise OSError(errno.ENOENT, "llm_generate: no request of this key is kept any more")
            return None
        generation = found[1]
        if msgspec.structs.replace(args, resume=0) != generation.args:
            raise OSError(errno.EINVAL, "llm_generate: this key belongs to another request")
        return generation

    def _open(self, caller: Caller, args: abi.LlmGenerate) -> Generation:
        """Take a request on: find its core and context, and enter it in the books."""
        if not caller.aid:
            raise OSError(
                errno.ESRCH,
                "llm_generate: this connection is no agent; call register_agent first "
                "(aios.connect(name=...))",
            )
        process = self._table.get(caller.aid)
        self._admit(process.aid)
        context = self._context(process, args)
        generation = Generation(
            next(self._ids), process.aid, args, context, self._started, self._token, self._ended
        )
        context.busy = True
        self._active.setdefault(process.aid, {})[generation.rid] = generation
        if args.key:
            self._kept[_key(caller, args)] = (time.monotonic(), generation)
            if len(self._kept) > KEPT_MOST:
                self._kept.popitem(last=False)
        if process.stopped:
            context.core.hold(context.sequence, "stopped")
        self._events.emit(
            "request.submit", process.aid, request=generation.rid, context=context.cid
        )
        return generation

    def _admit(self, aid: int) -> None:
        mine, total = len(self._active.get(aid, ())), self.requests
        if mine >= self._limits.max_queue_per_agent:
            raise OSError(
                errno.EAGAIN,
                f"llm_generate: agent {aid} has {mine} requests in flight, the limit is "
                f"{self._limits.max_queue_per_agent} ([agents] max_queue_per_agent); "
                "wait for one to end",
            )
        if total >= self._limits.max_queue:
            raise OSError(
                errno.EAGAIN,
                f"llm_generate: {total} requests are in flight, the limit is "
                f"{self._limits.max_queue} ([agents] max_queue); try again later",
            )

    def _context(self, process: Process, args: abi.LlmGenerate) -> Context:
        """Return the context to work on: a fresh one, or the caller's own that it names."""
        if not args.context:
            core = self.cores.choose(args.core, args.needs)
            return self.contexts.create(
                core, process.aid, process.uid, process.nice, turns=not args.raw
            )
        context = self.contexts.get(args.context)
        if context.busy:
            raise OSError(
                errno.EBUSY, f"llm_generate: context {context.cid} is at work on another request"
            )
        if args.core and args.core != context.core.name:
            raise OSError(
                errno.EINVAL,
                f"llm_generate: context {context.cid} is on core {context.core.name!r}",
            )
        return context

    async def _prepare(self, generation: Generation) -> None:
        """Turn the request into tokens and give it to its core; an error ends it."""
        context, args = generation.context, generation.args
        sequence = context.sequence
        try:
            messages = msgspec.json.encode(args.messages).decode() if args.messages else ""
            follow = bool(sequence.tokens)
            tokens = await context.core.tokenize(args.prompt, messages, args.raw, follow)
            await context.core.placement.settle(sequence)
            if not generation.done:
                self._submit(generation, tokens)
        except OSError as error:
            generation.failed(error.errno or errno.EIO, error.strerror or str(error))

    def _submit(self, generation: Generation, tokens: list[int]) -> None:
        """Append the new tokens to the context and schedule it."""
        context, args, process = (
            generation.context,
            generation.args,
            self._table.get(generation.aid),
        )
        sequence, window = context.sequence, context.core.setup.n_ctx
        length = len(sequence.tokens) + len(tokens)
        if not tokens:
            raise OSError(errno.EINVAL, "llm_generate: prompt: it has no tokens")
        if length >= window:
            raise OSError(
                errno.ENOSPC,
                f"llm_generate: the prompt has {len(tokens)} tokens, context {context.cid} holds "
                f"{len(sequence.tokens)}, the window of core {context.core.name} is {window}; "
                "shorten the prompt or use a fresh context",
            )
        generation.cached_tokens = sequence.kv
        generation.prompt_tokens = length
        wanted = args.max_tokens or process.max_tokens or window
        sequence.tokens.extend(tokens)
        sequence.nice = process.nice
        sequence.sink = generation
        sequence.goal = Goal(
            prompt_len=length,
            max_tokens=min(wanted, window - length),
            sampling=Sampling(args.temperature, args.top_p, args.top_k, args.min_p, args.seed),
            stop=list(args.stop),
        )
        context.core.submit(sequence)
        if not process.stopped:
            generation.start_clock()

    async def _read(self, generation: Generation, seen: int, stream: Stream) -> None:
        """Send a generation's tokens as they come, no faster than the reader takes them."""
        try:
            while True:
                await generation.news(seen)
                if len(generation.tokens) > seen or (generation.done and generation.tail):
                    chunk = generation.chunk(seen)
                    seen = len(generation.tokens)
                    await stream.send(chunk)
                if generation.done and seen == len(generation.tokens):
                    return
                generation.read_to(seen)
        finally:
            generation.unread()

    def _cancelled(self, generation: Generation, reason: str) -> None:
        """The caller cancelled, or its connection is gone: a keyed request outlives the latter."""
        if reason == "connection lost" and generation.args.key:
            generation.unread()
        else:
            generation.cancel(reason)

    # What happens to generations.

    def _started(self, generation: Generation) -> None:
        self._events.emit("request.start", generation.aid, request=generation.rid)
        for watcher in self._watchers.get(generation.aid, ()):
            watcher.put(generation, "", "", generation.prompt_tokens)

    def _token(self, generation: Generation, text: str) -> None:
        rate = self._rates.get(generation.aid)
        if rate is None:
            rate = self._rates[generation.aid] = Rate(RATE_SPAN)
        rate.add(1, generation.first_token if len(generation.tokens) == 1 else time.monotonic())
        for watcher in self._watchers.get(generation.aid, ()):
            watcher.put(generation, text, "", 0)

    def _ended(self, generation: Generation) -> None:
        """Take a request off the books and into the accounts."""
        mine = self._active.get(generation.aid, {})
        mine.pop(generation.rid, None)
        if not mine:
            self._active.pop(generation.aid, None)
        context = generation.context
        context.busy, context.used = False, time.time()
        context.sequence.holds.clear()
        if not context.sequence.tokens:
            self.contexts.forget(context)
        for watcher in self._watchers.get(generation.aid, ()):
            watcher.put(generation, "", generation.finish, 0)
        self._account(generation)
        if context.core.state == "draining" and not self._on(context.core):
            asyncio.get_running_loop().create_task(self.cores.remove(context.core.name))

    def _account(self, generation: Generation) -> None:
        """Charge the agent and record the request."""
        timing, error = generation.timing(), generation.error
        fresh = max(0, generation.prompt_tokens - generation.cached_tokens)
        self._table.account(
            generation.aid,
            tokens_in=fresh,
            tokens_out=len(generation.tokens),
            cached=generation.cached_tokens,
            waiting_s=timing.waiting_s,
            turnaround_s=timing.turnaround_s,
        )
        row = {
            "id": generation.rid,
            "aid": generation.aid,
            "cid": generation.context.cid,
            "core": generation.context.core.name,
            "t_submit": generation.submitted_at,
            "t_start": generation.submitted_at + timing.waiting_s,
            "t_end": generation.submitted_at + timing.turnaround_s,
            "prompt_tokens": generation.prompt_tokens,
            "cached_tokens": generation.cached_tokens,
            "completion_tokens": len(generation.tokens),
            "finish": generation.finish,
            "error": (error.strerror or "") if error else generation.reason,
            "waiting_s": timing.waiting_s,
            "turnaround_s": timing.turnaround_s,
        }
        with contextlib.suppress(BlockingIOError):  # the disk is far behind: the totals hold
            self._db.write_soon(lambda db: db.table("requests").insert(row))
        self._table.note("request.end", generation.aid, row)

    def _on(self, core: LocalCore) -> Iterable[Generation]:
        """Return the generations on a core."""
        return [
            generation
            for mine in self._active.values()
            for generation in mine.values()
            if generation.context.core is core
        ]

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
            generation.context.core.renice(generation.context.sequence, nice)

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
        for watcher in self._watchers.pop(aid, []):
            watcher.close()
        for key, (_, generation) in list(self._kept.items()):
            if generation.aid == aid:
                del self._kept[key]

    async def fork_contexts(self, parent_aid: int, child_aid: int) -> None:
        """Give a child a copy of each of its parent's contexts."""
        for context in self.contexts.of(parent_aid):
            await self.contexts.copy(context, child_aid)

    def activity(self, aid: int) -> Activity:
        """Say what an agent's requests do: the one that is furthest on speaks for it."""
        mine = self._of(aid)
        contexts = self.contexts.of(aid)
        if not mine and not contexts:
            return ASLEEP
        kv_ram = sum(context.kv_ram for context in contexts)
        rate = self._rates.get(aid)
        per_second = rate.value(time.monotonic()) if rate and mine else 0.0
        best = min((self._doing(generation) for generation in mine), default=None)
        if best is None:
            return Activity(kv_ram=kv_ram)
        order, place, waiting, generation = best[0], best[1], best[2], best[4]
        return Activity(
            state="RQS"[order],
            core=generation.context.core.name,
            slot=generation.context.sequence.slot,
            waiting=waiting,
            queue=place,
            tokens_per_s=per_second,
            kv_ram=kv_ram,
            tokens_in=sum(g.prompt_tokens - g.cached_tokens for g in mine),
            tokens_out=sum(len(g.tokens) for g in mine),
        )

    def _doing(self, generation: Generation) -> tuple[int, int, str, int, Generation]:
        """Rank what a generation does: 0 running, 1 queued, 2 asleep; its place; what it awaits."""
        context = generation.context
        cid, core = context.cid, context.core
        if runs(context):
            return (0, -1, "", cid, generation)
        if cid in core.policy and cid not in core.policy.running:
            place = core.policy.position(cid)
            return (1, -1 if place is None else place, f"core:{core.name}", cid, generation)
        if cid in core.policy:
            return (1, 0, f"core:{core.name}", cid, generation)
        why = "reader" if "reader" in context.sequence.holds else f"core:{core.name}"
        return (2, -1, why, cid, generation)

    def _of(self, aid: int) -> list[Generation]:
        return list(self._active.get(aid, {}).values())

    # Other calls.

    async def sys_attach(self, caller: Caller, args: abi_process.Attach, stream: Stream) -> None:
        """Stream what an agent's requests produce until it ends."""
        if not self._table.get(args.aid).alive:
            return
        watcher = _Watcher()
        self._watchers.setdefault(args.aid, []).append(watcher)
        try:
            while (piece := await watcher.get()) is not None:
                await stream.send(piece)
        finally:
            mine = self._watchers.get(args.aid, [])
            if watcher in mine:
                mine.remove(watcher)

    def sys_list_contexts(self, caller: Caller, args: abi.ListContexts) -> list[abi.Context]:
        """List contexts that the caller may see."""
        found = self.contexts.of(args.aid) if args.aid else self.contexts
        return [
            context.row() for context in found if self._access.may_see(caller, context.sequence.aid)
        ]

    def sys_get_context(self, caller: Caller, args: abi.GetContext) -> abi.Context:
        """Describe one context."""
        return self.contexts.get(args.context).row()

    def sys_clr_context(self, caller: Caller, args: abi.ClrContext) -> None:
        """Forget a context."""
        context = self.contexts.get(args.context)
        if context.busy:
            raise OSError(
                errno.EBUSY,
                f"clr_context: context {context.cid} is at work; cancel its request first",
            )
        self.contexts.forget(context)


class _Watcher:
    """Pieces of an agent's generations on their way to one `attach`; the oldest give way."""

    def __init__(self) -> None:
        self._pieces: deque[abi_process.Watched] = deque(maxlen=WATCHED_MOST)
        self._news = asyncio.Event()
        self._closed = False

    def put(self, generation: Generation, text: str, finish: str, prompt_tokens: int) -> None:
        """Add a piece."""
        cid = generation.context.cid
        piece = abi_process.Watched(generation.aid, cid, text, finish, prompt_tokens)
        self._pieces.append(piece)
        self._news.set()

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._news.set()

    async def get(self) -> abi_process.Watched | None:
        """Return the next piece, or None after the last."""
        while not self._pieces:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        return self._pieces.popleft()


def _key(caller: Caller, args: abi.LlmGenerate) -> tuple[str, str]:
    return (repr(caller), args.key)
