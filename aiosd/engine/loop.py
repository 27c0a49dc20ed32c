"""A worker's main loop: take the kernel's commands, compute one batch, report it, again.

Each turn is one device call: a prefill chunk of the sequence with the lowest rank, or one decode
step of every sequence that has a known token to compute (in parts, where the device has the same
bits for few rows only). While both wait, a slice of prefill (one grid size of tokens) and a decode
step take turns; chunks that complete their prompts may go up to EAGER slices further, since each of
them makes the steps that follow wider. The lowest rank goes first in every call, so an urgent
arrival waits at most for a slice and a decode step. Such chunks share a call with the first one as
far as the runner's bits allow it. Commands take effect between two turns; with nothing to compute
the loop sleeps on its inbox.

What must hold: an error of one sequence ends that sequence (`Lost`) and no other. Every command
that names a sequence is answered: with its event, or with Lost when there is no such sequence.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Final

from aiosd.engine import match, runs
from aiosd.engine import protocol as p
from aiosd.engine.gang import MOST_BEAMS, Gang, Seat, seat_id
from aiosd.engine.runner import Chunk, Draw, Row, Runner, Sampler
from aiosd.engine.sequence import Sequence, check
from aiosd.engine.slots import Slots
from aiosd.engine.snapshot import read_layout

EAGER: Final = 3


class Loop:
    """Drives one runner. `send` takes each event; it may be called from this thread only."""

    def __init__(
        self,
        runner: Runner,
        setup: p.CoreSetup,
        inbox: SimpleQueue[p.Command],
        send: Callable[[p.Event], None],
    ) -> None:
        self._runner = runner
        self._grid = setup.grid
        self._inbox = inbox
        self._send = send
        self._low, self._high = runner.info.low, runner.info.high
        self._slots = Slots(setup.slots, self._low)
        self._sequences: dict[int, Sequence] = {}
        self._gangs: dict[int, Gang] = {}  # of sequences that are searched with beams
        self._searched: dict[int, int] = {}  # rows of the present step, by sequence
        self._over: list[Gang] = []  # searches that have ended in it
        self._order = 0
        self._credit = setup.grid

    def run(self) -> None:
        """Serve for ever; the process ends from the thread that reads the socket."""
        while True:
            self.drain(block=not any(s.running for s in self._sequences.values()))
            self.turn()

    def drain(self, block: bool) -> None:
        """Carry out the commands that wait; block: wait for the first one."""
        while block or not self._inbox.empty():
            block = False
            command = self._inbox.get()
            if isinstance(command, p.Admit):
                self._admit(command)
            elif isinstance(command, p.Share):
                self._share(command)
            elif isinstance(command, p.Rank | p.Park | p.Save | p.Evict):
                self._apply(command)
            else:
                raise ValueError(f"the main loop was given {type(command).__name__}")

    def turn(self) -> None:
        """Compute one batch, if there is anything to compute."""
        prefilling: list[Sequence] = []
        decoding: list[Sequence | Seat] = []
        for sequence in self._sequences.values():
            if sequence.running:
                gang = self._gangs.get(sequence.cid)
                if gang is not None and gang.begun:
                    decoding += gang.sitting
                elif sequence.prefilling:
                    prefilling.append(sequence)
                else:
                    decoding.append(sequence)
        prefilling.sort(key=lambda s: (s.rank, s.order))
        if not decoding:
            self._credit = self._grid  # nobody waits for a step
        if prefilling and (not decoding or self._affords(prefilling[0], 0)):
            self._prefill(self._together(prefilling))
        elif decoding:
            self._decode(decoding)

    def _affords(self, sequence: Sequence, before: int) -> bool:
        """Whether a sequence's next chunk may still go before the next decode step.

        before: tokens that go with it in any case.
        """
        end = sequence.chunk(self._grid)
        eager = EAGER * self._grid if end == len(sequence.tokens) else 0
        return before + end - sequence.kv <= self._credit + eager

    def _together(self, prefilling: list[Sequence]) -> list[Sequence]:
        """The sequences whose next chunks share one call, by slot; the first goes in any case."""
        info, chosen = self._runner.info, prefilling[:1]
        total = first = prefilling[0].chunk(self._grid) - prefilling[0].kv
        for sequence in prefilling[1:]:
            size = sequence.chunk(self._grid) - sequence.kv
            if info.even and size != first:
                continue
            if total + size > info.batch or not self._affords(sequence, total):
                break
            chosen.append(sequence)
            total += size
        return sorted(chosen, key=lambda s: s.slot)

    # Batches.

    def _prefill(self, sequences: list[Sequence]) -> None:
        began = time.perf_counter()
        chunks = [self._chunk(s) for s in sequences]
        try:
            self._runner.prefill(chunks)
        except OSError as e:
            self._prefill_apart(sequences, e)
            return
        computed, draws = [], []
        for row, (s, chunk) in enumerate(zip(sequences, chunks, strict=True)):
            start, end = s.kv, s.kv + len(chunk.tokens)
            self._credit -= len(chunk.tokens)
            s.advance(end, self._grid)
            computed.append((s.cid, p.PREFILL, start, end))
            if chunk.want:
                draws.append((row, s))
        self._report(computed, self._sample(draws), began)

    def _chunk(self, sequence: Sequence) -> Chunk:
        start, end = sequence.kv, sequence.chunk(self._grid)
        last = end == len(sequence.tokens)
        return Chunk(sequence.slot, sequence.tokens[start:end], sequence.cells, last)

    def _prefill_apart(self, sequences: list[Sequence], error: OSError) -> None:
        """A prefill was refused: find the sequence at fault and lose only that one."""
        if len(sequences) == 1:
            self._lose(sequences[0], error)
            return
        for sequence in sequences:
            try:
                self._runner.truncate(sequence.slot, sequence.cells)
            except OSError as e:
                self._lose(sequence, e)
            else:
                self._prefill([sequence])

    def _decode(self, decoding: list[Sequence | Seat]) -> None:
        self._credit = self._grid
        self._compact(decoding)
        decoding.sort(key=lambda s: s.slot)
        # Equal parts: none is then so small that it would have to begin at slot 0.
        parts = -(-len(decoding) // self._high)
        for i in range(parts):
            first, end = (len(decoding) * n // parts for n in (i, i + 1))
            self._step(decoding[first:end])

    def _step(self, decoding: list[Sequence | Seat]) -> None:
        began = time.perf_counter()
        decoding = [s for s in decoding if not isinstance(s, Seat) or s.gang.alive]
        if not decoding:
            return
        self._compact(decoding)  # an earlier part that was refused may have moved some
        decoding.sort(key=lambda s: s.slot)
        self._shift(decoding)
        rows = [Row(s.slot, s.tokens[s.kv], s.cells, s.kv + 1 == len(s.tokens)) for s in decoding]
        self._tell_first(decoding)
        try:
            self._runner.decode(rows)
        except OSError as e:
            self._decode_apart(decoding, rows, e)
            return
        computed, draws, seats = [], [], []
        for row, sequence in enumerate(decoding):
            kind = sequence.advance(sequence.kv + 1, self._grid)
            if isinstance(sequence, Seat):
                seats.append((row, sequence))
                continue
            computed.append((sequence.cid, kind, sequence.kv - 1, sequence.kv))
            if rows[row].want:
                draws.append((row, sequence))
        self._search(seats)
        self._report(computed, self._sample(draws), began)

    def _tell_first(self, decoding: list[Sequence | Seat]) -> None:
        """Tell of sequences that decode for the first time since they were admitted."""
        first = [s for s in decoding if isinstance(s, Sequence) and not s.decoded]
        if first:
            self._send(p.Begun([s.cid for s in first]))
        for sequence in first:
            sequence.decoded = True

    def _search(self, seats: list[tuple[int, Seat]]) -> None:
        """Let branches see what may follow them, and searches go on that have seen all."""
        for row, seat in seats:
            cid = seat.gang.leader.cid
            self._searched[cid] = self._searched.get(cid, 0) + 1
            [seat.found] = self._runner.likeliest([row], len(seat.gang.seats))
        gangs = list(dict.fromkeys(seat.gang for _, seat in seats))
        self._over += [gang for gang in gangs if gang.step(self._runner)]

    def _finish(self) -> None:
        """Tell what searches have found that are over; each leaves its prompt in one slot."""
        while self._over:
            gang = self._over.pop(0)
            leader = gang.leader
            leader.running = False
            found = gang.results(self._runner.piece)
            self._dissolve(gang)
            self._send(p.Found(leader.cid, found, leader.kv))

    def _dissolve(self, gang: Gang) -> None:
        """Give up the slots of a gang but one, which holds the prompt afterwards, or nothing."""
        gang.alive = False
        del self._gangs[gang.leader.cid]
        for seat in gang.seats:
            if seat.cid != gang.leader.cid:
                self._runner.clear(seat.slot)
                self._slots.remove(seat.cid)
        if gang.begun:
            try:
                self._runner.truncate(gang.leader.slot, gang.leader.cells)
            except OSError:
                self._runner.clear(gang.leader.slot)
                gang.leader.forget()

    def _shift(self, decoding: list[Sequence | Seat]) -> None:
        """Shift those whose window is full; the decode that follows at once completes it."""
        for sequence in decoding:
            if (slide := sequence.shift()) is not None:
                self._runner.shift(sequence.slot, slide.keep, slide.gone)

    def _decode_apart(
        self, decoding: list[Sequence | Seat], rows: list[Row], error: OSError
    ) -> None:
        """A batch was refused: find the sequence at fault and lose only that one.

        One that has just shifted is lost as well: who can say how far that had come?
        """
        if len(decoding) == 1:
            self._lose(decoding[0], error)
            return
        for sequence, row in zip(decoding, rows, strict=True):
            if isinstance(sequence, Seat) and not sequence.gang.alive:
                continue
            if sequence.shifted is not None:
                self._lose(sequence, error)
                continue
            try:
                self._runner.truncate(sequence.slot, row.position)
            except OSError as e:
                self._lose(sequence, e)
            else:
                self._decode([sequence])

    def _sample(self, draws: list[tuple[int, Sequence]]) -> list[p.Token]:
        runner, n_ctx = self._runner, self._runner.info.n_ctx
        for row, s in draws:
            if (gang := self._gangs.get(s.cid)) is not None:
                self._begin(row, gang)
        draws = [(row, s) for row, s in draws if s.cid not in self._gangs]
        if not draws:
            return []
        drawn = runner.sample(
            [Draw(row, s.sampler, s.goal.before + s.kv, s.tokens) for row, s in draws]
        )
        tokens = []
        for one, (_, s) in zip(drawn, draws, strict=True):
            if isinstance(one, OSError):
                self._lose(s, one)
            else:
                tokens.append(s.accept(one, runner.is_eog(one.token), runner.piece, n_ctx))
        return tokens

    def _begin(self, row: int, gang: Gang) -> None:
        """Begin a search whose prompt has been computed."""
        [found] = self._runner.likeliest([row], len(gang.seats))
        if gang.begin(found, self._runner):
            self._over.append(gang)

    def _report(
        self, computed: list[tuple[int, int, int, int]], tokens: list[p.Token], began: float
    ) -> None:
        seconds = time.perf_counter() - began
        device, searched = self._runner.device_seconds, list(self._searched.items())
        self._searched.clear()
        self._send(p.Step(computed, tokens, seconds, device, searched))
        self._finish()

    def _compact(self, decoding: list[Sequence | Seat]) -> None:
        """Make the sequences that decode occupy consecutive slots."""
        taken = [s.slot for s in decoding]
        first, width = min(taken), len(taken)
        if max(taken) - first + 1 == width and (width >= self._low or first == 0):
            return
        sizes = {cid: s.cells + self._grid for cid, s in self._sequences.items()}
        for gang in self._gangs.values():
            sizes |= {seat.cid: seat.cells + self._grid for seat in gang.seats}
        for change in self._slots.plan([s.cid for s in decoding], sizes.__getitem__):
            act = self._runner.swap if change.swap else self._runner.move
            act(change.source, change.target)
            self._slots.apply(change)
        self._place()

    # Commands.

    def _admit(self, admit: p.Admit) -> None:
        resident = self._sequences.get(admit.cid)
        try:
            check(admit, self._runner.info.n_vocab, self._runner.info.n_ctx)
            slot = resident.slot if resident else self._take_slot(admit.cid)
        except OSError as e:
            self._lose(resident or admit.cid, e)
            return
        gang = self._gangs.get(admit.cid)
        if gang is not None and resident is not None:
            if gang.begun and admit.goal == resident.goal and admit.tokens == resident.tokens:
                resident.running, resident.rank = True, admit.rank
                return
            self._dissolve(gang)
        self._order += 1
        try:
            sampler = self._sampler(admit, resident)
        except OSError as e:
            if not resident:
                self._slots.remove(admit.cid)
            self._lose(resident or admit.cid, e)
            return
        sequence = Sequence(admit, self._order, slot, self._runner.piece, sampler)
        self._sequences[admit.cid] = sequence
        try:
            if sequence.goal.beams > 1:
                self._assemble(sequence)
            if not self._resume(admit, sequence):
                self._source(admit, resident, slot)
        except OSError as e:
            self._lose(sequence, e)
            return
        if not resident:
            self._place()

    def _assemble(self, leader: Sequence) -> None:
        """Take the slots of a search."""
        width = leader.goal.beams
        if width > min(len(self._slots.occupants), MOST_BEAMS):
            raise OSError(errno.EINVAL, f"beams: {width} on {len(self._slots.occupants)} slots")
        slots = [leader.slot]
        try:
            slots += [self._take_slot(seat_id(leader.cid, n)) for n in range(1, width)]
        finally:
            self._gangs[leader.cid] = Gang(leader, slots, self._runner.info.n_ctx)

    def _resume(self, admit: p.Admit, leader: Sequence) -> bool:
        """Go on with a search from a file that holds one; False when it is to be begun."""
        gang = self._gangs.get(admit.cid)
        if gang is None or not admit.path:
            return False
        record = read_layout(admit.path).header.record
        tree = record.tree
        if tree is None:
            return False
        began = time.perf_counter()
        slots = [seat.slot for seat in gang.seats[: len(tree.live)]]
        leader.caught_up(record.runs)
        check = partial(match.search, admit, len(gang.seats))
        size = self._runner.restore_all(slots, admit.path, check)
        gang.resume(tree)
        self._send(p.Restored(admit.cid, admit.path, size, time.perf_counter() - began))
        return True

    def _sampler(self, admit: p.Admit, resident: Sequence | None) -> Sampler:
        """The sequence's own where it has not moved on: to rebuild a long one takes a while."""
        if resident and resident.goal == admit.goal and resident.tokens == admit.tokens:
            return resident.sampler
        return self._runner.sampler(admit.goal, admit.tokens)

    def _take_slot(self, cid: int) -> int:
        running = [s.cid for s in self._sequences.values() if s.running]
        slot = self._slots.place(cid, running)
        if slot is None:
            raise OSError(errno.EBUSY, "every slot is taken; evict a sequence first")
        return slot

    def _source(self, admit: p.Admit, resident: Sequence | None, slot: int) -> None:
        """Bring the slot's KV to `admit.kv` positions: kept, restored, or none."""
        if admit.path:
            self._runner.clear(slot)
            if admit.kv:
                self._restore(admit, slot)
        elif not admit.kv:
            self._runner.clear(slot)
        elif resident is None:
            raise OSError(errno.ESTALE, f"context {admit.cid} is not resident; give a snapshot")
        elif resident.kv < admit.kv or resident.tokens[: admit.kv] != admit.tokens[: admit.kv]:
            raise OSError(errno.ESTALE, f"context {admit.cid} holds other tokens; start from none")
        elif runs.cut(resident.history, admit.kv) != admit.history:
            text = f"context {admit.cid} was computed in another way; start from none"
            raise OSError(errno.ESTALE, text)
        elif runs.gone(resident.history) != runs.gone(admit.history):
            raise OSError(errno.ESTALE, f"context {admit.cid} has shifted since; start from none")
        elif resident.kv > admit.kv:
            self._runner.truncate(slot, admit.kv - runs.gone(admit.history))

    def _restore(self, admit: p.Admit, slot: int) -> None:
        """Fill a slot from a snapshot, of which `admit.kv` positions are kept."""
        began = time.perf_counter()
        size = self._runner.restore(slot, admit.path, partial(match.sequence, admit))
        self._send(p.Restored(admit.cid, admit.path, size, time.perf_counter() - began))
        if admit.held > admit.kv:
            self._runner.truncate(slot, admit.kv - runs.gone(admit.history))

    def _share(self, share: p.Share) -> None:
        """Let a sequence go on from what another one, that begins alike, has computed."""
        sequence = self._sequences.get(share.cid)
        if sequence is None or sequence.kv >= share.kv:
            return
        began, slot = time.perf_counter(), sequence.slot
        self._runner.clear(slot)
        try:
            size = self._runner.restore(
                slot, share.path, partial(match.shared, share, sequence.tokens)
            )
            self._runner.truncate(slot, share.kv)
        except OSError as e:
            self._lose(sequence, e)
            return
        sequence.skip(share.kv)
        self._send(p.Restored(share.cid, share.path, size, time.perf_counter() - began))

    def _apply(self, command: p.Rank | p.Park | p.Save | p.Evict) -> None:
        sequence = self._sequences.get(command.cid)
        if sequence is None:
            lost = p.Lost(command.cid, errno.ESRCH, f"context {command.cid} is not resident")
            self._send(lost)
        elif isinstance(command, p.Rank):
            sequence.rank = command.rank
        elif isinstance(command, p.Park):
            self._park(sequence)
        elif isinstance(command, p.Save):
            self._save(sequence, command.path)
        else:
            self._evict(sequence, command.path)

    def _park(self, sequence: Sequence) -> None:
        sequence.running = False
        self._send(p.Parked(sequence.cid, sequence.kv))

    def _save(self, sequence: Sequence, path: str) -> None:
        began, size, number, message = time.perf_counter(), 0, 0, ""
        try:
            size = self._write(sequence, path)
        except OSError as e:
            number, message = e.errno or errno.EIO, e.strerror or str(e)
        path, seconds = path if size else "", time.perf_counter() - began
        self._send(p.Saved(sequence.cid, path, sequence.kv, size, seconds, number, message))

    def _write(self, sequence: Sequence, path: str) -> int:
        """Write a sequence's snapshot; returns the bytes in use, 0 when there is nothing in it."""
        if not path or not sequence.kv:
            return 0
        gang = self._gangs.get(sequence.cid)
        if gang is not None and gang.begun:
            record = sequence.described(time.time(), gang.tree)
            return self._runner.save_all([seat.slot for seat in gang.sitting], path, record)
        return self._runner.save(sequence.slot, path, sequence.described(time.time()))

    def _evict(self, sequence: Sequence, path: str) -> None:
        began = time.perf_counter()
        try:
            size = self._write(sequence, path)
        except OSError as e:
            sequence.running = False
            number, message = e.errno or errno.EIO, e.strerror or str(e)
            self._send(p.Kept(sequence.cid, path, sequence.kv, number, message))
            return
        self._free(sequence)
        kv, seconds = (sequence.kv if size else 0), time.perf_counter() - began
        self._send(p.Evicted(sequence.cid, path if size else "", kv, size, seconds))

    def _lose(self, sequence: Sequence | Seat | int, error: OSError) -> None:
        if isinstance(sequence, Seat):
            sequence = sequence.gang.leader
        cid = sequence if isinstance(sequence, int) else sequence.cid
        if not isinstance(sequence, int):
            self._free(sequence)
        message = error.strerror or str(error)
        self._send(p.Lost(cid, error.errno or errno.EIO, message, error.filename or ""))

    def _free(self, sequence: Sequence) -> None:
        if (gang := self._gangs.get(sequence.cid)) is not None:
            self._dissolve(gang)
        self._runner.clear(sequence.slot)
        self._slots.remove(sequence.cid)
        del self._sequences[sequence.cid]

    def _place(self) -> None:
        placed = dict(self._slots.placed())
        for gang in self._gangs.values():
            for seat in gang.seats:
                seat.slot = placed[seat.cid]
        for cid, sequence in self._sequences.items():
            sequence.slot = placed[cid]
        self._send(p.Placed([(cid, slot) for cid, slot in placed.items() if cid >= 0]))
