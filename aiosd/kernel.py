"""The kernel put together: boot, serve, reload, end.

    kernel = Kernel(config, reread)
    await kernel.boot(); await kernel.serve(); await kernel.end()

What must hold: a kernel that says it is ready answers; one that fails to boot leaves nothing
behind; agents, their contexts and their keyed requests outlive the kernel's end.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import secrets
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from aiosd import config as configuration
from aiosd import log as logs
from aiosd.access import Access, Caller
from aiosd.approvals import Approvals
from aiosd.audit import Audit
from aiosd.budgets import Budgets
from aiosd.claim import Door, Lock
from aiosd.config import Config
from aiosd.cores.sequence import Sequence
from aiosd.db import Connection, Database
from aiosd.embeddings import Embedding
from aiosd.events import Events
from aiosd.gateways import Gateways
from aiosd.grants import Grants
from aiosd.inference import Inference
from aiosd.kerneltools import DECLARED, KernelTools
from aiosd.keys import Keys
from aiosd.layers import Doctor
from aiosd.machine import Machine
from aiosd.mcpservers import McpServers
from aiosd.messages import Messages
from aiosd.meters import Meters
from aiosd.models import Models
from aiosd.notify import Notifier
from aiosd.proc import ProcessTable
from aiosd.quota import Quotas
from aiosd.routes import Routes
from aiosd.schema import MIGRATIONS
from aiosd.server import Server
from aiosd.snapshots import Snapshots
from aiosd.spawn import Spawner
from aiosd.stores import Stores
from aiosd.syscall import Dispatcher
from aiosd.system import VERSION, About, System
from aiosd.tools import ToolManager
from aiosd.toolturns import ToolTurns
from aiosd.vault import Vault, load_keys

log = logging.getLogger(__name__)

WRITTEN_STEP: Final = 64
"""Records of the audit log after which the database is told how far it goes."""

SPARE_FILES: Final = 256
"""Descriptors beside connections: database, log, shims, workers."""


class Kernel:
    """All parts of a running kernel. reread: reads the configuration again, for SIGHUP."""

    def __init__(self, config: Config, reread: Callable[[], Config], source: str) -> None:
        self.config = config
        self.boot_id = secrets.token_hex(8)
        self._reread = reread
        self._source = source
        self._notifier = Notifier()
        self._stop = asyncio.Event()
        self._written_last = 0
        self._undo = AsyncExitStack()  # what boot did, undone in reverse order

    async def boot(self) -> None:
        """Do what comes between a configuration and the first call, in this order."""
        try:
            self._claim()  # directories, locks: from here on this is the only kernel
            self._allow_files()  # as many descriptors as connections may need
            await self._open_database()  # migrated; what was acknowledged is there again
            self._assemble()  # every part made, every handler bound
            await self._open_audit()  # from here on what is decided is on record
            await self._recover()  # processes that outlived the last kernel are adopted
            await self._open_door()  # from here on calls are answered
            self._hear_signals()  # TERM, INT: end; HUP: reload
        except BaseException:
            await self._undo.aclose()
            raise
        gc.collect()
        gc.freeze()  # what boot made is never garbage: don't look at it again
        self.events.emit("kernel.boot", boot_id=self.boot_id)
        self._notifier.ready(f"serving {self.config.kernel.socket}")
        log.info("ready: %s", self.config.kernel.socket)

    async def serve(self) -> None:
        """Return when the kernel was told to end."""
        await self._stop.wait()

    async def end(self) -> None:
        """Let requests end within the drain time, then take everything down but the agents."""
        self._notifier.stopping()
        log.info("ending: up to %g s for requests in flight", self.config.kernel.drain_timeout)
        self.events.emit("kernel.drain")
        self.server.stop()
        await self.dispatcher.drain(self.config.kernel.drain_timeout)
        await self._undo.aclose()
        log.info("ended")

    # Boot, step by step.

    def _claim(self) -> None:
        configuration.make_dirs(self.config)
        kernel = self.config.kernel
        for directory in dict.fromkeys((kernel.state_dir, kernel.runtime_dir)):
            self._undo.callback(Lock(directory).release)

    def _allow_files(self) -> None:
        wanted = self.config.kernel.max_connections + SPARE_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
        if hard < wanted:
            log.warning(
                "%d files may be open, %d may be needed (kernel.max_connections)", hard, wanted
            )

    async def _open_database(self) -> None:
        path = f"{self.config.kernel.state_dir}/aios.db"
        _check_beside(path, self.config)
        self.db = Database.open(path, MIGRATIONS)
        self._undo.push_async_callback(self.db.close)

    async def _open_audit(self) -> None:
        self.audit.open(await self.db.read(_written))
        self._undo.push_async_callback(self.audit.close)
        self.access.witness = self.audit.decision
        self.events.witness = self._witness
        await self.grants.boot()
        await self.approvals.boot()

    def _assemble(self) -> None:
        kernel = self.config.kernel
        rules = self.config.access
        self.events = Events()
        self.access = Access(os.geteuid(), rules.ask, rules.grantors)
        self.audit = Audit(
            f"{kernel.state_dir}/audit",
            segment=self.config.audit.segment,
            limit=self.config.audit.limit,
        )
        self.audit.uid_of, self.audit.sees = self.access.uid_of, self.access.may_audit
        self.audit.on_synced = self._note_written
        self.grants = Grants(lambda: self.config, self.db, self.access, self.audit)
        self.approvals = Approvals(
            lambda: self.config, self.db, self.access, self.audit, self.events
        )
        self.keys = Keys()
        self.dispatcher = Dispatcher(
            self.access,
            self._attach,
            self.keys,
            version=VERSION,
            boot_id=self.boot_id,
            max_inflight=kernel.max_inflight,
            max_frame=kernel.max_frame,
        )
        about = About(self.boot_id, kernel.socket, kernel.state_dir, self._source)
        system = System(about, self.dispatcher, self.events, self.access, self._figures)
        self.dispatcher.approval = self.approvals.wait
        self.approvals.draining = lambda: self.dispatcher.draining
        agents_dir = Path(kernel.state_dir) / "agents"
        self.table = ProcessTable(
            self.config, self.db, self.events, self.access, partial(Spawner, agents_dir)
        )
        self.table.on_settled(self.dispatcher.forget_agent)
        self.table.on_settled(self.approvals.agent_ended)
        self.quotas = Quotas(self.db, self.access, self.events, self.config.history.keep_usage)
        self.budgets = Budgets(self.quotas, self.db, self.access, self.audit)
        self.table.on_birth(self.quotas.bear)
        self.machine = Machine(self.config, self.events, self.access)
        self.inference = Inference(
            self.config,
            self.db,
            self.events,
            self.table,
            self.access,
            self.machine.cores,
            self.keys,
            self.quotas,
        )
        covers = self.quotas.covers
        self.quotas.counts["kv_bytes"] = self._kv_held
        self.quotas.counts["children"] = partial(self.table.children, covers=covers)
        self.snapshots = Snapshots(
            self.config,
            self.db,
            self.access,
            self.inference.contexts,
            self.inference.journal,
            self.machine.cores.tiers,
            self.inference.running,
            self.quotas,
        )
        self.vault = Vault(partial(load_keys, self.config.encryption.key_file, os.environ))
        self.stores = Stores(
            self.config, self.db, self.events, self.access, self.table, self.quotas, self.vault
        )
        self.inference.preparation.recall = self.stores.recall
        self.dispatcher.remember = self.inference.journal.answer
        self.keys.discard = self.inference.journal.discard
        routes = Routes(self.machine.cores, self.table)
        self.dispatcher.bind(system, *self.table.managers, self.machine, routes)
        self.dispatcher.bind(*self.inference.managers)
        self.messages = Messages(lambda: self.config, self.db, self.access, self.table)
        self.table.on_settled(self.messages.agent_ended)
        self.table.channels += [self.approvals.waits_for, self.messages.waits_for]
        self.dispatcher.bind(self.audit, self.grants, self.approvals, self.messages)
        self.meters = Meters(self.dispatcher, self._figures, self.machine.cores.rows)
        self.dispatcher.bind(self.meters)
        self._assemble_tools()
        self.dispatcher.bind(self.vault, self.snapshots, self.budgets)
        self.dispatcher.bind(*self.stores.managers, self._embedding())

    def _embedding(self) -> Embedding:
        return Embedding(
            self.stores.embedder,
            self.machine.cores,
            self.table,
            self.quotas,
            self.db,
            self.inference.number,
        )

    def _assemble_tools(self) -> None:
        kernel = self.config.kernel
        self.tools = ToolManager(
            lambda: self.config,
            self.db,
            self.access,
            self.table,
            self.audit,
            self.events,
            self.keys,
        )
        self.mcp = McpServers(
            lambda: self.config.tools.mcp,
            kernel.state_dir,
            self.events,
            self.tools.catalog,
            self.tools.secrets.find,
            hidden=(kernel.state_dir, kernel.runtime_dir, self.config.context.kv_dir),
        )
        self.tools.runners["mcp"] = self.mcp
        stores = self.stores
        own = KernelTools(self.access, self.table, stores.owners, stores.library)
        self.tools.runners["kernel"] = own
        self.tools.catalog.put("kernel", DECLARED)
        self.tools.charge = lambda caller: self.quotas.take(
            caller.aid, caller.uid, "tool_calls", "execute_tool"
        )
        self.table.on_settled(self.tools.agent_ended)
        self.table.channels.append(self.tools.waits_for)
        self.budgets.settle = self.tools.book.settle
        self.machine.tool_rows = self.tools.models.rows
        self.tools.book.tell = self._tool_ended
        self.turns = ToolTurns(self.inference, self.access, self.keys, self.db, self.approvals.wait)
        self.turns.tools = self.tools
        self.table.on_settled(self.turns.agent_settled)
        self.table.listener = self.turns
        self.dispatcher.bind(Models(lambda: self.config, self.machine.cores))
        self.dispatcher.bind(self.tools, self.tools.files, self.tools.catalog, self.turns)
        self.dispatcher.bind(self.mcp, Doctor())
        self.gateways = Gateways(lambda: self.config, self.events)
        self.table.on_spawn(self.gateways.environment)
        self.dispatcher.bind(self.gateways)

    async def _recover(self) -> None:
        self._undo.push_async_callback(self.stores.close)
        await self.stores.boot()
        await self.inference.boot()  # numbers go on where the last kernel stopped
        self._undo.push_async_callback(self.inference.close)
        self._undo.push_async_callback(self.table.close)
        await self.table.boot()
        self._undo.push_async_callback(self.tools.close)
        await self.tools.boot()
        self._undo.push_async_callback(self.mcp.close)
        self.mcp.reload()  # servers begin to start; calls of their tools wait for them
        await self.grants.prune()
        await self.quotas.boot()  # what the last kernel had reserved counts
        await self.messages.boot()
        self._undo.push_async_callback(self.machine.cores.close)
        await self.machine.boot()  # cores begin to load; requests wait for them
        await self.inference.recover(self._adopt)  # contexts are there again, requests go on
        await self.quotas.resolve()
        await self.turns.boot()
        self._undo.push_async_callback(self.inference.leave)
        self._undo.push_async_callback(self.turns.close)

    async def _adopt(self, sequences: dict[int, Sequence]) -> None:
        """Find the KV of contexts, and what was marked of them."""
        await self.snapshots.boot()
        await self.machine.cores.adopt(sequences, self.snapshots.files())

    def _kv_held(self, subject: str) -> int:
        """Return the bytes of KV that count for a subject of quotas, besides what is reserved."""
        return self.inference.kv_held(subject) + self.snapshots.kv_held(subject)

    async def _open_door(self) -> None:
        kernel = self.config.kernel
        door = Door(kernel.socket, kernel.group)
        self._undo.callback(door.remove)
        self.server = Server(
            self.dispatcher, max_connections=kernel.max_connections, max_frame=kernel.max_frame
        )
        self._undo.push_async_callback(self.server.close)
        self._undo.push_async_callback(self.gateways.close)
        self.gateways.open()
        await self.server.listen(door.socket)

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    # While it runs.

    def reload(self) -> None:
        """Read the configuration again; apply what can change, name what needs a restart."""
        self._notifier.reloading()
        try:
            new = self._reread()
        except OSError as error:
            log.error("configuration unchanged, the new one is wrong: %s", error)
            self._notifier.ready("the new configuration is wrong, see the log")
            return
        changes = configuration.diff(self.config, new)
        for change in changes:
            when = "changed" if change.live else "changes at the next start"
            log.info("%s %s: %s -> %s", change.key, when, change.old, change.new)
        self._apply(_without(self.config, new, [c.key for c in changes if not c.live]))
        self.events.emit("kernel.reload", changed=[c.key for c in changes if c.live])
        self._notifier.ready(f"serving {self.config.kernel.socket}")

    def _apply(self, config: Config) -> None:
        self.config = config
        logs.set_level(config.kernel.log_level)
        self.dispatcher.max_inflight = config.kernel.max_inflight
        self.table.reload(config)
        self.inference.reload(config)
        self.quotas.keep = config.history.keep_usage
        self.snapshots.reload(config)
        self.vault.reload()
        self.stores.reload(config)
        self.tools.reload()
        self.mcp.reload()
        self.gateways.reload()
        self.access.set_policy(config.access.ask, config.access.grantors)
        self.machine.reload(config)
        self.server.max_connections = config.kernel.max_connections

    async def _attach(self, caller: Caller, credential: str) -> str:
        return (await self.table.attach(caller, credential))[1]

    def _witness(self, kind: str, aid: int, data: dict[str, Any]) -> None:
        """Put what happens on record, and count it."""
        self.audit.happened(kind, aid, data)
        self.meters.happened(kind, aid, data)

    def _tool_ended(self, aid: int, **facts: Any) -> None:
        """Tell who may see the agent; what a person did who is none is only counted."""
        if aid:
            self.events.emit("tool.end", aid, **facts)
        else:
            self.meters.happened("tool.end", 0, facts)

    def _note_written(self, id: int) -> None:
        """Remember in the database how far the audit log goes, so that a missing end is noticed."""
        if id - self._written_last >= WRITTEN_STEP:
            self._written_last = id
            self.db.write_soon(lambda db: _set_written(db, id))

    def _figures(self) -> dict[str, Any]:
        cores = list(self.machine.cores)
        return {
            "connections": self.server.connections,
            "agents": self.table.counts(),
            "requests": self.inference.requests,
            "preemptions": sum(core.preemptions for core in cores),
            "tokens_in": sum(core.tokens_in for core in cores),
            "tokens_out": sum(core.tokens_out for core in cores),
            "kv_ram": self.machine.cores.tiers.ram.used,
            "kv_ram_limit": self.config.context.ram_limit,
            "kv_disk": self.machine.cores.tiers.disk.used,
            "kv_disk_limit": self.config.context.disk_limit,
        }


def _check_beside(path: str, config: Config) -> None:
    """Raise FileNotFoundError when the database is missing, but not what belongs to it.

    A new one would know none of it: objects would be deleted as nobody's, numbers given again.
    """
    state_dir = config.kernel.state_dir
    beside = [*Path(state_dir, "agents").glob("*"), *Path(config.storage.dir).glob("??/*")]
    if beside and not os.path.lexists(path):
        raise FileNotFoundError(
            errno.ENOENT,
            f"is missing, but {beside[0]} of it is there: put it back, or move all of {state_dir}"
            " away and aiosd begins anew (aiosd(1), RECOVERY)",
            path,
        )


def _written(db: Connection) -> int:
    """Return up to which record the audit log is known to have been written."""
    row = db.execute("select value from meta where key = 'audit.written'").fetchone()
    return int(row[0]) if row else 0


def _set_written(db: Connection, id: int) -> None:
    db.execute("insert or replace into meta (key, value) values ('audit.written', ?)", (str(id),))


def _without(old: Config, new: Config, keys: list[str]) -> Config:
    """Return `new` with these keys, dotted, as they were in `old`."""
    for key in keys:
        section, _, name = key.rpartition(".")
        if not section:
            new = msgspec.structs.replace(new, **{name: getattr(old, name)})
            continue
        kept = getattr(getattr(old, section), name)
        part = msgspec.structs.replace(getattr(new, section), **{name: kept})
        new = msgspec.structs.replace(new, **{section: part})
    return new
