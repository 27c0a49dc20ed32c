"""A sequence: the tokens of one context and the record of how their KV came to be.

The kernel's copy is the truth. From it a fresh worker can be told to compute the same KV again,
bit for bit, whatever was lost: each position is prefilled in the grid chunks, or decoded one by
one, exactly as the first time.

What must hold: `history` covers positions 0 to `kv` without gaps; kv <= len(tokens); a snapshot
covers a prefix of history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from aiosd.engine import runs
from aiosd.engine.protocol import DECODE, PREFILL, SHIFT, Beam, Goal, Run, Token

RAM: Final = "ram"
DISK: Final = "disk"


@dataclass(slots=True)
class Snapshot:
    """KV of a sequence's first `kv` positions: `size` bytes in the file at `path`.

    held: positions that the file holds, of which the first kv are this sequence's. tier: RAM or
    DISK. named: it is kept for its name's sake, not given up for room. search: it holds the slots
    of a beam search, and is of use to that alone.
    """

    path: str
    kv: int
    size: int
    held: int
    tier: str = RAM
    named: bool = False
    search: bool = False


class Sink(Protocol):
    """Where a sequence's progress is reported, by the generation that runs on it."""

    def computed(self, kind: int, start: int, end: int, began: float) -> None:
        """Positions have been computed by a batch that began at this time (monotonic seconds)."""

    def token(self, token: Token) -> None:
        """A token was sampled; its `finish` ends the generation."""

    def shared(self, count: int) -> None:
        """So many positions were taken over from another sequence, not computed."""

    def found(self, beams: list[Beam]) -> None:
        """A beam search has ended, and with it the generation; the best first."""

    def failed(self, errno: int, message: str) -> None:
        """The generation can't go on."""


class Place(Enum):
    """Where a sequence is, as far as the worker has confirmed.

    PARKING and LEAVING last from the command until the worker's answer; meanwhile tokens that it
    had begun may still arrive.
    """

    OUT = "out of the core"
    LIVE = "in a slot, running"
    PARKING = "in a slot, told to stop running"
    PARKED = "in a slot, not running"
    LEAVING = "told to leave its slot"


@dataclass(slots=True, eq=False)
class Sequence:
    """One context's tokens, their KV's record, and where the KV is now.

    tokens, goal and sink are set by the context's user while the sequence is settled; the rest is
    written by the core only. kv: positions on record as computed; slot_kv: positions in the slot
    just now (fewer during a replay). rank: in the order of prefill, as the worker knows it. holds:
    what keeps a sequence with a goal from being scheduled.
    deaths: workers that died under it since it last made progress (a kill counts little).
    width: slots that it takes, or is about to take: more than one for a beam search. searched: how
    many rows that search has computed, since it was taken up; furthest: the most of any time.
    foreseen: whether its next decode step is charged already (LocalCore._foresee).
    used: when it was last at work (monotonic seconds), gap: seconds that usually pass until it is
    again. note: what became of its KV last, when something had to be computed again. restoring: the
    file that the worker has yet to read. public: leading positions whose tokens are no secret;
    shared: leading positions that were taken over from another sequence.
    """

    cid: int
    aid: int
    uid: int
    nice: int
    tokens: list[int] = field(default_factory=list)
    goal: Goal | None = None
    sink: Sink | None = None
    history: list[Run] = field(default_factory=list)
    kv: int = 0
    slot_kv: int = 0
    slot: int = -1
    rank: int = 0
    place: Place = Place.OUT
    snapshots: list[Snapshot] = field(default_factory=list)
    holds: set[str] = field(default_factory=set)
    used: float = 0.0
    gap: float = 0.0
    deaths: float = 0.0
    note: str = ""
    restoring: str = ""
    public: int = 0
    shared: int = 0
    width: int = 1
    searched: int = 0
    furthest: int = 0
    foreseen: bool = False

    @property
    def decoding(self) -> bool:
        """Whether the worker's next step computes a token of it that is new and not foreseen."""
        if self.foreseen or self.goal is None or self.goal.beams > 1:
            return False
        return self.place is Place.LIVE and 0 < self.kv == self.slot_kv == len(self.tokens) - 1

    def record(self, kind: int, start: int, end: int, grid: int) -> bool:
        """Note that positions start to end have been computed; False when that was on record.

        Raises ValueError on a gap, or past the tokens.
        """
        if end > len(self.tokens):
            raise ValueError(f"context {self.cid}: computed to {end}, has {len(self.tokens)}")
        if end <= self.kv:
            return False
        if start != self.kv:
            raise ValueError(f"context {self.cid}: computed {start}..{end}, on record {self.kv}")
        slide = self.goal.slide if kind == SHIFT and self.goal else None
        if kind == SHIFT and slide is None:
            raise ValueError(f"context {self.cid}: shifted at {start} unasked")
        runs.extend(self.history, kind, start, end, grid, slide)
        self.kv = end
        return True

    def work(self, held: int) -> list[Run]:
        """Return what a worker that holds the first `held` positions has yet to compute.

        First what was computed before and is lost, in the way it was computed, then what is new:
        the prompt by prefill, what was sampled by decode.
        """
        work = runs.after(self.history, held)
        start, end = max(self.kv, held), len(self.tokens)
        prompt = min(self.goal.prompt_len - self.goal.sampled, end) if self.goal else end
        slide = self.goal.slide if self.goal else None
        cells = start - runs.gone(self.history)
        new = runs.plan(PREFILL, start, prompt, cells, slide)
        cells += max(0, prompt - start) - runs.gone(new)
        return work + new + runs.plan(DECODE, max(start, prompt), end, cells, slide)

    def reopen(self, grid: int) -> int:
        """Leave something to compute: the logits after the last token are wanted once more.

        Returns how many tokens at the end are to be decoded, being sampled ones: 0 or 1. What was
        computed already is taken off the record as far as it has to be computed again.
        """
        last = self.kv - 1
        if self.kv < len(self.tokens):
            return int(self.kv + 1 == len(self.tokens) and self.kv > 0)
        run = self.history[-1]
        start = max(run.start, last // grid * grid) if run.kind == PREFILL else last
        self.history, self.kv = runs.cut(self.history, start), start
        return int(run.kind != PREFILL)

    def cells(self, kv: int) -> int:
        """How many cells the KV of the first `kv` positions takes: fewer after shifts."""
        return kv - sum(run.gone for run in self.history if run.start < kv)

    @property
    def length(self) -> int:
        """Tokens in its window, computed or not."""
        return len(self.tokens) - runs.gone(self.history)

    def asked(self, now: float) -> None:
        """Note that its agent wants it again, at this time (monotonic seconds)."""
        if self.used:
            passed = max(0.0, now - self.used)
            self.gap = (self.gap + passed) / 2 if self.gap else passed

    def take_back(self, tokens: list[int], history: list[Run], grid: int) -> None:
        """Make it what it was, or might become: snapshots keep what they have in common with it."""
        same = runs.common(self.history, history, grid)
        for at, (one, other) in enumerate(zip(self.tokens, tokens, strict=False)):
            if one != other:
                same = min(same, at)
                break
        same = min(same, len(tokens), len(self.tokens))
        for snapshot in self.snapshots:
            shifted = self.cells(snapshot.kv) - self.cells(same) != snapshot.kv - same
            snapshot.kv = 0 if snapshot.kv > same and shifted else min(snapshot.kv, same)
        self.tokens, self.history = list(tokens), list(history)
        self.kv = history[-1].end if history else 0

    def restart(self, tokens: list[int]) -> None:
        """Begin anew with these tokens, nothing of which is computed."""
        self.tokens, self.history, self.kv = tokens, [], 0
        for snapshot in self.snapshots:
            snapshot.kv = 0

    @property
    def snapshot(self) -> Snapshot | None:
        """The snapshot to start from: the longest, of equals the one in memory."""
        usable = [s for s in self.snapshots if s.kv and (not s.search or self.wanted > 1)]
        return max(usable, key=lambda s: (s.kv, s.tier == RAM), default=None)

    @property
    def filling(self) -> bool:
        """Whether its prompt is still being computed in its slot."""
        return self.goal is not None and self.slot_kv < self.goal.prompt_len

    @property
    def prefilled(self) -> int:
        """Positions from 0 on that are on record as computed by prefill alone."""
        first = self.history[0] if self.history else None
        return first.end if first and first.kind == PREFILL else 0

    @property
    def resident(self) -> bool:
        """Whether its KV occupies a slot."""
        return self.place is not Place.OUT

    @property
    def settled(self) -> bool:
        """Whether nothing more can come from the worker unasked."""
        return self.place is Place.OUT or self.place is Place.PARKED

    @property
    def wanted(self) -> int:
        """Slots that its goal takes."""
        return self.goal.beams if self.goal else 1

    @property
    def held(self) -> int:
        """Positions on record whose KV is held, in a slot or a snapshot."""
        if self.resident:
            return min(self.slot_kv, self.kv)
        snapshot = self.snapshot
        return min(snapshot.kv, self.kv) if snapshot else 0
