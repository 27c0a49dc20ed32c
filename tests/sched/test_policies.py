"""What each policy decides, case by case."""

from __future__ import annotations

import errno

import pytest

from aiosd import sched
from aiosd.sched import Plan, Policy
from tests.sched.tiny_core import a_task


def filled(name: str, nices: dict[int, int], slots: int, quantum: int = 4) -> Policy:
    """A policy that was given tasks (id: nice) in order, and planned once."""
    policy = sched.make(name, quantum=quantum)
    for id, nice in nices.items():
        policy.add(a_task(id, nice))
    policy.plan(slots)
    return policy


def zeros(*ids: int) -> dict[int, int]:
    return dict.fromkeys(ids, 0)


def test_fifo_runs_to_completion_in_order() -> None:
    policy = filled("fifo", {1: 0, 2: -20, 3: 0}, slots=1)
    policy.charge(1, 1000, 1000)
    assert policy.plan(1) == Plan((), ())
    policy.remove(1)
    assert policy.plan(1) == Plan((), (2,))


def test_fifo_keeps_arrival_order_when_slots_go_and_come() -> None:
    policy = filled("fifo", zeros(1, 2, 3, 4), slots=3)
    assert policy.plan(1) == Plan((3, 2), ())
    assert list(policy.order()) == [2, 3, 4]
    assert policy.plan(4) == Plan((), (2, 3, 4))


def test_rr_stops_at_the_end_of_the_quantum_when_someone_waits() -> None:
    policy = filled("rr", zeros(1, 2), slots=1)
    policy.charge(1, 0, 3)
    assert not policy.plan(1)
    policy.charge(1, 0, 1)
    assert policy.plan(1) == Plan((1,), (2,))
    assert policy.used(1) == 0


def test_rr_counts_prompt_tokens() -> None:
    policy = filled("rr", zeros(1, 2), slots=1)
    policy.charge(1, 4, 0)
    assert policy.plan(1) == Plan((1,), (2,))


def test_rr_begins_a_new_quantum_when_nobody_waits() -> None:
    policy = filled("rr", zeros(1), slots=1)
    policy.charge(1, 0, 4)
    assert not policy.plan(1)
    policy.add(a_task(2))
    policy.charge(1, 0, 3)
    assert not policy.plan(1), "the new quantum has a token left"
    policy.charge(1, 0, 1)
    assert policy.plan(1) == Plan((1,), (2,))


def test_rr_stops_only_as_many_as_wait_the_longest_running_first() -> None:
    policy = filled("rr", zeros(1, 2, 3), slots=2)
    turns = []
    for _ in range(3):
        for id in policy.running:
            policy.charge(id, 0, 4)
        turns.append(policy.plan(2))
    assert turns == [Plan((1,), (3,)), Plan((2,), (1,)), Plan((3,), (2,))]


def test_rr_shrinking_leaves_the_rest_of_the_quantum() -> None:
    policy = filled("rr", zeros(1, 2, 3), slots=2)
    policy.charge(2, 0, 3)
    assert policy.plan(1) == Plan((2,), ())
    assert policy.position(2) == 0
    assert policy.used(2) == 3


def test_a_resumed_task_goes_to_the_tail_with_nothing_kept() -> None:
    policy = filled("rr", zeros(1, 2, 3), slots=1)
    policy.charge(1, 0, 3)
    task = policy.remove(1)
    assert policy.plan(1) == Plan((), (2,))
    policy.add(task)
    assert [policy.position(id) for id in (3, 1, 2)] == [0, 1, None]
    assert policy.used(1) == 0


def test_tokens_reported_after_the_stop_count_for_nothing() -> None:
    policy = filled("rr", zeros(1, 2), slots=1)
    policy.charge(1, 0, 4)
    policy.plan(1)
    policy.charge(1, 64, 0)
    assert policy.used(1) == 0


def test_priority_starts_the_best_first() -> None:
    policy = filled("priority", {1: 5, 2: -5, 3: 0}, slots=0)
    assert policy.plan(2) == Plan((), (2, 3))


def test_priority_preempts_the_worst_latest_started() -> None:
    policy = filled("priority", {1: 0, 2: 5, 3: 5}, slots=3)
    policy.charge(3, 0, 1)
    policy.add(a_task(4, -1))
    assert policy.plan(3) == Plan((3,), (4,))
    policy.add(a_task(5, 5))
    assert list(policy.order()) == [3, 5], "the preempted goes before its equals"
    assert policy.used(3) == 1


def test_priority_leaves_equals_alone_within_the_quantum() -> None:
    policy = filled("priority", zeros(1, 2), slots=1)
    assert not policy.plan(1)
    policy.charge(1, 0, 4)
    assert policy.plan(1) == Plan((1,), (2,))


def test_priority_prefers_to_preempt_whose_quantum_is_over() -> None:
    policy = filled("priority", zeros(1, 2), slots=2)
    policy.charge(1, 0, 4)
    policy.add(a_task(3, -1))
    assert policy.plan(2) == Plan((1,), (3,))


def test_priority_worse_ones_wait_though_the_quantum_is_over() -> None:
    policy = filled("priority", {1: 0, 2: 1}, slots=1)
    policy.charge(1, 0, 400)
    assert not policy.plan(1)
    assert policy.used(1) == 0


def test_shrinking_never_restarts_what_it_stops() -> None:
    policy = filled("priority", zeros(1, 2), slots=2)
    policy.charge(1, 0, 4)
    policy.charge(2, 0, 4)
    assert policy.plan(1) == Plan((1,), ())


def test_no_slots_stops_everyone() -> None:
    policy = filled("priority", {1: 0, 2: 3, 3: -3}, slots=3)
    assert policy.plan(0) == Plan((2, 1, 3), ())
    assert policy.plan(3) == Plan((), (3, 1, 2))


def test_renice_of_a_running_task_makes_it_the_victim() -> None:
    policy = filled("priority", {1: 0, 2: 0, 3: 5}, slots=2)
    policy.renice(1, 10)
    assert policy.plan(2) == Plan((1,), (3,))
    assert policy.task(1).nice == 10


def test_renice_of_a_ready_task_preempts() -> None:
    policy = filled("priority", zeros(1, 2), slots=1)
    policy.renice(2, -1)
    assert policy.plan(1) == Plan((1,), (2,))


@pytest.mark.parametrize("name", ["fifo", "rr"])
def test_nice_changes_nothing_in_fifo_and_rr(name: str) -> None:
    policy = filled(name, {1: 0, 2: -20}, slots=1)
    policy.renice(2, -19)
    assert not policy.plan(1)
    assert policy.task(2).nice == -19


def test_rank_orders_prefill_by_nice_then_start() -> None:
    policy = filled("priority", {1: 5, 2: 0, 3: 5, 4: 0}, slots=3)
    assert sorted([1, 2, 4], key=policy.rank) == [2, 4, 1]
    assert policy.rank(3) > policy.rank(1), "ready: as if it started now"


def test_snapshot_shows_running_then_queued() -> None:
    policy = filled("rr", zeros(1, 2, 3), slots=1)
    policy.charge(1, 0, 2)
    rows = [(row.id, row.state, row.used, row.place) for row in policy.snapshot()]
    assert rows == [(1, "R", 2, None), (2, "Q", 0, 0), (3, "Q", 0, 1)]


def test_change_keeps_the_running_on_the_core_and_the_order() -> None:
    old = filled("rr", {1: 5, 2: 0, 3: -5, 4: 5}, slots=2)
    new = sched.change(old, "priority", quantum=8)
    assert set(new.running) == {1, 2}
    assert new.plan(2) == Plan((1,), (3,))
    same = sched.change(filled("rr", zeros(1, 2, 3), slots=1), "fifo")
    assert not same.plan(1)
    assert list(same.order()) == [2, 3]


@pytest.mark.parametrize("name", sorted(sched.POLICIES))
def test_wrong_books_are_refused(name: str) -> None:
    policy = filled(name, zeros(1), slots=1)
    with pytest.raises(ValueError, match="already"):
        policy.add(a_task(1))
    for call in (policy.remove, policy.task, policy.used, policy.rank):
        with pytest.raises(KeyError):
            call(7)
    with pytest.raises(KeyError):
        policy.charge(7, 0, 1)
    with pytest.raises(ValueError, match="slots"):
        policy.plan(-1)
    assert policy.position(7) is None
    assert 7 not in policy


@pytest.mark.parametrize("nice", [-21, 20])
def test_nice_is_bounded(nice: int) -> None:
    with pytest.raises(ValueError, match="nice"):
        a_task(1, nice)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("piority", {}, "did you mean 'priority'"),
        ("zzz", {}, "valid: fifo, rr, priority"),
        ("rr", {"quantun": 3}, "did you mean 'quantum'"),
        ("rr", {"quantum": 0}, "1 token or more"),
    ],
)
def test_make_names_the_nearest(name: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        sched.make(name, **options)
    assert caught.value.errno == errno.EINVAL
