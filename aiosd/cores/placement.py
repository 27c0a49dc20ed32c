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
import time
from collections import deque
from collections.abc import Callable, Set

from aiosd.cores.buffers import STORED
from aiosd.cores.costs import Costs
from aiosd.cores.sequence import DISK, RAM, Place, Sequence, Snapshot
from aiosd.cores.tiers import Tiers
from aiosd.engine import protocol, runs
from aiosd.engine.protocol import Command, Run

SLACK = 65_536  # bytes of a snapshot beside its KV


class Placement:
    """The slots of one worker, and the files of what is out of them.

    fell_back: told of a sequence whose snapshot is lost, with a sentence that says why.
    """

    def __init__(
        self,
        slots: int,
        tiers: Tiers,
        send: Callable[[Command], None],
        fell_back: Callable[[Sequence, str], None],
    ) -> None:
        self.slots = slots
        self.costs = Costs()
        self.bytes_per_token = 0
        self.switches = 0
        self.sequences: dict[int, Sequence] = {}
        self._tiers = tiers
        self._send = send
        self._fell_back = fell_back
        self._inside: dict[int, Sequence] = {}
        self._writing: dict[int, deque[str]] = {}  # buffers of commands under way, as sent
        self._waiters: dict[int, list[asyncio.Future[None]]] = {}
        tiers.holders.append(self)

    @property
    def resident(self) -> int:
        """Slots that are occupied."""
        return sum(s.width for s in self._inside.values() if s.place is not Place.LEAVING)

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV in the slots, as a snapshot of it would be."""
        return sum(_cells(s) for s in self._inside.values()) * self.bytes_per_token

    @property
    def owed(self) -> bool:
        """Whether the worker has something to compute or to answer."""
        return any(s.place is not Place.PARKED for s in self._inside.values())

    def live(self) -> list[Sequence]:
        """The sequences that the worker runs."""
        return [s for s in self._inside.values() if s.place is Place.LIVE]

    def reconcile(self, running: Set[int], rank: Callable[[int], int]) -> list[Sequence]:
        """Make the worker run exactly these sequences, as far as earlier commands are answered.

        Returns those that came on the core with it.
        """
        leave = [s for s in self.live() if s.cid not in running]
        enter = [s for cid in running if (s := self.sequences[cid]).settled]
        enter.sort(key=lambda s: rank(s.cid))
        needed = sum(_missing(s) for s in enter)
        self._make_room(needed, running, leave)
        for sequence in leave:
            if sequence.place is Place.LIVE:
                self._park(sequence)
        for sequence in enter:
            if self.resident + _missing(sequence) <= self.slots:
                self._admit(sequence, rank(sequence.cid))
        self._rerank(rank)
        return [s for s in enter if s.place is Place.LIVE]

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
        for sequence in parked + leave:
            if excess <= 0:
                break
            excess -= sequence.width
            self._evict(sequence)

    def _admit(self, sequence: Sequence, rank: int) -> None:
        assert sequence.goal is not None
        held, snapshot = sequence.held, None
        if sequence.wanted > 1:  # a search whose prompt is read goes on by what its slots hold
            held = min(held, len(sequence.tokens) - 1)
        if sequence.place is Place.OUT:
            snapshot = sequence.snapshot
            sequence.restoring = snapshot.path if snapshot else ""
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
                held=snapshot.held if snapshot else 0,
            )
        )
        sequence.slot_kv = held
        sequence.width, sequence.searched = sequence.wanted, 0
        sequence.rank = rank
        sequence.place = Place.LIVE
        self._inside[sequence.cid] = sequence

    def _park(self, sequence: Sequence) -> None:
        sequence.place = Place.PARKING
        self._send(protocol.Park(sequence.cid))

    def _evict(self, sequence: Sequence) -> None:
        path = "" if self._saved(sequence) else self._take(sequence)
        self._writing.setdefault(sequence.cid, deque()).append(path)
        sequence.place = Place.LEAVING
        self._send(protocol.Evict(sequence.cid, path))

    def _saved(self, sequence: Sequence) -> bool:
        """Whether all that stands still in a sequence's slot is in a snapshot already."""
        if sequence.place is not Place.PARKED or sequence.searched:
            return False
        return any(s.kv >= sequence.held for s in sequence.snapshots)

    def _take(self, sequence: Sequence) -> str:
        """Return a file for the sequence's KV, "" when no tier has room for it."""
        size = (_cells(sequence) + 64 * sequence.width) * self.bytes_per_token
        size += SLACK * sequence.width
        return self._tiers.take(sequence, size, self.costs)

    # What a context's user asks for.

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence wherever it is."""
        self.sequences.pop(sequence.cid, None)
        if sequence.resident and sequence.place is not Place.LEAVING:
            self._send(protocol.Evict(sequence.cid, ""))
        self._out(sequence)
        self._settled(sequence.cid)
        self.drop_snapshot(sequence)

    def close(self) -> None:
        """Have nothing more to do with the tiers."""
        if self in self._tiers.holders:
            self._tiers.holders.remove(self)

    def take_back(
        self, sequence: Sequence, tokens: list[int], history: list[Run], grid: int
    ) -> None:
        """Make a settled sequence that is in no slot what it was at an earlier point, or a later.

        Snapshots that have nothing in common with it go, but for those with a name.
        """
        assert sequence.place is Place.OUT
        sequence.take_back(tokens, history, grid)
        self._give_up_void(sequence)

    def restart(self, sequence: Sequence, tokens: list[int]) -> None:
        """Have a settled sequence begin anew with these tokens; its snapshots are void."""
        sequence.restart(tokens)
        self._give_up_void(sequence)

    def _give_up_void(self, sequence: Sequence) -> None:
        for snapshot in [s for s in sequence.snapshots if not s.kv and not s.named]:
            self._give_up(sequence, snapshot.path)

    def drop_snapshot(self, sequence: Sequence) -> None:
        """Free the files that a sequence's KV is in, if any."""
        for snapshot in sequence.snapshots:
            self._tiers.give(snapshot.path)
        sequence.snapshots.clear()

    async def settle(self, sequence: Sequence) -> None:
        """Return when nothing more can come from the worker for this sequence unasked."""
        while not sequence.settled or sequence.cid in self._writing:
            await self._answer(sequence.cid)

    async def save(self, sequence: Sequence) -> None:
        """Bring a resident sequence's KV into its snapshot, so that it can be copied.

        When that can't be (no room, the worker dies meanwhile) the snapshot is an older one, or
        none: its record is enough, only slower.
        """
        if not sequence.resident or self._saved(sequence):
            return
        under_way = sequence.place is Place.LEAVING or sequence.cid in self._writing
        if under_way or self.begin_save(sequence):
            await self._answer(sequence.cid)

    def begin_save(self, sequence: Sequence) -> str:
        """Have a copy of a sequence's KV written from its slot, before any command sent later.

        Returns the path, "" when there is no room.
        """
        path = self._take(sequence)
        if not path:
            return ""
        self._writing.setdefault(sequence.cid, deque()).append(path)
        self._send(protocol.Save(sequence.cid, path))
        return path

    def leaving_to(self, sequence: Sequence) -> str:
        """The path to which the worker writes the KV of a sequence that leaves its slot, or ""."""
        paths = self._writing.get(sequence.cid)
        return paths[-1] if paths and sequence.place is Place.LEAVING else ""

    async def save_all(self) -> None:
        """Bring all that is in the slots into files."""
        if self.bytes_per_token:  # a worker that is still loading has nothing
            await asyncio.gather(*(self.save(s) for s in list(self._inside.values())))

    def leave(self, sequence: Sequence) -> None:
        """Give a sequence's slot up and forget what is in it; its snapshots stay."""
        if sequence.resident and sequence.place is not Place.LEAVING:
            self._send(protocol.Evict(sequence.cid, ""))
            self._writing.setdefault(sequence.cid, deque()).append("")
            sequence.place = Place.LEAVING

    def let_go(self, sequence: Sequence) -> None:
        """Give up an idle sequence's KV wherever it is, but for what a name keeps."""
        self.leave(sequence)
        for snapshot in [s for s in sequence.snapshots if not s.named]:
            self._give_up(sequence, snapshot.path)

    def copy_snapshot(self, source: Sequence, target: Sequence) -> None:
        """Let a second sequence start from the first one's snapshots: the files are shared."""
        for old in source.snapshots:
            if not old.kv or old.search:
                continue
            self._tiers.pool(old.path).share(old.path)
            new = Snapshot(old.path, old.kv, old.size, old.held, old.tier)
            target.snapshots.append(new)

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
            case protocol.Restored():
                self.restored(event)
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
            self._tiers.give(path)
            return
        self._out(sequence)
        self._keep(sequence, path, event.kv, event.size)
        self._settled(event.cid)

    def kept(self, event: protocol.Kept) -> None:
        """A sequence could not leave: its file can't be written, nor others for some time."""
        self._failed(event.path, event.message)
        self._written(event.cid, "")
        sequence = self._inside.get(event.cid)
        if sequence is not None and sequence.place is Place.LEAVING:
            sequence.place = Place.PARKED
            sequence.slot_kv = event.kv
            self._settled(event.cid)

    def _failed(self, path: str, why: str) -> None:
        self._tiers.failed(DISK if path.endswith(STORED) else RAM, why)

    def restored(self, event: protocol.Restored) -> None:
        """A sequence's KV was read back."""
        tier = DISK if event.path.endswith(STORED) else RAM
        self.costs.restored(tier, event.size, event.seconds)
        if (sequence := self.sequences.get(event.cid)) is not None:
            sequence.restoring = ""

    def saved(self, event: protocol.Saved) -> None:
        """A copy of a sequence's KV is in its buffer."""
        if event.message:
            self._failed((self._writing.get(event.cid) or [""])[0], event.message)
        path = self._written(event.cid, event.path)
        sequence = self.sequences.get(event.cid)
        if sequence is None:
            self._tiers.give(path)
            return
        self._keep(sequence, path, event.kv, event.size)
        self._settled(event.cid)

    def placed(self, event: protocol.Placed) -> None:
        """Sequences sit in these slots now."""
        for cid, slot in event.slots:
            if (sequence := self._inside.get(cid)) is not None:
                sequence.slot = slot

    def lost(self, event: protocol.Lost) -> Sequence | None:
        """The worker could not go on with a sequence; the snapshot that it used is not trusted.

        ESRCH: the worker answers a command that was under way when it had lost the sequence
        already. Nothing of a sequence that was admitted again meanwhile is lost by that. EBUSY: no
        slot was free after all, and nothing is wrong with the sequence.
        """
        cid, unknown = event.cid, event.errno == errno.ESRCH
        if unknown:
            self._written(cid, "")
            self._settled(cid)
        sequence = self._inside.get(cid)
        if sequence is None or (unknown and sequence.place in (Place.LIVE, Place.PARKED)):
            return None
        used, sequence.restoring = sequence.restoring, ""
        self._out(sequence)
        if event.errno != errno.EBUSY:
            self._refuse(sequence, event, used)
        self._settled(cid)
        return sequence

    def _refuse(self, sequence: Sequence, event: protocol.Lost, used: str) -> None:
        """Never start from this file again: a damaged one goes out of the way of all."""
        path = event.path or used
        if not any(s.path == path for s in sequence.snapshots):
            return
        if event.path:
            users = self._tiers.set_aside(path)
        else:
            users = [sequence]
            self._give_up(sequence, path)
        for user in users:
            self._fell_back(user, event.message)

    def at_fault(self, sequence: Sequence, event: protocol.Lost) -> None:
        """A sequence's snapshot was of no use to another one that was to begin with it."""
        self._refuse(sequence, event, event.path)

    def _give_up(self, sequence: Sequence, path: str) -> None:
        for snapshot in [s for s in sequence.snapshots if s.path == path]:
            sequence.snapshots.remove(snapshot)
            self._tiers.give(path)

    def died(self) -> list[Sequence]:
        """The worker is gone; returns the sequences that it was running."""
        live = self.live()
        for paths in self._writing.values():
            for path in paths:
                self._tiers.waste(path)
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
            self._tiers.give(buffer)
            return ""
        return buffer

    def _out(self, sequence: Sequence) -> None:
        sequence.place, sequence.restoring = Place.OUT, ""
        sequence.slot, sequence.slot_kv = -1, 0
        sequence.width, sequence.searched = 1, 0
        self._inside.pop(sequence.cid, None)

    def _keep(self, sequence: Sequence, path: str, kv: int, size: int) -> None:
        """Take a filled file as the sequence's snapshot in its tier.

        One that holds more than is on record goes on with tokens that a cancelled generation never
        took up: only what is on record counts.
        """
        usable = min(kv, sequence.kv)
        if not path or not usable:
            self._tiers.give(path)
            return
        tier = DISK if path.endswith(STORED) else RAM
        gang = sequence.wanted > 1  # an older file holds an earlier state of a search
        for old in [s for s in sequence.snapshots if (gang or s.tier == tier) and not s.named]:
            sequence.snapshots.remove(old)
            self._tiers.give(old.path)
        self._tiers.written(path, size)
        # A search that has begun has read its whole prompt; before, a file holds the prompt alone.
        search = gang and kv == len(sequence.tokens)
        sequence.snapshots.append(Snapshot(path, usable, size, kv, tier, search=search))


def _missing(sequence: Sequence) -> int:
    """Slots that a sequence takes beside those that it has."""
    return sequence.wanted - (0 if sequence.place is Place.OUT else sequence.width)


def _cells(sequence: Sequence) -> int:
    """Cells that a sequence takes in its slots; each branch of a search has the whole prompt."""
    return sequence.cells(sequence.slot_kv) * sequence.width + sequence.searched
