"""The tool manager: every call of a tool is declared, checked, limited, boxed and on record.

    tools = ToolManager(config, db, access, table, audit, events, keys)
    await tools.boot()
    result = await tools.execute(caller, aid, "add", {"a": 1}, timeout=None, key="")
    await tools.close()

The way of a call: known? arguments valid? within its rate? its turn (turns.py), on record
(toolbook.py), carried out by the runner of its kind (toolrun.py: programs; toolpool.py: Python
functions; others are entered in `runners`), result valid?

What must hold: whatever a tool does, its call ends and names it, everybody else goes on, and
nothing of it is left; a call that was not put on record is not carried out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd import toolbook
from aiosd.abi.tools import DescribeTool, ExecuteTool, ListTools, RegisterTool, Tool, ToolResult
from aiosd.access import Access, Caller
from aiosd.catalog import Catalog
from aiosd.deadline import Limited
from aiosd.declaration import Declaration
from aiosd.journal import keeping
from aiosd.keys import Kept, Keys, asking
from aiosd.killpoint import reach
from aiosd.onetime import Onetime
from aiosd.rates import Rates
from aiosd.settings import Config
from aiosd.toolbook import Book
from aiosd.toolcores import ToolCores
from aiosd.toolfiles import Workspaces
from aiosd.toolpackages import Packages
from aiosd.toolpool import Pool
from aiosd.toolrun import Outcome, Programs, Runner, Work, flooded, run_within, unlike
from aiosd.toolsecrets import Secrets, strike, strike_all
from aiosd.toolwatch import Watch
from aiosd.turns import Claim, Turns
from aiosd.workspace import WorkspaceFiles

if TYPE_CHECKING:
    from aiosd.audit import Audit
    from aiosd.db import Connection, Database
    from aiosd.events import Events
    from aiosd.proc import ProcessTable

log = logging.getLogger(__name__)

INNER: Final = "execute_tool.inner"
"""What keyed calls of other parts of the kernel are kept under."""


class ToolManager:
    """All tools, and the calls under way. config: what is set now.

    runners: what carries out the tools of each kind: "command", "python", "model", "mcp", "kernel".
    packages: finds those of installed packages, before one is looked up in vain or all are listed.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        db: Database,
        access: Access,
        table: ProcessTable,
        audit: Audit,
        events: Events,
        keys: Keys,
    ) -> None:
        self._config = config
        self._db = db
        self._table = table
        self._events = events
        self._keys = keys
        start = config()
        state_dir = start.kernel.state_dir
        secret = (start.tools.secrets_file, start.encryption.key_file)
        hidden = (state_dir, start.kernel.runtime_dir, start.context.kv_dir, *secret)
        settings = lambda: config().tools  # noqa: E731
        self.catalog = Catalog(db, settings)
        self.secrets = Secrets(lambda: config().tools.secrets_file, os.environ)
        self.book = Book(db, access, audit, lambda: config().history)
        self._spaces = Workspaces(os.path.join(state_dir, "tools"))
        self.pool = Pool(settings, hidden)
        self.models = ToolCores(settings, hidden, self._spaces)
        self.runners: dict[str, Runner] = {
            "command": Programs(settings, hidden),
            "python": self.pool,
            "model": self.models,
        }
        self.packages = Packages(settings, state_dir, hidden, self.catalog)
        self.charge: Callable[[Caller], Awaitable[None] | None] = lambda caller: None  # in quotas
        self._once = Onetime(db)
        self._rates = Rates()
        self._turns = Turns(start.tools.max_running, start.tools.max_queue)
        self._watch = Watch(lambda: config().tools.workspace_limit)
        self.files = WorkspaceFiles(self._spaces, self._watch)
        self._calls: defaultdict[int, list[str]] = defaultdict(list)  # by aid
        self._deadlines: defaultdict[int, set[Limited]] = defaultdict(set)  # by aid
        self._clearing: set[asyncio.Task[None]] = set()

    async def boot(self) -> None:
        """Know the tools that were registered and those of the manifests."""
        await self.catalog.boot()
        await asyncio.to_thread(self.catalog.read_manifests)
        await asyncio.to_thread(self._spaces.clear_models)
        for aid in await asyncio.to_thread(self._spaces.agents):
            if not self._alive(aid):
                await self._spaces.clear(f"agent:{aid}")

    async def close(self) -> None:
        """End all hosts; calls have ended before."""
        self._watch.close()
        await self.packages.close()
        await self.pool.close()
        await self.models.close()
        if self._clearing:
            await asyncio.wait(self._clearing)
        await self.book.settle()

    def reload(self) -> None:
        """Take on settings that were read again, and look for manifests."""
        settings = self._config().tools
        self._turns.most_running, self._turns.most_waiting = (
            settings.max_running, settings.max_queue,
        )  # fmt: skip
        self._wake(self._turns.next())
        self.catalog.read_manifests()
        self.packages.forget()

    # What the kernel asks.

    def waits_for(self, aid: int) -> str:
        """Return "tool:NAME" when an agent waits for one, else nothing."""
        calls = self._calls.get(aid)
        return f"tool:{calls[-1]}" if calls else ""

    def agent_stopped(self, aid: int) -> None:
        """Stop the clocks of its calls' deadlines; what carries them out goes on."""
        for limited in self._deadlines.get(aid, ()):
            limited.deadline.stop()

    def agent_continued(self, aid: int) -> None:
        """Start them again."""
        for limited in self._deadlines.get(aid, ()):
            limited.deadline.start()

    def agent_ended(self, aid: int) -> None:
        """Let nothing of an agent be left: its hosts, its workspace, its rates."""
        task = asyncio.get_running_loop().create_task(self._clear(f"agent:{aid}"))
        self._clearing.add(task)
        task.add_done_callback(self._clearing.discard)

    async def _clear(self, subject: str) -> None:
        self._rates.forget(subject)
        self._watch.written(subject)
        await self.pool.end(subject)
        await self._spaces.clear(subject)

    def _alive(self, aid: int) -> bool:
        try:
            return self._table.get(aid).alive
        except ProcessLookupError:
            return False

    # The calls.

    async def sys_execute_tool(self, caller: Caller, args: ExecuteTool) -> ToolResult:
        """Carry a call out."""
        kept = asking.get() if args.key else None
        if (charged := self.charge(caller)) is not None:
            await charged
        return await self._call(caller, args.name, args.arguments, args.timeout, kept)

    async def sys_list_tools(self, caller: Caller, args: ListTools) -> list[Tool]:
        """List all tools, by name."""
        await self.packages.discover()
        return [self.shown(tool) for tool in self.catalog]

    async def sys_describe_tool(self, caller: Caller, args: DescribeTool) -> Tool:
        """Return a tool's declaration, and how busy it is."""
        return self.shown(await self.find(args.name))

    async def sys_register_tool(self, caller: Caller, args: RegisterTool) -> Tool:
        """Declare a tool for good, or take one away."""
        if not args.remove:
            await self.packages.discover()
            tool = await self.catalog.register(dict(args.declaration), args.replace, self.shown)
        else:
            name = args.declaration.get("name", "")
            tool = await self.catalog.remove(str(name), self.shown)
        return self.shown(tool)

    sys_register_tool.lasting = True  # type: ignore[attr-defined]

    async def execute(
        self,
        caller: Caller,
        aid: int,
        name: str,
        arguments: dict[str, Any],
        *,
        timeout: float | None = None,
        key: str = "",
    ) -> ToolResult:
        """Carry a call out for another part of the kernel; under a key at most once.

        aid: the agent that it is for, 0 for a person's. timeout: seconds. Raises OSError.
        """
        whose = caller if caller.aid == aid else Caller(caller.uid, caller.gid, caller.pid, aid)
        if not key:
            if (charged := self.charge(whose)) is not None:
                await charged
            return await self._call(whose, name, arguments, timeout, None)
        owner = (True, aid) if aid else (False, caller.uid)
        body = msgspec.msgpack.encode([name, arguments])
        kept = self._keys.take(owner, INNER, key, body)
        if kept.answer is not None:
            return msgspec.msgpack.decode(kept.answer, type=ToolResult)
        if kept.work is not None:
            raise BlockingIOError(errno.EAGAIN, f"tool {name}: a call with this key is under way")
        kept.work = self
        try:
            if (charged := self.charge(whose)) is not None:
                await charged
            result = await self._call(whose, name, arguments, timeout, kept)
        except BaseException:
            self._keys.drop(kept)
            raise
        self._keys.keep(kept, msgspec.msgpack.encode(result))
        return result

    async def find(self, name: str) -> Declaration:
        """Return a tool; FileNotFoundError when there is none of that name."""
        if name not in self.catalog:
            await self.packages.discover()
        return self.catalog.get(name)

    def shown(self, tool: Declaration) -> Tool:
        """Return a tool as list_tools shows it."""
        needs, limits = tool.needs, msgspec.structs.asdict(tool.limits)
        running, queued, warm = self.models.load_of(tool.name)
        return Tool(
            name=tool.name,
            version=tool.version,
            description=tool.description,
            input=tool.input,
            output=tool.output,
            needs=[
                *(f"network:{host}" for host in needs.network),
                *(f"read:{path}" for path in needs.read),
                *(f"write:{path}" for path in needs.write),
                *(f"secret:{name}" for name in needs.secrets),
            ],
            limits={name: float(value) for name, value in limits.items()},
            source=tool.source,
            kind=tool.kind,
            idempotent=tool.idempotent,
            exclusive=tool.exclusive,
            isolation=tool.isolation,
            running=self._turns.of.get(tool.name, 0) + running,
            queued=self._turns.queued(tool.name) + queued,
            warm=self.pool.count(tool.name) + warm,
            model=tool.model,
            batch=tool.batch,
        )

    # One call.

    async def _call(
        self,
        caller: Caller,
        name: str,
        arguments: dict[str, Any],
        timeout: float | None,
        kept: Kept | None,
    ) -> ToolResult:
        """Do what is done for every call, whoever asks. kept: the keyed request that it answers."""
        tool = await self.find(name)
        if wrong := tool.arguments.wrong(arguments):
            raise OSError(
                errno.EINVAL, f"tool {name}: its arguments are not what it takes: {wrong}"
            )
        runner = self._runner(tool)
        secrets = self.secrets.of(tool) if tool.needs.secrets else {}
        self._limit(caller.subject, tool)
        asked = monotonic()
        claim = Claim(
            caller.subject,
            name,
            nice=self._nice(caller.aid),
            concurrent=tool.limits.concurrent or self._config().tools.concurrent,
            exclusive=tool.exclusive,
        )
        calls = self._calls[caller.aid]
        calls.append(name)
        limited = self._limited(caller.aid, timeout)
        try:
            if not tool.model and not self._turns.ask(claim):  # a model has a queue of its own
                await self._turn(claim, tool, limited)
            waited = monotonic() - asked
            work = await self._work(caller.subject, tool, arguments, secrets)
            work.nice = lambda: self._nice(caller.aid)
            if kept is None or tool.idempotent:
                return await self._carry_out(caller, work, runner, secrets, waited, limited)
            return await self._once_only(caller, work, runner, secrets, waited, kept, limited)
        finally:
            self._unlimited(caller.aid, limited)
            self._wake(self._turns.give(claim))
            calls.remove(name)
            if not calls:
                self._calls.pop(caller.aid, None)

    def _runner(self, tool: Declaration) -> Runner:
        kind = "command" if tool.command else "python" if tool.python else "mcp"
        if tool.source == "kernel":
            kind = "kernel"
        elif tool.model:
            kind = "model"
        runner = self.runners.get(kind)
        if runner is None:
            raise OSError(errno.ENODEV, f"tool {tool.name}: nothing here runs tools of kind {kind}")
        return runner

    def _limit(self, subject: str, tool: Declaration) -> None:
        """Raise BlockingIOError when a call comes sooner than the tool's rate allows."""
        limits = tool.limits
        if not limits.rate:
            return
        wait = self._rates.take((subject, tool.name), limits.rate, limits.burst, monotonic())
        if wait:
            raise BlockingIOError(
                errno.EAGAIN,
                f"tool {tool.name}: {limits.rate:g} calls per second are its limit (limits.rate); "
                f"ask again in {wait:.3f} s",
            )

    def _nice(self, aid: int) -> int:
        try:
            return self._table.get(aid).nice if aid else 0
        except ProcessLookupError:
            return 0  # it has ended in the meantime

    def _limited(self, aid: int, timeout: float | None) -> Limited | None:
        """Let a call's deadline count, unless its agent is suspended; None when it has none."""
        if timeout is None:
            return None
        limited = Limited(timeout)
        self._deadlines[aid].add(limited)
        if not aid or not self._table.get(aid).stopped:
            limited.deadline.start()
        return limited

    def _unlimited(self, aid: int, limited: Limited | None) -> None:
        if limited is None:
            return
        limited.deadline.close()
        self._deadlines[aid].discard(limited)
        if not self._deadlines[aid]:
            del self._deadlines[aid]

    async def _turn(self, claim: Claim, tool: Declaration, limited: Limited | None) -> None:
        """Return when a call may run that has to wait. Raises TimeoutError."""
        come = asyncio.get_running_loop().create_future()
        claim.wake = lambda: None if come.done() else come.set_result(None)
        if limited is None:
            await come
            return
        try:
            async with limited:
                await come
        except TimeoutError:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"tool {tool.name}: others were before it for all of {limited.seconds:g} s; it did "
                "not run",
            ) from None

    def _wake(self, ready: list[Claim]) -> None:
        for claim in ready:
            claim.wake()

    async def _work(
        self,
        subject: str,
        tool: Declaration,
        arguments: dict[str, Any],
        secrets: dict[str, str],
    ) -> Work:
        settings = self._config().tools
        seconds = min(tool.limits.time, settings.max_timeout)
        folder = self._spaces.of(subject)
        room, most = await self._watch.room(subject, folder)
        environ = {**settings.settings.get(tool.name, {}), **secrets}
        return Work(tool, arguments, subject, folder, environ, seconds, room, most)

    async def _once_only(
        self,
        caller: Caller,
        work: Work,
        runner: Runner,
        secrets: dict[str, str],
        waited: float,
        kept: Kept,
        limited: Limited | None,
    ) -> ToolResult:
        """Carry out what must not happen twice: it and its answer outlive a kernel together."""
        owner, _, key = kept.name
        await self._once.begin(owner, key, work.tool.name)
        reach("tools.begun")
        try:
            result = await self._carry_out(caller, work, runner, secrets, waited, limited)
        except OSError:
            await self._once.failed(owner, key)
            raise
        ending = self._once.ending(owner, key)
        answer = keeping(kept.row(msgspec.msgpack.encode(result)))

        def write(db: Connection) -> None:
            ending(db)
            answer(db)

        reach("tools.done")
        await self._db.write(write)
        return result

    async def _carry_out(
        self,
        caller: Caller,
        work: Work,
        runner: Runner,
        secrets: dict[str, str],
        waited: float,
        limited: Limited | None,
    ) -> ToolResult:
        """Run a call between its two records."""
        tool, values = work.tool, tuple(secrets.values())
        number = self.book.begun(caller, tool, work.arguments, values)
        began = monotonic()
        facts: dict[str, Any] = {"errno": "ECANCELED"}
        outcome: Outcome | None = None
        try:
            with self._watch.over(work):
                if limited is None:
                    outcome = await runner.run(work)
                else:
                    outcome = await run_within(limited, runner, work)
            result = self._result(work, outcome, values, waited, monotonic() - began)
            facts = {"exit": outcome.exit_code, "digest": result.digest}
            return result
        except OSError as error:
            code, reason = error.errno or errno.EIO, strike(str(error.strerror or error), values)
            facts = {"errno": errno.errorcode.get(code, str(code)), "reason": reason[:512]}
            raise OSError(code, reason) from None
        finally:
            if outcome is None or outcome.artefacts:
                self._watch.written(work.subject)
            facts["seconds"] = round(monotonic() - began, 6)
            self.book.ended(number, caller, tool, facts)

    def _result(
        self, work: Work, outcome: Outcome, secrets: tuple[str, ...], waited: float, seconds: float
    ) -> ToolResult:
        """Return what the agent gets of an outcome. Raises OSError for what was not declared."""
        tool, value = work.tool, outcome.value
        if wrong := tool.result.wrong(value):
            raise unlike(tool, f"is not what it declared: {wrong}")
        if secrets:
            value = strike_all(value, secrets)
            outcome.stdout = strike(outcome.stdout, secrets)
            outcome.stderr = strike(outcome.stderr, secrets)
        try:
            size, digest = toolbook.digest(value)
        except OSError as error:
            raise unlike(tool, str(error.strerror)) from None
        if size > tool.limits.output:
            raise flooded(tool)
        return ToolResult(
            value=value,
            stdout=outcome.stdout,
            stderr=outcome.stderr,
            exit_code=outcome.exit_code,
            seconds=max(0.0, seconds - outcome.waited),
            artefacts=outcome.artefacts,
            workspace=work.workspace,
            waiting_s=waited + outcome.waited,
            digest=digest,
            warm=outcome.warm,
            metrics=outcome.metrics,
        )
