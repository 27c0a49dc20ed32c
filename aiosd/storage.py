"""Storage: named, versioned objects that outlive agents.

An object's versions are rows, its bytes blobs under their SHA-256 (blobs.py): a write is
acknowledged when both are on disk, and a crash before that leaves at most bytes that nobody refers
to, which are collected. Large objects come and go in parts, and never sit whole in the kernel.

What must hold: names are names, never paths; a piece of an object reaches a reader only when its
checksum is right; an owner never holds more bytes than its limit, writes under way counted; a blob
that a version refers to is never collected (`_lock`, by digest, orders placing and collecting).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiosd import metadata, pieces, versions
from aiosd.abi import storage as abi
from aiosd.access import Caller
from aiosd.backends import LOCAL, Backends
from aiosd.blobs import PIECE, Blob, Draft
from aiosd.keys import answerer
from aiosd.killpoint import reach
from aiosd.owners import Owner, Owners
from aiosd.sealing import STEP, Sealing
from aiosd.settings import Storage as Settings
from aiosd.threads import Threads
from aiosd.uploads import Place, Upload, Uploads
from aiosd.versions import Entered, Entry, Version

if TYPE_CHECKING:
    from aiosd.db import Database
    from aiosd.library import Library
    from aiosd.session import Stream
    from aiosd.vault import Vault

T = TypeVar("T")

log = logging.getLogger(__name__)

NAME_BYTES: Final = 1024
MANY: Final = 10_000
LEFT: Final = 600.0
"""Seconds that bytes elsewhere outlast those that took their place: who reads them has so long."""
LOCKS: Final = 64


class Storage:
    """All stored objects. settings: gives the limits as they are now."""

    def __init__(
        self,
        db: Database,
        owners: Owners,
        library: Library,
        vault: Vault,
        settings: Callable[[], Settings],
    ) -> None:
        self._db = db
        self._owners = owners
        self._library = library
        self._settings = settings
        self._sealing = Sealing(vault, settings)
        self._backends = Backends(settings())
        self._threads = Threads("aiosd-blobs")
        self._run = self._threads.near
        self._uploads = Uploads(self._backends.draft, self._run)
        self._locks = [asyncio.Lock() for _ in range(LOCKS)]
        self._used: dict[str, float] = {}  # digest -> when read, not on disk yet
        self._left: list[tuple[float, str, str]] = []  # when, digest, place: others took theirs
        self._orphans = True  # whether to look for what nobody knows
        self._sweeping: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        library.read = self.head

    async def boot(self) -> None:
        """Make the back end ready and begin to look after it."""
        (store,) = (await self._rows("select name from store", ()))[0]
        await self._run(self._backends.prepare, store)
        await self._find_older()
        self._sweeping = asyncio.get_running_loop().create_task(self._look_after())

    async def close(self) -> None:
        """Give up writes under way; what is acknowledged is on disk."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self._uploads.drop_all()
        await self._note_use()
        await asyncio.to_thread(self._threads.close)
        await asyncio.to_thread(self._backends.close)

    async def _find_older(self) -> None:
        """Make ready the back ends that still have blobs of ours, or say what is wrong."""
        sql = "select distinct substr(place, 1, instr(place, ':') - 1) from blobs"
        for (name,) in await self._rows(sql, ()):
            try:
                self._backends.use(name)
            except OSError as error:
                log.warning("objects whose bytes are in %r can't be read: %s", name, error.strerror)

    # Writing.

    async def sys_sto_alloc(self, caller: Caller, args: abi.StoAlloc) -> abi.StorageSpace:
        """Reserve bytes: the caller's own limit from now on; 0 gives the reservation back."""
        owner = await self._owners.find(caller, args.pool)
        most, used = owner.stored.most(0, self._settings().bytes)[1], owner.stored.bytes
        if args.size > most:
            raise OSError(
                errno.EDQUOT,
                f"sto_alloc: {args.size} bytes, the limit is {most} ([storage] bytes)",
            )
        if args.size and args.size < used:
            raise OSError(
                errno.EDQUOT,
                f"sto_alloc: {args.size} bytes are fewer than the {used} in use; delete some first",
            )
        if args.size - used > await self._run(self._backends.free):
            raise OSError(errno.ENOSPC, "sto_alloc: the disk has less room than that; free some")
        sql = "update owners set reserved = ? where id = ?"
        await self._db.write(lambda db: db.execute(sql, (args.size, owner.id)).rowcount)
        owner.reserved = args.size
        return abi.StorageSpace(self._limit(owner), owner.stored.bytes, owner.stored.count)

    async def sys_sto_write(self, caller: Caller, args: abi.StoWrite) -> abi.StoredObject:
        """Write a version of an object, whole or by parts; it counts with the last part."""
        check_name(args.name, "sto_write")
        packed = metadata.pack(args.metadata, "sto_write")
        owner = await self._owners.find(caller, args.pool)
        if not args.upload and (args.offset or not args.last):
            raise OSError(
                errno.EINVAL,
                "sto_write: field 'upload' is empty; a write of several parts needs a name",
            )
        place = (owner.id, caller.subject, args.name, args.upload)
        try:
            return await self._write_part(caller, owner, place, args, packed)
        except OSError:
            # Asked again, of the next kernel perhaps, or with what the first time has used up?
            key = args.key if args.last else ""
            if (done := await self._of_key(caller, owner, args.name, key)) is None:
                raise
            return done

    async def _write_part(
        self, caller: Caller, owner: Owner, place: Place, args: abi.StoWrite, packed: str
    ) -> abi.StoredObject:
        upload = self._uploads.take(place, args.offset)
        # A part that has begun is finished, whatever becomes of who sent it.
        work = asyncio.get_running_loop().create_task(
            self._part(caller, owner, upload, args, packed)
        )
        work.add_done_callback(_heed)
        return await asyncio.shield(work)

    async def _part(
        self, caller: Caller, owner: Owner, upload: Upload, args: abi.StoWrite, packed: str
    ) -> abi.StoredObject:
        async with upload.lock:
            try:
                if not upload.has(args.offset, len(args.data)):
                    if upload.draft is None:
                        upload.seal = await self._run(self._sealing.begin, owner, args.name)
                    await self._charge(owner, upload, len(args.data))
                    draft = await self._uploads.draft(upload)
                    await self._run(draft.write, args.data)
                if not args.last:
                    reach("storage.part")
                    self._uploads.rest(upload)
                    return abi.StoredObject(
                        args.name, 0, upload.size, "", args.content_type, {}, 0.0
                    )
                key = f"{caller.subject} {args.key}" if args.key else ""
                return await self._complete(owner, upload, args, packed, key)
            except OSError as error:
                if error.errno == errno.EINVAL and not upload.closed:  # nothing was written
                    self._uploads.rest(upload)
                    raise
                await self._uploads.drop(upload)
                raise pieces.told(error, "sto_write") from None
            except BaseException:
                await self._uploads.drop(upload)
                raise

    async def _charge(self, owner: Owner, upload: Upload, size: int) -> None:
        """Count a part in before it is written, with the first one the object where it is new."""
        settings = self._settings()
        if upload.back is None:
            upload.counted = await self._find(owner.id, upload.place[2], 0) is None
            count = int(upload.counted)
            most = owner.stored.most(settings.objects, 0)
            owner.stored.take(count, 0, *most, "sto_write")
            upload.back = lambda: owner.stored.give(count, upload.bytes)
        owner.stored.take(0, size, 0, self._limit(owner), "sto_write")
        upload.bytes += size

    async def _complete(
        self, owner: Owner, upload: Upload, args: abi.StoWrite, packed: str, key: str
    ) -> abi.StoredObject:
        draft = await self._uploads.draft(upload)
        blob = await self._run(draft.finish)
        upload.closed = True
        reach("storage.synced")
        wanted = Entry(
            owner.id,
            args.name,
            blob,
            upload.size,
            args.content_type,
            packed,
            time.time(),
            key,
            self._settings().keep_versions,
        )
        written = await self._place(draft, blob, wanted)
        reach("storage.answer")
        self._uploads.forget(upload)
        owner.stored.give(int(upload.counted) - int(written.fresh), written.freed)
        if written.repeated:
            owner.stored.give(0, wanted.size)
            if blob.digest != written.version.digest:  # a sealed one is never the same again
                with suppress(OSError):  # the sweep finds it
                    await self._collect(blob.digest)
        if written.freed or written.repeated:
            self._wake.set()
        self._library.changed(owner.id)
        return await self._shown(owner, written.version)

    async def _place(self, draft: Draft, blob: Blob, wanted: Entry) -> Entered:
        """Put a finished draft's bytes in their place, and enter the version that has them."""
        place = f"{LOCAL}:{blob.digest}"
        try:
            async with self._lock(blob.digest):
                place = self._backends.place(await self._at(self._backends.name, draft.commit))
                reach("storage.placed")
                wanted = replace(wanted, blob=replace(blob, place=place))
                old = await self._db.read(lambda db: versions.place_of(db, blob.digest))
                written = await self._db.write(lambda db: versions.enter(db, wanted))
        except BaseException:
            with suppress(OSError):  # the sweep finds it; what failed is raised
                await self._clear(blob.digest, place)
            raise
        if written.repeated:
            self._left.append((0.0, blob.digest, place))
        elif old not in ("", place):
            self._left.append((time.time() + LEFT, blob.digest, old))
        return written

    def _limit(self, owner: Owner) -> int:
        return owner.reserved or owner.stored.most(0, self._settings().bytes)[1]

    # Reading.

    async def sys_sto_read(
        self, caller: Caller, args: abi.StoRead, stream: Stream
    ) -> abi.StoredObject:
        """Stream a version's bytes, verified piece by piece."""
        owner = await self._owners.find(caller, args.pool)
        found = await self._version(owner, args.name, args.version, "sto_read")
        if args.offset > found.size:
            raise OSError(
                errno.EINVAL, f"sto_read: offset {args.offset} is beyond its {found.size} bytes"
            )
        end = min(found.size, args.offset + args.size) if args.size else found.size
        async for part in self._parts(found, args.offset, end, owner):
            await stream.send(part)
        return await self._shown(owner, found)

    async def head(self, owner: int, name: str, version: int, size: int) -> bytes:
        """Return the first bytes of a version, verified; for the library: none of a sealed one."""
        found = await self._find(owner, name, version)
        if found is None or found.seal:
            return b""
        parts = [part async for part in self._parts(found, 0, min(size, found.size))]
        return b"".join(parts)

    async def _parts(
        self, found: Version, start: int, end: int, owner: Owner | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from start to end. owner: of a sealed version.

        Raises OSError: EUCLEAN before a damaged piece, ENOKEY.
        """
        if start >= end:
            return
        blob = await self._db.read(lambda db: versions.blob_of(db, found))
        if blob is None:
            raise pieces.damaged(found, "its bytes are not on record")
        try:
            reader = await self._at(blob.place, self._backends.open, blob.place)
        except FileNotFoundError:
            raise pieces.damaged(found, "its bytes are missing") from None
        try:
            seal = self._sealing.of(owner, found.name, blob.seal) if owner and blob.seal else None
            step = PIECE if seal is None else STEP
            for number in range(start // step, (end - 1) // step + 1):
                deed = (pieces.read, reader, blob, number, found, seal)
                piece = await self._at(blob.place, *deed)
                at = number * step
                yield piece[max(0, start - at) : end - at]
        except FileNotFoundError:
            raise pieces.damaged(found, "its bytes are missing") from None
        finally:
            self._threads.soon(reader.close)
        self._used[blob.digest] = time.time()

    async def sys_sto_list(self, caller: Caller, args: abi.StoList) -> list[abi.StoredObject]:
        """List the newest versions of objects, by name."""
        owner = await self._owners.find(caller, args.pool)
        prefix, limit = args.prefix, args.limit
        rows = await self._db.read(lambda db: versions.newest(db, owner.id, prefix, limit))
        return await self._all_shown(owner, rows)

    async def sys_sto_history(self, caller: Caller, args: abi.StoHistory) -> list[abi.StoredObject]:
        """List the versions of an object, the newest first."""
        owner = await self._owners.find(caller, args.pool)
        rows = await self._db.read(lambda db: versions.past(db, owner.id, args.name, args.limit))
        if not rows:
            raise versions.missing("sto_history", args.name)
        return await self._all_shown(owner, rows)

    # Changing what is there.

    async def sys_sto_delete(self, caller: Caller, args: abi.StoDelete) -> None:
        """Delete an object with all its versions."""
        owner = await self._owners.find(caller, args.pool)
        answer = answerer()
        done = await self._db.write(
            lambda db: versions.delete(db, owner.id, args.name, lambda: answer(db, None))
        )
        if done is None:
            raise versions.missing("sto_delete", args.name)
        size, passages = done
        owner.stored.give(1, size)
        self._library.removed(owner.id, passages)
        self._wake.set()

    async def sys_sto_rollback(self, caller: Caller, args: abi.StoRollback) -> abi.StoredObject:
        """Make an older version the newest again, as a version of its own."""
        owner = await self._owners.find(caller, args.pool)
        try:
            return await self._roll_back(caller, owner, args)
        except OSError:  # asked again: the first time may have used up what it needs
            done = await self._of_key(caller, owner, args.name, args.key)
            if done is None:
                raise
            return done

    async def _roll_back(
        self, caller: Caller, owner: Owner, args: abi.StoRollback
    ) -> abi.StoredObject:
        call = "sto_rollback"
        old = await self._version(owner, args.name, args.version, call)
        owner.stored.take(0, old.size, 0, self._limit(owner), call)
        key = f"{caller.subject} {args.key}" if args.key else ""
        keep = self._settings().keep_versions
        try:
            async with self._lock(old.digest):
                written = await self._db.write(
                    lambda db: versions.roll_back(db, owner.id, args.name, args.version, key, keep)
                )
        except BaseException:
            owner.stored.give(0, old.size)
            raise
        owner.stored.give(0, written.freed + (old.size if written.repeated else 0))
        self._library.changed(owner.id)
        return await self._shown(owner, written.version)

    async def sys_sto_search(self, caller: Caller, args: abi.StoSearch) -> list[abi.Passage]:
        """Find passages of the newest versions of texts."""
        owner = await self._owners.find(caller, args.pool)
        return await self._library.search(owner.id, args)

    # Looking after it.

    async def _look_after(self) -> None:
        """Clean up at boot, and then every `sweep` seconds or when something was let go."""
        while True:
            self._wake.clear()  # first: what is let go during the sweep is for the next one
            try:
                await self._sweep()
            except OSError as error:
                log.warning("storage can't be cleaned up: %s", error)
            try:
                async with asyncio.timeout(self._settings().sweep):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _sweep(self) -> None:
        await self._uploads.expire(self._settings().upload_timeout)
        await self._note_use()
        unreferenced = (
            "select digest from blobs as b"
            " where not exists (select 1 from versions where digest = b.digest)"
        )
        for (digest,) in await self._rows(unreferenced, ()):
            await self._collect(digest)
        await self._clear_left()
        if self._orphans:
            known = {row[0] for row in await self._rows("select place from blobs", ())}
            for place in await self._at("", lambda: list(self._backends.places())):
                if place not in known:
                    await self._clear(_digest(place), place)
            self._orphans = False
        if self._settings().cold_dir:
            await self._tier()

    async def _collect(self, digest: str) -> None:
        """Delete a blob that nothing refers to."""
        async with self._lock(digest):
            if place := await self._db.write(lambda db: versions.forget(db, digest)):
                reach("storage.forgotten")
                await self._delete(place)

    async def _clear(self, digest: str, place: str) -> None:
        """Delete bytes that are not, or no longer, a blob's."""
        async with self._lock(digest):
            if await self._db.read(lambda db: versions.place_of(db, digest)) != place:
                await self._delete(place)
        await self._collect(digest)

    async def _delete(self, place: str) -> None:
        try:
            await self._at(place, self._backends.delete, place)
        except OSError:
            self._orphans = True  # they are found again
            raise

    async def _clear_left(self) -> None:
        now = time.time()
        due = [left for left in self._left if left[0] <= now]
        self._left = [left for left in self._left if left[0] > now]
        if len(self._left) > MANY:  # they will be found
            self._left, self._orphans = [], True
        for _, digest, place in due:
            await self._clear(digest, place)

    async def _tier(self) -> None:
        """Move blobs between the two directories by age and use."""
        settings = self._settings()
        files = self._backends.local
        sql = "select digest, size, used from blobs where place = ? || digest order by used"
        rows = await self._rows(sql, (f"{LOCAL}:",))
        cold = await self._run(lambda: {row[0] for row in rows if files.cold(row[0])})
        hot = [row for row in rows if row[0] not in cold]
        leave = leaving(hot, time.time(), settings.cold_after, settings.hot_limit)
        moves = [(files.cool, digest) for digest in leave]
        come = [row for row in rows if row[0] in cold and row[2] > time.time() - settings.sweep * 2]
        if not settings.hot_limit:
            moves += [(files.warm, row[0]) for row in come]
        for move, digest in moves:
            async with self._lock(digest):
                await self._run(move, digest)

    async def _note_use(self) -> None:
        used, self._used = self._used, {}
        if used:
            rows = [(t, digest) for digest, t in used.items()]
            sql = "update blobs set used = ? where digest = ?"
            await self._db.write(lambda db: db.conn.executemany(sql, rows).rowcount)

    # Inside.

    async def _shown(self, owner: Owner, version: Version) -> abi.StoredObject:
        return (await self._all_shown(owner, [version]))[0]

    async def _all_shown(self, owner: Owner, rows: list[Version]) -> list[abi.StoredObject]:
        """Return versions as replies have them; the digests of sealed ones are opened aside."""
        if not any(row.seal for row in rows):
            return [row.shown() for row in rows]

        def show(row: Version) -> abi.StoredObject:
            seal = self._sealing.of(owner, row.name, row.seal) if row.seal else None
            return row.shown(seal.digest(row.seal) if seal else "")

        return await self._run(lambda: [show(row) for row in rows])

    def _lock(self, digest: str) -> asyncio.Lock:
        return self._locks[int(digest[:8], 16) % LOCKS]

    async def _at(self, place: str, deed: Callable[..., T], *args: Any) -> T:
        """Call what blocks in a thread for whichever back end a place is in."""
        if place.partition(":")[0] == LOCAL:
            return await self._threads.near(deed, *args)
        return await self._threads.far(self._settings().timeout, deed, *args)

    async def _rows(self, sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        return await self._db.read(lambda db: db.execute(sql, values).fetchall())

    async def _find(self, owner: int, name: str, version: int) -> Version | None:
        return await self._db.read(lambda db: versions.find(db, owner, name, version))

    async def _of_key(
        self, caller: Caller, owner: Owner, name: str, key: str
    ) -> abi.StoredObject | None:
        """Return the version that a request with a key has made, if any."""
        full = f"{caller.subject} {key}"
        row = (
            await self._db.read(lambda db: versions.of_key(db, owner.id, name, full))
            if key
            else None
        )
        return await self._shown(owner, row) if row else None

    async def _version(self, owner: Owner, name: str, version: int, call: str) -> Version:
        found = await self._find(owner.id, name, version)
        if found is None:
            raise versions.missing(call, name, version)
        return found


def _heed(work: asyncio.Task[abi.StoredObject]) -> None:
    """Take note of a failure that nobody waits for any more."""
    if not work.cancelled() and (error := work.exception()) is not None:
        log.debug("a part was not written: %s", error)


def check_name(name: str, call: str) -> None:
    """Raise OSError(EINVAL) for what is no good name of an object."""
    wrong = ""
    if len(name.encode()) > NAME_BYTES:
        wrong = f"has more than {NAME_BYTES} bytes"
    elif not name.isprintable():
        wrong = "has a character that can't be printed"
    elif name.startswith("/"):
        wrong = "begins with a slash; it is a name, not a file path"
    elif {"", ".", ".."} & set(name.split("/")):
        wrong = "has an empty part, or a part that is . or .."
    if wrong:
        raise OSError(errno.EINVAL, f"{call}: field 'name': {name[:64]!r} {wrong}")


def leaving(hot: list[tuple[Any, ...]], now: float, cold_after: float, hot_limit: int) -> list[str]:
    """Return which blobs (digest, size, used; the longest unused first) should be cold."""
    total = sum(row[1] for row in hot)
    found = []
    for digest, size, used in hot:
        if used > now - cold_after and not (hot_limit and total > hot_limit):
            break
        found.append(digest)
        total -= size
    return found


def _digest(place: str) -> str:
    """Return the SHA-256 with which the key of a place begins."""
    return place.partition(":")[2].partition("-")[0]
