"""Sharing: a sequence that begins like one whose KV is held takes that over, and computes the rest.

Nobody waits for anybody. The scheduler gives out slots as if nothing were shared; a sequence that
comes on the core, or sits on it and has not got that far, takes over what another one has computed
by then. The worker prefills one prompt after the other, by rank: so of eight that begin alike and
are admitted together the first computes the beginning, and the others take it over as soon as it
is there. What the first is up to (it is preempted, suspended, cancelled, cleared, or urgent) can
cost the others time, never more than computing it themselves.

What may be taken over is whole grid chunks from position 0 on, prefilled on the same grid: their
bits are those that the taker would have computed, and its record says that it did, so it depends
on nobody afterwards. Its last token is always computed, for the logits. Who may take from whom is
`Prefixes`' affair: an agent from its own sequences, everybody what was declared public.

The KV goes through a file: the donor's snapshot, else one that the worker is told to write first.
Commands take effect in order, so `Share` may name a file that is still to be written. A share that
fails loses the taker's slot and nothing else: it is admitted again and computes by itself.

Public beginnings are also kept beyond their contexts, each as a sequence without an owner (its id
is negative) that holds a snapshot and no slot, up to `public_limit` bytes, the longest unused going
first, and any of them when memory is short.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from aiosd.cores.placement import Placement
from aiosd.cores.prefix import PUBLIC, Prefixes
from aiosd.cores.sequence import RAM, Place, Sequence, Snapshot
from aiosd.engine import protocol, runs
from aiosd.engine.protocol import PREFILL, Run


class Sharing:
    """What the sequences of one core have in common.

    exactly: the model can't be rolled back, so only a file of just the positions wanted will do.
    """

    def __init__(
        self,
        grid: int,
        placement: Placement,
        send: Callable[[protocol.Command], None],
        spared: Callable[[Sequence, int], None],
    ) -> None:
        """spared: told of a sequence that so many tokens of its prompt need not be computed."""
        self.exactly = False
        self.public_limit = 0
        self._grid = grid
        self._placement = placement
        self._send = send
        self._spared = spared
        self._prefixes = Prefixes(grid)
        self._saving: dict[int, tuple[str, int]] = {}  # by donor: the file, positions at least
        self._taken: dict[int, tuple[int, str]] = {}  # by taker: its last donor, the file
        self._alone: set[int] = set()  # takers that a share has failed
        self._kept: dict[bytes, Sequence] = {}  # public beginnings, the longest unused first
        self._last = 0  # id of the one that was kept last

    # What becomes of sequences.

    def enter(self, sequence: Sequence) -> None:
        """A sequence is there, or has new tokens to compute."""
        self._alone.discard(sequence.cid)
        tokens = sequence.tokens[: self._extent(sequence)]
        self._prefixes.enter(sequence.cid, sequence.aid, tokens, sequence.public)
        self._prefixes.computed(sequence.cid, sequence.prefilled)

    def leave(self, sequence: Sequence) -> None:
        """A sequence is gone."""
        self._prefixes.leave(sequence.cid)
        self._saving.pop(sequence.cid, None)
        self._taken.pop(sequence.cid, None)
        self._alone.discard(sequence.cid)

    def admitted(self, sequences: Iterable[Sequence]) -> None:
        """These came on the core just now; what they hold is less than others may."""
        for sequence in sequences:
            self._take(sequence)

    def computed(self, donor: Sequence, end: int) -> None:
        """A sequence on the core has prefilled up to a multiple of the grid, or done it again.

        Others on the core that have nothing more in common with it take that over now.
        """
        self._prefixes.computed(donor.cid, end)
        for taker in self._placement.live():
            if taker.slot_kv < end and self._prefixes.common(donor.cid, taker.cid) == end:
                self._take(taker)
        if end == self._public(donor) and not self._keeps(donor):
            self._file(donor, end)

    def hear(self, event: protocol.Event) -> None:
        """Something was saved, or stands still that others on the core might have waited for."""
        if isinstance(event, protocol.Saved | protocol.Evicted):
            self._saving.pop(event.cid, None)
            sequence = self._placement.sequences.get(event.cid)
            if sequence is not None:
                self._keep(sequence)
        if isinstance(event, protocol.Parked | protocol.Evicted | protocol.Kept):
            for taker in self._placement.live():
                if taker.slot_kv < self._prefixes.length(taker.cid):
                    self._take(taker)

    def lost(self, sequence: Sequence, event: protocol.Lost) -> None:
        """The worker could not go on with a sequence; what it took over may have been the reason.

        Then it computes by itself from now on, and nobody takes that file again.
        """
        donor, path = self._taken.pop(sequence.cid, (0, ""))
        if not path:
            return
        self._alone.add(sequence.cid)
        giver = self._placement.sequences.get(donor)
        if giver is not None and event.path == path:
            self._placement.at_fault(giver, event)

    def died(self) -> None:
        """The worker is gone, with all that it was told to write."""
        self._saving.clear()
        self._taken.clear()

    def bound(self) -> None:
        """Let go of public beginnings until those that are kept fit under the limit."""
        while self._kept and self._kept_bytes() > self.public_limit:
            self._drop(next(iter(self._kept)))

    # Taking over.

    def _extent(self, sequence: Sequence) -> int:
        """Tokens from the first on that are, or will be, prefilled in whole chunks."""
        done, goal = sequence.prefilled, sequence.goal
        if goal is None or done < sequence.kv or done % self._grid:
            return done
        prompt = min(goal.prompt_len - goal.sampled, len(sequence.tokens))
        return max(done, min(prompt, goal.slide.window) if goal.slide else prompt)

    def _take(self, taker: Sequence) -> None:
        """Take over the longest beginning that is held, if it is longer than the taker's own."""
        if taker.place is not Place.LIVE or taker.goal is None or taker.cid in self._alone:
            return
        most = len(taker.tokens) - 1
        for cid, count in self._prefixes.donors(taker.cid, taker.slot_kv, most):
            donor = self._placement.sequences.get(cid)
            if donor is None or not self._fits(donor, taker, count):
                continue
            if path := self._file(donor, count):
                self._share(donor, taker, path, count)
                return

    def _fits(self, donor: Sequence, taker: Sequence, count: int) -> bool:
        """Whether a donor's record says what the index said of it."""
        held = min(donor.prefilled, donor.kv) >= count and not runs.gone(donor.history)
        return held and donor.tokens[:count] == taker.tokens[:count]

    def _file(self, donor: Sequence, count: int) -> str:
        """Return a file with a donor's first `count` positions, "" when there can't be one.

        It is there already, or will be when the worker has done what it was told.
        """
        usable = [s for s in donor.snapshots if not s.search]
        for snapshot in sorted(usable, key=lambda s: s.tier != RAM):
            if self._holds(snapshot, count):
                return snapshot.path
        if donor.width > 1:
            return ""  # its slots hold the branches of a search
        if self.exactly and donor.place is not Place.PARKED:
            return ""  # it may be further by the time it is saved
        if donor.slot_kv < count or (self.exactly and donor.slot_kv != count):
            return ""
        if donor.place is Place.LEAVING:
            return self._placement.leaving_to(donor)
        path, least = self._saving.get(donor.cid, ("", 0))
        if path and least >= count:
            return path
        path = self._placement.begin_save(donor)
        if path:
            self._saving[donor.cid] = path, donor.slot_kv
        return path

    def _holds(self, snapshot: Snapshot, count: int) -> bool:
        return snapshot.kv >= count and (snapshot.held == count or not self.exactly)

    def _share(self, donor: Sequence, taker: Sequence, path: str, count: int) -> None:
        gained = count - taker.kv
        if gained > 0:
            taker.history, taker.kv, taker.shared = [Run(PREFILL, 0, count)], count, count
            self._spared(taker, gained)
        taker.slot_kv = count
        self._taken[taker.cid] = donor.cid, path
        self._send(protocol.Share(taker.cid, path, count))
        self._prefixes.computed(taker.cid, count)
        if donor.cid < 0:
            donor.used = time.monotonic()
            key = self._prefixes.public(donor.cid)
            self._kept[key] = self._kept.pop(key)

    # Keeping what is public.

    def _public(self, sequence: Sequence) -> int:
        return sequence.public // self._grid * self._grid

    def _keeps(self, sequence: Sequence) -> bool:
        """Whether the public beginning of a sequence is kept."""
        key = self._prefixes.public(sequence.cid)
        kept = self._kept.get(key)
        if kept is not None and kept.snapshot is None:  # memory was short
            self._drop(key)
            return False
        return kept is not None

    def _keep(self, source: Sequence) -> None:
        """Keep the public beginning of a sequence whose snapshot holds it."""
        count, snapshot = self._public(source), source.snapshot
        if not count or snapshot is None or snapshot.search or not self._holds(snapshot, count):
            return
        if source.cid < 0 or source.prefilled < count or runs.gone(source.history):
            return
        if self._keeps(source):
            return
        self._last -= 1
        kept = Sequence(
            cid=self._last,
            aid=PUBLIC,
            uid=source.uid,
            nice=0,
            tokens=source.tokens[:count],
            history=[Run(PREFILL, 0, count)],
            kv=count,
            used=time.monotonic(),
            public=count,
        )
        self._placement.sequences[kept.cid] = kept
        self._placement.copy_snapshot(source, kept)
        self.enter(kept)
        self._kept[self._prefixes.public(kept.cid)] = kept
        self.bound()

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        self.leave(kept)
        self._placement.forget(kept)

    def _kept_bytes(self) -> int:
        return sum(kept.snapshot.size for kept in self._kept.values() if kept.snapshot)
