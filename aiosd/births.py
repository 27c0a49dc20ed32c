"""Births: how agents come to be. By spawn and fork with a program, by fork without one, and by
registering a program that runs already.

What must hold: an agent's row is durable before anything of it exists outside the kernel, so that
a kernel that dies halfway finds what it began; the caller is answered once the program runs; a
birth that fails, or whose caller takes it back, leaves no row, process, directory or context.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiosd.abi.process import Fork, RegisterAgent, Spawn, Started
from aiosd.access import Access, Caller, digest, new_credential
from aiosd.environment import Account, account, environment, merged
from aiosd.identity import Identities
from aiosd.launch import LIMITS
from aiosd.process import FOREIGN, FORKED, PERSON, SPAWNED, Process
from aiosd.program import resolve_program
from aiosd.reaper import CLOSING, Reaper
from aiosd.roster import Note, Roster
from aiosd.settings import Config
from aiosd.spawn import Spawner, Spec

KEYED: Final = 600.0
"""Seconds for which the key of a spawn stands for it."""

NAME: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]*)?")


@dataclass(frozen=True, slots=True)
class Program:
    """What a new process is to run. cwd "": a directory of its own."""

    argv: list[str]
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)


class Births:
    """Makes agents. `config` is called for what is configured now."""

    def __init__(
        self,
        config: Callable[[], Config],
        roster: Roster,
        reaper: Reaper,
        identities: Identities,
        spawner: Spawner,
        access: Access,
    ) -> None:
        self._config = config
        self._roster = roster
        self._reaper = reaper
        self._identities = identities
        self._spawner = spawner
        self._access = access
        self.on_forked: list[Callable[[int, int], None]] = []
        self.bear: Callable[[int, int], None] = _unlimited
        self.gateway: Callable[[str], dict[str, str]] = _none
        self._under_way: set[asyncio.Task[Started]] = set()

    async def close(self) -> None:
        """Return once every birth that has begun is over, or the next kernel has to see to it."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSING)

    # -- the calls ------------------------------------------------------------------------------

    async def sys_spawn(self, caller: Caller, args: Spawn) -> Started:
        """Run a program as a child of the caller."""
        if args.sandbox:
            raise OSError(
                errno.ENOSYS,
                "spawn: this kernel has no sandbox yet; sandbox=False runs it with your rights",
            )
        parent = self._roster.own(caller) if caller.aid else None
        key = f"{caller.uid} {caller.aid} {args.key}" if args.key else ""
        if (earlier := self._earlier(key)) is not None:
            return await self._repeat(earlier, args.argv)
        process = self._conceive(
            SPAWNED,
            parent=parent.aid if parent else PERSON,
            uid=parent.uid if parent else caller.uid,
            gid=parent.gid if parent else caller.gid,
            name=args.name or _name(args.argv[0]),
            nice=self._nice(caller, parent, args.nice),
            birth_key=key,
        )
        program = Program(args.argv, args.cwd, args.env, args.limits)
        note = Note("agent.spawn", process.aid)
        return await self._bring(process, self._start(process, program, note))

    async def sys_fork(self, caller: Caller, args: Fork) -> Started:
        """Make a child of an agent, with a copy of its contexts.

        The child has the agent's uid, nice value and defaults; with argv also its working
        directory, and an environment of its own, as after spawn.
        """
        if not NAME.fullmatch(args.name):
            raise OSError(errno.EINVAL, f"name: {args.name!r} is not letters, digits, . _ : -")
        source = self._roster.get_alive(args.aid)
        key = f"fork {args.aid} {caller.uid} {caller.aid} {args.key}" if args.key else ""
        if (earlier := self._earlier(key)) is not None:
            return await self._repeat(earlier, args.argv or earlier.argv)
        process = self._conceive(
            SPAWNED if args.argv else FORKED,
            parent=source.aid,
            uid=source.uid,
            gid=source.gid,
            name=args.name or (_name(args.argv[0]) if args.argv else source.name),
            nice=source.nice,
            birth_key=key,
        )
        process.max_tokens = source.max_tokens
        note = Note("agent.spawn", process.aid, {"forked": source.aid})
        if args.argv:
            # A directory that is the source's own goes when the source's row does.
            shared = source.cwd if source.cwd != self.workdir(source.aid) else ""
            program = Program(args.argv, shared)
            return await self._bring(process, self._start(process, program, note, source.aid))
        return await self._bring(process, self._split(process, source, note))

    async def sys_register_agent(
        self, caller: Caller, args: RegisterAgent, session: object
    ) -> Started:
        """Make the calling program an agent that this kernel did not start."""
        if caller.aid:
            raise FileExistsError(errno.EEXIST, f"this connection is agent {caller.aid} already")
        key = f"register {caller.uid} {args.key}" if args.key else ""
        if (earlier := self._earlier(key)) is not None and earlier.alive:
            started = await self._repeat(earlier, earlier.argv)
            self._identities.connect(earlier, caller)
            return started
        process = self._conceive(
            FOREIGN,
            parent=PERSON,
            uid=caller.uid,
            gid=caller.gid,
            name=args.name,
            nice=self._nice(caller, None, args.nice),
            birth_key=key,
        )
        started = await self._bring(process, self._join(process, caller))
        self._identities.connect(process, caller)
        return started

    # -- the steps ------------------------------------------------------------------------------

    def _earlier(self, key: str) -> Process | None:
        """Return what this very request made under a kernel that died before it could answer."""
        aid = self._roster.by_birth_key.get(key)
        process = self._roster.find(aid) if aid else None
        if process is None or process.unborn or time.time() - process.created > KEYED:
            return None
        return process if process.started or process.ending is None else None

    async def _repeat(self, process: Process, argv: list[str]) -> Started:
        """Answer a birth once more. Its credential is a new one: of the first there is a digest."""
        if process.argv != argv:
            raise OSError(errno.EINVAL, "key: it belongs to another birth; use a new one")
        if process.has_process:
            pid = process.pid or (await process.shim.ready() if process.shim else 0)
            return Started(process.aid, pid)
        credential = new_credential() if process.alive else ""
        if credential:
            self._roster.set_credentials(process, digest(credential), "")
            await self._roster.save(process, durable=True)
        return Started(process.aid, process.pid if process.kind == FOREIGN else 0, credential)

    def _conceive(
        self,
        kind: str,
        *,
        parent: int,
        uid: int,
        gid: int,
        name: str,
        nice: int,
        birth_key: str = "",
    ) -> Process:
        """Take a place in the table. Whoever asks has to fill it.

        Raises OSError: EMFILE when there is none, EDQUOT where a quota allows no more children.
        """
        self.bear(parent, uid)
        most = self._config().agents.max_agents
        if self._roster.living >= most:
            raise OSError(
                errno.EMFILE,
                f"{most} agents live, the limit (agents.max_agents): end some, or raise it",
            )
        process = Process(
            aid=self._roster.new_aid(),
            parent=parent,
            uid=uid,
            gid=gid,
            kind=kind,
            name=name,
            nice=nice,
            program="",
            argv=[],
            cwd="",
            created=time.time(),
            birth_key=birth_key,
            lineage=self._lineage(parent),
            unborn=True,
        )
        self._roster.add(process)
        return process

    def _lineage(self, parent: int) -> tuple[int, ...]:
        found = self._roster.find(parent)
        return (*found.lineage, found.aid) if found is not None else ()

    def _nice(self, caller: Caller, parent: Process | None, nice: int) -> int:
        """Return the nice value of a child; an agent's inherits its parent's unless it is given.

        EPERM for one below the parent's (below 0 for a person's) without the right to it.
        """
        floor = parent.nice if parent else 0
        wanted = nice or floor
        if wanted < floor and not self._access.superuser(caller):
            raise PermissionError(
                errno.EPERM,
                f"nice: {wanted} is below {floor}; only the daemon's owner or root goes there",
            )
        return wanted

    async def _bring(self, process: Process, steps: Coroutine[None, None, Started]) -> Started:
        """Take the steps of a birth to their end; undo them when one fails.

        They are not cancelled halfway: a caller that takes its request back has them undone.
        """
        birth = asyncio.get_running_loop().create_task(self._finish(process, steps))
        self._under_way.add(birth)
        birth.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(birth)
        except asyncio.CancelledError:
            process.unwanted = True
            if birth.done() and birth.exception() is None:
                self._reaper.run(self._take_back(process))
            raise

    async def _finish(self, process: Process, steps: Coroutine[None, None, Started]) -> Started:
        try:
            started = await steps
        except BaseException:
            await self._undo(process)
            raise
        if process.unwanted:
            await self._take_back(process)
            return started
        process.unborn = False
        if process.early is not None:
            self._reaper.end_soon(process, process.early)
        return started

    async def _start(
        self, process: Process, program: Program, note: Note, source: int = 0
    ) -> Started:
        """Run a program as this process."""
        who = await asyncio.to_thread(account, process.uid, process.gid)
        key = new_credential()
        of_gateway = self.gateway(key)
        spec, ticket = await asyncio.to_thread(self._spec, process, program, who, of_gateway)
        process.key = digest(key) if of_gateway else ""
        self._roster.set_credentials(process, "", digest(ticket))
        await self._roster.save(process, durable=True)
        if source:
            await self._copy(source, process.aid)
        process.shim = await self._spawner.start(process.aid, spec)
        try:
            process.pid = await process.shim.ready()
        except ChildProcessError as error:  # the shim was killed before it ran anything
            raise OSError(errno.EIO, f"spawn: {error.strerror}; try again") from None
        process.started = process.shim.started or time.time()
        note.data.update(name=process.name, parent=process.parent, argv=process.argv)
        await self._roster.save(process, notes=[note, *_started(process)])
        return Started(process.aid, process.pid)

    def _spec(
        self, process: Process, program: Program, who: Account, of_gateway: Mapping[str, str]
    ) -> tuple[Spec, str]:
        """Decide what exactly to run, with which one-time credential. In a thread: reads disks."""
        config = self._config()
        if unknown := sorted(program.limits.keys() - LIMITS.keys()):
            known = ", ".join(sorted(LIMITS))
            raise OSError(errno.EINVAL, f"limits: no limit {unknown[0]!r}; there are {known}")
        process.argv = program.argv
        process.cwd = program.cwd or self._own_directory(process.aid, who)
        if not os.path.isabs(process.cwd):
            raise OSError(errno.EINVAL, f"cwd: {process.cwd!r} is not absolute")
        env = environment(who, config.kernel.socket, merged(of_gateway, program.env))
        path = _agent_path(config)
        first = resolve_program(program.argv[0], path, process.cwd, env["PATH"])
        process.program = first[-1]
        if process.cwd == self.workdir(process.aid):
            os.makedirs(process.cwd, mode=0o700)
        ticket = new_credential()
        spec = Spec(
            argv=[*first, *program.argv[1:]],
            cwd=process.cwd,
            env=env,
            uid=who.uid if who.switch else None,
            gid=who.gid if who.switch else None,
            groups=who.groups,
            rlimits={**config.agents.rlimits.table(), **program.limits},
            log_limit=config.agents.log_limit,
            orphan_timeout=config.agents.orphan_timeout,
            kill_timeout=config.agents.kill_timeout,
            credential=ticket.encode(),
        )
        return spec, ticket

    async def _split(self, process: Process, source: Process, note: Note) -> Started:
        """Make a forked child that has no process: whoever has its credential speaks for it."""
        process.started = process.created
        process.argv, process.program, process.cwd = source.argv, source.program, source.cwd
        # Its contexts are on disk before it is: a child that a next kernel finds has them all, and
        # contexts of a child that it doesn't find go.
        await self._copy(source.aid, process.aid)
        credential = new_credential()
        self._roster.set_credentials(process, digest(credential), "")
        note.data.update(name=process.name, parent=process.parent)
        await self._roster.save(process, notes=[note, *_started(process)], durable=True)
        self._identities.expect(process, self._identities.unclaimed, "unclaimed")
        return Started(process.aid, 0, credential)

    async def _copy(self, source: int, child: int) -> None:
        """Give a child what its parent has in memory."""
        await self._roster.listener.fork_contexts(source, child)
        for tell in self.on_forked:
            tell(source, child)

    async def _join(self, process: Process, caller: Caller) -> Started:
        """Make the calling program this process."""
        process.pid = caller.pid
        process.started = process.created
        credential = new_credential()
        self._roster.set_credentials(process, digest(credential), "")
        facts = {"name": process.name, "parent": process.parent, "kind": process.kind}
        note = Note("agent.spawn", process.aid, facts)
        await self._roster.save(process, notes=[note, *_started(process)], durable=True)
        return Started(process.aid, process.pid, credential)

    async def _take_back(self, process: Process) -> None:
        """Undo a birth that is on record already."""
        note = Note("agent.exit", process.aid, {"name": process.name, "reason": "taken back"})
        await self._undo(process)
        await self._roster.save(notes=[note])

    async def _undo(self, process: Process) -> None:
        """Take back a birth: nothing is left of it."""
        self._reaper.withdraw(process)
        if (shim := process.shim) is not None:
            process.shim = None
            if shim.record is not None:
                shim.bye()
            else:
                shim.kill_tree()  # its end is answered with bye, by whoever hears of it
            await shim.closed()
        await self._roster.remove(process)
        await asyncio.to_thread(self.clear, process.aid)
        self._reaper.wake(process)

    def clear(self, aid: int) -> None:
        """Delete an agent's directories. Blocks."""
        self._spawner.remove(aid)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.workdir(aid))

    def workdir(self, aid: int) -> str:
        """Return the directory that an agent gets when none is asked for."""
        return os.path.join(self._config().kernel.state_dir, "work", str(aid))

    def _own_directory(self, aid: int, who: Account) -> str:
        """Return where an agent starts by default; the state directory is not for other users."""
        if not who.switch:
            return self.workdir(aid)
        return who.home if os.path.isdir(who.home) else "/"


def _none(key: str) -> dict[str, str]:
    """There is no gateway."""
    return {}


def _unlimited(parent: int, uid: int) -> None:
    """Everybody may have any number of children."""


def _agent_path(config: Config) -> list[str]:
    """Return where agents are looked for by name: the configured places, then those we bring."""
    here = Path(__file__).resolve().parent
    own = [place for place in (here / "agents", here.parent / "agents") if place.is_dir()]
    return list(dict.fromkeys([*config.agents.path, *map(str, own[:1])]))


def _name(program: str) -> str:
    """Make an agent's name of a program's: its file's name, as far as names allow."""
    stem = os.path.basename(program).removesuffix(".py")
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._:-") else "-" for c in stem)[:64]
    return name.lstrip("._:-") or "agent"


def _started(process: Process) -> list[Note]:
    return [Note("agent.start", process.aid, {"pid": process.pid})]
