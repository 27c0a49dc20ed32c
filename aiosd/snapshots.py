"""Named snapshots: points of a context that its agent, or one who may, marks and goes back to.

A row in the database has the tokens, the record of their KV and what else the context was; the KV
is in a file of its own beside those of the disk tier. The row alone is enough: without the file it
is computed again, as on record.

Going back within the request that is running is exact by itself: the KV is what it was, and what
was said after that point is computed again as on record, up to where the generation stood; nothing
is sampled, or delivered, twice.

What must hold: a snapshot is on disk, row and file, before it is acknowledged; each context has at
most max_snapshots, the oldest going first; with their context they all go.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd import kv
from aiosd.abi import inference as abi
from aiosd.access import Access, Caller
from aiosd.config import Config
from aiosd.context import Context, Contexts
from aiosd.cores.sequence import Snapshot as Held
from aiosd.cores.tiers import Tiers
from aiosd.engine.protocol import Run
from aiosd.journal import ContextRow, Journal
from aiosd.keys import answerer
from aiosd.killpoint import reach

if TYPE_CHECKING:
    from aiosd.db import Connection, Database
    from aiosd.quota import Quotas

_COLUMNS: Final = (
    "cid", "name", "created", "request", "file", "bytes", "count", "fingerprint", "kv", "tokens",
    "runs", "meta",
)  # fmt: skip
_INSERT: Final = f"insert into snapshots ({', '.join(_COLUMNS)}) values (:{', :'.join(_COLUMNS)})"


class Mark(msgspec.Struct):
    """One snapshot, as it is kept in mind. file: its name, "" when it has tokens only.

    request: the one that was running when it was taken, 0 for none. count: its tokens.
    """

    id: int
    cid: int
    name: str
    created: float
    request: int
    file: str
    bytes: int
    count: int

    def row(self) -> abi.Snapshot:
        """Describe it for list_snapshots."""
        return abi.Snapshot(self.id, self.cid, self.name, self.count, self.bytes, self.created)


class Snapshots:
    """All named snapshots. running: the id of the request that works on a context, 0 for none."""

    def __init__(
        self,
        config: Config,
        db: Database,
        access: Access,
        contexts: Contexts,
        journal: Journal,
        tiers: Tiers,
        running: Callable[[Context], int],
        quotas: Quotas,
    ) -> None:
        self._config = config
        self._db = db
        self._access = access
        self._contexts = contexts
        self._journal = journal
        self._tiers = tiers
        self._running = running
        self._quotas = quotas
        self._copies: dict[int, tuple[int, int]] = {}  # under way, by context: whose, bytes
        self._of: dict[int, list[Mark]] = {}  # by context, oldest first
        self._locks: dict[int, asyncio.Lock] = {}
        contexts.forgotten = self._forget

    async def boot(self) -> None:
        """Read what there is; call once the contexts are there, before KV is adopted."""
        columns = "id, cid, name, created, request, file, bytes, count"
        query = f"select {columns} from snapshots order by id"
        rows = await self._db.read(lambda db: list(db.query(query)))
        for row in rows:
            self._of.setdefault(row["cid"], []).append(msgspec.convert(row, Mark))
        known = self._contexts.sequences()
        for cid in [cid for cid in self._of if cid not in known]:
            self._forget(cid)
        for cid in self._of:
            self._count(cid)

    def files(self) -> list[str]:
        """Return the paths of all files."""
        return [self._path(mark) for marks in self._of.values() for mark in marks if mark.file]

    def reload(self, config: Config) -> None:
        """Take on the limits of a configuration that was read again."""
        self._config = config

    # System calls.

    async def sys_gen_snapshot(self, caller: Caller, args: abi.GenSnapshot) -> abi.Snapshot:
        """Mark the present state of a context; answered when it is on disk."""
        context = self._contexts.get(args.context)
        if not context.sequence.tokens:
            raise OSError(errno.ENOENT, f"gen_snapshot: context {context.cid} has read nothing yet")
        async with self._lock(context.cid):
            request = self._running(context)
            await context.local.placement.save(context.sequence)
            state = context.record()
            self._make_room(context)
            self._afford(context)
            try:
                kept = await self._keep(context, state)
            finally:
                del self._copies[context.cid]
            mark = await self._enter(context, state, kept, args.name, request)
        self._retire(context.cid)
        return mark.row()

    sys_gen_snapshot.lasting = True  # type: ignore[attr-defined]

    async def sys_gen_restore(self, caller: Caller, args: abi.GenRestore) -> abi.Context:
        """Take a context back to a snapshot; answered when that is durable."""
        context = self._contexts.get(args.context)
        mark = self._find(context.cid, args.snapshot)
        async with self._lock(context.cid):
            request = self._running(context)
            if not context.engaged:
                await self._go_back(context, mark)
            elif request and request == mark.request:
                await self._rewind(context, mark)
                if not context.busy:  # its generation has ended while it was taken off
                    await self._go_back(context, mark)
            else:
                raise OSError(
                    errno.EBUSY,
                    f"gen_restore: context {context.cid} is at work on a request that began after "
                    f"snapshot {mark.id}; cancel it first",
                )
            if context.gone:
                raise FileNotFoundError(errno.ENOENT, f"context {context.cid} ended meanwhile")
            if not context.busy:
                # One at work has the record that it had, and is written with its request's progress
                # only: either of the two alone would be another moment.
                await self._journal.save([context.record()])
        return context.row()

    sys_gen_restore.lasting = True  # type: ignore[attr-defined]

    def sys_list_snapshots(self, caller: Caller, args: abi.ListSnapshots) -> list[abi.Snapshot]:
        """List the snapshots of a context, of an agent's contexts, or all that one may see."""
        if args.context:
            contexts: Iterable[Context] = [self._contexts.get(args.context)]
        else:
            contexts = self._contexts.of(args.aid) if args.aid else self._contexts
        return [
            mark.row()
            for context in contexts
            if self._access.may_see(caller, context.sequence.aid)
            for mark in self._of.get(context.cid, [])
        ]

    def kv_held(self, subject: str) -> int:
        """Return the bytes of copies under way that count for a subject of quotas."""
        covers = self._quotas.covers
        return sum(size for aid, size in self._copies.values() if covers(subject, aid))

    # Taking one.

    def _afford(self, context: Context) -> None:
        """Count a copy in before it is made; raises OSError(EDQUOT).

        Where a quota on kv_bytes leaves no room, the agent's other contexts let go of their KV.
        """
        held, aid = context.sequence.snapshot, context.sequence.aid
        size = held.size if held else 0
        room = self._quotas.room(aid, "kv_bytes")
        if room is not None:
            others = [other for other in self._contexts.of(aid) if other is not context]
            kv.make_room(others, size - room)
        self._quotas.may_hold(aid, {"kv_bytes": size}, "gen_snapshot")
        self._copies[context.cid] = (aid, size)

    async def _keep(self, context: Context, state: ContextRow) -> Held | None:
        """Put a context's KV into a file of its own, as far as it is held."""
        name = f"named-{secrets.token_hex(8)}"
        try:
            kept = await self._tiers.keep(context.sequence, name)
        except OSError as error:
            place = self._tiers.disk.directory
            text = f"gen_snapshot: it can't be written to {place}: {error.strerror or error}"
            raise OSError(error.errno or errno.EIO, text) from None
        reach("snapshot.kept")
        if kept is not None:
            kept.kv = min(kept.kv, state.kv)
            context.sequence.snapshots.append(kept)
        return kept

    async def _enter(
        self, context: Context, state: ContextRow, kept: Held | None, name: str, request: int
    ) -> Mark:
        """Make the row durable; without it the file goes."""
        row: dict[str, Any] = {
            "cid": state.cid,
            "name": name,
            "created": time.time(),
            "request": request,
            "file": Path(kept.path).name if kept else "",
            "bytes": kept.size if kept else 0,
            "count": len(state.tokens),
        }
        state_row = {
            "fingerprint": state.fingerprint,
            "kv": state.kv,
            "tokens": array("I", state.tokens).tobytes(),
            "runs": msgspec.msgpack.encode(state.runs),
            "meta": msgspec.json.encode(state.meta).decode(),
        }
        answer = answerer()

        def write(db: Connection) -> int:
            number = _insert(db, row | state_row)
            answer(db, Mark(id=number, **row).row())
            return number

        try:
            number = await self._db.write(write, durable=True)
        except BaseException:
            if kept is not None:
                self._tiers.drop(kept.path)
            raise
        mark = Mark(id=number, **row)
        self._of.setdefault(state.cid, []).append(mark)
        if context.gone:
            self._forget(context.cid)
            raise FileNotFoundError(errno.ENOENT, f"context {context.cid} ended meanwhile")
        self._count(state.cid)
        return mark

    def _make_room(self, context: Context) -> None:
        """Keep to the limit of bytes: the context's own oldest go. Raises OSError(ENOSPC)."""
        held = context.sequence.snapshot
        size, limit = held.size if held else 0, self._config.context.snapshot_limit
        while self._bytes() + size > limit:
            if not self._of.get(context.cid):
                raise OSError(
                    errno.ENOSPC,
                    f"gen_snapshot: {size} bytes beside {self._bytes()} of other contexts' "
                    f"snapshots, the limit is {limit} ([context] snapshot_limit); "
                    "clear a context that has some",
                )
            self._delete(context.cid, [self._of[context.cid][0]])

    def _retire(self, cid: int) -> None:
        """Keep to the limit of one context: the oldest go."""
        marks = self._of.get(cid, [])
        self._delete(cid, marks[: max(0, len(marks) - self._config.context.max_snapshots)])

    def _delete(self, cid: int, marks: list[Mark]) -> None:
        if not marks:
            return
        ids = [(mark.id,) for mark in marks]
        self._of[cid] = [mark for mark in self._of[cid] if mark not in marks]
        self._db.write_soon(lambda db: _remove(db, ids))
        for mark in marks:
            if mark.file:
                self._tiers.drop(self._path(mark))
        self._count(cid)

    def _forget(self, cid: int) -> None:
        """A context is gone; its files go with its sequence."""
        marks = self._of.pop(cid, [])
        self._locks.pop(cid, None)
        if marks:
            ids = [(mark.id,) for mark in marks]
            self._db.write_soon(lambda db: _remove(db, ids))
            self._tiers.discard(self._path(mark) for mark in marks if mark.file)

    # Going back to one.

    async def _go_back(self, context: Context, mark: Mark) -> None:
        """Make an idle context what it was."""
        row = await self._db.read(lambda db: _read(db, mark.id))
        placement, sequence = context.local.placement, context.sequence
        context.busy = True  # nothing else works on it meanwhile
        try:
            await self._leave(context)
            tokens = array("I", row["tokens"]).tolist()
            history = msgspec.msgpack.decode(row["runs"], type=list[Run])
            placement.take_back(sequence, tokens, history, context.local.setup.grid)
            for held in sequence.snapshots:
                if held.path == self._path(mark):
                    held.kv = min(held.held, row["kv"])
            context.fingerprint = row["fingerprint"]
            context.take_meta(msgspec.json.decode(row["meta"]))
        finally:
            context.busy = False

    async def _rewind(self, context: Context, mark: Mark) -> None:
        """Give up what a running generation's KV has become since; its core does it again."""
        core, sequence = context.core, context.sequence
        core.hold(sequence, "restore")
        try:
            await self._leave(context)
            path = self._path(mark)
            for held in [s for s in sequence.snapshots if s.path != path and not s.named]:
                sequence.snapshots.remove(held)
                self._tiers.give(held.path)
        finally:
            core.release(sequence, "restore")

    async def _leave(self, context: Context) -> None:
        placement = context.local.placement
        await placement.settle(context.sequence)
        placement.leave(context.sequence)
        await placement.settle(context.sequence)

    def _find(self, cid: int, number: int) -> Mark:
        marks = self._of.get(cid, [])
        found = [mark for mark in marks if mark.id == number] if number else marks[-1:]
        if not found:
            known = ", ".join(str(mark.id) for mark in marks) or "none"
            what = f"no snapshot {number}" if number else "no snapshot"
            raise FileNotFoundError(
                errno.ENOENT, f"gen_restore: {what} of context {cid}; there are: {known}"
            )
        return found[0]

    def _lock(self, cid: int) -> asyncio.Lock:
        return self._locks.setdefault(cid, asyncio.Lock())

    def _path(self, mark: Mark) -> str:
        return str(self._tiers.disk.directory / mark.file)

    def _bytes(self) -> int:
        return sum(mark.bytes for marks in self._of.values() for mark in marks)

    def _count(self, cid: int) -> None:
        context = self._contexts.find(cid)
        if context is not None:
            context.snapshots = len(self._of.get(cid, []))


def _insert(db: Connection, row: dict[str, Any]) -> int:
    number = db.execute(_INSERT, row).lastrowid
    reach("snapshot.row")
    assert number is not None
    return number


def _remove(db: Connection, ids: list[tuple[int]]) -> None:
    db.conn.executemany("delete from snapshots where id = ?", ids)


def _read(db: Connection, number: int) -> dict[str, Any]:
    rows = list(db.query("select * from snapshots where id = ?", [number]))
    if not rows:
        raise FileNotFoundError(errno.ENOENT, f"gen_restore: snapshot {number} is gone")
    return rows[0]
