"""The kernel's database: SQLite in WAL mode, written by one thread, in groups.

    db = Database.open(path, MIGRATIONS)
    aid = await db.write(lambda d: d["agents"].insert(row).last_pk)    # back after COMMIT
    db.write_soon(lambda d: d["events"].insert(event))                 # not waited for
    rows = await db.read(lambda d: list(d.query("select ...")))
    await db.close()

What is written while a commit is under way becomes the next group: one transaction, one commit,
however many writes. Writes happen in the order they were handed over, each in a savepoint of its
own, so that one that fails undoes nothing but itself.

What must hold:
- a `write` that has returned survives SIGKILL of everything (WAL, synchronous=NORMAL), and one
  with `durable=True` power loss as well: its group's commit is FULL, which syncs the whole log and
  with it every commit before;
- functions given to `write` and `read` touch the database and nothing else, for they run in
  another thread; the event loop itself never waits for the disk;
- SQLite's errors about disk and file are OSErrors from here on; those about data (a constraint, a
  mistake in SQL) reach the caller as they are.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiosd.killpoint import reach

if TYPE_CHECKING or "numpy" in sys.modules:
    import sqlite_utils
else:
    # sqlite-utils loads numpy where it is installed, to know its types: 12 MB and half of the
    # import's time (measured), for values that never come near this database.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    try:
        import sqlite_utils
    finally:
        del sys.modules["numpy"]

T = TypeVar("T")
Connection = sqlite_utils.Database  # what the functions given to `write` and `read` work on
Migration = Callable[[Connection], None]

MAX_QUEUED: Final = 4096  # writes under way before `write` waits for room
MAX_BEHIND: Final = 16 * MAX_QUEUED  # before `write_soon`, which can't wait, refuses
GROUP: Final = 512  # writes in one transaction
BRIEFLY: Final = 64 << 20  # bytes of a file that is looked through in a tenth of a second
BUSY_TIMEOUT: Final = 5.0  # seconds: another process may look into the file

_log = logging.getLogger("aiosd.db")


@dataclass(slots=True, eq=False)
class _Job:
    fn: Callable[[Connection], Any]
    durable: bool
    future: asyncio.Future[Any] | None  # None: nobody waits
    loop: asyncio.AbstractEventLoop
    room: bool = False  # whether it took of the room that `write` waits for
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Tell the one who waits; in the event loop."""
        if self.future is None or self.future.done():  # nobody does, or he was cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Database:
    """One open database file. Made by `open`; every method but `open` belongs to the event loop.

    commits and writes count what the writer has done (the writer's thread owns them).
    """

    def __init__(self, path: str, writer: Connection) -> None:
        self.path = path
        self.commits = 0
        self.writes = 0
        self._db = writer
        self._full = False  # whether the writer's connection commits with synchronous=FULL
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(MAX_QUEUED)
        self._behind = 0  # jobs handed over and not settled yet
        self._closed = False
        self._reader = _connect(path)
        self._reader.execute("pragma query_only = on")
        self._reading = threading.Lock()  # guards _reader: its thread, and read_now
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name="aiosd-db-write", daemon=True),
            threading.Thread(target=self._run_reads, name="aiosd-db-read", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(cls, path: str | os.PathLike[str], migrations: Sequence[Migration]) -> Database:
        """Open or create the file (0600), check it if it was not closed, and bring it up to date.

        Blocks, so it is called before the event loop serves anyone. Raises OSError: EUCLEAN for a
        damaged file, EPROTO for one of a newer aios, EAGAIN when another process holds it, and
        those of the file system; each names the file and says what to do.
        """
        path = os.path.abspath(path)
        # Never through a link that somebody put there: what it leads to may be anybody's.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        with _translated(path):
            writer = _connect(path)
            try:
                writer.execute("pragma journal_mode = wal")
                _check(writer, path)
                migrate(writer, migrations, path)
                _set_closed(writer, False)
                # What a savepoint may have to put back, 4 KB for each page touched: to a file
                # otherwise, which costs as much as the writing itself.
                writer.execute("pragma temp_store = memory")
                return cls(path, writer)
            except BaseException:
                writer.close()
                raise

    async def write(self, fn: Callable[[Connection], T], durable: bool = False) -> T:
        """Run fn in the next group's transaction and return its result once that is committed.

        durable: survives power loss too, not only the death of the processes. Waits while too many
        writes are under way. A caller that is cancelled doesn't take its write back.

        Raises what fn raises (its changes are undone), OSError(ENOSPC, EIO, EROFS, ...) when the
        disk fails, OSError(EBADF) after close.
        """
        loop = asyncio.get_running_loop()
        await self._room.acquire()
        try:
            future: asyncio.Future[T] = loop.create_future()
            self._hand_over(_Job(fn, durable, future, loop, room=True))
        except BaseException:
            self._room.release()
            raise
        return await future

    def write_soon(self, fn: Callable[[Connection], Any], durable: bool = False) -> None:
        """Hand over a write that nobody waits for; if it fails, that is logged.

        Raises BlockingIOError(EAGAIN) when the disk is so far behind that memory would grow.
        """
        if self._behind >= MAX_BEHIND:
            raise BlockingIOError(errno.EAGAIN, f"{self.path}: {self._behind} writes behind")
        self._hand_over(_Job(fn, durable, None, asyncio.get_running_loop()))

    def submit(self, fn: Callable[[Connection], T], durable: bool = False) -> asyncio.Future[T]:
        """Hand over a write now; the future has its result, or error, once it is committed.

        An error that nobody asks the future for is logged by asyncio. Raises BlockingIOError as
        `write_soon`.
        """
        if self._behind >= MAX_BEHIND:
            raise BlockingIOError(errno.EAGAIN, f"{self.path}: {self._behind} writes behind")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._hand_over(_Job(fn, durable, future, loop))
        return future

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run fn on one consistent state of the database, in the reader's thread.

        It sees every write that has returned. Raises what fn raises, and OSError: EBADF after
        close.
        """
        if self._closed:
            raise OSError(errno.EBADF, f"{self.path} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._reads.put(_Job(fn, False, future, loop))
        return await future

    def read_now(self, fn: Callable[[Connection], T]) -> T:
        """Do the same in this thread, waiting for the disk: only before the loop serves anyone."""
        with self._reading, _translated(self.path):
            self._reader.execute("begin")
            try:
                return fn(self._reader)
            finally:
                self._reader.rollback()

    async def flush(self) -> None:
        """Wait until everything handed over before is committed (or has failed)."""
        await self.write(_nothing)

    async def close(self) -> None:
        """Commit what is handed over, mark the file as closed and let go of it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._reads.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._reader.close()

    def _hand_over(self, job: _Job) -> None:
        if self._closed:
            raise OSError(errno.EBADF, f"{self.path} is closed")
        self._behind += 1
        self._jobs.put(job)

    def _settle(self, jobs: list[_Job]) -> None:
        """Tell the waiting callers; in the event loop."""
        self._behind -= len(jobs)
        for job in jobs:
            if job.future is None:
                if job.error is not None:
                    _log.error("a write to %s failed: %s", self.path, job.error)
                continue
            if job.room:
                self._room.release()
            job.settle()

    # What runs in the reader's thread.

    def _run_reads(self) -> None:
        while (job := self._reads.get()) is not None:
            self._read(job)
            del job  # what was read may be large

    def _read(self, job: _Job) -> None:
        if job.future is not None and job.future.cancelled():
            return
        try:
            job.result = self.read_now(job.fn)
        except Exception as error:  # noqa: BLE001 (it goes to the one who waits)
            job.error = error
        try:
            job.loop.call_soon_threadsafe(job.settle)
        except RuntimeError:
            _log.warning("a read outlived the one who waited for it")

    # The rest runs in the writer's thread.

    def _run(self) -> None:
        more = True
        while more:
            jobs, more = self._take()
            if jobs:
                self._write_group(jobs)
                self._report(jobs)
        try:
            with _translated(self.path):
                _set_closed(self._db, True)
                self._db.execute("pragma wal_checkpoint(truncate)").fetchall()
        except OSError as error:
            _log.warning("not closed cleanly: %s", error)
        finally:
            self._db.close()

    def _take(self) -> tuple[list[_Job], bool]:
        """Return the next group of jobs, waiting for the first; and whether more may come."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == GROUP or self._jobs.empty():
                return jobs, True
            job = self._jobs.get()
        return jobs, False

    def _write_group(self, jobs: list[_Job]) -> None:
        """Run the jobs in one transaction; in more only where the disk ends one halfway."""
        start = 0
        while start < len(jobs):
            end = start
            try:
                with _translated(self.path):
                    self._begin(durable=any(job.durable for job in jobs[start:]))
                    while end < len(jobs) and self._db.conn.in_transaction:
                        self._run_job(jobs[end])
                        end += 1
                    self._commit(jobs[end - 1].error)
            except Exception as error:  # noqa: BLE001 (it goes to those who wait)
                if end == start:  # not even begun: no use in trying again for each
                    end = len(jobs)
                _fail(jobs[start:end], error)
                self._db.conn.rollback()
            start = end

    def _begin(self, durable: bool) -> None:
        if durable != self._full:  # it can't change inside a transaction
            self._db.execute(f"pragma synchronous = {'full' if durable else 'normal'}")
            self._full = durable
        self._db.execute("begin immediate")

    def _run_job(self, job: _Job) -> None:
        try:
            with self._db.atomic():  # inside a transaction: a savepoint
                job.result = job.fn(self._db)
        except Exception as error:  # noqa: BLE001 (it goes to the one who waits)
            job.error = _translate(error, self.path) or error
        self.writes += 1

    def _commit(self, last: BaseException | None) -> None:
        if not self._db.conn.in_transaction:  # a full disk, say, ends the whole transaction
            raise last or OSError(errno.EIO, f"{self.path}: a write ended its group's transaction")
        reach("db.commit")
        self._db.execute("commit")
        reach("db.committed")
        self.commits += 1

    def _report(self, jobs: list[_Job]) -> None:
        for loop in {job.loop for job in jobs}:
            mine = [job for job in jobs if job.loop is loop]
            try:
                loop.call_soon_threadsafe(self._settle, mine)
            except RuntimeError:
                _log.warning("%d writes outlived those who waited for them", len(mine))


def migrate(db: Connection, migrations: Sequence[Migration], path: str) -> int:
    """Apply the migrations that the database lacks, each in a transaction; return how many.

    Raises OSError(EPROTO) for a database that knows more migrations than are given.
    """
    db.execute(
        "create table if not exists migrations"
        " (id integer primary key, name text not null, t real not null)"
    )
    applied = db.execute("select coalesce(max(id), 0) from migrations").fetchone()[0]
    if applied > len(migrations):
        raise OSError(
            errno.EPROTO,
            f"{path} was written by a newer aios (schema {applied}, this one knows"
            f" {len(migrations)}): upgrade aios, or start it with another state_dir",
        )
    for id, migration in list(enumerate(migrations, 1))[applied:]:
        with db.atomic():
            migration(db)
            row = (id, getattr(migration, "__name__", str(id)), time.time())
            db.execute("insert into migrations (id, name, t) values (?, ?, ?)", row)
    return len(migrations) - int(applied)


def _connect(path: str) -> Connection:
    conn = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    conn.execute("pragma synchronous = normal")
    return sqlite_utils.Database(conn, execute_plugins=False)


def _check(db: Connection, path: str) -> None:
    """Look for damage: in a file that wasn't closed, and in a small one in any case.

    An index of words holds nothing that its table lacks: a damaged one is made anew.
    """
    if _is_closed(db) and os.path.getsize(path) > BRIEFLY:
        return
    found = _faults(db)
    if found and (indexes := _words_alone(db, found)):
        for name in indexes:
            _log.warning("%s: the index %s is damaged; it is made anew", path, name)
            db.execute(f"insert into {name} ({name}) values ('rebuild')")
        found = _faults(db)
    if found:
        raise _damaged(path, "; ".join(found))


def _faults(db: Connection) -> list[str]:
    """Return what is wrong with a database, the first of it."""
    rows = db.execute(f"pragma {'quick' if _is_closed(db) else 'integrity'}_check(5)")
    found = [" ".join(str(row[0]).split()) for row in rows]
    return [] if found == ["ok"] else found


def _words_alone(db: Connection, found: list[str]) -> list[str]:
    """Return the indexes of words that faults are about; none when they are about more."""
    sql = "select name from sqlite_master where sql like '%using fts5(%content=''%'"
    names = [str(row[0]) for row in db.execute(sql)]
    about = [{name for name in names if name in fault} for fault in found]
    return sorted(set().union(*about)) if all(about) else []


def _is_closed(db: Connection) -> bool:
    return bool(db.execute("pragma user_version").fetchone()[0])


def _set_closed(db: Connection, closed: bool) -> None:
    """Say in the file itself (user_version) whether its last kernel ended in order."""
    if _is_closed(db) != closed:
        db.execute(f"pragma user_version = {int(closed)}")


def _fail(jobs: list[_Job], error: BaseException) -> None:
    for job in jobs:
        job.error = job.error or error


def _nothing(db: Connection) -> None:
    """Write nothing."""


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn SQLite's errors about disk and file into OSError."""
    try:
        yield
    except sqlite3.Error as error:
        translated = _translate(error, path)
        if translated is None:
            raise
        raise translated from error


_TROUBLE: Final = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "no space left on its disk; free some"),
    sqlite3.SQLITE_IOERR: (errno.EIO, "reading or writing it failed"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "it can't be written"),
    sqlite3.SQLITE_BUSY: (errno.EAGAIN, "another process holds it"),
    sqlite3.SQLITE_CANTOPEN: (errno.EIO, "it can't be opened"),
}


def _translate(error: Exception, path: str) -> OSError | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    if code not in _TROUBLE:
        return None
    number, sentence = _TROUBLE[code]
    return OSError(number, f"{path}: {sentence} ({error})")


def _damaged(path: str, found: str) -> OSError:
    cure = (
        f"restore a backup, rescue what is readable, or move all of {os.path.dirname(path)} away"
        " and aiosd begins anew; aiosd(1) has the commands under RECOVERY"
    )
    return OSError(errno.EUCLEAN, f"{path} is damaged ({found}): {cure}")
