"""Fair shares: by nice, by group, with a bound on what anyone is ahead or behind."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd import sched
from aiosd.sched import shares
from aiosd.sched.due import Parties
from aiosd.sched.fair import CREDIT, Fair
from aiosd.sched.weights import weight
from tests.sched.tiny_core import TinyCore, a_task

MUCH = 1_000_000


def backlogged(policy: sched.Policy, nices: list[int], slots: int = 1, grid: int = 1) -> TinyCore:
    """A core with an agent for each nice, with one endless request."""
    core = TinyCore(policy, slots, grid)
    for aid, nice in enumerate(nices):
        core.add(aid, MUCH, nice=nice, aid=aid)
    return core


def got(core: TinyCore, *ids: int) -> int:
    return sum(core.work[id].got for id in ids)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 16),
    st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 300)), min_size=2, max_size=6),
)
def test_two_backlogged_agents_are_never_far_apart(
    quantum: int, grid: int, agents: list[tuple[int, int]]
) -> None:
    core = TinyCore(Fair(quantum=quantum), 1, grid)
    for aid, (nice, prompt) in enumerate(agents):
        core.add(aid, MUCH, prompt, nice, aid)
    weights = [weight(nice) for nice, _ in agents]
    for _ in range(400):
        core.step()
        for a, b in itertools.combinations(range(len(agents)), 2):
            gap = abs(got(core, a) / weights[a] - got(core, b) / weights[b])
            assert gap <= (quantum + grid - 1) / min(weights[a], weights[b]) + 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 16), st.integers(0, 64), st.lists(st.integers(0, 80), max_size=40))
def test_one_who_comes_and_goes_gains_no_more_than_the_credit(
    quantum: int, credit: int, naps: list[int]
) -> None:
    core = backlogged(Fair(quantum=quantum, credit=credit), [0, 0])
    core.add(2, MUCH, aid=2)
    for nap in naps:
        core.step()
        core.remove(2)
        for _ in range(nap):
            core.step()
        before = got(core, 0), got(core, 2)
        core.add(2, 0, aid=2)
        for _ in range(3 * (credit + quantum)):
            core.step()
        gain = got(core, 2) - before[1] - (got(core, 0) - before[0])
        assert gain <= credit + 2 * quantum


@pytest.mark.parametrize("slots", [1, 3])
def test_shares_by_nice(slots: int) -> None:
    nices = [0, 0, 1, 2, 3, 3, 5, -1, -2]
    core = backlogged(Fair(quantum=8), nices, slots)
    for _ in range(6000):
        core.step()
    total = sum(weight(nice) for nice in nices)
    for aid, nice in enumerate(nices):
        due = weight(nice) / total * 6000 * slots
        assert got(core, aid) == pytest.approx(due, rel=0.05)


@pytest.mark.parametrize(("groups", "due"), [(True, 1 / 2), (False, 1 / 11)])
def test_a_user_with_many_agents(groups: bool, due: float) -> None:
    core = TinyCore(Fair(quantum=8, groups=groups), 1)
    core.add(0, MUCH, aid=1, uid=1)
    for id in range(1, 11):
        core.add(id, MUCH, aid=id + 1, uid=2)
    for _ in range(4400):
        core.step()
    assert got(core, 0) == pytest.approx(4400 * due, rel=0.05)
    for id in range(1, 11):
        assert got(core, id) == pytest.approx(4400 * (1 - due) / 10, rel=0.08)


def test_a_named_group_shares_across_users() -> None:
    policy = Fair(quantum=1)
    for id, uid in enumerate((1, 2)):
        policy.add(sched.Task(id, id, 0, uid, 0, group="team"))
    policy.add(sched.Task(2, 2, 0, 3, 0))
    counts = [0, 0, 0]
    for _ in range(400):
        policy.plan(1)
        (id,) = policy.running
        counts[id] += 1
        policy.charge(id, 0, 1)
    assert counts[2] == pytest.approx(200, abs=3)


def test_groups_and_users_have_weights() -> None:
    policy = Fair(quantum=8, members={1: "lab", 2: "lab"}, weights={"lab": 3, 4: 0.5})
    core = TinyCore(policy, 1)
    for id, uid in enumerate((1, 1, 2, 3, 4)):
        core.add(id, MUCH, aid=id, uid=uid)
    for _ in range(4500):
        core.step()
    assert got(core, 0, 1, 2) == pytest.approx(3000, rel=0.05)
    assert [got(core, id) for id in range(3)] == [pytest.approx(1000, rel=0.05)] * 3
    assert got(core, 3) == pytest.approx(1000, rel=0.05)
    assert got(core, 4) == pytest.approx(500, rel=0.05)


def test_an_agent_with_many_requests_gets_no_more() -> None:
    core = TinyCore(Fair(quantum=4), 1)
    core.add(0, MUCH, aid=1)
    for id in range(1, 6):
        core.add(id, MUCH, aid=2)
    for _ in range(1000):
        core.step()
    assert got(core, 0) == pytest.approx(500, abs=4)
    assert [got(core, id) for id in range(1, 6)] == [pytest.approx(100, abs=4)] * 5


def test_costs_say_what_a_token_counts() -> None:
    core = TinyCore(Fair(quantum=64, prefill_cost=0.5), 1, grid=16)
    core.add(0, MUCH, prompt=MUCH, aid=0)
    core.add(1, MUCH, aid=1)
    for _ in range(2000):
        core.step()
    assert got(core, 0) == pytest.approx(2 * got(core, 1), rel=0.1)


def test_one_who_comes_takes_a_slot_at_once() -> None:
    core = backlogged(Fair(quantum=64, period=0), [0] * 4, slots=2)
    for _ in range(1000):
        core.step()
    core.add(9, 10, aid=9)
    assert core.plan().start == (9,)
    assert core.policy.rank(9) < min(core.policy.rank(id) for id in core.held - {9})


def test_no_churn_among_equals() -> None:
    core = backlogged(Fair(quantum=64, period=0), [0] * 4, slots=2)
    for _ in range(64 * 10):
        core.step()
    assert core.stops <= 2 * 10


@pytest.mark.parametrize(("agents", "quantum"), [(2, 64), (3, 8), (8, 4), (40, 4)])
def test_quanta_get_shorter_the_more_requests_there_are(agents: int, quantum: int) -> None:
    core = backlogged(Fair(quantum=64, period=12), [0] * agents, slots=2)
    core.step()
    (first, _) = sorted(core.policy.running)
    while first in core.policy.running and core.work[first].got < 64:
        core.step()
    assert core.work[first].got == (quantum if agents > 2 else 64)


def test_what_is_kept_of_those_who_left_is_bounded() -> None:
    policy = Fair(quantum=8)
    policy.add(a_task(0, aid=0))
    policy.plan(1)
    for id in range(1, 4 * shares.REMEMBERED):
        policy.add(a_task(id, aid=id, uid=id % 3))
        policy.plan(2)
        policy.charge(id, 0, 500 + id)
        policy.remove(id)
    root = policy._root
    groups = list(root._children.values())
    assert root.remembered <= shares.REMEMBERED
    assert sum(group.remembered for group in groups) <= shares.REMEMBERED + 8
    policy.remove(0)
    assert not any(group.remembered for group in root._children.values())


def test_standing_tells_who_is_ahead() -> None:
    policy = Fair(quantum=4)
    policy.add(a_task(1, aid=1))
    policy.plan(1)
    policy.charge(1, 0, 4)
    policy.add(a_task(2, aid=2))
    assert [row.virtual for row in policy.snapshot()] == [4.0, 0.0]
    assert CREDIT > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_the_first_in_order_is_the_next_to_start(
    quantum: int, tasks: list[tuple[int, int]]
) -> None:
    core = TinyCore(Fair(quantum=quantum), 1)
    for id, (aid, uid) in enumerate(tasks):
        core.add(id, 30, aid=aid + 10 * uid, uid=uid)
        core.step()
    while core.known:
        head = next(iter(core.policy.order()), None)
        started = core.plan().start
        assert not started or started[0] == head
        core.step()


def test_what_is_due() -> None:
    tasks = [a_task(0, aid=1, uid=1), a_task(1, aid=2, uid=1), a_task(2, aid=2, uid=1)]
    tasks += [a_task(3, aid=3, uid=2, nice=5), a_task(4, aid=4, uid=3)]
    by_user = Parties(members={2: "lab", 3: "lab"}, weights={"lab": 3}).due(tasks)
    assert {1: by_user[1], 2: by_user[2]} == {1: 1 / 8, 2: 1 / 8}
    assert by_user[3] / by_user[4] == pytest.approx(weight(5))
    assert sum(by_user.values()) == pytest.approx(1)
    by_agent = Parties(groups=False).due(tasks)
    assert by_agent[1] == by_agent[2] == by_agent[4] == pytest.approx(1 / (3 + weight(5)))
    assert Parties().due([]) == {}
