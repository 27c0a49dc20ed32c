"""MCP servers: started with the kernel, watched over, started again when they end, and stopped.

    servers = McpServers(settings, state_dir, events, catalog, secret)
    servers.reload(); await servers.close()
    outcome = await servers.run(work)          # a call of one of their tools, for ToolManager

A server is one of [tools.mcp.NAME], and its tools are NAME:TOOL in the catalog. They stay there
while it is started again, so that a call meanwhile waits for it, or says what has become of it.

What must hold: a server that dies, hangs, floods or lies is an error of its own calls, which name
it, and of nothing else. Between two starts lies a pause, which doubles up to a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from time import time
from typing import Any, Final

from aiosd.abi import toolwire as w
from aiosd.abi.tools import ListToolServers, ToolServer
from aiosd.access import Caller
from aiosd.catalog import Catalog
from aiosd.declaration import Declaration, declare
from aiosd.events import Events
from aiosd.mcplife import Gone, Life
from aiosd.settings import McpServer
from aiosd.toolrun import Outcome, Work, too_slow
from aiosd.toolsecrets import strike, strike_all

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 60.0
STEADY_S: Final = 30.0
"""Seconds after which a server that ran counts as sound again: its next pause is the first."""
CURE: Final = "it needs the package mcp: pip install 'aios[mcp]'"
MOST_OUTPUT: Final = 4 << 20
"""Bytes that a declaration may allow a result; a server's own limit may be higher."""

_ERRNO: Final = {
    "error": errno.EREMOTEIO,
    "arguments": errno.EINVAL,
    "result": errno.EPROTO,
    "unavailable": errno.ENODEV,
}

Secret = Callable[[str, str], str]


class McpServers:
    """All of them. settings: the tables, now. secret: the value of one by name and who needs it.

    hidden: paths that no server sees, whatever its table says.
    """

    def __init__(
        self,
        settings: Callable[[], Mapping[str, McpServer]],
        state_dir: str,
        events: Events,
        catalog: Catalog,
        secret: Secret,
        hidden: tuple[str, ...] = (),
    ) -> None:
        self._settings = settings
        self._directory = f"{state_dir}/mcp"
        self._hidden = hidden
        self._events = events
        self._catalog = catalog
        self._secret = secret
        self._servers: dict[str, Server] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def reload(self) -> None:
        """Start servers that are new, stop those that are gone, and both where a table changed."""
        wanted = self._settings()
        stopping: dict[str, asyncio.Task[None]] = {}
        for name, server in list(self._servers.items()):
            if wanted.get(name) != server.settings:
                del self._servers[name]
                stopping[name] = self._stop(server)
        for name, settings in wanted.items():
            if name not in self._servers:
                self._servers[name] = self._made(name, settings)
                self._servers[name].start(stopping.get(name))

    async def close(self) -> None:
        """Stop them all."""
        for server in self._servers.values():
            self._stop(server)
        self._servers.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    async def run(self, work: Work) -> Outcome:
        """Carry out a call. Raises OSError that names the tool and its server."""
        server = self._servers.get(work.tool.server)
        if server is None:
            raise _error(work, errno.ENODEV, "is not configured any more")
        return await server.run(work)

    def sys_list_tool_servers(self, caller: Caller, args: ListToolServers) -> list[ToolServer]:
        """Say what has become of every server."""
        return [server.status() for _, server in sorted(self._servers.items())]

    def _made(self, name: str, settings: McpServer) -> Server:
        return Server(
            name, settings, self._directory, told=self._told, secret=self._secret,
            hidden=self._hidden,
        )  # fmt: skip

    def _stop(self, server: Server) -> asyncio.Task[None]:
        self._catalog.drop(f"mcp:{server.name}")
        task = asyncio.get_running_loop().create_task(server.stop())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    def _told(self, server: Server, declared: list[Declaration] | None) -> None:
        """A server's state has changed, or its list of tools."""
        if declared is not None and self._servers.get(server.name) is server:
            source = f"mcp:{server.name}"
            self._catalog.put(source, declared)
            self._catalog.problems.pop(source, None)
            if server.refused:
                self._catalog.problems[source] = server.complaint()
        self._events.emit(
            "tools.server", name=server.name, state=server.state, reason=server.reason
        )


class Server:
    """One server over all its lives. told: called when its state or its tools have changed."""

    def __init__(
        self,
        name: str,
        settings: McpServer,
        directory: str,
        *,
        told: Callable[[Server, list[Declaration] | None], None],
        secret: Secret,
        hidden: tuple[str, ...],
    ) -> None:
        self.name = name
        self.settings = settings
        self.state = "starting"
        self.reason = ""
        self.refused: dict[str, str] = {}
        self._place = os.path.join(directory, name)
        self._told = told
        self._secret = secret
        self._secrets: dict[str, str] = {}
        self._hidden = hidden
        self._loop = asyncio.get_running_loop()
        self._life: Life | None = None
        self._since = time()
        self._restarts = 0
        self._tools = 0
        self._again = 0.0  # the loop's time of the next start
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._declaring: asyncio.Task[None] | None = None

    def start(self, after: asyncio.Task[None] | None = None) -> None:
        """Keep it running from now on, or once another of its name has been stopped."""
        self._task = self._loop.create_task(self._supervise(after))

    async def stop(self) -> None:
        """Stop it, and return when nothing of it is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._declaring is not None:
            self._declaring.cancel()
        self._became("stopped", "")

    def status(self) -> ToolServer:
        """Return what there is to know."""
        return ToolServer(
            name=self.name,
            kind="http" if self.settings.url else "stdio",
            state=self.state,
            pid=self._life.pid if self._life is not None else 0,
            since=self._since,
            restarts=self._restarts,
            tools=self._tools,
            refused=self.refused,
            reason=self.reason,
        )

    def complaint(self) -> str:
        """Say which of its tools were refused, and why."""
        return "; ".join(f"{name} is refused: {why}" for name, why in self.refused.items())

    async def run(self, work: Work) -> Outcome:
        """Carry out a call."""
        seconds = work.seconds
        try:
            async with asyncio.timeout(seconds):
                life = await self._ready(work, seconds)
                self._check_room(work, life)
                answer = await life.call(work.tool.name, work.arguments, work.workspace, seconds)
        except TimeoutError:
            raise too_slow(work.tool, seconds) from None
        except Gone as gone:
            why = f"ended in the middle of the call ({gone}); it is started again"
            raise _error(work, errno.EREMOTEIO, why) from None
        if isinstance(answer, w.Failed):
            said = strike(answer.message, self._secrets.values())
            raise _error(work, _ERRNO[answer.kind], f"answered: {said}")
        value = strike_all(answer.value, self._secrets.values()) if self._secrets else answer.value
        return Outcome(value, artefacts=answer.artefacts, metrics=answer.metrics, warm=True)

    # Inside.

    def _check_room(self, work: Work, life: Life) -> None:
        if life.calls >= self.settings.calls or life.behind:
            limit = f"has {life.calls} calls under way (calls, {self.settings.calls}); ask later"
            raise _error(work, errno.EAGAIN, limit)

    async def _ready(self, work: Work, seconds: float) -> Life:
        """Return its life, waiting for a start that is under way or near."""
        ends = self._loop.time() + seconds
        while True:
            life = self._life
            if self.state == "ready" and life is not None and not life.ended.done():
                return life
            if self.state == "failed" or (self.state == "waiting" and self._again > ends):
                raise _error(work, errno.ENODEV, f"does not run: {self._prospect()}")
            await self._changed.wait()

    def _prospect(self) -> str:
        if self.state != "waiting":
            return self.reason
        return f"{self.reason}; it is started again in {self._again - self._loop.time():.0f} s"

    async def _supervise(self, after: asyncio.Task[None] | None) -> None:
        failures = 0
        if after is not None:
            await asyncio.wait({after})
        while True:
            began = self._loop.time()
            reason = await self._live()
            failures = 1 if self._loop.time() - began >= STEADY_S else failures + 1
            if self.state == "failed":
                return
            pause = min(FIRST_PAUSE_S * 2 ** min(failures - 1, 32), LONGEST_PAUSE_S)
            self._again = self._loop.time() + pause
            log.warning(
                "MCP server %s: %s; again in %g s (see %s.log)",
                self.name, reason, pause, self._place, extra={"server": self.name},
            )  # fmt: skip
            self._became("waiting", reason)
            await asyncio.sleep(pause)
            self._restarts += 1

    async def _live(self) -> str:
        """Start it, and return why it has ended."""
        self._became("starting", self.reason)
        life: Life | None = None
        try:
            life = self._life = self._new()
            async with asyncio.timeout(self.settings.start_timeout):
                await life.start()
                await asyncio.shield(life.ready)
                await self._declared()
            self._became("ready", "")
            return await asyncio.shield(life.ended)
        except TimeoutError:
            seconds = self.settings.start_timeout
            return f"it did not list its tools within {seconds:g} s (start_timeout)"
        except OSError as error:
            why = error.strerror or str(error)
            why = f"{why}: {error.filename}" if error.filename else why
            if error.errno in (errno.ENOTSUP, errno.ENOPKG, errno.ENOKEY):
                log.error(
                    "MCP server %s is not started: %s", self.name, why, extra={"server": self.name}
                )
                self._became("failed", why)
            return why
        finally:
            if life is not None:
                if life.last_words:
                    log.warning("MCP server %s said last: %s", self.name, life.last_words)
                await _surely(life.close())
            self._life = None

    def _new(self) -> Life:
        if find_spec("mcp") is None:
            raise OSError(errno.ENOPKG, CURE)
        who = f"MCP server {self.name}"
        self._secrets = {each: self._secret(each, who) for each in self.settings.secrets}
        return Life(
            self.name,
            self.settings,
            self._place,
            f"{self._place}.log",
            self._secrets,
            self._hidden,
            self._listed,
        )

    def _became(self, state: str, reason: str) -> None:
        if state != self.state:
            self._since = time()
        self.state, self.reason = state, reason
        self._changed.set()
        self._changed = asyncio.Event()
        self._told(self, None)

    # Its tools.

    def _listed(self, entries: list[dict[str, Any]]) -> None:
        """Take a new list; a list that is still being looked at is forgotten."""
        if self._declaring is not None:
            self._declaring.cancel()
        self._declaring = self._loop.create_task(self._declare(entries))

    async def _declared(self) -> None:
        while self._declaring is not None and not self._declaring.done():
            await asyncio.wait({self._declaring})

    async def _declare(self, entries: list[dict[str, Any]]) -> None:
        """Make declarations, one at a time: schemas take a while, and nobody shall wait for it."""
        declared: list[Declaration] = []
        refused: dict[str, str] = {}
        for entry in entries:
            name = str(entry.get("name", ""))
            if "refused" in entry:
                refused[name] = str(entry["refused"])
                continue
            try:
                declared.append(declare(entry | self._limits(), f"mcp:{self.name}"))
            except OSError as error:
                refused[name] = error.strerror or str(error)
            await asyncio.sleep(0)
        if refused != self.refused:
            for name, why in refused.items():
                log.warning("MCP server %s: its tool %s is refused: %s", self.name, name, why)
        self.refused, self._tools = refused, len(declared)
        self._told(self, declared)

    def _limits(self) -> dict[str, Any]:
        settings = self.settings
        seconds = min(settings.timeout, 86_400.0) or 86_400.0
        return {"limits": {"time": seconds, "output": min(settings.output, MOST_OUTPUT)}}


async def _surely(closing: Any) -> None:
    """Await to the end, cancelled or not."""
    task = asyncio.ensure_future(closing)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.shield(task)
        return
    await asyncio.wait({task})
    raise asyncio.CancelledError


def _error(work: Work, number: int, sentence: str) -> OSError:
    return OSError(number, f"tool {work.tool.name}: MCP server {work.tool.server} {sentence}")
