"""A process: one agent's row, and what the rest of the kernel says and hears about it.

`Process` is the data, `proc.py` the table of them. State letters are derived, never stored:
T stopped, Z ended and not reaped, X dead, else what its requests do (R, Q or S).

Aid 0 stands for a person and aid 1 for the kernel in the role of init; neither has a row. A child
of either is dead as soon as it has ended (nobody has to reap it), and its status stays available
to `wait` for as long as its row is kept. Any other agent is a zombie until its parent waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from aiosd.abi.process import Agent, ExitStatus, Identity, Usage

if TYPE_CHECKING:
    from aiosd.access import Caller
    from aiosd.spawn import Shim

PERSON: Final = 0
INIT: Final = 1

SPAWNED: Final = "spawned"
FOREIGN: Final = "foreign"
FORKED: Final = "forked"


@dataclass(frozen=True, slots=True)
class Activity:
    """What an agent's requests do just now.

    state: R running on a core, Q queued, S sleeping. waiting: the wait channel. queue: place among
    the queued, 0 is next. slot: -1 when in none. tokens_per_s: of the running request. kv_ram and
    kv_disk: bytes. tokens_in and tokens_out: of requests in flight, not accounted yet. share: the
    part of its core that it has got lately, due: the part that is due to it.
    """

    state: str = "S"
    core: str = ""
    slot: int = -1
    waiting: str = "program"
    queue: int = -1
    tokens_per_s: float = 0.0
    kv_ram: int = 0
    kv_disk: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    share: float = 0.0
    due: float = 0.0


ASLEEP: Final = Activity()
ENDED: Final = Activity(waiting="")


class Listener(Protocol):
    """Who serves the agents' requests, and must hear what becomes of the agents.

    All but fork_contexts are called on the event loop and must not block. agent_ended comes once,
    also for agents that never made a request.
    """

    def agent_stopped(self, aid: int) -> None:
        """Freeze its generations between two tokens."""

    def agent_continued(self, aid: int) -> None:
        """Let its generations go on."""

    def agent_reniced(self, aid: int, nice: int) -> None:
        """Schedule it with another nice value from now on."""

    def agent_interrupted(self, aid: int) -> None:
        """End its current generations; each answers with the text that it has."""

    def agent_ended(self, aid: int) -> None:
        """Cancel its requests, free its slots and contexts."""

    def activity(self, aid: int) -> Activity:
        """Return what its requests do."""

    async def fork_contexts(self, parent_aid: int, child_aid: int) -> None:
        """Give the child a copy of each of the parent's contexts; OSError when it can't be."""


class Silent:
    """The listener until there is one: no agent makes requests."""

    def agent_stopped(self, aid: int) -> None:
        """Nothing runs."""

    def agent_continued(self, aid: int) -> None:
        """Nothing runs."""

    def agent_reniced(self, aid: int, nice: int) -> None:
        """Nothing runs."""

    def agent_interrupted(self, aid: int) -> None:
        """Nothing runs."""

    def agent_ended(self, aid: int) -> None:
        """Nothing runs."""

    def activity(self, aid: int) -> Activity:
        """Asleep, in its own program."""
        return ASLEEP

    async def fork_contexts(self, parent_aid: int, child_aid: int) -> None:
        """There are none."""


@dataclass(slots=True)
class Used:
    """Running totals of what an agent used; what `Usage` shows."""

    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    requests: int = 0
    dollars: float = 0.0
    cpu_s: float = 0.0
    waiting_s: float = 0.0
    turnaround_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How an agent ended: code or signal, else reason says why neither is known.

    reason: exited, signalled, killed, orphaned, terminated, lost, exec_failed, shim_failed.
    ended: Unix time; cpu_s: CPU seconds of all its processes.
    """

    reason: str
    ended: float
    code: int | None = None
    signal: int | None = None
    cpu_s: float = 0.0


@dataclass(slots=True, eq=False, kw_only=True)
class Process:
    """One agent. Everything is owned by the event loop's thread; only the table's managers write.

    The first block is fixed at birth; birth_key names the request that asked for it, lineage all
    forebears that are agents, the oldest first.

    The second is durable and changes: parent by orphaning, name, nice and max_tokens by the calls
    that set them, pid and started by its start, stopped by signals, ending once. credential and
    ticket are digests: of the secret to re-attach with, and of the one-time secret that a spawned
    program finds on its descriptor ("" when used up). key is that of the secret which it finds in
    its environment, for the gateway.

    The third block lives in memory. shim: of a spawned agent. connections: that speak for it.
    unborn: its birth is not finished; early: its end, reported meanwhile; unwanted: who asked for
    it has taken that back.
    withdrawn: it gets no service any more (killed, or ended). settled: its end is durable. grace:
    the timer after which an agent without a connection has ended.
    """

    aid: int
    uid: int
    gid: int
    kind: str
    program: str
    argv: list[str]
    cwd: str
    created: float
    birth_key: str = ""
    lineage: tuple[int, ...] = ()

    parent: int
    name: str
    pid: int = 0
    nice: int = 0
    max_tokens: int = 0
    note: str = ""
    started: float = 0.0
    stopped: bool = False
    reaped: bool = False
    ending: Ending | None = None
    credential: str = ""
    ticket: str = ""
    key: str = ""
    used: Used = field(default_factory=Used)

    shim: Shim | None = None
    connections: set[Caller] = field(default_factory=set)
    unborn: bool = False
    early: Ending | None = None
    unwanted: bool = False
    withdrawn: bool = False
    settled: bool = False
    grace: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether it may still ask for service."""
        return self.ending is None and not self.withdrawn

    @property
    def has_process(self) -> bool:
        """Whether this kernel started an OS process for it."""
        return self.kind == SPAWNED

    @property
    def dead(self) -> bool:
        """Whether nobody has to reap it any more (state X)."""
        return self.ending is not None and (self.reaped or self.parent <= INIT)

    def state(self, activity: Activity) -> str:
        """Return its state letter."""
        if self.ending is not None:
            return "X" if self.dead else "Z"
        return "T" if self.stopped else activity.state

    def stop_waiting(self) -> None:
        """Cancel the timer that would end it."""
        if self.grace is not None:
            self.grace.cancel()
            self.grace = None

    def identity(self) -> Identity:
        """Return who it is."""
        return Identity(self.aid, self.name, self.parent, self.uid, self.pid)

    def usage(self, activity: Activity) -> Usage:
        """Return what it has used so far."""
        used = self.used
        return Usage(
            tokens_in=used.tokens_in + activity.tokens_in,
            tokens_out=used.tokens_out + activity.tokens_out,
            cached_tokens=used.cached_tokens,
            requests=used.requests,
            dollars=used.dollars,
            kv_ram=activity.kv_ram,
            kv_disk=activity.kv_disk,
            cpu_s=used.cpu_s,
            waiting_s=round(used.waiting_s, 6),
            turnaround_s=round(used.turnaround_s, 6),
        )

    def status(self) -> ExitStatus:
        """Return how it ended; only of one that has."""
        assert self.ending is not None
        end = self.ending
        return ExitStatus(self.aid, end.code, end.signal, end.reason, end.ended, self.usage(ENDED))

    def row(self, activity: Activity, groups: Iterable[str] = ()) -> Agent:
        """Return its row of the process table."""
        end = self.ending
        state = self.state(activity)
        return Agent(
            aid=self.aid,
            parent=self.parent,
            name=self.name,
            uid=self.uid,
            gid=self.gid,
            groups=sorted(groups),
            kind=self.kind,
            program=self.program,
            argv=self.argv,
            pid=self.pid,
            state=state,
            nice=self.nice,
            core=activity.core,
            slot=activity.slot,
            waiting="" if state in "RXZ" else activity.waiting,
            queue=activity.queue,
            note=self.note,
            created=self.created,
            started=self.started,
            ended=end.ended if end else 0.0,
            exit_code=end.code if end else None,
            exit_signal=end.signal if end else None,
            exit_reason=end.reason if end else "",
            tokens_per_s=activity.tokens_per_s,
            usage=self.usage(activity),
            share=activity.share,
            due=activity.due,
        )
