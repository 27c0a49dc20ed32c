"""Tiers: where KV is kept that is not in a slot, in memory (tmpfs), on disk, or nowhere.

One for all cores. A worker writes into a file of a pool; what is there is copied from memory to
disk by threads here, never on the event loop. When a tier is full, what is worth least is given up
(see eviction.py): memory to the disk, the disk to the tokens, which are enough to compute it again.

What must hold: a file is deleted or written anew only when no sequence holds it; one that is found
damaged is moved out of the way at once, for all of them. A tier that can't be written to is left
alone for a while; who would have used it goes to the next one, and nobody else notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from aiosd.cores import files
from aiosd.cores.buffers import STORED, Buffers
from aiosd.cores.costs import Costs
from aiosd.cores.eviction import Holding, victims, wanted_in
from aiosd.cores.sequence import DISK, RAM, Sequence, Snapshot
from aiosd.sched.weights import weight

log = logging.getLogger(__name__)

FULL: Final = 0.9  # of the limit of memory, from which on contexts are copied to disk ...
ENOUGH: Final = 0.75  # ... until no more than this is taken
TROUBLE: Final = 5.0  # seconds for which a tier that failed is left alone
COPIES: Final = 2  # copies under way at a time


class Holder(Protocol):
    """Who has sequences: a core's placement."""

    sequences: dict[int, Sequence]
    costs: Costs


class Tiers:
    """The pools of memory and disk, and what goes on between them."""

    def __init__(self, kv_dir: Path, ram_limit: int, disk_dir: Path, disk_limit: int) -> None:
        self._threads = ThreadPoolExecutor(COPIES, "aiosd-tiers")
        self.ram = Buffers(kv_dir, ram_limit)
        self.disk = Buffers(disk_dir, disk_limit, STORED, reuse=False, remove=self._unlink_soon)
        self.holders: list[Holder] = []
        self._trouble: dict[str, float] = {}
        self._spilling: asyncio.Task[None] | None = None
        self._left: list[str] = []  # files of an earlier kernel

    def boot(self) -> None:
        """Make the directories. Raises OSError for the one in memory; without a disk we go on."""
        self._left = self.ram.boot()
        try:
            self._left += self.disk.boot()
        except OSError as error:
            self.failed(DISK, error.strerror or str(error))

    def seal(self) -> None:
        """Take nothing any more, and keep what is held: the next kernel takes it over."""
        if self._spilling is not None:
            self._spilling.cancel()
        self.ram.seal()
        self.disk.seal()

    def close(self) -> None:
        """Wait for what the threads have to do, and delete what nobody holds."""
        self._threads.shutdown(wait=True)
        self.ram.close()
        self.disk.close()

    def pool(self, path: str) -> Buffers:
        """Return the pool that a file belongs to."""
        return self.disk if path.endswith(STORED) else self.ram

    def failed(self, tier: str, why: str) -> None:
        """Leave a tier alone for a while: it can't be written to."""
        log.warning("contexts can't be saved to %s for now: %s", tier, why)
        self._trouble[tier] = time.monotonic() + TROUBLE

    def works(self, tier: str) -> bool:
        """Whether a tier is worth trying."""
        return time.monotonic() >= self._trouble.get(tier, 0.0)

    # Files for what leaves a slot.

    def take(self, sequence: Sequence, size: int, costs: Costs) -> str:
        """Return a file for a sequence's KV of about `size` bytes, "" when there is no room."""
        worth = _holding("", size, [(sequence, costs)], costs.again(sequence.history, 0)).worth
        for tier, pool in ((RAM, self.ram), (DISK, self.disk)):
            if not self.works(tier):
                continue
            path = pool.take(size)
            if path is None and self._make_room(tier, size, worth):
                path = pool.take(size)
            if path is not None:
                self._spill_soon()
                return path
        return ""

    def written(self, path: str, size: int) -> None:
        """A worker has written a file of this size: one on disk is synced, in a thread."""
        self.pool(path).booked(path, size)
        if path.endswith(STORED):
            self._threads.submit(files.sync, path)

    def give(self, path: str) -> None:
        """Let go of a file."""
        if path:
            self.pool(path).give(path)

    def waste(self, path: str) -> None:
        """Let go of a file that its writer, a worker that died, did not finish."""
        if path:
            self.pool(path).waste(path)

    def _make_room(self, tier: str, size: int, worth: float) -> bool:
        """Give up in a tier what is worth less than a newcomer; whether there is room then.

        From memory goes at first what is in a slot or on disk as well.
        """
        pool = self.disk if tier == DISK else self.ram
        holdings, doubles = self._holdings(tier), self._doubles()
        free = [h for h in holdings.values() if h.back <= 0 or h.key in doubles]
        chosen = victims(free, size - pool.room)
        if chosen is None and not (tier == RAM and self.works(DISK) and self.disk.room > size):
            chosen = victims(holdings.values(), size - pool.room, below=worth)
        for holding in chosen or ():
            self.drop(holding.key)
        return pool.room >= size

    def _doubles(self) -> set[str]:
        """Files in memory that are on disk as well, for all who hold them."""
        found: set[str] = set()
        for path, users in self._users(RAM).items():
            if all(_copy_on_disk(s, path) for s, _ in users):
                found.add(path)
        return found

    def _holdings(self, tier: str) -> dict[str, Holding]:
        """What a tier holds that may be given up, and what that is worth."""
        found = {}
        for path, users in self._users(tier).items():
            snapshots = [s for u, _ in users for s in u.snapshots if s.path == path]
            if any(s.named for s in snapshots) or any(u.restoring == path for u, _ in users):
                continue
            back = max(_without(u, path, costs) for u, costs in users)
            found[path] = _holding(path, snapshots[0].size, users, back)
        return found

    def _users(self, tier: str) -> dict[str, list[tuple[Sequence, Costs]]]:
        found: dict[str, list[tuple[Sequence, Costs]]] = {}
        for sequence, costs in self._sequences():
            for snapshot in sequence.snapshots:
                if snapshot.tier == tier:
                    found.setdefault(snapshot.path, []).append((sequence, costs))
        return found

    def _sequences(self) -> Iterator[tuple[Sequence, Costs]]:
        for holder in self.holders:
            for sequence in holder.sequences.values():
                yield sequence, holder.costs

    def drop(self, path: str) -> list[Sequence]:
        """Let all sequences go that hold a file; returns them."""
        users = []
        for sequence, _ in self._sequences():
            for snapshot in [s for s in sequence.snapshots if s.path == path]:
                sequence.snapshots.remove(snapshot)
                users.append(sequence)
                self.give(path)
        return users

    def discard(self, paths: Iterable[str]) -> None:
        """Delete files on disk that have a name and are nobody's any more."""
        for path in paths:
            if not self.drop(path) and self.disk.owns(path):
                self.disk.give(path)

    def set_aside(self, path: str) -> list[Sequence]:
        """Take a damaged file out of everybody's way, to look at; returns who held it."""
        self.pool(path).forget(path)  # before it is given back, which would delete it
        users = self.drop(path)
        self._threads.submit(files.set_aside, path)
        return users

    # From memory to disk.

    def _spill_soon(self) -> None:
        if self.ram.used > FULL * self.ram.limit and self._spilling is None:
            self._spilling = asyncio.get_running_loop().create_task(self._spill())
            self._spilling.add_done_callback(self._spilled)

    def _spilled(self, task: asyncio.Task[None]) -> None:
        self._spilling = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("contexts were not copied to disk: %r", error)

    async def _spill(self) -> None:
        """Bring what is worth least from memory to disk, until there is room enough."""
        while self.ram.used > ENOUGH * self.ram.limit and self.works(DISK):
            holdings = self._holdings(RAM)
            doubles = self._doubles()
            for holding in sorted(holdings.values(), key=lambda h: h.worth):
                if not self.works(DISK):
                    return
                if holding.key in doubles or await self.copy(holding.key, holding.worth):
                    self.drop(holding.key)
                    break
            else:
                return

    async def copy(self, path: str, worth: float) -> bool:
        """Copy a file from memory to disk for all who hold it; whether it is there now."""
        sizes = [s.size for q, _ in self._sequences() for s in q.snapshots if s.path == path]
        target = await self._copied(path, sizes[0], worth) if sizes else ""
        if not target:
            return False
        users = 0
        for sequence, _ in self._sequences():
            for snapshot in [s for s in sequence.snapshots if s.path == path]:
                self._attach(sequence, snapshot, target)
                users += 1
        for _ in range(users - 1):
            self.disk.share(target)
        if not users:
            self.disk.give(target)
        return bool(users)

    def _attach(self, sequence: Sequence, source: Snapshot, target: str) -> None:
        for old in [s for s in sequence.snapshots if s.tier == DISK and not s.named]:
            sequence.snapshots.remove(old)
            self.disk.give(old.path)
        new = Snapshot(target, source.kv, source.size, source.held, DISK, search=source.search)
        sequence.snapshots.append(new)

    async def _copied(self, path: str, size: int, worth: float) -> str:
        """Copy a file into the disk's pool; returns its new path, "" when that can't be."""
        target = self.disk.take(size)
        if target is None and self._make_room(DISK, size, worth):
            target = self.disk.take(size)
        if target is None:
            return ""
        self.ram.share(path)
        try:
            await self._run(files.copy, path, target, size)
        except OSError as error:
            self.disk.give(target)
            self.failed(DISK, error.strerror or str(error))
            return ""
        finally:
            self.ram.give(path)
        return target

    async def keep(self, sequence: Sequence, name: str) -> Snapshot | None:
        """Put what is held of a sequence's KV into a file of its own on disk, for good.

        name: the file's, beside the pool's own. Returns None when nothing is held. Raises OSError
        (ENOSPC, EROFS, ENOENT, ...) with nothing left behind.
        """
        target = str(self.disk.directory / f"{name}{STORED}")
        while (source := sequence.snapshot) is not None:
            kept = Snapshot(target, source.kv, source.size, source.held, DISK, True, source.search)
            pool = self.pool(source.path)
            pool.share(source.path)
            try:
                await self._run(files.copy, source.path, target, source.size)
            except FileNotFoundError:
                if await self._run(os.path.exists, source.path):
                    raise
                self.drop(source.path)  # deleted beneath us: the next older one, if any
            else:
                self.disk.booked(target, source.size)
                return kept
            finally:
                pool.give(source.path)
        return None

    async def drain(self, timeout: float) -> None:
        """Copy what is only in memory to disk, what is worth most first, while time is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                holdings = self._holdings(RAM)
                doubles = self._doubles()
                for holding in sorted(holdings.values(), key=lambda h: -h.worth):
                    if not self.works(DISK):
                        return
                    if holding.key not in doubles:
                        await self.copy(holding.key, holding.worth)

    # At boot.

    async def adopt(
        self, sequences: dict[int, Sequence], grid: Callable[[Sequence], int], named: Iterable[str]
    ) -> None:
        """Take over the files of an earlier kernel that hold what is on record of a sequence.

        grid: of a sequence's core. named: paths that are kept whatever they hold. The rest, left by
        contexts that there are no more or by a writer that was killed, is deleted.
        """
        kept = set(named)
        left, self._left = self._left, []
        found = await self._run(files.survey, left, kept)
        for path, match in files.matches(found, sequences, grid, kept):
            tier = DISK if path.endswith(STORED) else RAM
            self.pool(path).booked(path, found[path].used)
            for _ in range(len(match) - 1):
                self.pool(path).share(path)
            held = len(found[path].header.record.tokens)
            for sequence, kv in match:
                search = found[path].header.record.tree is not None
                size = found[path].used
                snapshot = Snapshot(path, kv, size, held, tier, path in kept, search)
                sequence.snapshots.append(snapshot)
        strangers = [p for p in found if not self.pool(p).owns(p) and p not in kept]
        await self._run(files.remove, strangers)
        for path in kept & found.keys():
            self.disk.booked(path, found[path].used)

    async def _run(self, work: Callable[..., files.T], *arguments: object) -> files.T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _unlink_soon(self, path: str) -> None:
        self._threads.submit(files.remove, [path])


def _holding(key: str, size: int, users: list[tuple[Sequence, Costs]], back: float) -> Holding:
    now = time.monotonic()
    soon = min(
        wanted_in(s.goal is not None, bool(s.holds), now - s.used if s.used else 0.0, s.gap)
        for s, _ in users
    )
    return Holding(key, size, back, soon, max(weight(s.nice) for s, _ in users))


def _without(sequence: Sequence, path: str, costs: Costs) -> float:
    """Seconds that a sequence needs longer to get its KV back when a file is gone."""
    if sequence.resident and sequence.goal is None:
        return 0.0
    whole = _back(sequence, sequence.snapshots, costs)
    return max(
        0.0, _back(sequence, [s for s in sequence.snapshots if s.path != path], costs) - whole
    )


def _back(sequence: Sequence, snapshots: list[Snapshot], costs: Costs) -> float:
    best = max((s for s in snapshots if s.kv), key=lambda s: (s.kv, s.tier == RAM), default=None)
    if best is None:
        return costs.again(sequence.history, 0)
    return costs.read(best.tier, best.size) + costs.again(sequence.history, best.kv)


def _copy_on_disk(sequence: Sequence, path: str) -> bool:
    kv = max((s.kv for s in sequence.snapshots if s.path == path), default=0)
    return any(s.tier == DISK and s.kv >= kv for s in sequence.snapshots)
