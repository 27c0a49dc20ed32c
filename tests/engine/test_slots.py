"""Placement: the running sequences end up side by side, and no cheaper way exists."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from aiosd.engine.slots import Slots


def cost(cid: int) -> int:
    return 1 + cid % 3


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Slots, list[int]]:
    count = draw(st.integers(1, 6))
    slots = Slots(count)
    slots.occupants = [
        cid if keep else None
        for cid, keep in enumerate(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    ]
    residents = [cid for cid in slots.occupants if cid is not None]
    running = [cid for cid in residents if draw(st.booleans())]
    return slots, running


def consecutive(slots: Slots, running: list[int]) -> bool:
    taken = sorted(slots.occupants.index(cid) for cid in running)
    return not taken or taken == list(range(taken[0], taken[0] + len(taken)))


def cheapest(slots: Slots, running: list[int]) -> int:
    """By trying every arrangement: what the sequences cost that must leave their slot."""
    best = 10**6
    for after in permutations(slots.occupants):
        trial = Slots(len(after))
        trial.occupants = list(after)
        if consecutive(trial, running):
            moved = (a for a, b in zip(after, slots.occupants, strict=True) if a != b)
            best = min(best, sum(cost(cid) for cid in moved if cid is not None))
    return best


@given(layouts())
def test_a_plan_makes_the_running_consecutive_at_the_least_cost(
    layout: tuple[Slots, list[int]],
) -> None:
    slots, running = layout
    least, spent = cheapest(slots, running), 0
    before = sorted(cid for cid in slots.occupants if cid is not None)
    for change in slots.plan(running, cost):
        moved = [slots.occupants[change.source], slots.occupants[change.target]]
        assert moved[0] in running
        assert change.swap == (moved[1] is not None)
        spent += sum(cost(cid) for cid in moved if cid is not None)
        slots.apply(change)
    assert consecutive(slots, running)
    assert spent == least
    assert sorted(cid for cid in slots.occupants if cid is not None) == before
    assert slots.plan(running, cost) == []


@given(layouts())
def test_a_newcomer_gets_a_free_slot_or_none(layout: tuple[Slots, list[int]]) -> None:
    slots, running = layout
    free = slots.free()
    slot = slots.place(99, running)
    assert slot in free if free else slot is None
    assert (99 in slots.occupants) == bool(free)


def test_a_newcomer_sits_beside_those_that_run() -> None:
    slots = Slots(8)
    slots.occupants = [None, None, None, 1, 2, None, 3, None]
    assert slots.place(9, [1, 2]) in (2, 5)
    assert slots.free() and slots.placed()[0][1] in (2, 3)


def test_an_empty_neighbour_is_taken_before_a_swap() -> None:
    slots = Slots(4)
    slots.occupants = [1, None, 2, 7]
    assert [c.swap for c in slots.plan([1, 2], lambda cid: 1)] == [False]
