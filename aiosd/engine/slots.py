"""Which slot a sequence sits in. Pure: no device, no clock.

llama.cpp decodes rows in one batch only when their slots are consecutive and ascending, so the
sequences that decode must form one block; all others may sit anywhere. A block of fewer sequences
than `low` begins at slot 0, where the runner can add the rows that are missing. A copy of a
sequence's KV costs time in proportion to its length: the plan is the one that copies the fewest
tokens.

`Slots` holds the occupants by number of slot; whoever carries out a plan tells it so step by step
with `move` and `swap`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """Bring the sequence in slot `source` to slot `target`; swap says that target is occupied."""

    source: int
    target: int
    swap: bool


class Slots:
    """The occupants of a core's slots: cid or None by slot number."""

    def __init__(self, count: int, low: int = 1) -> None:
        """count: number of slots; low: rows that a batch should have at least."""
        self._low = low
        self.occupants: list[int | None] = [None] * count

    def free(self) -> list[int]:
        """The empty slots, ascending."""
        return [slot for slot, cid in enumerate(self.occupants) if cid is None]

    def placed(self) -> list[tuple[int, int]]:
        """(cid, slot) of every resident sequence, by slot."""
        return [(cid, slot) for slot, cid in enumerate(self.occupants) if cid is not None]

    def place(self, cid: int, running: Collection[int]) -> int | None:
        """Give a newcomer the free slot from which it joins `running` (cids) at the least cost.

        Returns the slot, or None when all are taken.
        """
        best: tuple[int, int] | None = None
        for slot in self.free():
            self.occupants[slot] = cid
            cost = self._cheapest({*running, cid}, _one)[0]
            self.occupants[slot] = None
            if best is None or (cost, slot) < best:
                best = (cost, slot)
        if best is None:
            return None
        self.occupants[best[1]] = cid
        return best[1]

    def plan(self, running: Collection[int], size: Callable[[int], int]) -> list[Change]:
        """The cheapest changes after which `running` (cids) occupy consecutive slots.

        size(cid) is what copying that sequence costs. The changes touch different slots each, so
        their order does not matter.
        """
        _, start = self._cheapest(running, size)
        if start is None:
            return []
        window = range(start, start + len(running))
        inside = set(running)
        sources = [s for s, cid in enumerate(self.occupants) if cid in inside and s not in window]
        targets = [s for s in window if self.occupants[s] not in inside]
        return [
            Change(source, target, self.occupants[target] is not None)
            for source, target in zip(sources, targets, strict=True)
        ]

    def apply(self, change: Change) -> None:
        """Record that a change was carried out."""
        a, b = change.source, change.target
        self.occupants[a], self.occupants[b] = self.occupants[b], self.occupants[a]

    def remove(self, cid: int) -> None:
        """A sequence has left its slot."""
        self.occupants[self.occupants.index(cid)] = None

    def _cheapest(
        self, running: Collection[int], size: Callable[[int], int]
    ) -> tuple[int, int | None]:
        """(cost, first slot) of the window of consecutive slots that is cheapest to fill.

        Every member outside the window comes in once, and every stranger inside goes out once:
        no plan for that window copies less.
        """
        inside, width = set(running), len(running)
        if not width:
            return 0, None
        weights = [0 if cid is None else size(cid) for cid in self.occupants]
        members = [cid in inside for cid in self.occupants]
        total = sum(w for w, member in zip(weights, members, strict=True) if member)
        best: tuple[int, int | None] = (-1, None)
        for start in range(len(self.occupants) - width + 1 if width >= self._low else 1):
            span = range(start, start + width)
            cost = total + sum(-weights[s] if members[s] else weights[s] for s in span)
            if best[1] is None or cost < best[0]:
                best = (cost, start)
        return best


def _one(cid: int) -> int:
    return 1
