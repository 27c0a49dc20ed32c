"""A worker's main loop: take the kernel's commands, compute one batch, report it, again.

Each turn is one device call: a prefill chunk of the sequence with the lowest rank, or one decode
step of every sequence that has a known token to compute (in parts, where the device has the same
bits for few rows only). While both wait, a slice of prefill (one grid size of tokens) and a decode
step take turns; chunks that complete their prompts may go up to EAGER slices further, since each of
them makes the steps that follow wider. The lowest rank goes first in every call, so an urgent
arrival waits at most for a slice and a decode step. Where a core need not be exact, such chunks
share a call with the first one. Commands take effect between two turns; with nothing to compute the
loop sleeps on its inbox.

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

from aiosd.engine import protocol as p
from aiosd.engine import runs
from aiosd.engine.runner import Chunk, Draw, Row, Runner, Sampler
from aiosd.engine.sequence import Sequence, check
from aiosd.engine.slots import Slots
from aiosd.engine.snapshot import Record

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
        decoding: list[Sequence] = []
        for sequence in self._sequences.values():
            if sequence.running:
                (prefilling if sequence.prefilling else decoding).append(sequence)
        prefilling.sort(key=lambda s: (s.rank, s.order))
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
        """The sequences whose next chunks share one call; the first goes in any case."""
        chosen, total = prefilling[:1], prefilling[0].chunk(self._grid) - prefilling[0].kv
        for sequence in prefilling[1:]:
            size = sequence.chunk(self._grid) - sequence.kv
            if total + size > self._runner.info.batch or not self._affords(sequence, total):
                break
            chosen.append(sequence)
            total += size
        return chosen

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

    def _decode(self, decoding: list[Sequence]) -> None:
        self._credit = self._grid
        self._compact(decoding)
        decoding.sort(key=lambda s: s.slot)
        # Equal parts: none is then so small that it would have to begin at slot 0.
        parts = -(-len(decoding) // self._high)
        for i in range(parts):
            first, end = (len(decoding) * n // parts for n in (i, i + 1))
            self._step(decoding[first:end])

    def _step(self, decoding: list[Sequence]) -> None:
        began = time.perf_counter()
        self._compact(decoding)  # an earlier part that was refused may have moved some
        decoding.sort(key=lambda s: s.slot)
        self._shift(decoding)
        rows = [Row(s.slot, s.tokens[s.kv], s.cells, s.kv + 1 == len(s.tokens)) for s in decoding]
        try:
            self._runner.decode(rows)
        except OSError as e:
            self._decode_apart(decoding, rows, e)
            return
        computed = []
        for sequence in decoding:
            kind = sequence.advance(sequence.kv + 1, self._grid)
            computed.append((sequence.cid, kind, sequence.kv - 1, sequence.kv))
        draws = [(row, sequence) for row, sequence in enumerate(decoding) if rows[row].want]
        self._report(computed, self._sample(draws), began)

    def _shift(self, decoding: list[Sequence]) -> None:
        """Shift those whose window is full; the decode that follows at once completes it."""
        for sequence in decoding:
            if (slide := sequence.shift()) is not None:
                self._runner.shift(sequence.slot, slide.keep, slide.gone)

    def _decode_apart(self, decoding: list[Sequence], rows: list[Row], error: OSError) -> None:
        """A batch was refused: find the sequence at fault and lose only that one.

        One that has just shifted is lost as well: who can say how far that had come?
        """
        if len(decoding) == 1:
            self._lose(decoding[0], error)
            return
        for sequence, row in zip(decoding, rows, strict=True):
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

    def _report(
        self, computed: list[tuple[int, int, int, int]], tokens: list[p.Token], began: float
    ) -> None:
        seconds = time.perf_counter() - began
        self._send(p.Step(computed, tokens, seconds, self._runner.device_seconds))

    def _compact(self, decoding: list[Sequence]) -> None:
        """Make the sequences that decode occupy consecutive slots."""
        taken = [s.slot for s in decoding]
        first, width = min(taken), len(taken)
        if max(taken) - first + 1 == width and (width >= self._low or first == 0):
            return
        sizes = {cid: s.cells + self._grid for cid, s in self._sequences.items()}
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
            self._source(admit, resident, slot)
        except OSError as e:
            self._lose(sequence, e)
            return
        if not resident:
            self._place()

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
        size = self._runner.restore(slot, admit.path, partial(_check, admit))
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
            size = self._runner.restore(slot, share.path, partial(_begins, share, sequence.tokens))
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

    def _lose(self, sequence: Sequence | int, error: OSError) -> None:
        cid = sequence if isinstance(sequence, int) else sequence.cid
        if not isinstance(sequence, int):
            self._free(sequence)
        message = error.strerror or str(error)
        self._send(p.Lost(cid, error.errno or errno.EIO, message, error.filename or ""))

    def _free(self, sequence: Sequence) -> None:
        self._runner.clear(sequence.slot)
        self._slots.remove(sequence.cid)
        del self._sequences[sequence.cid]

    def _place(self) -> None:
        placed = self._slots.placed()
        for cid, slot in placed:
            self._sequences[cid].slot = slot
        self._send(p.Placed(placed))


def _check(admit: p.Admit, record: Record) -> None:
    """Raise OSError(ESTALE) for a snapshot that does not hold what an admission takes it for."""
    held, kv = len(record.tokens), admit.kv
    if held != (admit.held or kv):
        text = f"holds {held} positions, not {admit.held or kv}"
    elif record.tokens[:kv] != admit.tokens[:kv]:
        text = "holds other tokens than the context"
    elif runs.cut(record.runs, kv) != admit.history:
        text = "was computed in another way than the context"
    elif runs.gone(record.runs) != runs.gone(admit.history):
        # Nothing is wrong with the file: it is only of no use here.
        raise OSError(errno.ESTALE, f"context {admit.cid} has shifted since; compute it again")
    else:
        return
    text = f"snapshot {admit.path} {text}; compute it again"
    raise OSError(errno.ESTALE, text, admit.path)


def _begins(share: p.Share, tokens: list[int], record: Record) -> None:
    """Raise OSError(ESTALE) for a snapshot that does not begin with what is to be shared."""
    kv = share.kv
    alike = record.tokens[:kv] == tokens[:kv] and len(record.tokens) >= kv
    alike = alike and not runs.gone(record.runs)
    if not alike or runs.cut(record.runs, kv) != [p.Run(p.PREFILL, 0, kv)]:
        text = f"snapshot {share.path} begins otherwise than context {share.cid}; compute it again"
        raise OSError(errno.ESTALE, text)  # the file is right, and somebody else's
