"""Placement: which sequences are in a worker's slots, and where the KV of the others is.

Carries out what the policy decided: `reconcile` compares who should run with who does, and sends
the commands that make it so. Commands take effect in the order sent, so a slot that one command
frees can be given away by the next one at once.

What must hold: sequences in slots, without those told to leave, never exceed the slots; nothing
is asked of a sequence whose last command is not answered yet; a buffer is booked to one sequence
or to one command under way.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Set

from aiosd.cores.buffers import Buffers
from aiosd.cores.sequence import Place, Sequence, Snapshot
from aiosd.engine import protocol, runs
from aiosd.engine.protocol import Command

SLACK = 65_536  # bytes of a snapshot beside its KV
TROUBLE = 5.0  # seconds for which nothing is saved after a buffer could not be written

log = logging.getLogger(__name__)


class Placement:
    """The slots of one worker, and the buffers of what is out of them."""

    def __init__(self, slots: int, buffers: Buffers, send: Callable[[Command], None]) -> None:
        self.slots = slots
        self.bytes_per_token = 0
        self.switches = 0
        self.sequences: dict[int, Sequence] = {}
        self._buffers = buffers
        self._send = send
        self._inside: dict[int, Sequence] = {}
        self._writing: dict[int, deque[str]] = {}  # buffers of commands under way, as sent
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        self._trouble_until = 0.0

    @property
    def resident(self) -> int:
        """Slots that are occupied."""
        return sum(s.place is not Place.LEAVING for s in self._inside.values())

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV in the slots, as a snapshot of it would be."""
        return sum(s.cells(s.slot_kv) for s in self._inside.values()) * self.bytes_per_token

    @property
    def owed(self) -> bool:
        """Whether the worker has something to compute or to answer."""
        return any(s.place is not Place.PARKED for s in self._inside.values())

    def live(self) -> list[Sequence]:
        """The sequences that the worker runs."""
        return [s for s in self._inside.values() if s.place is Place.LIVE]

    def reconcile(self, running: Set[int], rank: Callable[[int], int]) -> None:
        """Make the worker run exactly these sequences, as far as earlier commands are answered."""
        leave = [s for s in self.live() if s.cid not in running]
        enter = [s for cid in running if (s := self.sequences[cid]).settled]
        enter.sort(key=lambda s: rank(s.cid))
        needed = sum(s.place is Place.OUT for s in enter)
        self._make_room(needed, running, leave)
        for sequence in leave:
            if sequence.place is Place.LIVE:
                self._park(sequence)
        for sequence in enter:
            if sequence.place is Place.PARKED or self.resident < self.slots:
                self._admit(sequence, rank(sequence.cid))
        self._rerank(rank)

    def _rerank(self, rank: Callable[[int], int]) -> None:
        """Tell the worker when those that prefill are to do so in another order."""
        filling = [s for s in self._inside.values() if s.place is Place.LIVE and s.filling]
        if len(filling) < 2:
            return
        now = {s.cid: rank(s.cid) for s in filling}
        filling.sort(key=lambda s: s.rank)
        if any(now[a.cid] > now[b.cid] for a, b in itertools.pairwise(filling)):
            for sequence in filling:
                sequence.rank = now[sequence.cid]
                self._send(protocol.Rank(sequence.cid, sequence.rank))

    def _make_room(self, needed: int, running: Set[int], leave: list[Sequence]) -> None:
        """Evict until `needed` slots are free: idle ones first, then held, then the stopped."""
        excess = self.resident + needed - self.slots
        if excess <= 0:
            return
        parked = [
            s for s in self._inside.values() if s.place is Place.PARKED and s.cid not in running
        ]
        parked.sort(key=lambda s: (s.goal is not None, s.used))
        for sequence in (parked + leave)[:excess]:
            self._evict(sequence)

    def _admit(self, sequence: Sequence, rank: int) -> None:
        assert sequence.goal is not None
        held, snapshot = sequence.held, None
        if sequence.place is Place.OUT:
            snapshot = sequence.snapshot
            self.switches += 1
        self._send(
            protocol.Admit(
                sequence.cid,
                sequence.tokens,
                held,
                snapshot.path if snapshot else "",
                sequence.work(held),
                sequence.goal,
                rank,
                history=runs.cut(sequence.history, held),
                held=snapshot.kv if snapshot else 0,
            )
        )
        sequence.slot_kv = held
        sequence.rank = rank
        sequence.place = Place.LIVE
        self._inside[sequence.cid] = sequence

    def _park(self, sequence: Sequence) -> None:
        sequence.place = Place.PARKING
        self._send(protocol.Park(sequence.cid))

    def _evict(self, sequence: Sequence) -> None:
        path = self._take(sequence) or ""
        self._writing.setdefault(sequence.cid, deque()).append(path)
        sequence.place = Place.LEAVING
        self._send(protocol.Evict(sequence.cid, path))

    def _take(self, sequence: Sequence) -> str | None:
        """Return a buffer for the sequence's KV, dropping idle snapshots to find room."""
        if time.monotonic() < self._trouble_until:
            return None
        size = (sequence.cells(sequence.slot_kv) + 64) * self.bytes_per_token + SLACK
        path = self._buffers.take(size)
        if path is None and self._reclaim(size):
            path = self._buffers.take(size)
        return path

    def _reclaim(self, size: int) -> bool:
        """Give up the oldest snapshots that nothing needs soon, until `size` bytes are free.

        First those whose KV is in a slot anyway, then those of idle contexts: they can be
        computed again from their record.
        """
        idle = [
            s
            for s in self.sequences.values()
            if s.snapshot and s.cid not in self._writing and (s.resident or s.goal is None)
        ]
        idle.sort(key=lambda s: (not s.resident, s.used))
        for sequence in idle:
            if self._buffers.room >= size:
                break
            self.drop_snapshot(sequence)
        return self._buffers.room >= size

    # What a context's user asks for.

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence wherever it is."""
        self.sequences.pop(sequence.cid, None)
        if sequence.resident and sequence.place is not Place.LEAVING:
            self._send(protocol.Evict(sequence.cid, ""))
        self._out(sequence)
        self._settled(sequence.cid)
        self.drop_snapshot(sequence)

    def drop_snapshot(self, sequence: Sequence) -> None:
        """Free the buffer that a sequence's KV is in, if any."""
        if sequence.snapshot is not None:
            self._buffers.give(sequence.snapshot.path)
            sequence.snapshot = None

    async def settle(self, sequence: Sequence) -> None:
        """Return when nothing more can come from the worker for this sequence unasked."""
        while not sequence.settled:
            await self._answer(sequence.cid)

    async def save(self, sequence: Sequence) -> None:
        """Bring a resident sequence's KV into its snapshot, so that it can be copied.

        When that can't be (no room, the worker dies meanwhile) the snapshot is an older one, or
        none: its record is enough, only slower.
        """
        if not sequence.resident:
            return
        if sequence.place is not Place.LEAVING and sequence.cid not in self._writing:
            path = self._take(sequence)
            if path is None:
                return
            self._writing[sequence.cid] = deque([path])
            self._send(protocol.Save(sequence.cid, path))
        await self._answer(sequence.cid)

    def copy_snapshot(self, source: Sequence, target: Sequence) -> None:
        """Let a second sequence start from the first one's snapshot."""
        if source.snapshot is not None:
            self._buffers.share(source.snapshot.path)
            old = source.snapshot
            target.snapshot = Snapshot(old.path, old.kv, old.size)

    async def _answer(self, cid: int) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(cid, []).append(waiter)
        await waiter

    def _settled(self, cid: int) -> None:
        for waiter in self._waiters.pop(cid, []):
            if not waiter.done():
                waiter.set_result(None)

    # What the worker answers.

    def hear(self, event: protocol.Event) -> bool:
        """Take up what a worker says of its slots; returns whether someone else may enter now."""
        match event:
            case protocol.Parked():
                self.parked(event)
            case protocol.Evicted():
                self.evicted(event)
            case protocol.Kept():
                self.kept(event)
            case protocol.Saved():
                self.saved(event)
                return False
            case protocol.Placed():
                self.placed(event)
                return False
            case _:
                return False
        return True

    def parked(self, event: protocol.Parked) -> None:
        """A sequence stands still in its slot."""
        sequence = self._inside.get(event.cid)
        if sequence is not None and sequence.place is Place.PARKING:
            sequence.place = Place.PARKED
            sequence.slot_kv = event.kv
            sequence.used = time.monotonic()
            self._settled(event.cid)

    def finished(self, sequence: Sequence) -> None:
        """The worker ended a generation by itself; the sequence stands still in its slot."""
        if sequence.place is Place.LIVE:
            sequence.place = Place.PARKED
            sequence.used = time.monotonic()
            self._settled(sequence.cid)

    def evicted(self, event: protocol.Evicted) -> None:
        """A sequence has left its slot."""
        path = self._written(event.cid, event.path)
        sequence = self.sequences.get(event.cid)
        if sequence is None or sequence.place is not Place.LEAVING:
            self._buffers.give(path)
            return
        self._out(sequence)
        self._keep(sequence, path, event.kv, event.size)
        self._settled(event.cid)

    def kept(self, event: protocol.Kept) -> None:
        """A sequence could not leave: its buffer can't be written, nor others for some time."""
        log.warning("context %d: its KV could not be saved: %s", event.cid, event.message)
        self._written(event.cid, "")
        self._trouble_until = time.monotonic() + TROUBLE
        sequence = self._inside.get(event.cid)
        if sequence is not None and sequence.place is Place.LEAVING:
            sequence.place = Place.PARKED
            sequence.slot_kv = event.kv
            self._settled(event.cid)

    def saved(self, event: protocol.Saved) -> None:
        """A copy of a sequence's KV is in its buffer."""
        path = self._written(event.cid, event.path)
        sequence = self.sequences.get(event.cid)
        if sequence is None:
            self._buffers.give(path)
            return
        self._keep(sequence, path, event.kv, event.size)
        self._settled(event.cid)

    def placed(self, event: protocol.Placed) -> None:
        """Sequences sit in these slots now."""
        for cid, slot in event.slots:
            if (sequence := self._inside.get(cid)) is not None:
                sequence.slot = slot

    def lost(self, event: protocol.Lost) -> Sequence | None:
        """The worker could not go on with a sequence; its snapshot is not to be trusted.

        ESRCH: the worker answers a command that was under way when it had lost the sequence
        already. Nothing of a sequence that was admitted again meanwhile is lost by that. EBUSY: no
        slot was free after all, and nothing is wrong with the sequence.
        """
        cid, unknown = event.cid, event.errno == errno.ESRCH
        if event.errno != errno.EBUSY:
            self._written(cid, "")
        sequence = self._inside.get(cid)
        if sequence is None or (unknown and sequence.place in (Place.LIVE, Place.PARKED)):
            return None
        self._out(sequence)
        if event.errno != errno.EBUSY:
            self.drop_snapshot(sequence)
        self._settled(cid)
        return sequence

    def died(self) -> list[Sequence]:
        """The worker is gone; returns the sequences that it was running."""
        live = self.live()
        for paths in self._writing.values():
            for path in paths:
                self._buffers.give(path)
        self._writing.clear()
        for sequence in list(self._inside.values()):
            self._out(sequence)
        for cid in list(self._waiters):
            self._settled(cid)
        return live

    def _written(self, cid: int, path: str) -> str:
        """Return the buffer that a command has filled, "" when there was nothing to write."""
        paths = self._writing.get(cid)
        buffer = paths.popleft() if paths else ""
        if not paths:
            self._writing.pop(cid, None)
        if not path:
            self._buffers.give(buffer)
            return ""
        return buffer

    def _out(self, sequence: Sequence) -> None:
        sequence.place = Place.OUT
        sequence.slot, sequence.slot_kv = -1, 0
        self._inside.pop(sequence.cid, None)

    def _keep(self, sequence: Sequence, path: str, kv: int, size: int) -> None:
        """Take a filled buffer as the sequence's snapshot.

        One that holds more than is on record goes on with tokens that a cancelled generation never
        took up, and so does not fit whatever comes instead of them.
        """
        if kv > sequence.kv:
            self._buffers.give(path)
        if not path or kv > sequence.kv:
            return
        self.drop_snapshot(sequence)
        self._buffers.booked(path, size)
        sequence.snapshot = Snapshot(path, kv, size)
