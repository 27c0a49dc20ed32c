"""The roster: every process in memory, mirrored row by row in the database.

    process = roster.get(aid)               # ProcessLookupError when there is none
    process.nice = 5
    await roster.save(process, notes=[Note("agent.nice", process.aid, {"nice": 5})])

What must hold: memory is changed on the event loop's thread alone; what `save` has returned for
survives SIGKILL of everything; an aid is never given twice, whatever was deleted meanwhile. The
database has one writer and keeps the order of the writes, so the last state of a row wins.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from aiosd.access import Access, Caller
from aiosd.db import Connection, Database
from aiosd.events import Events
from aiosd.journal import Write, together
from aiosd.process import ASLEEP, INIT, Ending, Listener, Process, Silent, Used
from aiosd.schema import last_aid

SWEEP: Final = 256
"""So many records of history are written between two removals of the oldest."""

_json = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class Note:
    """One record of history, to be written with a row and told to the watchers after it."""

    kind: str
    aid: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    t: float = field(default_factory=time.time)


class Roster:
    """All processes by aid, in order of birth. `keep_events` bounds the history, in records."""

    def __init__(self, db: Database, events: Events, access: Access, keep_events: int) -> None:
        self.db = db
        self.events = events
        self.access = access
        self.listener: Listener = Silent()
        self.keep_events = keep_events
        self.living = 0
        self.by_digest: dict[str, int] = {}
        self.by_birth_key: dict[str, int] = {}
        self._processes: dict[int, Process] = {}
        self._children: dict[int, dict[int, None]] = {}
        self._ended: dict[int, None] = {}
        self._last = INIT

    # -- looking up -----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Process]:
        return iter(self._processes.values())

    def __contains__(self, aid: int) -> bool:
        return aid in self._processes

    def find(self, aid: int) -> Process | None:
        """Return the process, or None."""
        return self._processes.get(aid)

    def get(self, aid: int) -> Process:
        """Return the process, also one that has ended and is kept; ESRCH when there is none."""
        process = self._processes.get(aid)
        if process is None:
            raise ProcessLookupError(errno.ESRCH, f"there is no agent {aid}; `ps -a` lists all")
        return process

    def get_alive(self, aid: int) -> Process:
        """Return a process that can still be acted on; ESRCH when it has ended."""
        process = self.get(aid)
        if process.ending is not None:
            raise ProcessLookupError(
                errno.ESRCH, f"agent {aid} has ended ({process.ending.reason})"
            )
        return process

    def own(self, caller: Caller) -> Process:
        """Return the process that the caller is; ESRCH when it is none, or has ended."""
        if not caller.aid:
            raise ProcessLookupError(
                errno.ESRCH, "this connection is no agent: call register_agent or set_aid first"
            )
        process = self.get_alive(caller.aid)
        if process.withdrawn:
            raise ProcessLookupError(errno.ESRCH, f"agent {caller.aid} was killed")
        return process

    def children(self, aid: int) -> Iterator[Process]:
        """Yield the children, oldest first."""
        return (self._processes[child] for child in self._children.get(aid, ()))

    def uid_of(self, aid: int) -> int:
        """Return the uid that owns an agent; ESRCH when there is none."""
        return self.get(aid).uid

    def lineage(self, aid: int) -> tuple[int, ...]:
        """Return all forebears of an agent at its birth, oldest first; ESRCH when there is none."""
        return self.get(aid).lineage

    def surplus(self, keep: int) -> list[Process]:
        """Return those ended longest ago beyond `keep`, the dead before the zombies.

        Not one by one: with many kept, it waits until some more can go together.
        """
        over = len(self._ended) - keep
        if over < max(1, keep // 64):
            return []
        ended = [self._processes[aid] for aid in self._ended]
        return sorted(ended, key=lambda process: not process.dead)[:over]

    # -- changing -------------------------------------------------------------------------------

    def new_aid(self) -> int:
        """Return an aid that was never given."""
        self._last += 1
        return self._last

    def reserve(self, aid: int) -> None:
        """Give out only higher ones than this from now on."""
        self._last = max(self._last, aid)

    def add(self, process: Process) -> None:
        """Enter a process in the table in memory."""
        self._processes[process.aid] = process
        self._children.setdefault(process.parent, {})[process.aid] = None
        if process.birth_key:
            self.by_birth_key[process.birth_key] = process.aid
        if process.ending is None:
            self.living += 1
            self._index(process)
        else:
            self._ended[process.aid] = None

    def end(self, process: Process, ending: Ending) -> list[Process]:
        """Mark a process as ended; its children go to init. Returns the children."""
        process.ending = ending
        process.used.cpu_s = ending.cpu_s
        self.living -= 1
        self._ended[process.aid] = None
        self.forget_credentials(process)
        orphans = list(self.children(process.aid))
        for orphan in orphans:
            orphan.parent = INIT
            self._children.setdefault(INIT, {})[orphan.aid] = None
        self._children.pop(process.aid, None)
        return orphans

    def set_credentials(self, process: Process, credential: str, ticket: str) -> None:
        """Replace the digests by which a process is known, but for its gateway key's."""
        key = process.key
        self.forget_credentials(process)
        process.credential, process.ticket, process.key = credential, ticket, key
        self._index(process)

    def forget_credentials(self, process: Process) -> None:
        """Let nobody become this process any more."""
        for digest in (process.credential, process.ticket, process.key):
            self.by_digest.pop(digest, None)
        process.credential = process.ticket = process.key = ""

    def _index(self, process: Process) -> None:
        for digest in (process.credential, process.ticket, process.key):
            if digest:
                self.by_digest[digest] = process.aid

    def _drop(self, process: Process) -> None:
        self.forget_credentials(process)
        if self._processes.pop(process.aid, None) and process.ending is None:
            self.living -= 1
        self._ended.pop(process.aid, None)
        if self.by_birth_key.get(process.birth_key) == process.aid:
            del self.by_birth_key[process.birth_key]
        self._children.get(process.parent, {}).pop(process.aid, None)

    # -- what is durable ------------------------------------------------------------------------

    async def save(
        self,
        *processes: Process,
        notes: Sequence[Note] = (),
        more: Sequence[Write] = (),
        durable: bool = False,
    ) -> None:
        """Make rows and notes durable in one transaction, then tell the watchers.

        more: what else belongs to it. durable: through power loss as well.
        """
        try:
            await self.db.write(together(self._writing(processes, notes), *more), durable)
        except asyncio.CancelledError:
            self._tell(notes)  # it is written all the same
            raise
        self._tell(notes)

    def save_soon(self, *processes: Process, notes: Sequence[Note] = ()) -> None:
        """As `save`, without waiting for the disk; a later `save` waits for this one too."""
        self.db.write_soon(self._writing(processes, notes))
        self._tell(notes)

    def part(self, *processes: Process, notes: Sequence[Note] = ()) -> Write:
        """Return what `save` would write, to be part of a larger transaction; tell the watchers."""
        self._tell(notes)
        return self._writing(processes, notes)

    async def remove(self, *processes: Process) -> None:
        """Delete rows from memory and disk; their history stays."""
        aids = [process.aid for process in processes]
        for process in processes:
            self._drop(process)

        def delete(db: Connection) -> None:
            for aid in aids:
                db.execute("delete from agents where aid = ?", (aid,))

        await self.db.write(delete)

    def note(self, kind: str, aid: int = 0, data: dict[str, Any] | None = None) -> None:
        """Enter a record in the history and tell the watchers, without waiting for the disk."""
        self.save_soon(notes=[Note(kind, aid, data or {})])

    async def load(self) -> None:
        """Read the whole table."""
        self._last, rows = await self.db.read(
            lambda db: (last_aid(db), list(db.query("select * from agents order by ended, aid")))
        )
        self._last = max(self._last, INIT)
        for row in rows:
            self.add(_from_row(row))

    def _writing(
        self, processes: Sequence[Process], notes: Sequence[Note]
    ) -> Callable[[Connection], None]:
        """Return a function that writes the rows as they are now; none of one removed meanwhile."""
        kept = self._processes
        rows = [_to_row(process) for process in processes if process.aid in kept]
        records = [(note.t, note.aid, note.kind, _json(note.data).decode()) for note in notes]
        keep = self.keep_events

        def write(db: Connection) -> None:
            for row in rows:
                db.execute(_UPSERT, row)
            for record in records:
                last = db.execute(_INSERT_EVENT, record).lastrowid
                if last and last % SWEEP == 0:
                    db.execute("delete from events where id <= ?", (last - keep,))

        return write

    def _tell(self, notes: Sequence[Note]) -> None:
        for note in notes:
            self.events.emit(note.kind, note.aid, **note.data)


_PLAIN: Final = (
    "aid", "parent", "name", "uid", "gid", "kind", "program", "cwd", "pid", "nice", "max_tokens",
    "note", "created", "started", "birth_key",
)  # fmt: skip
_USED: Final = (
    "tokens_in", "tokens_out", "cached_tokens", "requests", "dollars", "waiting_s",
    "turnaround_s", "cpu_s",
)  # fmt: skip
_COLUMNS: Final = (
    *_PLAIN, *_USED, "argv", "lineage", "state", "reaped", "credential_hash", "ticket_hash",
    "key_hash", "ended", "exit_code", "exit_signal", "exit_reason",
)  # fmt: skip
_UPSERT: Final = (
    f"insert into agents ({', '.join(_COLUMNS)}) values ({', '.join('?' * len(_COLUMNS))}) "
    f"on conflict (aid) do update set {', '.join(f'{c} = excluded.{c}' for c in _COLUMNS)}"
)
_INSERT_EVENT: Final = "insert into events (t, aid, kind, data) values (?, ?, ?, ?)"


def _to_row(process: Process) -> tuple[object, ...]:
    """Return the values of _COLUMNS. Of the state, only stopped or not is ever read again."""
    end = process.ending
    return (
        *(getattr(process, name) for name in _PLAIN),
        *(getattr(process.used, name) for name in _USED),
        _json(process.argv).decode(),
        _json(process.lineage).decode(),
        process.state(ASLEEP),
        int(process.reaped),
        process.credential,
        process.ticket,
        process.key,
        *((end.ended, end.code, end.signal, end.reason) if end else (0.0, None, None, "")),
    )


def _from_row(row: Mapping[str, Any]) -> Process:
    ending = None
    if row["ended"]:
        ending = Ending(
            row["exit_reason"], row["ended"], row["exit_code"], row["exit_signal"], row["cpu_s"]
        )
    return Process(
        **{name: row[name] for name in _PLAIN},
        argv=msgspec.json.decode(row["argv"]),
        lineage=tuple(msgspec.json.decode(row["lineage"])),
        used=Used(**{name: row[name] for name in _USED}),
        stopped=row["state"] == "T",
        reaped=bool(row["reaped"]),
        ending=ending,
        credential=row["credential_hash"],
        ticket=row["ticket_hash"],
        key=row["key_hash"],
        settled=ending is not None,
        withdrawn=ending is not None,
    )
