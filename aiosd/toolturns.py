"""Tool-using generation: llm_generate(tools=[...]), in rounds of generations and tool calls.

Each round is an ordinary generation, on one context, to which the tools are functions: the model is
offered them (calling.py says how) and is held to a grammar in which it calls some or answers. What
it calls is carried out, all of a round at the same time, and what came of it is the next round's
turns. After `tool_rounds` rounds of calls only an answer is left to it. A round that calls
functions of the request's own ends it: those are the caller's.

A `Run` is one such request: a task of its own that outlives its caller's connection when it has a
key. Each round that has ended is on record then (toolrounds.py), and the next kernel, when it is
asked again, goes on behind it. The one at work has keys made of the run's (KEY/1, KEY/1/0 ...), by
which its generation and its calls are found again.

Also hears from the process table what becomes of agents, for itself and for inference.

What must hold: a tool is called only when it was offered, and by what the model wrote in its round;
a run ends exactly once, after its rounds at the latest; no call that is on record is made again;
between two rounds nobody else changes the context.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from aiosd import again
from aiosd.abi import inference as abi
from aiosd.abi import toolcalls
from aiosd.abi.table import BY_NAME
from aiosd.abi.tools import ExecuteTool, ToolResult
from aiosd.access import Access, Caller
from aiosd.calling import chat, offered
from aiosd.engine.calls import Offered
from aiosd.inference import Inference
from aiosd.journal import keeping, together
from aiosd.keys import Kept, Keys
from aiosd.killpoint import reach
from aiosd.process import Activity
from aiosd.toolrequest import PLAIN, Run, Told, check_plain, check_tools, repeat
from aiosd.toolrounds import Round, Rounds

if TYPE_CHECKING:
    from aiosd.db import Database
    from aiosd.syscall import Approval, Stream

log = logging.getLogger(__name__)

SHOWN: Final = 4000
"""Characters of a result that a model is shown; those of its error too."""

CUT: Final = "... (cut off)"

LONGEST_KEY: Final = 64
"""Characters of a key; a longer one is replaced by its digest."""


class Described(Protocol):
    """What a declaration says of a tool that a model is told."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def description(self) -> str:
        """What it does."""

    @property
    def input(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""


class Tools(Protocol):
    """What carries out tools; the tool manager is one."""

    async def execute(
        self,
        caller: Caller,
        aid: int,
        name: str,
        arguments: dict[str, Any],
        *,
        timeout: float | None,
        key: str,
    ) -> ToolResult:
        """Validate the arguments and call a tool, once per key. Raises OSError."""

    def agent_stopped(self, aid: int) -> None:
        """Stop the clocks of its calls' deadlines."""

    def agent_continued(self, aid: int) -> None:
        """Start them again."""

    async def find(self, name: str) -> Described:
        """Return a tool's declaration; raises FileNotFoundError."""


class ToolTurns:
    """All requests with tools, and the door of llm_generate.

    tools: None as long as this kernel has no tool manager. approval: waits for somebody's yes.
    """

    def __init__(
        self,
        inference: Inference,
        access: Access,
        keys: Keys,
        db: Database,
        approval: Approval,
    ) -> None:
        self.tools: Tools | None = None
        self._inference = inference
        self._access = access
        self._keys = keys
        self._db = db
        self._record = Rounds(db)
        self._approval = approval
        self._runs: dict[int, set[Run]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def sys_llm_generate(
        self, caller: Caller, args: abi.LlmGenerate, stream: Stream
    ) -> abi.Generation:
        """Generate text for the calling agent."""
        if not args.tools:
            check_plain(args)
            return await self._inference.generate(caller, args, stream)
        process = self._inference.agent(caller)
        kept = None
        if args.key:
            kept = self._keys.take((True, caller.aid), "llm_generate", args.key, again.body(args))
        if kept is not None and kept.answer is not None:
            return await repeat(kept.answer, args, stream)
        run: Run | None = kept.work if kept is not None else None
        if run is None:
            try:
                self._check(caller, args)
            except OSError:
                if kept is not None:
                    self._keys.drop(kept)
                raise
            run = self._open(caller, args, kept)
            if not process.stopped:
                run.start_clock()
        asked = run
        stream.on_cancel = lambda reason: self._left(asked, reason)
        if args.stream:
            await run.read(args.resume, stream)
        await run.over.wait()
        return run.result()

    sys_llm_generate.keeps_keys = True  # type: ignore[attr-defined]

    async def boot(self) -> None:
        """Forget what nobody will ask for again."""
        await self._record.boot()

    def agent_settled(self, aid: int) -> None:
        """An agent has ended for good."""
        self._record.forget(aid)

    async def close(self) -> None:
        """End what is at work; the rounds of keyed requests are left to the next kernel."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Taking a request on.

    def _check(self, caller: Caller, args: abi.LlmGenerate) -> None:
        """Refuse what can't be asked, or is not the caller's to ask; raises OSError."""
        if self.tools is None:
            raise OSError(errno.ENOSYS, "llm_generate: tools: this kernel has no tool manager yet")
        check_tools(args)
        for name in args.tools:
            self._access.permit(caller, BY_NAME["execute_tool"], ExecuteTool(name))

    def _open(self, caller: Caller, args: abi.LlmGenerate, kept: Kept | None) -> Run:
        run = Run(caller, caller.aid, args)
        if kept is not None:
            run.kept, kept.work = kept, run
        self._runs.setdefault(run.aid, set()).add(run)
        task = asyncio.get_running_loop().create_task(self._live(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    def _left(self, run: Run, reason: str) -> None:
        """The caller cancelled, or its connection is gone: a keyed request outlives the latter."""
        if reason != "connection lost" or not run.args.key:
            run.cancel(reason)

    # A request's life.

    async def _live(self, run: Run) -> None:
        """Carry a run out from its beginning to its end."""
        try:
            offers, before = await self._begin(run)
            for known in before:
                run.again(known)
            await self._rounds(run, offers)
        except OSError as error:
            self._fail(run, error)
        except asyncio.CancelledError:  # the kernel ends
            run.error = OSError(errno.ESHUTDOWN, "llm_generate: the kernel is going down")
            raise
        except Exception as error:
            log.exception("a request with tools of agent %d can't go on", run.aid)
            text = f"llm_generate: the kernel failed on it: {error!r}"
            run.error = OSError(errno.EIO, text)
        finally:
            run.ended = time.monotonic()
            self._hold(run, False)
            mine = self._runs.get(run.aid, set())
            mine.discard(run)
            if not mine:
                self._runs.pop(run.aid, None)
            try:
                await self._settle(run)
            finally:
                run.close()

    async def _begin(self, run: Run) -> tuple[list[Offered], list[Round]]:
        """Return what a run offers, and the rounds that an earlier kernel has seen end."""
        kept, key = run.kept, run.args.key
        if kept is not None:
            offers, before = await self._record.find(run.aid, key, kept.print)
            if offers:
                return offers, before
        offers = await self._offered(run.args)
        if kept is not None:
            alive = {(each.aid, each.args.key) for runs in self._runs.values() for each in runs}
            await self._record.begin(run.aid, key, kept.print, offers, alive)
        return offers, []

    async def _offered(self, args: abi.LlmGenerate) -> list[Offered]:
        """Return tools, and the request's own functions, as a model is told of them."""
        assert self.tools is not None
        found = [await self.tools.find(name) for name in args.tools]
        tools = [Offered(tool.name, tool.description, tool.input) for tool in found]
        return [*tools, *offered(args.functions)]

    def _fail(self, run: Run, error: OSError) -> None:
        """An error ends a run; one of a window that is full leaves it what it has come to."""
        if error.errno == errno.ENOSPC and run.rounds:
            run.end("length", "window")
        else:
            run.error = error

    async def _settle(self, run: Run) -> None:
        """Keep the answer of a keyed run; one that failed may be asked for anew."""
        kept = run.kept
        if kept is None:
            return
        if run.error is not None:
            self._keys.drop(kept)
            return
        answer = msgspec.msgpack.encode(Told(run.result(), run.chunks))
        parts = keeping(kept.row(answer)), self._record.ended(run.aid, run.args.key)
        try:
            await self._db.write(together(*parts))
        except OSError as error:
            log.warning("the answer of a keyed llm_generate is not on disk: %s", error)
        self._keys.keep(kept, answer)

    async def _rounds(self, run: Run, offers: list[Offered]) -> None:
        """Go through the rounds, behind those that have ended, until one ends it."""
        args = run.args
        while not (run.rounds and run.stop.is_set()):
            number = len(run.rounds) + 1
            if run.rounds and number > args.tool_rounds and not args.tool_answer:
                run.end("stop")
                return
            choice = args.tool_choice if number <= args.tool_rounds else "none"
            reply = await self._round(run, number, offers, choice)
            if reply.finish_reason != "calls":
                reason = run.reason or reply.reason
                run.end(reply.finish_reason, reason, reply.text, reply.parsed)
                return
            if run.stop.is_set():
                break
            calls = await self._carry_out(run, number, reply.calls)
            run.called(calls)
            if not run.stop.is_set() and any(call.tool in run.functions for call in calls):
                run.end("calls", "", reply.text)
                return
            if args.key and not run.stop.is_set():
                await self._record.add(run.aid, args.key, number, reply, calls)
                reach("toolturns.recorded")
        run.end("cancelled", run.reason)

    def _turns(self, run: Run) -> list[abi.Turn]:
        """Return the turns of the next round: the request's own, or what came of the last calls."""
        if not run.rounds:
            return chat(run.args)
        return toolcalls.turns([call for call in run.calls if call.round == len(run.rounds)])

    async def _round(
        self, run: Run, number: int, offers: list[Offered], choice: str
    ) -> abi.Generation:
        """Have the model write once."""
        args, late = run.args, run.stop.is_set()  # late: it was cancelled before it could begin
        inner = msgspec.structs.replace(
            args,
            prompt="",
            messages=self._turns(run),
            context=run.context,
            stream=False,
            resume=0,
            deadline=0.0 if late else None,
            functions=[abi.Function(one.name, one.description, one.input) for one in offers],
            tools=[],
            tool_rounds=PLAIN.tool_rounds,
            tool_choice=choice,
            tool_answer=PLAIN.tool_answer,
            key="" if late else _derived(args.key, str(number)),
            **({} if number == 1 else _ONCE),
        )
        began = time.monotonic()
        self._hold(run, False)  # from here to where the generation has it nobody else gets a turn
        work = self._inference.generate(run.caller, inner, run.asker, hold=True)
        try:
            reply = await work
        finally:
            run.asker.on_cancel = None
        run.took(reply)
        self._hold(run, True)
        run.spent(max(0.0, reply.timing.turnaround_s - (time.monotonic() - began)))
        reach("toolturns.round")
        return reply

    def _hold(self, run: Run, held: bool) -> None:
        """Keep a run's context from others, or let it go."""
        context = self._inference.contexts.find(run.context) if run.rounds else None
        if context is not None and not context.busy:
            context.held = held

    # Calls.

    async def _carry_out(
        self, run: Run, number: int, wanted: list[abi.ToolCall]
    ) -> list[abi.ToolCall]:
        """Make the calls of a round at the same time; those that are cut off say so.

        Calls of the request's own functions are left as they are.
        """
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._call(run, number, place, call))
            for place, call in enumerate(wanted)
        ]
        stop = loop.create_task(run.stop.wait())
        try:
            await _all_or_stop(tasks, stop)
        finally:
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)
        reach("toolturns.called")
        cut = f"cancelled: {run.reason}"
        return [
            abi.ToolCall(number, call.tool, call.arguments, error=cut, id=call.id)
            if task.cancelled()
            else task.result()
            for task, call in zip(tasks, wanted, strict=True)
        ]

    async def _call(self, run: Run, number: int, place: int, call: abi.ToolCall) -> abi.ToolCall:
        """Make one call; what goes wrong with it is for the model to know."""
        assert self.tools is not None
        if call.tool in run.functions:
            return msgspec.structs.replace(call, round=number)
        about = number, call.tool, call.arguments
        began = time.monotonic()
        try:
            await self._ask(run.caller, call)
            done = await self.tools.execute(
                run.caller,
                run.aid,
                call.tool,
                call.arguments,
                timeout=None,
                key=_derived(run.args.key, f"{number}/{place}"),
            )
            result = _shown(msgspec.json.encode(done.value).decode())
        except (OSError, TypeError, ValueError) as error:
            told = _shown(getattr(error, "strerror", None) or str(error))
            return abi.ToolCall(*about, error=told, seconds=time.monotonic() - began, id=call.id)
        return abi.ToolCall(*about, result, "", done.seconds, done.artefacts, call.id)

    async def _ask(self, caller: Caller, call: abi.ToolCall) -> None:
        """Return once a call is permitted, after somebody's approval where that is needed."""
        entry, args = BY_NAME["execute_tool"], ExecuteTool(call.tool, call.arguments)
        if self._access.permit(caller, entry, args):
            await self._approval(caller, entry, args)

    # What becomes of agents (process.Listener).

    def agent_stopped(self, aid: int) -> None:
        """Stop the clocks of its deadlines; its generations freeze."""
        for run in self._of(aid):
            run.stop_clock()
        if self.tools is not None:
            self.tools.agent_stopped(aid)
        self._inference.agent_stopped(aid)

    def agent_continued(self, aid: int) -> None:
        """Let all of that go on."""
        for run in self._of(aid):
            run.start_clock()
        if self.tools is not None:
            self.tools.agent_continued(aid)
        self._inference.agent_continued(aid)

    def agent_reniced(self, aid: int, nice: int) -> None:
        """Schedule its generations by another nice value."""
        self._inference.agent_reniced(aid, nice)

    def agent_interrupted(self, aid: int) -> None:
        """End its requests with what they have."""
        for run in self._of(aid):
            run.cancel("interrupted")
        self._inference.agent_interrupted(aid)

    def agent_ended(self, aid: int) -> None:
        """Cancel its requests."""
        for run in self._of(aid):
            run.cancel("agent ended")
        self._inference.agent_ended(aid)

    def activity(self, aid: int) -> Activity:
        """Say what its requests do."""
        return self._inference.activity(aid)

    def fork_contexts(self, parent_aid: int, child_aid: int) -> Coroutine[Any, Any, None]:
        """Give a child a copy of each of its parent's contexts."""
        return self._inference.fork_contexts(parent_aid, child_aid)

    def _of(self, aid: int) -> list[Run]:
        return list(self._runs.get(aid, ()))


_ONCE: Final = {"core": "", "needs": "", "window": "", "after": [], "recall": "", "public": False}
"""What is said of a request once, with its first round."""


def _shown(text: str) -> str:
    """Return as much of a text as a model is shown."""
    return text if len(text) <= SHOWN else text[:SHOWN] + CUT


def _derived(key: str, part: str) -> str:
    """Return the key of a part of a keyed request; "" when that has none."""
    derived = f"{key}/{part}"
    if not key or len(derived) <= LONGEST_KEY:
        return derived if key else ""
    return hashlib.blake2b(derived.encode(), digest_size=LONGEST_KEY // 2).hexdigest()


async def _all_or_stop(tasks: list[asyncio.Task[abi.ToolCall]], stop: asyncio.Task[Any]) -> None:
    """Return when all tasks are done, or the run is to stop."""
    left: set[asyncio.Task[Any]] = set(tasks)
    while left and not stop.done():
        done, _ = await asyncio.wait({*left, stop}, return_when=asyncio.FIRST_COMPLETED)
        left -= done
