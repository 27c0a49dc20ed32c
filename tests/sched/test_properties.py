"""What holds for every policy, whatever happens: random events on a tiny core."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd import sched
from aiosd.sched import Fair, Task
from tests.sched.tiny_core import TinyCore, a_task

names = st.sampled_from(sorted(sched.POLICIES))
nices = st.integers(-20, 19)
events = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.integers(1, 40), st.integers(0, 200), nices, st.integers(1, 3)
        ),
        st.tuples(st.just("step"), st.integers(1, 12)),
        st.tuples(st.just("suspend"), st.integers(0, 1000)),
        st.tuples(st.just("resume"), st.integers(0, 1000)),
        st.tuples(st.just("renice"), st.integers(0, 1000), nices),
        st.tuples(st.just("wait"), st.integers(0, 1000), nices),
        st.tuples(st.just("unwait"), st.integers(0, 1000)),
        st.tuples(st.just("slots"), st.integers(0, 5)),
        st.tuples(st.just("change"), names),
    ),
    max_size=60,
)


class Machine:
    """Carries out random events on a tiny core."""

    def __init__(self, name: str, quantum: int) -> None:
        self.quantum = quantum
        self.core = TinyCore(sched.make(name, quantum=quantum), slots=2, grid=16)
        self.due: dict[int, int] = {}
        self.suspended: list[int] = []
        self.waiters = 0

    def add(self, decode: int, prompt: int, nice: int, width: int) -> None:
        id = len(self.due) + 1
        self.due[id] = decode + prompt
        self.core.add(id, decode, prompt, nice, aid=id % 7, uid=id % 3, width=width)

    def step(self, times: int) -> None:
        for _ in range(times):
            self.core.step()

    def suspend(self, pick: int) -> None:
        if self.core.known:
            id = sorted(self.core.known)[pick % len(self.core.known)]
            self.core.remove(id)
            self.suspended.append(id)

    def resume(self, pick: int) -> None:
        if self.suspended:
            id = self.suspended.pop(pick % len(self.suspended))
            self.core.add(id, 0)
            assert self.core.policy.used(id) == 0

    def renice(self, pick: int, nice: int) -> None:
        if self.core.known:
            self.core.policy.renice(sorted(self.core.known)[pick % len(self.core.known)], nice)

    def wait(self, pick: int, nice: int) -> None:
        """Somebody comes who waits for a task, or for one that waits itself."""
        ids = [*sorted(self.due), *(task.id for task in self.core.policy.waiting)]
        if ids:
            self.waiters += 1
            on = (ids[pick % len(ids)],)
            task = Task(10_000 + self.waiters, pick % 9, nice, pick % 3, 0, waits_for=on)
            self.core.policy.wait(task)

    def unwait(self, pick: int) -> None:
        waiting = sorted(task.id for task in self.core.policy.waiting)
        if waiting:
            self.core.policy.unwait(waiting[pick % len(waiting)])

    def slots(self, slots: int) -> None:
        self.core.slots = slots

    def change(self, name: str) -> None:
        self.core.policy = sched.change(self.core.policy, name, quantum=self.quantum)

    def finish(self) -> None:
        self.core.slots = 3
        while self.suspended:
            self.resume(0)
        for step in self.core.run():
            assert step <= sum(self.due.values()), "no progress"
        if isinstance(self.core.policy, Fair):
            root = self.core.policy._root
            assert (root.busy, len(root.ready)) == (0, 0), "somebody seems to be here still"


@settings(max_examples=150, deadline=None)
@given(names, st.integers(1, 20), events)
def test_no_task_is_lost_duplicated_or_left_idle(
    name: str, quantum: int, happenings: list[tuple[str, int]]
) -> None:
    machine = Machine(name, quantum)
    for what, *args in happenings:
        getattr(machine, what)(*args)
    machine.finish()
    assert {id: work.got for id, work in machine.core.work.items()} == machine.due


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.data())
def test_rr_starvation_bound(slots: int, quantum: int, data: st.DataObject) -> None:
    """A task at place p starts within (p // slots + 1) quanta of steps."""
    core = TinyCore(sched.make("rr", quantum=quantum), slots, grid=16)
    for id in range(data.draw(st.integers(0, 20))):
        core.add(id, decode=10_000, prompt=data.draw(st.integers(0, 100)))
    for _ in range(data.draw(st.integers(0, 60))):
        core.step()
    core.add(999, decode=10_000)
    place = core.policy.position(999)
    assert place is not None
    for _ in range(quantum * (place // slots + 1)):
        if core.plan() and 999 in core.held:
            break
        core.step()
        core.add(1000 + len(core.work), decode=10_000)  # those who come later don't delay it
    core.plan()
    assert 999 in core.held


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 12))
def test_rr_shares_evenly(slots: int, quantum: int, tasks: int) -> None:
    """Backlogged tasks that decode differ by two quanta at most."""
    core = TinyCore(sched.make("rr", quantum=quantum), slots)
    for id in range(tasks):
        core.add(id, decode=100_000)
    for _ in range(300):
        core.step()
        got = [work.got for work in core.work.values()]
        assert max(got) - min(got) <= 2 * quantum


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(st.integers(1, 30), st.integers(0, 100), nices)))
def test_fifo_starts_in_order_and_never_stops(
    slots: int, tasks: list[tuple[int, int, int]]
) -> None:
    core = TinyCore(sched.make("fifo"), slots)
    for id, (decode, prompt, nice) in enumerate(tasks):
        core.add(id, decode, prompt, nice)
        core.step()
    for _ in core.run():
        pass
    assert core.started == sorted(core.started)
    assert core.stops == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), events)
def test_priority_never_runs_a_worse_while_a_better_waits(
    quantum: int, happenings: list[tuple[str, int]]
) -> None:
    machine = Machine("priority", quantum)
    for what, *args in happenings:
        if what not in ("change", "wait"):
            getattr(machine, what)(*args)
        machine.core.plan()
        policy = machine.core.policy
        running = [policy.task(id) for id in policy.running]
        free = machine.core.slots - sum(task.width for task in running)
        for id in list(policy.order())[:1]:
            head = policy.task(id)
            worse = sum(task.width for task in running if task.nice > head.nice)
            assert not worse or free + worse < head.width


@pytest.mark.parametrize("name", sorted(sched.POLICIES))
def test_a_decision_costs_little_more_among_many(name: str) -> None:
    """Lines of Python run for what happens: from 100 agents to 10,000, log n doubles."""
    few, many = (_lines_per_event(name, agents) for agents in (100, 10_000))
    assert many < 2 * few


def _lines_per_event(name: str, agents: int) -> float:
    """Charge and plan, while agents go and others come; a start or a stop is an event, too."""
    policy = sched.make(name, quantum=1)
    for id in range(agents):
        policy.add(a_task(id, nice=id % 3, aid=id, uid=id % 7))
    policy.plan(8)
    events = 0
    with counting() as lines:
        for id in range(agents, agents + 200):
            for running in list(policy.running):
                policy.charge(running, 0, 1)
            plan = policy.plan(8)
            policy.remove(next(iter(policy.running)))
            policy.add(a_task(id, nice=id % 3, aid=id, uid=id % 7))
            events += 8 + len(plan.stop) + len(plan.start) + 3
    return lines[0] / events


@contextmanager
def counting() -> Iterator[list[int]]:
    """Count the lines of the policies' code that run within a block."""
    lines = [0]

    def line(frame: FrameType, event: str, arg: object) -> Any:
        lines[0] += event == "line"
        return line

    def call(frame: FrameType, event: str, arg: object) -> Any:
        return line if "sched" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield lines
    finally:
        sys.settrace(before)
