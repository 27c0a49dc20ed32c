"""A gang: the slots of one beam search, one for each branch that lives.

To the loop a `Seat` looks like a sequence that decodes: it has a slot, tokens, and a position. The
prompt is computed once, in the leader's slot; from then on a branch that goes on in two ways is a
copy of a slot. Seats never share a number with a sequence: the first has its context's id, the
others negative ones.

What must hold: `seats[i]` holds the KV of the search's live branch i, all but its last token.
"""

from __future__ import annotations

from collections.abc import Callable

from aiosd.engine.beams import Branch, Option, Search, Tree
from aiosd.engine.protocol import DECODE, Beam, Slide
from aiosd.engine.runner import Runner
from aiosd.engine.sequence import Sequence

MOST_BEAMS = 64


class Seat:
    """One slot of a gang. found: how its branch may go on, once that was computed."""

    def __init__(self, cid: int, gang: Gang, slot: int) -> None:
        self.cid = cid
        self.gang = gang
        self.slot = slot
        self.tokens: list[int] = []
        self.kv = 0
        self.found: list[Option] | None = None
        self.shifted: Slide | None = None

    @property
    def cells(self) -> int:
        """Cells of its slot that are taken."""
        return max(0, self.kv - self.gang.gone)

    def shift(self) -> Slide | None:
        """A search never shifts: it ends where the window is full."""
        return None

    def advance(self, end: int, grid: int) -> int:
        """Positions up to `end` have been computed."""
        self.kv = end
        return DECODE


class Gang:
    """The seats of a leader, and the search that they are in. alive: it still has its slots."""

    def __init__(self, leader: Sequence, slots: list[int], n_ctx: int) -> None:
        """slots: the leader's, then those of the others."""
        self.leader = leader
        self.alive = True
        self.gone = 0  # positions of the prompt that have no cell any more
        self.seats = [
            Seat(seat_id(leader.cid, number), self, slot) for number, slot in enumerate(slots)
        ]
        self._n_ctx = n_ctx
        self.search: Search | None = None

    @property
    def begun(self) -> bool:
        """Whether the prompt is read and the search is on."""
        return self.search is not None

    @property
    def tree(self) -> Tree:
        """All that the search knows."""
        assert self.search is not None
        return self.search.tree

    @property
    def sitting(self) -> list[Seat]:
        """The seats of the live branches."""
        assert self.search is not None
        return self.seats[: len(self.search.live)]

    def begin(self, options: list[Option], runner: Runner) -> bool:
        """Start from what may follow the prompt; returns whether that was all already."""
        self._open(None)
        return self._grow([options], runner)

    def resume(self, tree: Tree) -> None:
        """Be in the middle of a search; the seats hold its live branches."""
        self._open(tree)
        self._seat()

    def step(self, runner: Runner) -> bool:
        """Go one token on, once each seat has its options; returns whether the search is over."""
        options = [seat.found for seat in self.sitting]
        if any(found is None for found in options):
            return False
        return self._grow([found or [] for found in options], runner)

    def results(self, piece: Callable[[int], bytes]) -> list[Beam]:
        """What was found, the best first."""
        assert self.search is not None
        return [_beam(branch, piece) for branch in self.search.best()]

    def _open(self, tree: Tree | None) -> None:
        goal = self.leader.goal
        self.gone = self.leader.kv - self.leader.cells
        most = min(goal.max_tokens - len(goal.said), self._n_ctx - self.leader.cells)
        self.search = Search(len(self.seats), most, tree)

    def _grow(self, options: list[list[Option]], runner: Runner) -> bool:
        assert self.search is not None
        parents = self.search.grow(options, runner.is_eog)
        if self.search.done:
            return True
        self._deal(parents, runner)
        self._seat()
        return False

    def _deal(self, parents: list[int], runner: Runner) -> None:
        """Give each branch a seat: its parent's for the first child, a copy for the others."""
        kept = {parent: self.seats[parent] for parent in parents}
        free = [seat for number, seat in enumerate(self.seats) if number not in kept]
        dealt: list[Seat] = []
        for parent in parents:
            seat = kept.pop(parent, None)
            if seat is None:
                seat = free.pop()
                runner.copy(self.seats[parent].slot, seat.slot)
            dealt.append(seat)
        self.seats = dealt + free

    def _seat(self) -> None:
        """Let each seat know its branch's tokens, the last of which is to be decoded."""
        assert self.search is not None
        for seat, branch in zip(self.sitting, self.search.live, strict=True):
            seat.tokens = self.leader.tokens + branch.tokens
            seat.kv, seat.found = len(seat.tokens) - 1, None


def seat_id(cid: int, number: int) -> int:
    """The number by which a seat is known: the context's own for the first one."""
    return -(cid * MOST_BEAMS + number) if number else cid


def _beam(branch: Branch, piece: Callable[[int], bytes]) -> Beam:
    text = b"".join(piece(token) for token in branch.tokens).decode("utf-8", "replace")
    return Beam(branch.tokens, branch.logprobs, branch.score, text, branch.finish)
