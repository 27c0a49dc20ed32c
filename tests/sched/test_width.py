"""Tasks that need several slots at once: all or none, no starvation, no idle slots."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd import sched
from aiosd.sched import Plan, Task
from tests.sched.tiny_core import TinyCore, a_task

MUCH = 100_000
PREEMPTIVE = sorted(set(sched.POLICIES) - {"fifo"})


def wide(core: TinyCore, id: int, width: int, decode: int = MUCH) -> None:
    core.add(id, decode, aid=id, width=width)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(PREEMPTIVE),
    st.integers(2, 6),
    st.integers(1, 12),
    st.integers(0, 60),
    st.data(),
)
def test_it_starts_within_the_quanta_of_those_that_it_found(
    name: str, slots: int, quantum: int, before: int, data: st.DataObject
) -> None:
    """Though as many as the core has slots come and go beside it all the time."""
    core = TinyCore(sched.make(name, quantum=quantum), slots)
    for id in range(slots):
        core.add(id, MUCH, aid=id)
    for _ in range(before):
        core.step()
    width = data.draw(st.integers(2, slots))
    wide(core, 999, width)
    level = core.policy.standing(0)[0]
    limit = quantum << (level + 1) if name == "mlfq" else 2 * quantum
    for step in range(limit + 2):
        if 999 in core.policy.running:
            return
        core.add(1000 + step, 1, aid=1000 + step, nice=5)
        core.step()
    pytest.fail(f"{name}: not started in {limit} steps")


@pytest.mark.parametrize("name", PREEMPTIVE)
def test_slots_that_come_free_meanwhile_are_lent(name: str) -> None:
    core = TinyCore(sched.make(name, quantum=64), 4)
    for id in range(4):
        core.add(id, MUCH, aid=id)
    core.step()
    wide(core, 9, 4)
    core.add(10, MUCH, aid=10, nice=1)
    core.remove(3)
    core.plan()
    assert core.held == {0, 1, 2, 10}
    while 9 not in core.held:
        core.step()
    assert core.held == {9}
    assert set(core.policy.order()) == {0, 1, 2, 10}


def test_the_lent_come_back_behind_the_one_they_made_way_for() -> None:
    core = TinyCore(sched.make("priority", quantum=8), 3)
    for id in range(3):
        core.add(id, MUCH)
    core.step()
    wide(core, 9, 3)
    core.add(10, MUCH)
    core.remove(2)
    core.plan()
    assert core.held == {0, 1, 10}
    core.add(11, 2, nice=-5)
    core.plan()
    assert core.held == {0, 1, 11}
    assert list(core.policy.order()) == [9, 10]


def test_fifo_keeps_slots_empty_until_enough_have_ended() -> None:
    core = TinyCore(sched.make("fifo"), 3)
    for id, decode in enumerate((2, 4, 6)):
        core.add(id, decode)
    wide(core, 9, 2, decode=5)
    core.add(10, 5)
    for _ in core.run():
        pass
    assert (core.started, core.stops) == ([0, 1, 2, 9, 10], 0)


@pytest.mark.parametrize("name", sorted(sched.POLICIES))
def test_two_that_can_not_run_together_both_end(name: str) -> None:
    core = TinyCore(sched.make(name, quantum=4), 4)
    for id in (1, 2, 3):
        wide(core, id, 3, decode=30)
    core.add(4, 200, aid=4)
    assert max(core.run()) < 300


@pytest.mark.parametrize("name", sorted(sched.POLICIES))
def test_one_wider_than_the_core_holds_up_nobody_for_ever(name: str) -> None:
    core = TinyCore(sched.make(name, quantum=4), 2)
    wide(core, 1, 3, decode=5)
    for id in (2, 3):
        core.add(id, 20, aid=id)
    for _ in range(25):
        core.step()
    assert core.known == {1}
    core.slots = 3
    core.step()
    assert core.held == {1}


@pytest.mark.parametrize("name", sorted(sched.POLICIES))
def test_change_keeps_widths(name: str) -> None:
    policy = sched.make("rr")
    policy.add(Task(1, 1, 0, 0, 0, width=3))
    policy.add(Task(2, 2, 0, 0, 0, width=2))
    policy.plan(4)
    policy = sched.change(policy, name)
    assert policy.plan(4) == Plan((), ())
    policy.remove(1)
    assert policy.plan(4) == Plan((), (2,))


def test_fair_charges_its_agent_for_all_its_slots() -> None:
    core = TinyCore(sched.make("fair", quantum=8), 4)
    wide(core, 1, 4)
    core.add(2, MUCH, aid=2)
    for _ in range(2000):
        core.plan()
        for id in core.held:
            core.policy.charge(id, 0, core.work[id].width)
            core.work[id].got += core.work[id].width
    assert core.work[1].got == pytest.approx(core.work[2].got, rel=0.05)


def test_width_is_checked() -> None:
    with pytest.raises(ValueError, match="1 slot"):
        a_task(1, width=0)
