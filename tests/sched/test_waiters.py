"""Work that others wait for counts for as much as they do: no inversion."""

from __future__ import annotations

import errno

import pytest

from aiosd import sched
from aiosd.sched import Policy, Task
from tests.sched.tiny_core import TinyCore


def waiter(id: int, *on: int, nice: int = 0, aid: int = 0) -> Task:
    return Task(id, aid or id, nice, 1000, 0, waits_for=on)


def steps_until_done(name: str, wait: Task | None) -> int:
    """How long a request of nice 19 takes beside five of nice 0, when somebody waits for it."""
    core = TinyCore(sched.make(name, quantum=4), 1)
    core.add(1, 20, nice=19, aid=1)
    for _ in range(6):
        core.step()
    for id in range(2, 7):
        core.add(id, 2000, aid=id)
    for _ in range(10):
        core.step()
    if wait is not None:
        core.policy.wait(wait)
    step = 0
    while 1 in core.known and step < 3000:
        core.step()
        step += 1
    return step


@pytest.mark.parametrize("name", ["priority", "mlfq", "fair"])
def test_no_inversion(name: str) -> None:
    alone = steps_until_done(name, None)
    helped = steps_until_done(name, waiter(9, 1, nice=-10))
    assert alone > 250
    assert helped <= 14 + 20, "what it had left, and a quantum of those it found"


@pytest.mark.parametrize("name", ["priority", "mlfq", "fair"])
def test_it_reaches_through_those_who_wait_themselves(name: str) -> None:
    core = TinyCore(sched.make(name, quantum=4), 1)
    for id in range(2, 7):
        core.add(id, 2000, aid=id)
    for _ in range(200):
        core.step()
    core.policy.wait(waiter(8, 1, nice=19))
    core.policy.wait(waiter(9, 8, nice=-10))
    core.add(1, 8, nice=19, aid=1)  # comes when it is waited for already
    for _ in range(12):
        core.step()
    assert 1 not in core.known


def test_fair_charges_who_waits() -> None:
    core = TinyCore(sched.make("fair", quantum=4), 1)
    core.add(1, 100_000, nice=10, aid=1)
    core.add(2, 100_000, aid=2)
    core.policy.wait(waiter(9, 1, aid=3))
    for _ in range(1000):
        core.step()
    assert core.work[1].got == pytest.approx(1000 * (1 + 0.107) / (2 + 0.107), rel=0.05)


@pytest.mark.parametrize("name", ["priority", "mlfq", "fair"])
def test_what_was_lent_is_taken_back(name: str) -> None:
    core = TinyCore(sched.make(name, quantum=4), 1)
    core.add(1, 1000, nice=19, aid=1)
    core.add(2, 1000, aid=2)
    core.policy.wait(waiter(9, 1, nice=-20))
    for _ in range(40):
        core.step()
    assert core.work[1].got > core.work[2].got
    core.policy.unwait(9)
    before = core.work[1].got
    for _ in range(60):
        core.step()
    if name != "mlfq":  # there the agent that has had little is first anyway
        assert core.work[1].got - before <= 4
    assert not list(core.policy.waiting)


@pytest.mark.parametrize("name", sorted(sched.POLICIES))
def test_the_books_of_those_who_wait(name: str) -> None:
    policy: Policy = sched.make(name)
    policy.wait(waiter(2, 1))
    policy.wait(waiter(3, 2, 1))
    assert len(policy) == 0
    assert 2 not in policy
    with pytest.raises(OSError, match="itself") as caught:
        policy.wait(waiter(1, 3))
    assert caught.value.errno == errno.EDEADLK
    with pytest.raises(OSError, match="itself"):
        policy.wait(waiter(5, 5))
    with pytest.raises(ValueError, match="already"):
        policy.wait(waiter(2, 1))
    with pytest.raises(ValueError, match="waits"):
        policy.add(waiter(2, 1))
    with pytest.raises(KeyError):
        policy.unwait(7)
    policy.add(waiter(1))
    with pytest.raises(ValueError, match="here"):
        policy.wait(waiter(1, 3))
    policy.plan(1)
    policy.renice(2, -7)
    other = sched.change(policy, "priority")
    assert [task.id for task in other.waiting] == [3, 2]
    assert [row.level for row in other.snapshot()] == [13]
    assert policy.unwait(2).nice == -7
    policy.unwait(3)
    policy.add(waiter(2))
    policy.remove(1)
    assert policy.plan(1).start == (2,)
