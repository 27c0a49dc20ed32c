"""What a worker reports of its sequences, taken up: tokens, positions computed, and who is charged.

    progress.step(step)       # a batch is done; ValueError for what no sound worker says
    progress.foresee(cids)    # the next one has begun

What must hold: a token is taken up once, in order; what is computed again after a death is charged
to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from aiosd.cores.placement import Placement
from aiosd.cores.rate import Rate
from aiosd.cores.runqueue import RunQueue
from aiosd.cores.sharing import Sharing
from aiosd.engine import protocol as p
from aiosd.engine.protocol import PREFILL

RATE_SPAN: Final = 3.0  # seconds over which tokens/s are averaged


class Progress:
    """One core's.

    tokens_in, tokens_out: of prompts computed, and sampled, so far. step_s, device_s: seconds that
    batches took, and the device in them. rate: of tokens sampled lately.
    """

    def __init__(self, grid: int, placement: Placement, sharing: Sharing, queue: RunQueue) -> None:
        self.tokens_in = self.tokens_out = 0
        self.step_s = self.device_s = 0.0
        self.rate = Rate(RATE_SPAN)
        self._grid = grid
        self._placement = placement
        self._sharing = sharing
        self._queue = queue

    def step(self, step: p.Step) -> None:
        """Take up a batch. Raises ValueError for what can't be."""
        now = time.monotonic()
        self.step_s += step.seconds
        self.device_s += step.device_seconds
        self._placement.costs.step(step)
        for cid, kind, start, end in step.computed:
            self._computed(cid, kind, start, end, now - step.seconds)
        for token in step.tokens:
            self._token(token)
        for cid, rows in step.searched:
            self._searched(cid, rows)
        self.rate.add(len(step.tokens), now)
        self.foresee(cid for cid, kind, *_ in step.computed if kind != PREFILL)

    def foresee(self, cids: Iterable[int]) -> None:
        """Charge the decode step that the worker is at by now, with these sequences.

        What is planned from it takes effect between two steps: a quantum then ends with its last
        token, not one later.
        """
        for cid in cids:
            sequence = self._placement.sequences.get(cid)
            if sequence is not None and sequence.decoding and cid in self._queue.policy.running:
                sequence.foreseen = True
                self._queue.charge(cid, 0, 1)
        self._queue.schedule()

    def _searched(self, cid: int, rows: int) -> None:
        """A beam search has come one token further, in so many branches."""
        sequence = self._placement.sequences.get(cid)
        if sequence is None or sequence.goal is None:
            return
        sequence.searched += rows
        if sequence.searched > sequence.furthest:  # else it is only where it was before a death
            sequence.deaths, sequence.furthest = 0, sequence.searched
        self.tokens_out += rows
        self._queue.charge(cid, 0, rows)
        self._queue.standing.computed(sequence.aid, rows, time.monotonic())

    def found(self, event: p.Found) -> None:
        """A beam search is over: its best branch becomes part of the sequence."""
        sequence = self._placement.sequences.get(event.cid)
        if sequence is None or sequence.goal is None or sequence.sink is None:
            return  # cancelled meanwhile
        sink, sequence.goal, sequence.sink = sequence.sink, None, None
        sequence.tokens.extend(event.beams[0].tokens)
        sequence.slot_kv, sequence.width, sequence.searched = event.kv, 1, 0
        self._placement.finished(sequence)
        self._queue.leave(sequence.cid)
        sink.found(event.beams)
        self._queue.schedule()

    def _computed(self, cid: int, kind: int, start: int, end: int, began: float) -> None:
        sequence = self._placement.sequences.get(cid)
        if sequence is None:
            return
        sequence.slot_kv = max(sequence.slot_kv, end)  # it may have been told to share more
        if sequence.goal is None:
            return  # cancelled meanwhile: it is rolled back when it goes on
        new = sequence.record(kind, start, end, self._grid)
        if kind == PREFILL and end % self._grid == 0:
            self._sharing.computed(sequence, end)
        if not new:
            return  # a replay
        sequence.deaths = 0
        count = end - start
        prefill, decode = (count, 0) if kind == PREFILL else (0, count)
        self.tokens_in += prefill
        if decode and sequence.foreseen:
            sequence.foreseen, decode = False, decode - 1
        self._queue.charge(cid, prefill, decode)
        self._queue.standing.computed(sequence.aid, count, began)
        if sequence.sink is not None:
            sequence.sink.computed(kind, start, end, began)

    def _token(self, token: p.Token) -> None:
        sequence = self._placement.sequences.get(token.cid)
        if sequence is None or sequence.goal is None or sequence.sink is None:
            return  # cancelled meanwhile
        if token.index != len(sequence.tokens):
            raise ValueError(f"context {token.cid}: token {token.index} out of order")
        self.tokens_out += 1
        if token.kept:
            sequence.tokens.append(token.token)
        sink = sequence.sink
        if token.finish:
            sequence.goal = sequence.sink = None
            self._placement.finished(sequence)
            self._queue.leave(sequence.cid)
        sink.token(token)
