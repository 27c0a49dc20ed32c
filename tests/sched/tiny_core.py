"""A core of a few lines to drive policies with: every running task computes at each step.

A task first computes its prompt, up to `grid` tokens a step, then one token a step. What each plan
says is checked against what must hold for every policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aiosd.sched import LOOK, Plan, Policy, Task


def a_task(
    id: int, nice: int = 0, prompt: int = 0, aid: int = 1, uid: int = 1000, width: int = 1
) -> Task:
    return Task(id=id, aid=aid, nice=nice, uid=uid, prompt_tokens=prompt, width=width)


@dataclass
class Work:
    """What is left of a task, and what it got."""

    prompt: int
    decode: int
    got: int = 0
    width: int = 1

    @property
    def left(self) -> int:
        return self.prompt + self.decode


class TinyCore:
    """Runs tasks under a policy; `started` has the ids in the order in which they were started."""

    def __init__(self, policy: Policy, slots: int, grid: int = 64) -> None:
        self.policy = policy
        self.slots = slots
        self.grid = grid
        self.work: dict[int, Work] = {}
        self.held: set[int] = set()  # what is on the core by the plans alone
        self.known: set[int] = set()
        self.started: list[int] = []
        self.stops = 0

    def add(
        self,
        id: int,
        decode: int,
        prompt: int = 0,
        nice: int = 0,
        aid: int = 1,
        uid: int = 1000,
        width: int = 1,
    ) -> None:
        work = self.work.setdefault(id, Work(prompt, decode, width=width))
        self.known.add(id)
        self.policy.add(a_task(id, nice, work.prompt, aid, uid, work.width))

    def remove(self, id: int) -> None:
        self.policy.remove(id)
        self.known.discard(id)
        self.held.discard(id)

    def plan(self) -> Plan:
        plan = self.policy.plan(self.slots)
        assert set(plan.stop) <= self.held
        assert not set(plan.start) & (self.held | set(plan.stop))
        assert len(set(plan.start)) == len(plan.start)
        assert len(set(plan.stop)) == len(plan.stop)
        self.held = self.held - set(plan.stop) | set(plan.start)
        self.started += plan.start
        self.stops += len(plan.stop)
        self.check(plan)
        return plan

    def check(self, plan: Plan) -> None:
        queue = list(self.policy.order())
        assert set(self.policy.running) == self.held
        assert self.held | set(queue) == self.known, "a task was lost"
        assert len(self.held) + len(queue) == len(self.known), "a task is there twice"
        assert len(self.policy) == len(queue)
        free = self.slots - sum(self.work[id].width for id in self.held)
        assert free >= 0, "more than the slots"
        if queue and self.policy.name == "fifo" and self.work[queue[0]].width <= self.slots:
            queue = queue[:1]  # nobody overtakes
        fitting = {id for id in queue if self.work[id].width <= free} if len(queue) <= LOOK else ()
        assert not set(fitting) - set(plan.stop), "not work-conserving"

    def step(self) -> None:
        """Plan, compute once, take off what is finished."""
        self.plan()
        for id in sorted(self.held):
            self._compute(id)

    def _compute(self, id: int) -> None:
        work = self.work[id]
        prefill = min(self.grid, work.prompt)
        decode = 0 if prefill else 1
        work.prompt -= prefill
        work.decode -= decode
        work.got += prefill + decode
        self.policy.charge(id, prefill, decode)
        if not work.left:
            self.remove(id)

    def run(self) -> Iterator[int]:
        """Step until all is done, yielding the step's number."""
        step = 0
        while self.known:
            self.step()
            step += 1
            yield step
