"""The audit: who did what to whom, and what was decided, in a log that shows when it was touched.

    audit = Audit(directory, settings)
    audit.open()
    audit.record("grant.add", caller, target, {...})   # cheap; never waits
    await audit.synced()                               # where an answer must not come before it
    await audit.close()

What is recorded: every decision of the access manager about anything but the caller's own state,
the refusals whatever they were about, those of malformed arguments too; every change of a grant and
of what waits for approval; the lives of agents (spawn, start, signals, stopped and running, name,
nice, exit); the kernel's own boots and reloads. What an agent does with its own memory, contexts
and storage is no decision.

A decision that comes again within REPEAT_S (same caller, call, object and outcome) is counted and
recorded once more with the count; beyond FLOOD different refusals of one uid in that time only
their number is (access.flood). So nobody can push older records out by asking for what is refused.

What must hold: a record is on disk at most SYNC_S (and one fsync) after it was made, or with the
BATCH records after it; it survives SIGKILL of the kernel as soon as the thread has written it,
which is HAND_OVER_S and some microseconds after it was made: waking a thread takes longer than
making a record, so those of one such moment go together. A log that can't be written holds
MAX_BEHIND records in memory; then whatever would have to be recorded is refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aiosd.abi.accounts import AuditRecord, ReadAudit
from aiosd.abi.chain import GAP
from aiosd.access import Caller
from aiosd.auditlog import AuditLog, Entry

if TYPE_CHECKING:
    from aiosd.session import Stream

log = logging.getLogger(__name__)

HAND_OVER_S: Final = 0.001
SYNC_S: Final = 0.05
BATCH: Final = 256
MAX_BEHIND: Final = 65_536
RETRY_S: Final = 1.0
"""Seconds between two tries to write to a disk that failed."""
SYNC_MOST_S: Final = 10.0
"""Seconds after which it is an error that records are not on disk."""
REPEAT_S: Final = 1.0
REPEATS: Final = 1024
"""Decisions that are counted at a time; with more, all counts are recorded at once."""
INVALID: Final = "access.invalid"
REFUSALS: Final = ("access.deny", "access.miss", INVALID)
FLOOD: Final = 64
"""Different refusals of one uid within REPEAT_S that are recorded one by one."""
FLOODED: Final = f"more than {FLOOD} different refusals within {REPEAT_S:g} s; counted from here on"
PAGE: Final = 256
"""Records in a chunk of read_audit."""

LIVES: Final = ("agent.", "kernel.")
"""Kinds of events that are recorded; not those that agents make themselves (agent.event.)."""

Sees = Callable[[Caller, AuditRecord], bool]


class Audit:
    """The log and the thread that writes it.

    on_synced(id): told, on the event loop, up to which record all is on disk.
    """

    def __init__(self, directory: str, *, segment: int, limit: int) -> None:
        self._log = AuditLog(directory, segment=segment, limit=limit)
        self._queue: queue.SimpleQueue[list[Entry] | asyncio.Future[None] | None]
        self._queue = queue.SimpleQueue()
        self._fresh: list[Entry] = []  # not yet handed over
        self._entered = 0  # records, counted by the loop
        self._written = 0  # and by the thread
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: OSError | None = None
        self._repeats: dict[tuple[Any, ...], list[Any]] = {}
        # By uid, within this window; what is malformed counts apart, and hides no real refusal.
        self._refusals: Counter[tuple[int, bool]] = Counter()
        self._followers: set[asyncio.Event] = set()
        self._lost = 0
        self._closing = False
        self.sees: Sees = lambda caller, record: False
        self.uid_of: Callable[[int], int] = lambda aid: 0
        self.on_synced: Callable[[int], None] = lambda id: None

    def open(self, written: int = 0) -> None:
        """Open the log and begin to write. Blocks: before anyone is served.

        written: the id up to which records are known to have been on disk.
        """
        self._log.open()
        self._loop = asyncio.get_running_loop()
        if self._log.torn:
            self._enter("audit.torn", os.geteuid(), 0, {"bytes": self._log.torn})
        if self._log.last < written:
            log.error("the audit log ends at %d, %d was written", self._log.last, written)
            self._enter(GAP, os.geteuid(), 0, {"written": written, "found": self._log.last})
        self._thread = threading.Thread(target=self._run, name="aiosd-audit", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Write what is left and close the log."""
        if self._thread is not None:
            self._tell_repeats()
            self._closing = True
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    # -- recording ------------------------------------------------------------------------------

    def record(self, kind: str, caller: Caller | None, target: int, data: dict[str, Any]) -> None:
        """Enter a record: its kind, who did it (None: the kernel), to which agent (0: none).

        OSError when the log is so far behind that nothing more may happen without it.
        """
        uid, aid = (caller.uid, caller.aid) if caller is not None else (os.geteuid(), 0)
        if target:
            data = {**data, "target": target}
        self._enter(kind, uid, aid, data)

    def decision(self, kind: str, caller: Caller, target: int, data: dict[str, Any]) -> None:
        """Enter a decision; one that was entered a moment ago is counted instead."""
        name = (kind, caller.uid, caller.aid, target, data.get("call"), data.get("object"),
                data.get("reason"))  # fmt: skip
        known = self._repeats.get(name)
        if known is not None:
            known[0] += 1
            return
        if kind in REFUSALS:
            bucket = (caller.uid, kind == INVALID)
            self._refusals[bucket] += 1
            if self._refusals[bucket] > FLOOD:
                self.decision("access.flood", Caller(caller.uid, 0, 0), 0, {"reason": FLOODED})
                return
        self.record(kind, caller, target, data)
        if len(self._repeats) >= REPEATS:
            self._tell_repeats()
        if not self._repeats and self._loop is not None:
            self._loop.call_later(REPEAT_S, self._end_window)
        self._repeats[name] = [0, kind, caller.uid, caller.aid, data, target]

    def happened(self, kind: str, aid: int, data: dict[str, Any]) -> None:
        """Enter an event, if it is of those that are recorded; never raises."""
        if not kind.startswith(LIVES) or kind.startswith("agent.event."):
            return
        try:
            uid = self.uid_of(aid) if aid else os.geteuid()
            self._enter(kind, uid, aid, data)
        except OSError:
            self._lost += 1

    async def synced(self) -> None:
        """Return once everything entered before is on disk; raises OSError when it can't be."""
        done = asyncio.get_running_loop().create_future()
        self._hand_over()
        self._queue.put(done)
        await asyncio.wait({done}, timeout=SYNC_MOST_S)
        if not done.done():
            why = self._failure.strerror if self._failure else "its disk is slow"
            raise OSError(
                errno.EIO, f"the audit log could not be written within {SYNC_MOST_S:g} s: {why}"
            )

    def _enter(self, kind: str, uid: int, aid: int, data: dict[str, Any]) -> None:
        if self._entered - self._written >= MAX_BEHIND:
            reason = self._failure.strerror if self._failure else "its disk is slow"
            raise OSError(
                errno.EAGAIN,
                f"the audit log is {MAX_BEHIND} records behind ({reason}): nothing that must be "
                "recorded is done before it can be",
            )
        if self._lost:
            lost, self._lost = self._lost, 0
            self._keep(Entry(time.time(), os.geteuid(), 0, "audit.lost", {"count": lost}))
        self._keep(Entry(time.time(), uid, aid, kind, data))

    def _keep(self, entry: Entry) -> None:
        """Keep a record until others of the same moment have come, or enough of them."""
        self._entered += 1
        self._fresh.append(entry)
        if len(self._fresh) >= BATCH or self._loop is None:
            self._hand_over()
        elif len(self._fresh) == 1:
            self._loop.call_later(HAND_OVER_S, self._hand_over)

    def _hand_over(self) -> None:
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            self._queue.put(fresh)

    def _end_window(self) -> None:
        self._refusals.clear()
        self._tell_repeats()

    def _tell_repeats(self) -> None:
        """Record how often decisions were repeated since they were entered."""
        repeats, self._repeats = self._repeats, {}
        for count, kind, uid, aid, data, target in repeats.values():
            if count:
                facts = {**data, "count": count} | ({"target": target} if target else {})
                try:
                    self._enter(kind, uid, aid, facts)
                except OSError:
                    self._lost += count

    # -- reading --------------------------------------------------------------------------------

    async def sys_read_audit(self, caller: Caller, args: ReadAudit, stream: Stream) -> None:
        """Stream the records that the caller may see; a person sees what concerns his uid."""
        news = asyncio.Event()
        self._followers.add(news)
        since = args.since
        try:
            await self.synced()
            while True:
                since = await self._send(caller, args, stream, since)
                if not args.follow:
                    return
                await news.wait()
                news.clear()
        finally:
            self._followers.discard(news)

    async def _send(self, caller: Caller, args: ReadAudit, stream: Stream, since: int) -> int:
        """Send what matches after a record; return the last one looked at."""
        records = self._log.read(since)
        while page := await asyncio.to_thread(_take, records):
            since = page[-1].id
            chunk = [
                record
                for record in page
                if record.kind.startswith(args.kind)
                and args.aid in (0, record.aid, record.data.get("target"))
                and self.sees(caller, record)
            ]
            if chunk:
                await stream.send(chunk)
        return since

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        """Write what comes at once; sync it in batches."""
        unsynced, since = 0, 0.0
        waiting: list[asyncio.Future[None]] = []
        more = True
        while more or unsynced:
            left = max(0.0, since + SYNC_S - time.monotonic()) if unsynced else None
            entries, asked, more = self._take(left) if more else ([], [], False)
            waiting += asked
            if entries:
                since = since if unsynced else time.monotonic()
                unsynced += len(entries)
                self._write(entries)
            late = unsynced and time.monotonic() >= since + SYNC_S
            if waiting or late or unsynced >= BATCH or not more:
                self._sync()
                unsynced = 0
                self._report(waiting)
                waiting = []
        self._log.close()

    def _take(self, timeout: float | None) -> tuple[list[Entry], list[asyncio.Future[None]], bool]:
        """Return what was handed over, waiting for it; and whether more may come."""
        entries: list[Entry] = []
        asked: list[asyncio.Future[None]] = []
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty:
            return entries, asked, True
        while True:
            if item is None:
                return entries, asked, False
            if isinstance(item, list):
                entries += item
            else:
                asked.append(item)
            if len(entries) >= BATCH or self._queue.empty():
                return entries, asked, True
            item = self._queue.get()

    def _write(self, entries: list[Entry]) -> None:
        self._insist(lambda: self._log.append(entries))
        self._written += len(entries)

    def _sync(self) -> None:
        self._insist(self._log.sync)

    def _insist(self, deed: Callable[[], None]) -> None:
        """Do what the disk may refuse, again until it works: no record is thrown away."""
        while True:
            try:
                deed()
            except OSError as error:
                if self._closing:
                    log.error("what was left of the audit log is lost: %s", error)
                    return
                if self._failure is None:
                    log.error("the audit log can't be written: %s; trying again", error)
                self._failure = error
                time.sleep(RETRY_S)
            else:
                self._failure = None
                return

    def _report(self, waiting: list[asyncio.Future[None]]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._settle, waiting, self._log.last)
        except RuntimeError:
            return  # the loop has ended

    def _settle(self, waiting: list[asyncio.Future[None]], last: int) -> None:
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for news in self._followers:
            news.set()
        self.on_synced(last)


def _take(records: Any) -> list[AuditRecord]:
    page = []
    for record in records:
        page.append(record)
        if len(page) == PAGE:
            break
    return page
