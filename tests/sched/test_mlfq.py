"""Multi-level feedback: levels by what the agent has received, and nobody starves."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd import sched
from aiosd.sched import Plan, mlfq
from aiosd.sched.mlfq import Mlfq
from tests.sched.tiny_core import TinyCore, a_task


def levels(policy: Mlfq) -> dict[int, int]:
    return {row.id: row.level for row in policy.snapshot()}


def test_an_agent_sinks_as_it_receives() -> None:
    core = TinyCore(Mlfq(quantum=4, levels=4), 1)
    core.add(1, 1000, aid=1)
    seen = []
    for _ in range(40):
        core.step()
        seen.append(core.policy.standing(1)[0])
    assert [seen.index(level) + 1 for level in range(4)] == [1, 4, 12, 28]


def test_a_new_request_of_an_old_agent_starts_where_the_agent_is() -> None:
    policy = Mlfq(quantum=4)
    policy.add(a_task(1, aid=1))
    policy.plan(1)
    policy.charge(1, 10, 2)
    policy.remove(1)
    policy.add(a_task(2, aid=1))
    policy.add(a_task(3, aid=3))
    assert levels(policy) == {2: 2, 3: 0}
    assert policy.plan(1) == Plan((), (3,))


def test_a_long_prompt_waits_for_short_ones() -> None:
    policy = Mlfq(quantum=4)
    policy.add(a_task(1, prompt=20, aid=1))
    policy.add(a_task(2, prompt=2, aid=2))
    assert levels(policy) == {1: 2, 2: 0}
    assert policy.plan(1) == Plan((), (2,))
    policy.remove(2)
    policy.plan(1)
    policy.charge(1, 16, 0)
    assert levels(policy) == {1: 2}, "what it needs is the same, however far it has come"
    policy.charge(1, 4, 9)
    assert levels(policy) == {1: 3}


def test_what_another_has_computed_makes_a_prompt_no_longer() -> None:
    policy = Mlfq(quantum=4)
    policy.add(a_task(1, prompt=20, aid=1))
    policy.add(a_task(2, prompt=20, aid=2))
    policy.spare(2, 18)
    assert levels(policy) == {1: 2, 2: 0}
    assert policy.plan(1) == Plan((), (2,))
    policy.spare(2, 18)
    policy.charge(2, 0, 4)
    assert levels(policy) == {1: 2, 2: 1}


def test_many_requests_at_once_sink_together() -> None:
    core = TinyCore(Mlfq(quantum=4), 1)
    for id in range(5):
        core.add(id, 100, aid=1)
    core.add(9, 4, aid=9)
    for _ in range(9):
        core.step()
    assert 9 not in core.known, "it had to wait for one quantum of the agent's, not for five"


def test_a_newcomer_preempts_and_the_preempted_keeps_its_quantum() -> None:
    policy = Mlfq(quantum=4)
    policy.add(a_task(1, aid=1))
    policy.plan(1)
    policy.charge(1, 0, 4)
    policy.plan(1)
    policy.charge(1, 0, 3)
    policy.add(a_task(2, aid=2))
    assert policy.plan(1) == Plan((1,), (2,))
    assert policy.used(1) == 3


def test_nice_makes_an_agent_sink_slower_or_faster() -> None:
    policy = Mlfq(quantum=64)
    for id, nice in enumerate((-10, 0, 10)):
        policy.add(a_task(id, nice=nice, aid=id))
    policy.plan(3)
    for id in range(3):
        policy.charge(id, 0, 64)
    assert levels(policy) == {0: 0, 1: 1, 2: 3}


def test_what_was_long_ago_counts_less() -> None:
    policy = Mlfq(quantum=4, boost=100)
    policy.add(a_task(1, aid=1))
    policy.add(a_task(2, aid=2))
    policy.plan(2)
    policy.charge(1, 0, 90)
    policy.remove(1)
    policy.charge(2, 0, 1000)
    policy.add(a_task(3, aid=1))
    assert levels(policy)[3] == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(10, 60), st.integers(0, 12))
def test_starvation_bound(slots: int, quantum: int, boost: int, others: int) -> None:
    """Boost tokens, and a first quantum (and a slice) for each that is ahead in the first level."""
    grid = 4
    core = TinyCore(Mlfq(quantum=quantum, boost=boost), slots, grid)
    core.add(0, 1000, aid=0)
    for _ in range(200):
        core.step()  # the agent has sunk to the bottom
    core.remove(0)
    for id in range(1, others + slots + 1):
        core.add(id, 100, prompt=100, aid=id)
    core.step()
    core.add(0, 0, aid=0)
    computed, ahead = 0, len(core.known)
    while core.plan().start != (0,) and 0 not in core.held:
        before = sum(work.got for work in core.work.values())
        core.step()
        newcomer = len(core.work) + 1000
        core.add(newcomer, 50, aid=newcomer)  # there are always agents that had nothing yet
        if computed < boost:
            ahead = len(core.known)
        computed += sum(work.got for work in core.work.values()) - before
        assert computed <= boost + slots * grid + ahead * (quantum + grid)


def test_what_is_kept_of_those_who_left_is_bounded() -> None:
    policy = Mlfq(quantum=4)
    for id in range(mlfq.REMEMBERED + 100):
        policy.add(a_task(id, aid=id))
        policy.remove(id)
    assert len(policy._agents) == len(policy._idle) == mlfq.REMEMBERED
    assert not policy._since


@pytest.mark.parametrize("options", [{"levels": 0}, {"levels": 33}, {"boost": 0}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(OSError, match=next(iter(options))) as caught:
        sched.make("mlfq", **options)
    assert caught.value.errno == errno.EINVAL
